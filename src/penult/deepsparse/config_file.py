"""DeepSparse's configuration file: its keys, in addition to penult's own.

Validators translate DeepSparse's keys into penult's. Keys that have no effect in penult are logged as ignored; keys that cannot
be supported are refused.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from penult.deepsparse.arguments import TASK, TASKS, Strategy
from penult.server import config_file
from penult.server.config import (
    ConfigError,
    Count,
    EndpointConfig,
    IntegerOrText,
    ServerConfig,
    Settings,
    check_unique,
    error_at,
    public_name,
)
from penult.server.config_file import Document, Location
from penult.types import Pooling

_LOGGER = logging.getLogger(__name__)
_POOLINGS: Mapping[str, Pooling] = {"reduce_mean": "mean", "reduce_max": "max", "cls_token": "cls"}


@dataclass(frozen=True, slots=True)
class Ignored:
    """Marker of a key that has no effect in penult."""

    reason: str


def _check_task(value: object) -> object:
    if isinstance(value, str) and value.lower().replace("-", "_") in TASKS:
        return TASK
    raise ValueError(f"it must be {TASK}")


def _check_lengths(value: object) -> object:
    lengths = value if isinstance(value, list | tuple) else (value,)
    if not lengths or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in lengths):
        raise ValueError("it must be an integer of at least 1, or a list of them")
    return tuple(lengths) if lengths is value else value


def _check_middlewares(value: object) -> object:
    if value:
        raise ValueError("it refers to code of DeepSparse, which penult cannot run; remove it")
    return value


class Bucketing(Settings):
    """DeepSparse's section `bucketing`."""

    sequence_lengths: Annotated[tuple[Count, ...], Field(min_length=1)]


class Kwargs(Settings):
    """DeepSparse's section `kwargs` of an endpoint: arguments of its pipeline.

    Attributes:
        sequence_length: padded lengths of the DeepSparse routes.
        extraction_strategy: how the DeepSparse routes reduce the token vectors of a text.
        emb_extraction_layer: layer in DeepSparse's numbering, where 0 is the first layer; see `DeepSparseEndpoint.layer`.
    """

    sequence_length: Annotated[int | tuple[int, ...], PlainValidator(_check_lengths)] = 128
    extraction_strategy: Strategy = "per_token"
    emb_extraction_layer: IntegerOrText = -1
    engine_type: Annotated[Any, Ignored("ONNX Runtime runs the graph")] = None
    return_numpy: Annotated[Any, Ignored("responses are JSON")] = None
    model_size: Annotated[Any, Ignored("the graph determines the size of a vector")] = None
    num_cores: Annotated[Any, Ignored("num_cores of the server applies to all endpoints")] = None
    num_streams: Annotated[Any, Ignored("one run uses all threads")] = None
    scheduler: Annotated[Any, Ignored("requests of all clients are batched together")] = None
    trust_remote_code: Annotated[Any, Ignored("penult never runs code of a model")] = None
    batch_size: Annotated[Any, Ignored("batches are planned from token counts")] = None
    config: Annotated[Any, Ignored("it is read from the model's folder")] = None
    tokenizer: Annotated[Any, Ignored("it is read from the model's folder")] = None
    executor: Annotated[Any, Ignored("requests of all clients are batched together")] = None
    context: Annotated[Any, Ignored("all lengths use the same threads")] = None
    benchmark: Annotated[Any, Ignored("`penult bench` measures the model")] = None
    alias: Annotated[Any, Ignored("set name instead")] = None
    logger: Annotated[Any, Ignored("the log has one line per request")] = None


class DeepSparseEndpoint(EndpointConfig):
    """An endpoint of DeepSparse's configuration file; `kwargs` and `bucketing` are as in that file.

    Attributes:
        task: DeepSparse's task. None: not set.
        route: path of the DeepSparse routes.
        bucketing: padded lengths of the DeepSparse routes; overrides `kwargs.sequence_length`.
        kwargs: arguments of DeepSparse's pipeline.
    """

    task: Annotated[str | None, BeforeValidator(_check_task)] = None
    route: StrictStr | None = None
    bucketing: Bucketing | None = None
    kwargs: Kwargs = Field(default_factory=Kwargs)
    middlewares: Annotated[Any, AfterValidator(_check_middlewares)] = None
    batch_size: Annotated[Any, Ignored("batches are planned from token counts")] = None
    logging_config: Annotated[Any, Ignored("the log has one line per request")] = None
    data_logging: Annotated[Any, Ignored("texts and vectors are never logged")] = None

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, values: Any) -> Any:  # noqa: ANN401 - pydantic passes any input
        """Translate DeepSparse's keys into penult's; invalid values are left to the validation of their own fields."""
        if not isinstance(values, dict):
            return values
        kwargs = values.get("kwargs")
        kwargs = kwargs.stated() if isinstance(kwargs, Kwargs) else kwargs if isinstance(kwargs, dict) else {}
        translated: dict[str, Any] = {}
        layer = kwargs.get("emb_extraction_layer", [])
        if isinstance(layer, int | str | None) and not isinstance(layer, bool):
            translated["layer"] = layer + 1 if isinstance(layer, int) and layer >= 0 else layer
            if values.get("layer", translated["layer"]) != translated["layer"]:
                raise error_at(message="has layer and kwargs.emb_extraction_layer, which differ; remove one of them")
        strategy = kwargs.get("extraction_strategy")
        if isinstance(strategy, str) and strategy in _POOLINGS:
            translated["fallback_pooling"] = _POOLINGS[strategy]
        chooses_files = values.get("files_from") is not None or values.get("model_file") is not None
        if values.get("task") is not None and not chooses_files:
            translated["open_at_start"] = False  # the DeepSparse routes open it at start
        return translated | values

    @property
    def model_id(self) -> str:
        """The model's name on OpenAI's routes. DeepSparse named an endpoint without a name after its task."""
        if self.served_model_name is not None:
            return self.served_model_name
        return public_name(self.model) if self.name in (None, TASK) else str(self.name)

    @property
    def sequence_length(self) -> int | tuple[int, ...]:
        """One or several padded lengths of the DeepSparse routes."""
        return self.kwargs.sequence_length if self.bucketing is None else self.bucketing.sequence_lengths

    @property
    def extraction_strategy(self) -> Strategy:
        """How the DeepSparse routes reduce the token vectors of a text."""
        return self.kwargs.extraction_strategy

    @property
    def emb_extraction_layer(self) -> int | str | None:
        """`layer` in DeepSparse's numbering, where 0 is the first layer.

        Raises:
            ValueError: `layer` is the embedding output, which DeepSparse's numbering does not include.
        """
        if self.layer == 0:
            raise ValueError("layer 0, the embedding output, is not available on DeepSparse's routes; set another layer.")
        return self.layer - 1 if isinstance(self.layer, int) and self.layer > 0 else self.layer


