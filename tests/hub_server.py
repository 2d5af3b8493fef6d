"""A fake Hugging Face Hub on loopback: repositories of bytes, and faults of servers and networks."""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

# Files that the Hub keeps in its large-file storage and redirects to.
_LARGE = re.compile(r".*(\.onnx|\.safetensors|\.bin|_data)")


@dataclass
class Fault:
    """A fault of one file, or of the list of files ("list").

    Attributes:
        kind: "stall" (accepts and never responds), "stall-body" (half of the body, then nothing), "close" (no response), "drop" (half of the
            body, then closed), "short" (half of the body as a complete one), "long" (the body twice), "status", "redirect",
            "html" (a login page).
        method: only requests of this method.
        times: number of requests with the fault; later ones succeed.
        status: the status of "status".
        headers: headers of that response.
        to: the target of "redirect".
    """

    kind: str
    method: str = "GET HEAD"
    times: int = 1_000
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    to: str = ""


@dataclass(frozen=True)
class Asked:
    """A recorded request."""

    method: str
    path: str
    headers: Mapping[str, str]


class HubServer:
    """Repositories by name, each a mapping of file names to bytes; `asked` has every request."""

    def __init__(self, repos: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repos = {name: dict(files) for name, files in repos.items()}
        self.commit = "a" * 40
        self.revisions = {"main", "refs/pr/21", "feature/x"}
        self.faults: dict[str, Fault] = {}
        self.renamed: dict[str, str] = {}
        self.asked: list[Asked] = []
        self.ignores_range = False
        self._closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer._answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"
        self.elsewhere = f"http://localhost:{self._server.server_port}"  # another host name, as for large files

    def close(self) -> None:
        """Stop the server, and end stalled requests."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def fetched(self) -> list[str]:
        """List the files that were downloaded, in order."""
        hits = (re.search(r"/(?:resolve/[^/]+|large/[^/]+)/(.*)", asked.path) for asked in self.asked if asked.method == "GET")
        return list(dict.fromkeys(unquote(hit[1]) for hit in hits if hit))

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(request.path.partition("?")[0])
        self.asked.append(Asked(request.command, path, {key.lower(): value for key, value in request.headers.items()}))
        for old, new in self.renamed.items():
            if f"/{old}/" in path:
                return self._send(request, 307, b"", {"Location": request.path.replace(f"/{old}/", f"/{new}/")})
        if match := re.fullmatch(r"/api/models/(?P<repo>[^/]+(?:/[^/]+)?)/(?P<kind>revision|tree)/(?P<revision>.+)", path):
            return self._list(request, match)
        if match := re.fullmatch(r"/(?P<repo>[^/]+(?:/[^/]+)?)/(?P<kind>resolve|large)/(?P<revision>[^/]+)/(?P<name>.+)", path):
            return self._file(request, match)
        return self._send(request, 404, b"", {})

    def _list(self, request: BaseHTTPRequestHandler, match: re.Match[str]) -> None:
        if self._fails(request, "list", b"", {}):
            return None
        files = self.repos.get(match["repo"])
        if files is None:
            return self._send(request, 401, b'{"error": "Invalid username or password."}', {"X-Error-Code": "RepoNotFound"})
        if match["revision"] not in (*self.revisions, self.commit):
            return self._send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        if match["kind"] == "tree":
            body: object = [{"type": "file", "path": n, "size": len(c), "oid": _git(c)} for n, c in files.items()]
        else:
            body = {"id": match["repo"], "sha": self.commit, "siblings": [{"rfilename": name} for name in files]}
        return self._send(request, 200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, request: BaseHTTPRequestHandler, match: re.Match[str]) -> None:
        name = match["name"]
        content = self.repos.get(match["repo"], {}).get(name)
        if content is None:
            return self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        large = _LARGE.fullmatch(name) is not None
        headers = {"X-Repo-Commit": self.commit, "ETag": f'"{_git(content)}"'}
        if large and match["kind"] == "resolve":
            target = f"{self.elsewhere}/{match['repo']}/large/{self.commit}/{name}"
            headers |= {"X-Linked-Etag": f'"{sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
            fault = self.faults.get(name)
            if fault is None or fault.kind in ("stall-body", "drop", "short", "long"):  # these faults apply to the bytes
                return self._send(request, 302, b"", headers | {"Location": target})
        if self._fails(request, name, content, headers):
            return None
        at = self._start(request)
        if not at:
            return self._send(request, 200, content, headers)
        headers["Content-Range"] = f"bytes {at}-{len(content) - 1}/{len(content)}"
        return self._send(request, 206, content[at:], headers)

    def _fails(self, request: BaseHTTPRequestHandler, name: str, content: bytes, headers: dict[str, str]) -> bool:
        """Apply the fault of a file; return whether it has one."""
        fault = self.faults.get(name)
        if fault is None or request.command not in fault.method or fault.times <= 0:
            return False
        fault.times -= 1
        if fault.kind in ("stall", "stall-body", "drop", "close"):
            request.close_connection = True
            if fault.kind in ("stall-body", "drop"):
                self._half(request, content, headers)
            if fault.kind.startswith("stall"):
                self._closing.wait(60)
        elif fault.kind == "status":
            self._send(request, fault.status, b"", dict(fault.headers))
        elif fault.kind == "redirect":
            self._send(request, 302, b"", {"Location": fault.to})
        elif fault.kind == "html":
            self._send(request, 200, b"<html>Please log in</html>", {"Content-Type": "text/html"})
        else:
            self._send(request, 200, content * 2 if fault.kind == "long" else content[: len(content) // 2], headers)
        return True

    def _start(self, request: BaseHTTPRequestHandler) -> int:
        start = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        return int(start[1]) if start and not self.ignores_range else 0

    def _half(self, request: BaseHTTPRequestHandler, content: bytes, headers: dict[str, str]) -> None:
        at = self._start(request)
        request.send_response(206 if at else 200)
        for key, value in headers.items():
            request.send_header(key, value)
        if at:
            request.send_header("Content-Range", f"bytes {at}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - at))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content[at : at + (len(content) - at + 1) // 2])
            request.wfile.flush()

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            try:
                request.wfile.write(body)
            except OSError:  # the client has disconnected
                request.close_connection = True


def _git(content: bytes) -> str:
    return sha1(b"blob %d\0" % len(content) + content).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder as those of a repository."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def serve(repos: Mapping[str, Mapping[str, bytes]]) -> Iterator[HubServer]:
    """Serve repositories while the block runs."""
    server = HubServer(repos)
    try:
        yield server
    finally:
        server.close()
