"""Hugging Face Hub client for one repository: list and download its files.

This is the only module that imports huggingface_hub. It uses that library's settings (HF_ENDPOINT, HF_HUB_OFFLINE, timeouts),
HTTP session (the user's proxies and certificates), token, cache locks and progress bar. It does not use its downloader, which
retries timed-out requests (six times of up to a minute each) and differs between versions. Every failure is one error that says
what to do.
"""

import glob
import hashlib
import json
import posixpath
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import responses
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from penult._version import __version__
from penult.atomic_files import atomic_write

T = TypeVar("T")

OWNER = "sentence-transformers"  # the organization of bare model names
NAME = re.compile(r"[\w+=-][\w.+=-]{0,254}", re.ASCII)  # a commit or an ETag that is safe as a file name

_ATTEMPTS = 3  # per request without progress
_GAIN = 1 << 20  # new bytes after which an interrupted download has all its attempts again
_LONGEST_WAIT = 10.0  # maximum seconds of a server's Retry-After
_MOST_REDIRECTS = 10
_SHA1 = re.compile("[0-9a-f]{40}")
_MOST_JSON = 64 << 20  # maximum bytes of a file list
_CHUNK = 1 << 16  # bytes
_TEMPORARY = (408, 429, 500, 502, 503, 504)  # temporary statuses, which are retried
_REDIRECTS = (301, 302, 303, 307, 308)
_PERMANENT = re.compile("SSL|Proxy|InvalidURL|UnsupportedProtocol|Schema")  # permanent errors, which are not retried
_BROKEN = re.compile("RemoteProtocolError|ChunkedEncodingError|IncompleteRead|ReadError|ConnectionReset")


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of the Hub: its name, the name of its blob in the cache, its size in bytes if stated, and its URL."""

    name: str
    etag: str
    size: int | None
    url: str


def settings() -> Any:  # noqa: ANN401 - a module
    """Return huggingface_hub's settings, which it reads from the environment at import."""
    from huggingface_hub import constants  # noqa: PLC0415 - not needed for local files

    return constants


def _utils() -> Any:  # noqa: ANN401 - a module
    from huggingface_hub import utils  # noqa: PLC0415 - as in `settings`, and slower

    return utils


def host(netloc: str) -> str:
    """Return host and port of a netloc, without a password."""
    return netloc.rpartition("@")[2]


def git_sha1s(data: bytes) -> list[str]:
    """Return git's blob sha1, which is the Hub's ETag of small files, and the plain sha1, which some mirrors use."""
    return [hashlib.sha1(head + data, usedforsecurity=False).hexdigest() for head in (b"blob %d\0" % len(data), b"")]