class DeepSparseServer(ServerConfig):
    """DeepSparse's configuration file.

    Attributes:
        endpoints: the served endpoints, at least one.
        num_cores: DeepSparse's name for `threads`; 0 is the default. `threads` overrides it.
        integration: "sagemaker" moves inference to /invocations. None: not set.
    """

    endpoints: tuple[DeepSparseEndpoint, ...]
    num_cores: Annotated[StrictInt, Field(ge=0)] | None = None
    integration: Literal["local", "sagemaker", "openai"] | None = None
    num_workers: Annotated[Any, Ignored("requests of all clients are batched together")] = None
    engine_thread_pinning: Annotated[Any, Ignored("the operating system schedules the threads")] = None
    pytorch_num_threads: Annotated[Any, Ignored("penult does not use torch")] = None
    loggers: Annotated[Any, Ignored("metrics are at /metrics, on the port of the server")] = None
    system_logging: Annotated[Any, Ignored("the log has one line per request")] = None

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, values: Any) -> Any:  # noqa: ANN401 - pydantic passes any input
        if not isinstance(values, dict):
            return values
        cores = values.get("num_cores")
        return {"threads": cores} | values if type(cores) is int and cores > 0 else values

    @field_validator("endpoints")
    @classmethod
    def _check_routes(cls, endpoints: tuple[DeepSparseEndpoint, ...]) -> tuple[DeepSparseEndpoint, ...]:
        check_unique(endpoints, "route")
        return endpoints

    def names_of(self, endpoint: EndpointConfig, number: int) -> tuple[str, ...]:
        """Return DeepSparse's name of an endpoint, as in /v2/models/NAME/infer, and its other names.

        Raises:
            ConfigError: the name cannot be part of a path.
        """
        route = endpoint.route if isinstance(endpoint, DeepSparseEndpoint) else None
        route = (route or "").strip("/")
        name = route or endpoint.name or f"{TASK}-{number}"
        if set("{}?#%") & set(name):
            raise ConfigError(f"The endpoint's name {name!r} cannot be part of a URL path. Remove the characters {{ }} ? # %.")
        # DeepSparse named a single endpoint from the command line after its task, and added a number if the endpoint came from
        # a file. Clients of both keep working.
        alone = len(self.endpoints) == 1 and number == 0
        unnamed = not route and endpoint.name in (None, TASK)
        more = (TASK, f"{TASK}-{number}") if alone and unnamed else ()
        if alone and not set("{}?#%/") & set(endpoint.model_id):  # the name of a single model on the other routes
            more = (*more, endpoint.model_id)
        return (name, *(other for other in (*more, *endpoint.aliases) if other != name))


def read(path: str | Path) -> DeepSparseServer:
    """Read a configuration file, and log its ignored keys.

    Raises:
        FileNotFoundError: the file does not exist.
        ConfigError: the file is not YAML, or has an invalid key or value.
    """
    config, document = config_file.load(path, DeepSparseServer)
    if config.integration == "openai":
        _LOGGER.info("integration: openai is ignored: it has no effect in penult: the OpenAI routes always exist.")
    _log_ignored(config, document, ())
    for number, endpoint in enumerate(config.endpoints):
        _log_endpoint(endpoint, document, ("endpoints", number))
    return config


def read_endpoint(values: Mapping[str, Any]) -> DeepSparseEndpoint:
    """Read an endpoint from the body of a request.

    Raises:
        ConfigError: a key or a value is invalid.
    """
    document = Document("the body", values)
    endpoint = document.validate(DeepSparseEndpoint)
    _log_endpoint(endpoint, document, ())
    return endpoint


def _log_endpoint(endpoint: DeepSparseEndpoint, document: Document, at: Location) -> None:
    _log_ignored(endpoint, document, at)
    _log_ignored(endpoint.kwargs, document, (*at, "kwargs"))


def _log_ignored(section: Settings, document: Document, at: Location) -> None:
    for name, field in type(section).model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, Ignored) and getattr(section, name) is not None:
                _LOGGER.info("%s is ignored: it has no effect in penult: %s.", document.place((*at, name)), mark.reason)
