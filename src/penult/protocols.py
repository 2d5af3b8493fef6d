"""Protocols of embedding servers: detection, requests and parsing of responses.

Supports penult, DeepSparse up to 1.5 and from 1.6 on, and Text Embeddings Inference (TEI). It does not do I/O: a
conversation is a generator that yields requests and receives responses, so that the same code serves a synchronous and an
asynchronous client.
"""

import base64
import hashlib
import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import numpy as np

from penult.types import Role, Vectors

Kind = Literal["penult", "tei", "deepsparse"]
_TASK = "transformers_embedding_extraction"
# Client-side limit, besides the server's: enough for full batches on the server, few enough for a fast response.
_MAX_TEXTS = 64
_MAX_CHARS = 32_768
_PROMPT_NAMES: Mapping[Role, tuple[str, ...]] = {
    "query": ("query", "web_search_query", "search_query"),
    "document": ("document", "passage", "corpus", "search_document"),
}
_BUSY = (429, 502, 503, 504)
_OPENAI = (
    "For OpenAI-compatible servers use the openai package, LangChain's OpenAIEmbeddings or LlamaIndex's OpenAILikeEmbedding."
)


@dataclass(frozen=True, slots=True)
class Call:
    """A request: a path relative to the base URL, and a JSON body or None."""

    method: Literal["GET", "POST"]
    path: str
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 - JSON
        """Parse the body; None if it is not valid JSON, or nested too deeply."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


Result = TypeVar("Result")
Talk = Generator[Call, Reply, Result]
"""A conversation with a server."""


@dataclass(frozen=True, slots=True)
class Server:
    """A detected server.

    Attributes:
        kind: the protocol of the server.
        path: path of the embedding endpoint.
        fingerprint: fingerprint of its vectors; penult's own, else a hash of the server's model information.
        dimension: D. None: unknown.
        model: the model to use. None: the server's only one.
        max_texts: maximum texts per request.
        max_bytes: maximum bytes of a request body. None: unknown.
        max_prompt_chars: maximum characters of a prompt in a request. 0: prompts are not supported.
        prompts: penult's own prompt for each role.
        prompt_names: TEI's prompt name for each role requested so far; None if the model has no such prompt.
    """

    kind: Kind
    path: str
    fingerprint: str
    dimension: int | None = None
    model: str | None = None
    max_texts: int = _MAX_TEXTS
    max_bytes: int | None = None
    max_prompt_chars: int = 0
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt_names: Mapping[Role, str | None] = field(default_factory=dict)


def find(model: str | None) -> Talk[Server]:
    """Detect the type of a server.

    Args:
        model: the model to use. None: the only one.

    Raises:
        PermissionError: the server requires an API key, or rejects the given one.
        ValueError: the server is unknown, or has several models and none was chosen.
    """
    query = "" if model is None else f"?model={quote(model, safe='')}"
    reply = yield Call("GET", f"/info{query}")
    content = _json_of(reply)
    if isinstance(content, dict) and content.get("server") == "penult":
        return _penult(content, model)
    if isinstance(content, dict) and "model_id" in content:
        return _tei(content)
    if reply.status == 404 and isinstance(content := reply.json(), dict) and "error_type" in content:
        raise ValueError(str(content.get("error")))  # a penult server that does not serve this model
    reply = yield Call("GET", "/openapi.json")
    listed = _json_of(reply)
    paths = listed.get("paths") if isinstance(listed, dict) else None
    path = None
    if isinstance(paths, dict):
        path = _listed_path(paths, model) or (yield from _routed_path(paths))
        if path is None and "/v1/embeddings" in paths:
            raise ValueError(f"The server is OpenAI-compatible, but not a penult server. {_OPENAI}")
    if path is None:
        path = yield from _tried_path(model)
    return (yield from _deepsparse(path))


def at(path: str) -> Talk[Server]:
    """Treat a path from the user as DeepSparse's, and query its model."""
    return (yield from _deepsparse(path))


def check_prompt(server: Server, prompt: str) -> None:
    """Check that the server supports a prompt from the caller: ignoring the prompt would change the vectors.

    Raises:
        ValueError: the server does not support prompts, or the prompt exceeds its limit.
    """
    if server.kind != "penult":
        name = "Text Embeddings Inference" if server.kind == "tei" else "DeepSparse"
        raise ValueError(
            f"{name} does not support prompts in requests. Remove prompt= and prompts=, or serve the model with penult."
        )
    if not server.max_prompt_chars:
        raise ValueError(
            "This penult server is too old to support prompts in requests. Update it, or remove prompt= and prompts=."
        )
    if len(prompt) > server.max_prompt_chars:
        raise ValueError(
            f"The prompt has {len(prompt)} characters; the server's limit is {server.max_prompt_chars}. Pass a shorter prompt."
        )


