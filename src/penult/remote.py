"""RemoteEmbedder: a client for embedding servers with the same interface as `Embedder`.

Handles connections, API keys, timeouts and retries; server protocols are in `protocols`. The only module that imports httpx.
No httpx type is part of the public interface.
"""

import asyncio
import json
import random
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import accumulate
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import httpx
import numpy as np

from penult import protocols
from penult.fork import PerProcess
from penult.progress_bar import progress_bar
from penult.protocols import Call, Reply, Server, Talk
from penult.types import Role, TruncationWarning, Vectors, checked_texts, unencodable

Result = TypeVar("Result")
_BUSY = (429, 502, 503, 504)
_LOST = (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ProxyError)
_LONGEST_PAUSE = 60.0
_TIMED_OUT_AGAIN = 2  # embedding twice is harmless, but a server that needs longer than `timeout` needs it each time
_FIXED = ("/predict", "/infer", "/invocations")


class RemoteEmbedder:
    """An embedder behind HTTP: a penult server, a DeepSparse server of either generation, or Text Embeddings Inference.

    Nothing is sent before the first use. Thread-safe; `aembed` works in any event loop.

    Args:
        base_url: URL of the server, such as `http://host:5543`, or of a DeepSparse route, such as `http://host:5543/predict`.
        api_key: sent as `Authorization: Bearer`. None: no key; user and password in the URL are sent, if any.
        timeout: seconds to wait for the response to a request, or for its next bytes; then it is sent again, at most twice.
        concurrency: maximum concurrent requests of one call.
        model: the server's model to use. None: the only one.
        retries: maximum retries of a request if the server is busy (429, 502, 503, 504), slow or unreachable. With the
            default, about 15 s of waiting in total, unless the server sends Retry-After: at most one minute each time.
        prompts: prompt put before each text, by role ("query", "document"), instead of the server's own. A missing role
            keeps the server's prompt. Only penult servers support prompts. None: the server's prompts.
        transport: httpx transport to use instead of a socket, for tests and proxies. An async-only transport supports only
            `aembed`, a sync-only one only `embed`.

    Raises:
        ValueError: `base_url` is not an http(s) URL, a number is too small, `api_key` is not a valid header value, or
            `prompts` has a key that is not a role.
        TypeError: a prompt is not a str.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        timeout: float = 120.0,
        concurrency: int = 4,
        model: str | None = None,
        retries: int = 6,
        prompts: Mapping[str, str] | None = None,
        transport: object = None,
    ) -> None:
        url = _read_url(base_url)
        for name, value, least in (("timeout", timeout, 0.001), ("concurrency", concurrency, 1), ("retries", retries, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}.")
        self._prompts = _checked_prompts(prompts)
        self._recreate = partial(
            RemoteEmbedder,
            base_url,
            api_key,
            timeout=timeout,
            concurrency=concurrency,
            model=model,
            retries=retries,
            prompts=self._prompts,
            transport=transport,
        )
        self._base, self._path = _split(url)
        self._concurrency = concurrency
        self._model = model
        self._retries = retries
        self._timeout = timeout
        self._transport: Any = transport
        # User and password are sent as a header and not in the URL, which appears in messages and logs.
        basic = api_key is None and bool(url.userinfo)
        self._options: dict[str, Any] = {
            "headers": {"Content-Type": "application/json"}
            | ({} if api_key is None else {"Authorization": b"Bearer " + _checked_key(api_key)}),
            "auth": httpx.BasicAuth(url.username, url.password) if basic else None,
            "timeout": httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=max(8, concurrency)),
            "transport": transport,
        }
        self._client = PerProcess(partial(httpx.Client, **self._options))  # a fork must not share its parent's connections
        weakref.finalize(self, _close, self._client)  # adapters are never closed
        self._awaiting: httpx.AsyncClient | None = None  # only between `async with` and its end
        self._server: Server | None = None
        self._dimension: int | None = None
        self._warned_of_truncation = False

    @property
    def dimension(self) -> int:
        """D, the number of values in a vector. The first use queries the server."""
        if self._dimension is None and (server := self._detected("document")).dimension is None:
            self._store_dimension(*self._talk(protocols.embed(server, ["a"], "document")))
        return cast("int", self._dimension)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the vectors: penult's own, else a hash of the server's model information.

        It includes this object's `prompts` if they differ from the server's own, but not the `prompt` of a single call.
        """
        server = self._detected("document")
        for prompt in self._prompts.values():
            protocols.check_prompt(server, prompt)
        return protocols.fingerprint(server, self._prompts)

    def embed(
        self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None, progress: bool = False
    ) -> Vectors:
        """Return the vectors of N texts.

        Args:
            texts: any iterable of N texts, which are sent unchanged. Empty texts are allowed if the server accepts them.
            role: "document" or "query". DeepSparse has no prompts, so it ignores the role.
            prompt: put before each text of this call, instead of the role's prompt. Only penult servers support it. None:
                the role's prompt.
            progress: show a progress bar on standard error.

        Returns:
            (N, D) float32, in the caller's order; (0, D) for no texts.

        Raises:
            TypeError: `texts` is a str or not an iterable, or `prompt` is not a str.
            TextError: some rows are not text.
            PermissionError: the server requires an API key, or rejects the given one.
            ConnectionError: the server cannot be reached, or fails, also after retries.
            TimeoutError: no response within `timeout` seconds, also after retries.
            ValueError: the server does not support prompts or rejected the texts, or its response is not N finite vectors
                of one size.
        """
        checked, prompt = _checked_texts(texts, role), self._prompt(role, prompt)
        if not checked:
            return np.empty((0, self.dimension), np.float32)
        server = self._detected(role, prompt)
        requests = protocols.parts(server, checked)
        threads = ThreadPoolExecutor(min(self._concurrency, len(requests)))
        with progress_bar(len(checked), shown=progress) as step, threads:
            pending = [
                threads.submit(self._talk, protocols.embed(server, part, role, prompt=prompt, start=start))
                for start, part in _numbered(requests)
            ]
            answers = []
            try:
                for part, future in zip(requests, pending, strict=True):
                    answers.append(future.result())
                    step(len(part))
            finally:
                for future in pending:
                    future.cancel()  # after a failure, do not send the remaining requests
        return self._joined(answers, len(checked))

    def __call__(self, input: Iterable[str]) -> Vectors:  # noqa: A002 - Chroma's name for it
        """Return the vectors of N documents, as `embed` does, for libraries that expect a function."""
        return self.embed(input)

    async def aembed(self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None) -> Vectors:
        """Return the vectors of N texts without blocking the event loop; otherwise as `embed`."""
        checked, prompt = _checked_texts(texts, role), self._prompt(role, prompt)
        async with _Borrowed(self._awaiting or self._new_async(), keep=self._awaiting is not None) as client:
            server = await self._adetected(client, role, prompt)
            slots = asyncio.Semaphore(self._concurrency)

            async def one(start: int, part: list[str]) -> tuple[Vectors, int]:
                async with slots:
                    return await self._atalk(client, protocols.embed(server, part, role, prompt=prompt, start=start))

            requests = protocols.parts(server, checked or (["a"] if self._dimension is None else []))
            tasks = [asyncio.ensure_future(one(start, part)) for start, part in _numbered(requests)]
            try:
                responses = list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
        joined = self._joined(responses, max(len(checked), 1)) if responses else np.empty((0, self.dimension), np.float32)
        return joined[: len(checked)]

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        _close(self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._awaiting = self._new_async()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        client, self._awaiting = self._awaiting, None
        if client is not None:
            await client.aclose()
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return self._recreate, ()  # a connection cannot be pickled; the receiver opens its own

    def __repr__(self) -> str:
        return f"RemoteEmbedder({self._base!r})"

    def _prompt(self, role: Role, prompt: str | None) -> str | None:
        """Return the prompt to send: the call's, else this object's for the role. None: the server uses its own."""
        if prompt is not None:
            _check_prompt("prompt", prompt)
            return prompt
        return self._prompts.get(role)

    def _detected(self, role: Role, prompt: str | None = None) -> Server:
        """Return the server; detect it at first use, and TEI's prompt at the first use of its role.

        Raises:
            ValueError: there is a prompt to send, and the server does not support prompts.
        """
        server = self._server or self._store(self._talk(self._detection()))
        if prompt is not None:
            protocols.check_prompt(server, prompt)
        return self._store(self._talk(protocols.prompted(server, role)))

    async def _adetected(self, client: httpx.AsyncClient, role: Role, prompt: str | None) -> Server:
        server = self._server or self._store(await self._atalk(client, self._detection()))
        if prompt is not None:
            protocols.check_prompt(server, prompt)
        return self._store(await self._atalk(client, protocols.prompted(server, role)))

    def _detection(self) -> Talk[Server]:
        return protocols.find(self._model) if self._path is None else protocols.at(self._path)

    def _store(self, server: Server) -> Server:
        self._server = server
        if server.dimension is not None:
            self._dimension = server.dimension
        return server

    def _joined(self, responses: list[tuple[Vectors, int]], count: int) -> Vectors:
        for vectors, _ in responses:
            self._store_dimension(vectors, 0)
        cut = sum(truncated for _, truncated in responses)
        if cut and not self._warned_of_truncation:
            self._warned_of_truncation = True
            warnings.warn(
                f"The server truncated {cut} of {count} texts, which exceed the model's maximum length. Split them. This "
                "warning is shown once.",
                TruncationWarning,
                stacklevel=3,
            )
        return np.concatenate([vectors for vectors, _ in responses])

    def _store_dimension(self, vectors: Vectors, _: int) -> None:
        size = int(vectors.shape[1])
        if self._dimension is not None and size != self._dimension:
            raise ValueError(
                f"The size of the server's vectors changed from {self._dimension} to {size}: it serves another model. "
                "Create a new RemoteEmbedder."
            )
        self._dimension = size

    def _talk(self, talk: Talk[Result]) -> Result:
        try:
            call = next(talk)
            while True:
                call = talk.send(self._send(call))
        except StopIteration as done:
            return cast("Result", done.value)

    async def _atalk(self, client: httpx.AsyncClient, talk: Talk[Result]) -> Result:
        try:
            call = next(talk)
            while True:
                call = talk.send(await self._asend(client, call))
        except StopIteration as done:
            return cast("Result", done.value)

    def _send(self, call: Call) -> Reply:
        client, content = self._blocking(), _content(call)
        for attempt in range(self._retries + 1):
            try:
                reply = _reply(client.request(call.method, self._base + call.path, content=content))
            except httpx.HTTPError as error:
                if (pause := self._pause(attempt, error)) is None:
                    raise self._failure(error) from error
            else:
                if (pause := self._pause(attempt, reply)) is None:
                    return reply
            time.sleep(pause)
        raise AssertionError("the last attempt neither answered nor failed. This is a bug.")

    async def _asend(self, client: httpx.AsyncClient, call: Call) -> Reply:
        content = _content(call)
        for attempt in range(self._retries + 1):
            try:
                reply = _reply(await client.request(call.method, self._base + call.path, content=content))
            except httpx.HTTPError as error:
                if (pause := self._pause(attempt, error)) is None:
                    raise self._failure(error) from error
            else:
                if (pause := self._pause(attempt, reply)) is None:
                    return reply
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt neither answered nor failed. This is a bug.")

    def _pause(self, attempt: int, outcome: Reply | httpx.HTTPError) -> float | None:
        """Return the seconds to wait before the next attempt; None if there is none."""
        if isinstance(outcome, Reply):
            again = outcome.status in _BUSY
        else:
            again = isinstance(outcome, _LOST) or (_is_late(outcome) and attempt < _TIMED_OUT_AGAIN)
        if not again or attempt >= self._retries:
            return None
        backoff: float = min(8.0, 0.25 * 2**attempt) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, so that clients do not retry together
        return max(backoff, _retry_after(outcome.headers)) if isinstance(outcome, Reply) else backoff

    def _failure(self, error: httpx.HTTPError) -> OSError:
        if _is_late(error):
            more = min(self._retries, _TIMED_OUT_AGAIN)
            return TimeoutError(
                f"{self._base} did not respond within {self._timeout:g} s, also after {more} retries. Pass a larger "
                "timeout= or a smaller concurrency=."
            )
        return ConnectionError(
            f"{self._base} cannot be reached, also after {self._retries} retries: {error}. Check the URL, and that the "
            "server runs."
        )

    def _blocking(self) -> httpx.Client:
        if self._transport is not None and not hasattr(self._transport, "handle_request"):
            raise TypeError(f"transport is a {type(self._transport).__name__}, which is async only. Use aembed.")
        return self._client.get()

    def _new_async(self) -> httpx.AsyncClient:
        if self._transport is not None and not hasattr(self._transport, "handle_async_request"):
            raise TypeError(f"transport is a {type(self._transport).__name__}, which is sync only. Use embed.")
        return httpx.AsyncClient(**self._options)


class _Borrowed:
    """Async context manager that closes a client on exit, unless `keep` is set."""

    def __init__(self, client: httpx.AsyncClient, *, keep: bool) -> None:
        self._client = client
        self._keep = keep

    async def __aenter__(self) -> httpx.AsyncClient:
        return self._client

    async def __aexit__(self, *exc: object) -> None:
        if not self._keep:
            await self._client.aclose()


def _read_url(base_url: str) -> httpx.URL:
    """Parse a URL.

    Raises:
        ValueError: it is not an http(s) URL; the message does not contain the password.
    """
    try:
        url = httpx.URL(base_url)
    except (TypeError, httpx.InvalidURL):
        url = None
    if url is None or url.scheme not in ("http", "https") or not url.host:
        shown = base_url.rpartition("@")[2] if isinstance(base_url, str) else base_url
        raise ValueError(f"base_url is {shown!r}; it must be a URL such as 'http://localhost:5543'.")
    return url


def _checked_key(api_key: str) -> bytes:
    """Return a key encoded for a header, without the line end of keys read from files.

    Raises:
        ValueError: the key is not a valid header value; the message does not contain it.
    """
    key = api_key.strip()
    if not key or not key.isprintable() or unencodable(key) is not None:
        raise ValueError("api_key is empty or has characters that a header cannot contain, such as a line break.")
    return key.encode()


def _split(url: httpx.URL) -> tuple[str, str | None]:
    """Split a URL into the server's base URL, without user and password, and DeepSparse's route, if any."""
    server = str(url.copy_with(username=None, password=None, raw_path=b"/", fragment=None)).rstrip("/")
    path = url.raw_path.decode().rstrip("/").removesuffix("/v1")
    return (server, path) if path.endswith(_FIXED) else (server + path, None)


def _close(clients: PerProcess[httpx.Client]) -> None:
    client = clients.pop()
    if client is not None:
        client.close()


def _is_late(error: httpx.HTTPError) -> bool:
    """Return whether a request was, or may have been, sent and its response timed out."""
    return isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)


