"""DeepSparse's YAML file, and what penult adds to it.

It knows DeepSparse's keys: those that have a meaning here, those that have none (accepted, and said once), and that every
other is refused by name. An error names the file, the line and the key.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from penult.deepsparse.yaml_file import Node, load
from penult.server.config import HOST, PORT, ConfigError, EndpointConfig, Limits, ServerConfig, check_task
from penult.types import Pooling, Precision, Role

_LOGGER = logging.getLogger(__name__)
_STRATEGIES = ("per_token", "reduce_mean", "reduce_max", "cls_token")
_INTEGRATIONS = ("local", "sagemaker", "openai")
_NO_MEANING: Mapping[str, str] = {
    "num_workers": "requests of all clients are batched together",
    "engine_thread_pinning": "the operating system places the threads",
    "pytorch_num_threads": "there is no torch",
    "loggers": "metrics are at /metrics, on the port of the server",
    "system_logging": "the log has one line a request",
    "logging_config": "the log has one line a request",
    "data_logging": "texts and vectors are never logged",
    "batch_size": "batches are formed by their tokens",
    "engine_type": "ONNX Runtime runs the graph",
    "return_numpy": "an answer is JSON",
    "model_size": "the graph says how long a vector is",
    "num_cores": "the server's own num_cores holds for all endpoints",
    "num_streams": "one run uses all threads",
    "scheduler": "requests of all clients are batched together",
    "trust_remote_code": "no code of a model is ever run",
    "config": "the model's folder has it",
    "tokenizer": "the model's folder has it",
    "executor": "requests of all clients are batched together",
    "context": "one pool of threads serves all lengths",
    "benchmark": "`penult bench` measures the model",
    "alias": "the endpoint's name is its own",
    "logger": "the log has one line a request",
}
_OF_SERVER = ("num_workers", "engine_thread_pinning", "pytorch_num_threads", "loggers", "system_logging")
_OF_ENDPOINT = ("logging_config", "data_logging", "batch_size")
_OF_KWARGS = ("engine_type", "return_numpy", "model_size", "num_cores", "num_streams", "scheduler", "trust_remote_code",
              "batch_size", "config", "tokenizer", "executor", "context", "benchmark", "alias", "logger")  # fmt: skip


def read(path: str | Path) -> ServerConfig:
    """Read a configuration file.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is no YAML, or has a key or a value that cannot be served; the message has its line and key.
    """
    return read_node(load(path, ConfigError))


def read_node(root: Node) -> ServerConfig:
    """Read a configuration from the nodes of its file."""
    top = _Section(root)
    listed = top.take("endpoints")
    if listed is None or not isinstance(listed.value, list) or not listed.value:
        raise (listed or root).error("needs a list `endpoints:`, each with a task and a model")
    endpoints = tuple(read_endpoint(item) for item in listed.value)
    _check_apart(listed.value)
    integration = top.choice("integration", _INTEGRATIONS)
    if integration == "openai":
        _LOGGER.info("integration: openai changes nothing: the OpenAI routes are always there.")
    if (secret := top.take("api_key")) is not None:
        raise secret.error("is a secret, which does not belong into this file; give it with --api-key or in PENULT_API_KEY")
    host, port = top.text("host"), top.whole("port", 0)
    config = ServerConfig(
        endpoints=endpoints,
        log_json=bool(top.flag("log_json")),
        threads=top.whole("num_cores", 0) or None,
        integration="sagemaker" if integration == "sagemaker" else "local",
        limits=_limits(top.take("limits")),
        as_written={"integration": None} | {key: node.plain() for key, node in root.value.items() if key != "endpoints"},
        host=HOST if host is None else host,
        port=PORT if port is None else port,
    )
    top.ignore(_OF_SERVER)
    top.nothing_left()
    return config


def _check_apart(items: list[Node]) -> None:
    """Refuse the second endpoint of a name, or of a route."""
    for what in ("name", "route"):
        first: dict[object, Node] = {}
        for item in items:
            node = item.value.get(what)
            if node is not None and node.value is not None and (other := first.setdefault(node.value, node)) is not node:
                raise node.error(f"is {node.value!r}, as in line {other.line}; each endpoint needs its own")


def read_endpoint(node: Node) -> EndpointConfig:
    """Read one endpoint of a file, or of a POST to /endpoints."""
    found = _Section(node)
    task, model = found.text("task"), found.text("model")
    if task is None or model is None:
        raise node.error(f"lacks {'task' if task is None else 'model'}; an endpoint has a task and a model")
    try:
        task = check_task(task)
    except ConfigError as error:
        raise cast("Node", node.value["task"]).error(f"is refused: {str(error).rstrip('.')}") from error
    given = found.take("kwargs")
    if given is None or given.value is None:
        given = Node({}, node.path, node.line, f"{node.key}.kwargs", ConfigError)
    kwargs = _Section(given)
    buckets = _buckets(found, kwargs)
    if (middlewares := found.take("middlewares")) is not None and middlewares.value:
        raise middlewares.error("names code of DeepSparse's own, which cannot run here; leave it out")
    layer = kwargs.take("emb_extraction_layer")
    if layer is not None and (isinstance(layer.value, bool) or not isinstance(layer.value, int | str | None)):
        raise layer.error(f"is {layer.plain()!r}; it must be a whole number, a name or null")
    endpoint = EndpointConfig(
        model=model,
        task=task,
        name=found.text("name"),
        route=found.text("route"),
        sequence_length=buckets,
        extraction_strategy=kwargs.choice("extraction_strategy", _STRATEGIES) or "per_token",
        emb_extraction_layer=-1 if layer is None else layer.value,
        pooling=found.choices("pooling", get_args(Pooling)),
        precision=cast("Precision", found.choice("precision", get_args(Precision)) or "fp32"),
        max_length=found.whole("max_length", 1),
        dimensions=found.whole("dimensions", 1),
        normalize=found.flag("normalize"),
        layer_norm=found.flag("layer_norm") or False,
        prompts=_prompts(found.take("prompts")),
        files_from=found.text("files_from"),
        model_file=found.text("model_file"),
        model_task=found.text_or_whole("model_task"),
        as_written=node.plain(),
        place=f"{node.path}, line {node.line}: {node.key}" if node.line else "",
    )
    for section, names in ((found, _OF_ENDPOINT), (kwargs, _OF_KWARGS)):
        section.ignore(names)
        section.nothing_left()
    return endpoint


def _buckets(found: "_Section", kwargs: "_Section") -> int | tuple[int, ...]:
    """Find the padded lengths: `kwargs.sequence_length`, or `bucketing.sequence_lengths`, which stands above it."""
    length = kwargs.lengths("sequence_length")
    if (bucketing := found.take("bucketing")) is not None and bucketing.value is not None:
        part = _Section(bucketing)
        listed = part.lengths("sequence_lengths")
        part.nothing_left()
        if not isinstance(listed, tuple):
            raise bucketing.error("needs a list `sequence_lengths:`")
        return listed
    return 128 if length is None else length


def _prompts(node: Node | None) -> dict[str, str] | None:
    if node is None or node.value is None:
        return None
    part = _Section(node)
    given = {role: prompt for role in get_args(Role) if (prompt := part.text(role)) is not None}
    part.nothing_left()
    return given


def _limits(node: Node | None) -> Limits:
    if node is None:
        return Limits()
    part = _Section(node)
    given = {name: value for name in Limits.__slots__ if (value := part.whole(name, 1)) is not None}
    part.nothing_left()
    return Limits(**given)


class _Section:
    """A mapping of the file, from which keys are taken; what is left at the end was not understood."""

    def __init__(self, node: Node) -> None:
        if not isinstance(node.value, dict):
            raise node.error(f"is {node.plain()!r}; it must be a mapping of keys to values")
        self._left: dict[str, Node] = dict(node.value)
        self._known: list[str] = []

    def take(self, key: str) -> Node | None:
        self._known.append(key)
        return self._left.pop(key, None)

    def text(self, key: str) -> str | None:
        return cast("str | None", self._typed(key, str, "a text"))

    def flag(self, key: str) -> bool | None:
        return cast("bool | None", self._typed(key, bool, "true or false"))

    def whole(self, key: str, least: int) -> int | None:
        node = self.take(key)
        if node is None or node.value is None:
            return None
        if isinstance(node.value, bool) or not isinstance(node.value, int) or node.value < least:
            raise node.error(f"is {node.plain()!r}; it must be a whole number of at least {least}")
        return node.value

    def choice(self, key: str, allowed: tuple[str, ...]) -> str | None:
        node = self.take(key)
        if node is None or node.value is None:
            return None
        if node.value not in allowed:
            raise node.error(f"is {node.plain()!r}; it must be one of {', '.join(allowed)}")
        return str(node.value)

    def choices(self, key: str, allowed: tuple[str, ...]) -> Any:  # noqa: ANN401 - a value of `allowed`, or several
        node = self._left.get(key)
        if node is None or not isinstance(node.value, list):
            return self.choice(key, allowed)
        self.take(key)
        given = node.plain()
        if not given or any(item not in allowed for item in given):
            raise node.error(f"is {given!r}; it must be one of {', '.join(allowed)}, or a list of them")
        return tuple(given)

    def text_or_whole(self, key: str) -> str | int | None:
        node = self.take(key)
        if node is None or node.value is None:
            return None
        if isinstance(node.value, bool) or not isinstance(node.value, str | int):
            raise node.error(f"is {node.plain()!r}; it must be a text or a whole number")
        return node.value

    def lengths(self, key: str) -> int | tuple[int, ...] | None:
        node = self.take(key)
        if node is None or node.value is None:
            return None
        listed = node.plain() if isinstance(node.value, list) else [node.value]
        if not listed or any(isinstance(item, bool) or not isinstance(item, int) or item < 1 for item in listed):
            raise node.error(f"is {node.plain()!r}; it must be a whole number of at least 1, or a list of them")
        return tuple(listed) if isinstance(node.value, list) else int(listed[0])

    def ignore(self, names: tuple[str, ...]) -> None:
        for name in names:
            if (node := self.take(name)) is not None and node.value is not None:
                _LOGGER.info("%s, line %d: %s has no meaning here: %s.", node.path, node.line, node.key, _NO_MEANING[name])

    def nothing_left(self) -> None:
        for node in self._left.values():
            raise node.error(f"is not known here; known are {', '.join(sorted(set(self._known)))}")

    def _typed(self, key: str, kind: type, words: str) -> Any:  # noqa: ANN401 - each caller casts it to its kind
        node = self.take(key)
        if node is None or node.value is None:
            return None
        if not isinstance(node.value, kind):
            raise node.error(f"is {node.plain()!r}; it must be {words}")
        return node.value