def fingerprint(server: Server, prompts: Mapping[str, str]) -> str:
    """Return the fingerprint of a server's vectors with these prompts instead of its own."""
    other = {role: prompt for role, prompt in prompts.items() if server.prompts.get(role) != prompt}
    return _hash({"fingerprint": server.fingerprint, "prompts": other}) if other else server.fingerprint


def prompted(server: Server, role: Role) -> Talk[Server]:
    """Find the name of TEI's prompt for a role, if any; other servers support roles, or have no prompts."""
    if server.kind != "tei" or role in server.prompt_names:
        return server
    name = None
    for candidate in _PROMPT_NAMES[role]:
        reply = yield Call("POST", server.path, {"inputs": ["a"], "truncate": True, "prompt_name": candidate})
        if reply.status == 200:
            name = candidate
            break
    return replace(server, prompt_names={**server.prompt_names, role: name})


def parts(server: Server, texts: Sequence[str]) -> list[list[str]]:
    """Split texts into requests within the limits of the server and of this client."""
    requests: list[list[str]] = []
    chars = size = 0
    for text in texts:
        own = len(json.dumps(text)) + 2
        fits = len(requests[-1]) < min(server.max_texts, _MAX_TEXTS) and chars + len(text) <= _MAX_CHARS if requests else False
        if not fits or (server.max_bytes is not None and size + own > server.max_bytes - 1024):
            requests.append([])
            chars = size = 0
        requests[-1].append(text)
        chars, size = chars + len(text), size + own
    return requests


def embed(
    server: Server, texts: Sequence[str], role: Role, *, prompt: str | None = None, start: int = 0
) -> Talk[tuple[Vectors, int]]:
    """Return (N, D) vectors of N texts, and the number of texts that the server truncated. Too large requests are halved.

    Args:
        server: the result of `find` or `at`.
        texts: N texts, within the server's limits or not.
        role: selects the server's own prompt, and the model's modules for that role if there are any.
        prompt: put before each text instead of the role's prompt; see `check_prompt`. None: the role's prompt.
        start: index of the first text in the caller's list, for errors: a server counts the texts of one request.

    Raises:
        PermissionError: the server requires an API key, or rejects the given one.
        ValueError: the server rejected the texts, or its response is not N finite vectors of one size.
        ConnectionError: the server failed.
    """
    reply = yield _request(server, texts, role, prompt)
    if reply.status == 413 and len(texts) > 1:
        half = len(texts) // 2
        first, cut_first = yield from embed(server, texts[:half], role, prompt=prompt, start=start)
        second, cut_second = yield from embed(server, texts[half:], role, prompt=prompt, start=start + half)
        return np.concatenate([first, second]), cut_first + cut_second
    if reply.status != 200:
        raise refusal(reply, range(start, start + len(texts)))
    served = reply.headers.get("x-penult-fingerprint", server.fingerprint)
    if server.kind == "penult" and served != server.fingerprint:
        raise ValueError(
            f"The fingerprint of the server's vectors changed from {server.fingerprint} to {served}: it serves another model. "
            "Do not mix the vectors of both. Create a new RemoteEmbedder."
        )
    vectors = _read(server, reply.json(), len(texts))
    cut = reply.headers.get("x-penult-truncated", "0")
    return vectors, int(cut) if cut.isascii() and cut.isdigit() and len(cut) < 10 else 0


def refusal(reply: Reply, rows: range = range(0)) -> Exception:
    """Return the exception for an error response, with the server's own message.

    Args:
        reply: the response.
        rows: indices of the request's texts in the caller's list.
    """
    words = _message(reply)
    if reply.status == 401:
        return PermissionError(f"The server requires an API key or rejected it (HTTP 401): {words} Pass api_key=.")
    if reply.status == 403:  # from penult, it is about the host or the origin of the request
        return PermissionError(f"The server rejected the request (HTTP 403): {words} If it requires a key, pass api_key=.")
    if 300 <= reply.status < 400:
        location = reply.headers.get("location", "another URL")
        return ValueError(f"The server redirects to {location} (HTTP {reply.status}). Pass that URL as base_url.")
    if reply.status in _BUSY:
        return ConnectionError(f"The server is busy or not ready (HTTP {reply.status}), also after retries: {words}")
    if reply.status >= 500 or reply.status == 424:
        return ConnectionError(f"The server failed (HTTP {reply.status}): {words}")
    location = f" The request had your texts {rows.start} to {rows[-1]}; the server counts them from 0." if rows.start else ""
    return ValueError(f"The server rejected the texts (HTTP {reply.status}): {words}{location}")