def _content(call: Call) -> bytes | None:
    return None if call.body is None else json.dumps(call.body, ensure_ascii=False).encode()


def _reply(response: httpx.Response) -> Reply:
    return Reply(response.status_code, {name.lower(): value for name, value in response.headers.items()}, response.content)


def _numbered(parts: list[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield each part of a list of texts, with the index of its first text."""
    return zip(accumulate(map(len, parts), initial=0), parts, strict=False)  # the last index has no part


def _retry_after(headers: Mapping[str, str]) -> float:
    """Parse the Retry-After header, a number of seconds or a date; return at most a minute."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return min(float(value), _LONGEST_PAUSE)
    try:
        return max(0.0, min(parsedate_to_datetime(value).timestamp() - time.time(), _LONGEST_PAUSE))
    except (ValueError, OverflowError):  # OverflowError: a time zone of many digits
        return 0.0


def _checked_texts(texts: Iterable[str], role: Role) -> list[str]:
    if role not in ("document", "query"):
        raise ValueError(f"role is {role!r}; it must be 'document' or 'query'.")
    return checked_texts(texts)


def _checked_prompts(prompts: Mapping[str, str] | None) -> dict[str, str]:
    """Return a copy of the prompts by role.

    Raises:
        ValueError: a key is not a role, or a prompt is not valid Unicode.
        TypeError: `prompts` is not a mapping, or a prompt is not a str.
    """
    if prompts is None:
        return {}
    if not isinstance(prompts, Mapping):
        raise TypeError(f"prompts is a {type(prompts).__name__}; pass a dict such as {{'query': 'query: '}}.")
    for role, prompt in prompts.items():
        if role not in ("document", "query"):
            raise ValueError(f"prompts has the key {role!r}; the allowed keys are 'query' and 'document'.")
        _check_prompt(f"prompts[{role!r}]", prompt)
    return dict(prompts)


def _check_prompt(name: str, prompt: object) -> None:
    reason = unencodable(prompt)
    if reason is not None:
        raise (ValueError if isinstance(prompt, str) else TypeError)(f"{name} {reason}; pass a str.")