class Client:
    """Client for one repository; errors name the user's reference."""

    def __init__(self, reference: str, repo: str) -> None:
        self._reference = reference
        self._repo = repo
        self._endpoint: str = settings().ENDPOINT.rstrip("/")
        self._short: float = settings().HF_HUB_ETAG_TIMEOUT
        self._long: float = settings().HF_HUB_DOWNLOAD_TIMEOUT
        self._bar: Any = None
        self._shown: set[str] = set()
        if settings().HF_HUB_OFFLINE:
            raise self._error("HF_HUB_OFFLINE is set")
        if not self._endpoint.startswith(("https://", "http://")):
            raise self._error("HF_ENDPOINT is not a URL that begins with https:// or http://")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def listing(self, revision: str) -> tuple[str, list[str]]:
        """Return the commit of a revision, and the names of all its files.

        Raises:
            FileNotFoundError: the Hub does not give them.
        """
        url = f"{self._endpoint}/api/models/{self._repo}/revision/{quote(revision, safe='')}"
        return self._persist("the list of files", lambda: self._listing(url, revision))

    def stat(self, commit: str, name: str) -> Remote:
        """Return the size of a file and the name of its blob.

        Raises:
            FileNotFoundError: the Hub does not give them.
        """
        url = f"{self._endpoint}/{self._repo}/resolve/{quote(commit, safe='')}/{quote(name)}"
        return self._persist(name, lambda: self._stat(url, name))

    def download(self, remote: Remote, blob: Path, lock: Path) -> None:
        """Download a file atomically; of several processes, one downloads and the others wait for it.

        Raises:
            FileNotFoundError: the Hub does not give it.
            OSError: it cannot be written.
        """
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with _utils().WeakFileLock(lock):
            if blob.exists() and remote.size in (None, blob.stat().st_size) and self._is_stated(remote, blob):
                return
            for leftover in blob.parent.glob(f"*{glob.escape(blob.name[:64])}.*.incomplete"):
                leftover.unlink(missing_ok=True)  # left by a killed process, since this one has the lock
            free = shutil.disk_usage(blob.parent).free
            if remote.size is not None and remote.size > free:
                raise OSError(f"{remote.name} has {remote.size:,} bytes, but only {free:,} are free")
            with atomic_write(blob, f"{uuid.uuid4().hex[:8]}.incomplete") as file:
                received = _Received()
                self._persist(remote.name, lambda: self._receive(remote, file, received), received)
                file.flush()
                if not self._is_stated(remote, Path(file.name)):
                    raise self._error(f"{self._host} sent {remote.name} damaged: its sha1 is not {remote.etag}")

    def _is_stated(self, remote: Remote, path: Path) -> bool:
        """Return whether a small file matches its ETag (git's sha1); large files are compared with their sha256 when read."""
        if not _SHA1.fullmatch(remote.etag) or path.stat().st_size > _MOST_JSON:
            return True
        return remote.etag in git_sha1s(path.read_bytes())

    def _persist(self, name: str, call: Callable[[], T], received: "_Received | None" = None) -> T:
        """Retry a call until it succeeds or another attempt is useless."""
        failures = 0
        while True:
            try:
                return call()
            except _RequestError as error:
                if received is not None and received.size >= received.furthest + _GAIN:
                    received.furthest, failures = received.size, 0
                    wait = error.retry_in or 1.0
                elif error.retry_in is None or (failures := failures + 1) >= _ATTEMPTS:
                    raise self._error(f"{self._host} (request for {name}) {error}") from None
                else:
                    wait = error.retry_in
            time.sleep(wait)

    @property
    def _host(self) -> str:
        return host(urlsplit(self._endpoint).netloc)

    def _error(self, reason: str) -> FileNotFoundError:
        bare = "" if "/" in self._repo else f" (for a model of {OWNER}, pass {OWNER}/{self._repo})"
        endpoint = self._endpoint.replace(urlsplit(self._endpoint).netloc, self._host)
        return FileNotFoundError(
            f"{self._reference!r} is not a local folder, is not complete in the Hub's cache, and could not be downloaded: "
            f"{reason}{bare}. Check the path, unset HF_HUB_OFFLINE, or set HF_ENDPOINT (now {endpoint}) to a Hub that this "
            f"machine can reach. Without network, run `penult pull {self._repo} --to FOLDER` elsewhere, copy FOLDER here "
            "and load it by its path."
        )

    def _listing(self, url: str, revision: str) -> tuple[str, list[str]]:
        with self._request("GET", url, self._short) as answer:
            _check_status(answer, f"has no model {self._repo!r} of revision {revision!r}")
            body = bytearray()
            for chunk in answer.chunks:
                body += chunk
                if len(body) > _MOST_JSON:
                    raise _RequestError(f"sent more than {_MOST_JSON:,} bytes")
        try:
            info = json.loads(body)
            commit, names = str(info["sha"]), [str(entry["rfilename"]) for entry in info["siblings"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise _RequestError("sent a response that a Hub does not send (a proxy or a login page?)") from None
        if not NAME.fullmatch(commit):
            raise _RequestError(f"answered with {commit[:80]!r}, which is not a commit")
        return commit, sorted(names)

    def _stat(self, url: str, name: str) -> Remote:
        with self._request("HEAD", url, self._short, {"accept-encoding": "identity"}) as answer:
            _check_status(answer, "has no such file")
            headers = answer.headers
        etag = (headers.get("x-linked-etag") or headers.get("etag") or "").removeprefix("W/").strip('"')
        if not NAME.fullmatch(etag):
            raise _RequestError("answered without an ETag, unlike a Hub (a proxy or a login page?)")
        length = None if answer.status in _REDIRECTS else headers.get("content-length")
        stated = headers.get("x-linked-size") or length or ""
        return Remote(name, etag, int(stated) if stated.isdecimal() else None, url)

    def _receive(self, remote: Remote, file: BinaryIO, received: "_Received") -> None:
        """Receive a file's bytes, continuing after an interrupted attempt."""
        headers = {"accept-encoding": "identity"}
        if received.size:
            headers["range"] = f"bytes={received.size}-"
        with self._request("GET", remote.url, self._long, headers) as answer:
            _check_status(answer, "has no such file")
            start, total = _extent(answer, received.size)
            size = total if remote.size is None else remote.size
            if size is None:
                raise _RequestError("did not state the file's size")
            self._show(remote, size, start - received.size)
            file.seek(start)
            file.truncate()
            received.size = start
            for chunk in answer.chunks:
                received.size += len(chunk)
                if received.size > size:
                    raise _RequestError(f"sent more than the {size:,} bytes that it stated")
                file.write(chunk)
                self._show(remote, size, len(chunk))
        if received.size < size:
            received.size = 0  # a regular end that came too early: discard the received bytes
            raise _RequestError(f"sent fewer than the {size:,} bytes that it stated", retry_in=0.5)

    def _show(self, remote: Remote, size: int, count: int) -> None:
        """Advance the progress bar, which is shown only on a terminal."""
        if self._bar is None:
            self._bar = _utils().tqdm(desc=f"Fetching {self._repo}", total=0, unit="B", unit_scale=True, disable=None)
        if remote.name not in self._shown:
            self._shown.add(remote.name)
            self._bar.total += size
            self._bar.set_postfix_str(posixpath.basename(remote.name), refresh=False)
        self._bar.update(count)

    @contextmanager
    def _request(self, method: str, url: str, timeout: float, headers: Mapping[str, str] | None = None) -> Iterator["_Answer"]:
        """Send a request and follow redirects; for HEAD only until a response states the file's ETag."""
        for _ in range(_MOST_REDIRECTS):
            with self._send(method, url, timeout, dict(headers or {})) as answer:
                target = answer.headers.get("location")
                stated = method == "HEAD" and "x-linked-etag" in answer.headers
                if answer.status not in _REDIRECTS or target is None or stated:
                    yield answer
                    return
            try:
                target = urljoin(url, target)
                scheme = urlsplit(target).scheme
            except ValueError:
                raise _RequestError("redirected to an invalid URL") from None
            if urlsplit(url).scheme == "https" != scheme:
                raise _RequestError(f"redirected to {host(urlsplit(target).netloc)} without https")
            url = target
        raise _RequestError(f"redirected more than {_MOST_REDIRECTS} times")

    @contextmanager
    def _send(self, method: str, url: str, timeout: float, headers: dict[str, str]) -> Iterator["_Answer"]:
        """Send one request; the token is sent only to the Hub's own host."""
        headers["user-agent"] = f"penult/{__version__}"
        own = urlsplit(url)[:2] == urlsplit(self._endpoint)[:2]
        with ExitStack() as stack:
            try:
                if own and not settings().HF_HUB_DISABLE_IMPLICIT_TOKEN and (token := _utils().get_token()):
                    headers["authorization"] = f"Bearer {token}"
                session = _utils().get_session()
                if callable(getattr(session, "stream", None)):  # httpx, from huggingface_hub 1.0 on
                    opened = session.stream(method, url, headers=headers, timeout=timeout, follow_redirects=False)
                    response = stack.enter_context(opened)
                    chunks = response.iter_bytes()
                else:  # requests, where `stream` is a setting
                    opened = session.request(method, url, headers=headers, timeout=timeout, allow_redirects=False, stream=True)
                    response = stack.enter_context(opened)
                    chunks = response.iter_content(_CHUNK)
            except Exception as error:  # noqa: BLE001 - requests, httpx and httpx2 have no common exception class
                raise _request_error(error, timeout) from None
            answered = {key.lower(): value for key, value in response.headers.items()}
            yield _Answer(response.status_code, answered, _guarded(chunks, timeout))


class _RequestError(Exception):
    """A failed request: the reason, and the seconds until another attempt (None: do not retry)."""

    def __init__(self, reason: str, *, retry_in: float | None = None) -> None:
        super().__init__(reason)
        self.retry_in = retry_in


@dataclass(frozen=True, slots=True)
class _Answer:
    """An HTTP response: status, headers in lower case, and streamed body."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


@dataclass(slots=True)
class _Received:
    """Number of received bytes of a file, and the number at the last reset of the attempts."""

    size: int = 0
    furthest: int = 0


def _guarded(chunks: Iterator[bytes], timeout: float) -> Iterator[bytes]:
    try:
        yield from chunks
    except Exception as error:  # noqa: BLE001 - as in `_send`
        raise _request_error(error, timeout) from None


def _request_error(error: Exception, timeout: float) -> _RequestError:
    """Convert an error of the HTTP library into a readable one; a request that timed out is not retried."""
    root: BaseException = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    names = " ".join(kind.__name__ for kind in (*type(error).__mro__, *type(root).__mro__))
    if "Timeout" in names or "timed out" in str(error).lower():
        return _RequestError(f"did not answer within {timeout:g} s")
    if _BROKEN.search(names):
        return _RequestError("closed the connection before the end of its response", retry_in=0.5)
    reason = getattr(root, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return _RequestError(f"could not be reached ({str(reason)[:200]})", retry_in=None if _PERMANENT.search(names) else 0.5)


def _check_status(answer: _Answer, absent: str) -> None:
    """Raise an error for a response with an error status."""
    status = answer.status
    if status < 400:
        return
    shown = f"{status} {responses.get(status, '')}".rstrip()
    if status in (401, 403):
        raise _RequestError(
            f"answered {shown} (the repository is private, gated or does not exist: check its name, accept the terms on its "
            "page and set HF_TOKEN)"
        )
    if status == 404:
        raise _RequestError(f"answered {shown} (it {absent})")
    wait = answer.headers.get("retry-after", "")
    seconds = float(wait) if wait.isdecimal() else 1.0
    if status in _TEMPORARY and seconds <= _LONGEST_WAIT:
        raise _RequestError(f"answered {shown}", retry_in=seconds)
    later = f" and requires waiting {seconds:,.0f} s" if status in _TEMPORARY else ""
    raise _RequestError(f"answered {shown}{later}")


def _extent(answer: _Answer, asked: int) -> tuple[int, int | None]:
    """Return the offset of a body in its file, and the file's size if stated."""
    if asked and answer.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d*/(\d+|\*)", answer.headers.get("content-range", ""))
        if match is None or int(match[1]) != asked:
            raise _RequestError("answered with another part of the file than requested")
        return asked, None if match[2] == "*" else int(match[2])
    length = answer.headers.get("content-length", "")
    encoded = answer.headers.get("content-encoding", "identity") != "identity"
    return 0, int(length) if length.isdecimal() and not encoded else None