def _json_of(reply: Reply) -> Any:  # noqa: ANN401 - JSON
    if reply.status in (401, 403) or reply.status in _BUSY:
        raise refusal(reply)
    return reply.json() if reply.status == 200 else None


def _message(reply: Reply) -> str:
    content = reply.json()
    if isinstance(content, dict):
        content = content.get("error", content.get("detail", content))
    if isinstance(content, list) and content:
        content = content[0]
    if isinstance(content, dict):
        content = content.get("message", content.get("msg", content))
    text = str(content)[:2000] if content is not None else reply.body[:200].decode("utf-8", "replace")
    return text if text.endswith(".") else f"{text or 'the response is empty'}."


def _penult(content: Mapping[str, Any], model: str | None) -> Server:
    served = content.get("served_models")  # older versions do not report it
    if model is None and isinstance(served, list) and len(served) > 1:
        raise ValueError(f"The server has several models. Pass model= with one of: {', '.join(map(str, served))}.")
    # Servers of older versions do not report these two, and would silently ignore a prompt.
    longest, prompts = content.get("max_prompt_chars", 0), content.get("prompts")
    return Server(
        kind="penult",
        path="/v1/embeddings",
        fingerprint=str(_required(content, "fingerprint", str)),
        dimension=_required(content, "dimension", int),
        model=model or str(_required(content, "served_model_name", str)),
        max_texts=_required(content, "max_client_batch_size", int),
        max_bytes=_required(content, "max_body_bytes", int),
        max_prompt_chars=longest if isinstance(longest, int) else 0,
        prompts=prompts if isinstance(prompts, dict) else {},
    )


def _required(content: Mapping[str, Any], key: str, kind: type) -> Any:  # noqa: ANN401 - of the kind
    value = content.get(key)
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 1):
        expected = "a string" if kind is str else "an integer of at least 1"
        raise ValueError(f"GET /info of the server has {key!r}: {value!r:.80}; it must be {expected}. Check base_url.")
    return value


def _tei(content: Mapping[str, Any]) -> Server:
    names = ("model_id", "model_sha", "model_dtype", "model_type", "max_input_length")
    kind = content.get("model_type")
    if isinstance(kind, dict) and "embedding" not in kind:
        raise ValueError(
            f"{content['model_id']!r} is served as {' '.join(kind)}, which does not return vectors. Serve an embedding model."
        )
    return Server(
        kind="tei",
        path="/embed",
        fingerprint=_hash({"server": "tei", **{name: content.get(name) for name in names}}),
        max_texts=_MAX_TEXTS
        if content.get("max_client_batch_size") is None
        else _required(content, "max_client_batch_size", int),
    )


def _listed_path(paths: Mapping[str, Any], model: str | None) -> str | None:
    """Select DeepSparse's inference path from the server's OpenAPI document."""
    named = {match[1]: path for path in paths if (match := re.fullmatch(r"/(?:v2/models|invocations)/(.+)/infer", path))}
    own = ("/predict",) if "/v1/embeddings" in paths else ("/predict", "/invocations")  # vLLM has an /invocations as well
    old = [path for path in _posts(paths) if path in own]
    if model is not None:
        candidates = [path for path in (named.get(model), f"/{model.strip('/')}") if path in paths]
        if not candidates:
            raise ValueError(
                f"The server does not have the model {model!r}. Its models: {', '.join(named) or ', '.join(old) or 'none'}."
            )
        return candidates[0]
    if len(named) > 1:
        raise ValueError(f"The server has several models. Pass model= with one of: {', '.join(sorted(named))}.")
    return next(iter(named.values()), None) or (old[0] if old else None)


def _posts(paths: Mapping[str, Any]) -> list[str]:
    """List the POST paths in a server's OpenAPI document."""
    return [path for path, methods in paths.items() if isinstance(methods, dict) and "post" in methods]


def _routed_path(paths: Mapping[str, Any]) -> Talk[str | None]:
    """Find the path of a DeepSparse server up to 1.5 whose configuration sets a route."""
    reply = yield Call("GET", "/config")
    config = reply.json() if reply.status == 200 else None
    endpoints = config.get("endpoints") if isinstance(config, dict) else None
    if not isinstance(endpoints, list):
        return None
    routes = [f"/{str(one.get('route') or '').strip('/')}" for one in endpoints if isinstance(one, dict)]
    posts = _posts(paths)
    served = [route for route in routes if route in posts]
    if len(served) > 1:
        raise ValueError(f"The server has several models. Pass model= with one of: {', '.join(sorted(served))}.")
    return served[0] if served else None


