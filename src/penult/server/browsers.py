"""Protection against requests of foreign web pages: DNS rebinding, cross-site requests, forms.

A server on a loopback address without a key trusts the programs of this machine, and the pages that they serve. A browser on
this machine also runs pages from elsewhere. Their requests are recognized by the headers that browsers always send: `Host`,
`Origin` and `Sec-Fetch-Site`.
"""

import re
from collections.abc import Sequence

from starlette.types import Scope

from penult.server.config import ServerConfig, is_loopback
from penult.server.errors import Refusal

# Origins of pages served by this machine, such as a front end in development; allowed unless --allow-origin is set.
LOOPBACK_ORIGIN = re.compile(
    r"https?://(localhost|[a-z0-9-]+(\.[a-z0-9-]+)*\.localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.ASCII | re.IGNORECASE
)
_FORMS = ("application/x-www-form-urlencoded", "multipart/", "text/")  # content types that need no preflight


class BrowserCheck:
    """Refuses requests of foreign web pages.

    Args:
        config: the configuration of the server. `allowed_hosts` is always checked if it is set, the rest only on a loopback
            address without a key.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._local = config.on_loopback and config.api_key is None
        self._hosts = config.allowed_hosts
        self._origins = config.allow_origin

    def check(self, scope: Scope) -> None:
        """Check the headers of a request.

        Raises:
            Refusal: the host or the origin is foreign, or the content type is that of a form.
        """
        if not (self._local or self._hosts):
            return
        hosts, origins, sites, modes, types = (
            _values(scope, name) for name in (b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"content-type")
        )
        for host in hosts:
            self._check_host(host)
        if not self._local:
            return
        for origin in origins:
            if not self._is_allowed(origin) and origin.partition("://")[2] not in hosts:
                raise _foreign(f"The origin {origin[:200]!r} is not allowed.")
        # Browsers send no `Origin` for a click on a link, nor for images and scripts of another page.
        link = modes == ["navigate"] and scope["method"] in ("GET", "HEAD")
        if not (origins or link or "*" in self._origins) and {"cross-site", "same-site"} & {*sites}:
            raise _foreign("Requests from other web pages are not allowed.")
        if any(kind.startswith(_FORMS) for kind in types):
            raise Refusal(
                "media", "This server does not accept forms or plain text. Send the body with Content-Type: application/json."
            )

    def _is_allowed(self, origin: str) -> bool:
        return bool({"*", origin} & {*self._origins}) if self._origins else LOOPBACK_ORIGIN.fullmatch(origin) is not None

    def _check_host(self, host: str) -> None:
        name = _without_port(host)
        if is_loopback(name) or any(_matches(name, allowed) for allowed in self._hosts):
            return
        raise Refusal(
            "closed", f"The host {host[:200]!r} is not allowed. Pass --allowed-hosts to the server to add host names."
        )


def _foreign(problem: str) -> Refusal:
    return Refusal("closed", f"{problem} Pass --allow-origin to the server to allow an origin.")


def _values(scope: Scope, name: bytes) -> Sequence[str]:
    return [value.decode("latin-1").strip().lower() for key, value in scope["headers"] if key == name]


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isascii() and port.isdecimal() else host).strip("[]").removesuffix(".")


def _matches(name: str, allowed: str) -> bool:
    if allowed == "*" or name == allowed.strip("[]"):
        return True
    return allowed.startswith("*.") and name.endswith(allowed[1:])
