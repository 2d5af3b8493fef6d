"""Whether a request comes from a web page that has no business here: DNS rebinding, cross-site requests, forms.

A server on a loopback address without a key trusts the programs of this machine, and the pages that they serve. A web page from
elsewhere that the user visits runs on this machine too, so its requests are told apart by what browsers always state: `Host`,
`Origin` and `Sec-Fetch-Site`.
"""

import re
from collections.abc import Sequence

from starlette.types import Scope

from penult.server.config import ServerConfig, is_loopback
from penult.server.errors import Refusal

# Pages that programs of this machine serve, such as a front end under development; allowed unless --allow-origin names others.
LOOPBACK_ORIGIN = re.compile(
    r"https?://(localhost|[a-z0-9-]+(\.[a-z0-9-]+)*\.localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.ASCII | re.IGNORECASE
)
_FORMS = ("application/x-www-form-urlencoded", "multipart/", "text/")  # what pages send anywhere without a preflight request


class BrowserCheck:
    """Refuses requests of foreign web pages.

    Args:
        config: decides what is checked. `allowed_hosts` is checked wherever it is given, the rest on a loopback address
            without a key.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._local = config.on_loopback and config.api_key is None
        self._hosts = config.allowed_hosts
        self._origins = config.allow_origin

    def check(self, scope: Scope) -> None:
        """Check the head of a request.

        Raises:
            Refusal: its host or its origin is foreign, or it is a form.
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
                raise _foreign(f"The origin {origin[:200]!r}")
        # A click on a link states no origin, and neither do images and scripts of another page.
        link = modes == ["navigate"] and scope["method"] in ("GET", "HEAD")
        if not (origins or link or "*" in self._origins) and {"cross-site", "same-site"} & {*sites}:
            raise _foreign("Another web page")
        if any(kind.startswith(_FORMS) for kind in types):
            raise Refusal("media", "Send the body as application/json; this server takes no forms and no plain text.")

    def _is_allowed(self, origin: str) -> bool:
        return bool({"*", origin} & {*self._origins}) if self._origins else LOOPBACK_ORIGIN.fullmatch(origin) is not None

    def _check_host(self, host: str) -> None:
        name = _without_port(host)
        if is_loopback(name) or any(_matches(name, allowed) for allowed in self._hosts):
            return
        raise Refusal(
            "closed", f"This server does not answer to the host {host[:200]!r}. Start it with --allowed-hosts to add names."
        )


def _foreign(who: str) -> Refusal:
    return Refusal("closed", f"{who} may not use this server from a browser. Start it with --allow-origin to let it.")


def _values(scope: Scope, name: bytes) -> Sequence[str]:
    return [value.decode("latin-1").strip().lower() for key, value in scope["headers"] if key == name]


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isascii() and port.isdecimal() else host).strip("[]").removesuffix(".")


def _matches(name: str, allowed: str) -> bool:
    if allowed == "*" or name == allowed.strip("[]"):
        return True
    return allowed.startswith("*.") and name.endswith(allowed[1:])