def _tried_path(model: str | None) -> Talk[str]:
    """Find the path of a server without an OpenAPI document, by trial requests."""
    names = (_TASK, f"{_TASK}-0") if model is None else (model,)
    candidates = ["/predict", *(f"/v2/models/{name}/infer" for name in names)]
    last = Reply(404, {}, b"")
    for path in candidates:
        reply = yield Call("POST", path, {"inputs": ["a"]})
        if reply.status not in (404, 405):
            if reply.status != 200:
                raise refusal(reply)
            return path
        last = reply
    raise ValueError(
        "base_url is not a supported server (penult, DeepSparse, Text Embeddings Inference): GET /info, GET /openapi.json and "
        f"POST {', '.join(candidates)} returned HTTP {last.status} or an unexpected response. {_OPENAI}"
    )


def _deepsparse(path: str) -> Talk[Server]:
    """Query DeepSparse for what determines its vectors; versions without this information are identified by path only."""
    reply = yield Call("GET", "/config")
    config = reply.json() if reply.status == 200 else None
    endpoints = config.get("endpoints") if isinstance(config, dict) else None
    mine: Any = path
    if isinstance(endpoints, list):
        name = path.removeprefix("/v2/models/").removeprefix("/invocations/").removesuffix("/infer").strip("/")
        of_name = [
            e for e in endpoints if isinstance(e, dict) and name in (str(e.get("route") or "").strip("/"), e.get("name"))
        ]
        chosen = of_name or ([endpoints[0]] if len(endpoints) == 1 and isinstance(endpoints[0], dict) else [])
        if chosen:
            mine = {key: chosen[0].get(key) for key in ("task", "model", "bucketing", "kwargs")}
    return Server(kind="deepsparse", path=path, fingerprint=_hash({"server": "deepsparse", "endpoint": mine}))


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _request(server: Server, texts: Sequence[str], role: Role, prompt: str | None) -> Call:
    body: dict[str, Any]
    if server.kind == "penult":
        body = {"input": list(texts), "model": server.model, "input_type": role, "encoding_format": "base64"}
        if prompt is not None:
            body["prompt"] = prompt
    elif server.kind == "tei":
        body = {"inputs": list(texts), "truncate": True, "normalize": True}
        if (name := server.prompt_names.get(role)) is not None:
            body["prompt_name"] = name
    else:
        body = {"inputs": list(texts)}
    return Call("POST", server.path, body)


def _read(server: Server, content: Any, count: int) -> Vectors:  # noqa: ANN401 - JSON
    """Return N finite vectors of one size from a response, or raise an error that describes the response."""
    try:
        if server.kind == "penult":
            rows: Any = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in content["data"]]
        else:
            rows = content["embeddings"] if server.kind == "deepsparse" else content
        if not isinstance(rows, list):
            raise TypeError
        vectors = [_numbers(row) for row in rows]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"The server returned {_kind_of(content)} instead of {count} vectors.") from error
    sizes = sorted({vector.size if vector.ndim == 1 else 0 for vector in vectors})
    if len(vectors) != count or len(sizes) != 1 or sizes[0] == 0:
        raise ValueError(
            f"The server returned {len(vectors)} items of {', '.join(map(str, sizes)) or 'no'} values instead of {count} "
            "vectors of one size."
        )
    matrix: Vectors = np.stack(vectors)  # (N, D)
    bad = int((~np.isfinite(matrix)).any(axis=1).sum())
    if bad:
        raise ValueError(f"The server returned NaN or infinite values in {bad} of {count} vectors.")
    return matrix


def _numbers(row: Any) -> Vectors:  # noqa: ANN401 - JSON
    """Parse a row of numbers. Anything else, also a numeric string, is not a vector. null is NaN, which is rejected later."""
    array = np.asarray(row)
    if array.dtype.kind not in "fiuO" or (array.dtype.kind == "O" and any(isinstance(value, str) for value in row)):
        raise TypeError
    with np.errstate(over="ignore"):  # overflow becomes infinity, which is rejected later
        return array.astype(np.float32)


def _kind_of(content: Any) -> str:  # noqa: ANN401 - JSON
    first = content[0] if isinstance(content, list) and content else content
    first = first[0] if isinstance(first, list) and first else first
    if isinstance(first, dict) and ("label" in first or "labels" in first):
        return "labels (it is a classification endpoint, not an embedding endpoint)"
    if isinstance(content, dict):
        return f"the keys {', '.join(map(str, content))}" if content else "an empty JSON object"
    return "a body that is not JSON" if content is None else f"a {type(content).__name__}"
