"""The configuration of a server: pydantic models with penult's own error messages.

This module does not depend on a file format, a web framework or a model. `config_file` reads these models from YAML.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from penult.types import Pooling, Precision, Role, Truncate

MAX_WORKERS = 64
HOST, PORT = "0.0.0.0", 5543  # noqa: S104 - DeepSparse's defaults, which its clients use


_SECRETS = {"api_key"}  # fields that a file must not state


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback name or address, which no other machine can reach."""
    host = host.lower().removesuffix(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class ConfigError(ValueError):
    """An invalid configuration; the message says where and why."""


def error_at(*keys: str | int, message: str) -> PydanticCustomError:
    """Return an error for a model's validator to raise about a nested key."""
    words = " ".join([".".join(map(str, keys)), message]).strip()
    return PydanticCustomError("at_key", "{words}", {"words": words, "message": message, "at": keys})


class Settings(BaseModel):
    """Base class of all sections of a configuration: immutable, without unknown keys.

    `config_file` validates them with a context. They are then the sections of a file, in which a key without a value counts as
    absent.
    """

    # An error about the whole server would print its API key.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - pydantic passes any input
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        for name in values:
            if name not in fields:
                near = get_close_matches(str(name), fields, 1, 0.5)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise error_at(
                    str(name), message=f"is not a known key.{hint} Known keys: {', '.join(sorted(set(fields) - _SECRETS))}"
                )
        if not info.context:
            return values
        nullable = {name for name, field in fields.items() if NoneType in get_args(field.annotation)}
        return {name: value for name, value in values.items() if value is not None or name in nullable}

    def stated(self) -> dict[str, Any]:
        """Return the fields that were set explicitly."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def _check_poolings(value: object) -> object:
    names = value if isinstance(value, list | tuple) else (value,)
    if value is None or (names and all(name in get_args(Pooling) for name in names)):
        return tuple(names) if names is value else value
    raise ValueError(f"it must be one of {', '.join(get_args(Pooling))}, or a list of them")


def _check_integer_or_text(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise ValueError("it must be an integer, a string or null")  # noqa: TRY004 - pydantic reports ValueErrors
    return value


def _check_roles(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    for name in value:
        if name not in get_args(Role):
            raise error_at(str(name), message=f"is not a known key. Known keys: {', '.join(get_args(Role))}")
    return {role: prompt for role, prompt in value.items() if prompt is not None}


def _check_key(value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise ValueError("it is empty, which would disable the API key; set a key, or omit it")
    return value


def _check_origin(value: str) -> str:
    scheme, separator, host = value.partition("://")
    if value != "*" and (not separator or not scheme or not host or set("/?#@* ") & set(host)):
        raise ValueError("it must be an origin such as https://app.example.com, or *")
    return value.lower()


def _check_host(value: str) -> str:
    name = value.removeprefix("*.")
    if value != "*" and (not name or set("/?#@* ") & set(name) or name.count(":") == 1):
        raise ValueError("it must be a host without a port, such as box.example.com or *.example.com, or *")
    return value.lower()


Count = Annotated[StrictInt, Field(ge=1)]
Key = Annotated[StrictStr | None, AfterValidator(_check_key)]
Origin = Annotated[StrictStr, AfterValidator(_check_origin)]
HostName = Annotated[StrictStr, AfterValidator(_check_host)]
Poolings = Annotated[Pooling | tuple[Pooling, ...] | None, PlainValidator(_check_poolings)]
IntegerOrText = Annotated[int | str | None, BeforeValidator(_check_integer_or_text)]
Prompts = Annotated[Mapping[str, StrictStr] | None, BeforeValidator(_check_roles)]


class Limits(Settings):
    """Limits of requests and of the queue.

    Attributes:
        max_body_bytes: bytes of one request's body.
        max_bodies_in_flight: bytes of all bodies that are being received or processed, at least `max_body_bytes`; more are
            answered with 429.
        max_client_batch_size: texts of one request.
        max_text_chars: characters of one text.
        max_request_tokens: tokens of one request, after truncation.
        max_concurrent_requests: requests that run or wait, for each model; more are answered with 429.
        max_queue_tokens: tokens of all requests that run or wait, for each model; more are answered with 429.
        max_queue_seconds: a request that is expected to wait longer for the model is answered with 429.
        max_tick_tokens: token budget of one merged call; it bounds how long a small request waits behind a large one.
        max_answer_values: numbers of one answer; `per_token` and /embed_all return thousands per text.
        max_load_seconds: time limit for opening a model while the server runs.
    """

    max_body_bytes: Count = 32 * 1024 * 1024
    max_bodies_in_flight: Count = 256 * 1024 * 1024
    max_client_batch_size: Count = 2048
    max_text_chars: Count = 1_000_000
    max_request_tokens: Count = 1024 * 1024
    max_concurrent_requests: Count = 512
    max_queue_tokens: Count = 2 * 1024 * 1024
    max_queue_seconds: Count = 30
    max_tick_tokens: Count = 4096
    max_answer_values: Count = 16 * 1024 * 1024
    max_load_seconds: Count = 300


class EndpointConfig(Settings):
    """One model and how it is served.

    Attributes:
        model: folder, .onnx file, Hub id, `package:` or `zoo:` stub.
        served_model_name: the model's name on the routes. None: `name`, or else the last part of `model`'s path.
        name: the name in paths such as /v2/models/NAME/infer, and on the routes if `served_model_name` is not set.
        aliases: further names that clients may send as `model`.
        layer: see `Embedder.load`.
        pooling: see `Embedder.load`; several are concatenated. None: from the model's files.
        fallback_pooling: pooling if neither `pooling` nor the model's files set one. None: loading fails then.
        precision: see `Embedder.load`.
        max_length: maximum tokens of a text. None: from the model's files.
        truncate: handling of longer texts; see `Embedder.load`. "warn": they are truncated, and the answer counts them.
        dimensions: number of leading values of a vector to keep. None: all.
        normalize: whether vectors are L2-normalized. None: from the model's files.
        layer_norm: whether to apply a layer norm without weights before `dimensions` truncates the vectors.
        prompts: prompt of each role, overriding the model's own. None: from the model's files.
        files_from: folder or Hub id with tokenizer and configuration, for a model without them. None: the model's own.
        model_file: the .onnx file, if a folder or the Hub has several. None: as `Embedder.load` chooses.
        model_task: the task, if the model has several.
        open_at_start: whether the model is loaded before the server listens. False: at its first request.
    """

    model: StrictStr
    served_model_name: StrictStr | None = None
    name: StrictStr | None = None
    aliases: tuple[StrictStr, ...] = ()
    layer: IntegerOrText = -1
    pooling: Poolings = None
    fallback_pooling: Pooling | None = None
    precision: Precision = "fp32"
    max_length: Count | None = None
    truncate: Truncate = "warn"
    dimensions: Count | None = None
    normalize: StrictBool | None = None
    layer_norm: StrictBool = False
    prompts: Prompts = None
    files_from: StrictStr | None = None
    model_file: StrictStr | None = None
    model_task: IntegerOrText = None
    open_at_start: StrictBool = True
    _place: str = PrivateAttr("")

    @property
    def place(self) -> str:
        """File, line and key of the endpoint, for errors; empty without a file."""
        return self._place

    def set_place(self, place: str) -> None:
        """Set `place`. It is not a field, so that a file cannot set it."""
        self._place = place

    @property
    def model_id(self) -> str:
        """The model's name on the routes."""
        return self.served_model_name or self.name or public_name(self.model)

    @property
    def chooses_files(self) -> bool:
        """Whether the endpoint uses files other than those that `model` refers to."""
        return self.files_from is not None or self.model_file is not None


def public_name(model: str) -> str:
    """Return the name of a model for clients, without the server's folders.

    For a path it is the name of the model's folder, for a path in the Hub's cache the Hub id. Other references are returned
    unchanged.
    """
    path = Path(model)
    if not (path.exists() or model.startswith(("/", "./", "../", "~"))):
        return model
    path = path.expanduser().resolve()
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/", 1)
    if path.suffix == ".onnx":
        path = path.parent if path.stem.startswith("model") else path.with_suffix("")
    return (path.parent if path.name == "onnx" else path).name or model


def check_unique(endpoints: Sequence[EndpointConfig], *fields: str) -> None:
    """Raise an error for the second of two endpoints with the same value in one of these fields."""
    first: dict[str, int] = {}
    for number, endpoint in enumerate(endpoints):
        for field in fields:
            value = getattr(endpoint, field)
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None and first.setdefault(one, number) != number:
                    raise error_at(number, field, message=f"is {one!r}, as in endpoints[{first[one]}]; it must be unique")


class ServerConfig(Settings):
    """The configuration of a server.

    Attributes:
        endpoints: the served endpoints, at least one.
        host: bind address: 0.0.0.0 for every network, 127.0.0.1 for this machine only.
        port: port to listen on; 0: any free port.
        api_key: key that clients send as `Authorization: Bearer KEY`, except to the health routes. None: no key is needed.
        allowed_hosts: host names under which clients may reach the server, including *.example.com; * allows all. Loopback
            names are always allowed. Empty: on a loopback address without a key only loopback names, else all.
        allow_origin: origins of web pages that may use the server, such as https://app.example.com; * allows all. Empty: on a
            loopback address without a key pages of this machine, else only the server's own.
        allow_endpoints: whether POST and DELETE /endpoints need no key on a loopback address.
        log_json: whether log lines are JSON objects.
        threads: intra-op threads of each model. None: the physical cores this process may use, divided among the workers.
        workers: number of server processes; each loads the models.
        keep_alive: seconds that an idle connection stays open. Set it higher than the load balancer's, or requests can arrive
            on connections that are being closed.
        strict_model_name: whether a server of one model, like one of several, answers requests for another name with 404.
        limits: limits of requests and of the queue.
    """

    endpoints: tuple[EndpointConfig, ...]
    host: StrictStr = HOST
    port: Annotated[StrictInt, Field(ge=0, le=65535)] = PORT
    api_key: Annotated[Key, Field(repr=False)] = None
    allowed_hosts: tuple[HostName, ...] = ()
    allow_origin: tuple[Origin, ...] = ()
    allow_endpoints: StrictBool = False
    log_json: StrictBool = False
    threads: Count | None = None
    workers: Annotated[Count, Field(le=MAX_WORKERS)] = 1
    keep_alive: Count = 60
    strict_model_name: StrictBool = False
    limits: Limits = Field(default_factory=Limits)

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)

    @field_validator("endpoints")
    @classmethod
    def _check_names(cls, endpoints: tuple[EndpointConfig, ...]) -> tuple[EndpointConfig, ...]:
        if not endpoints:
            raise error_at(message="is empty; add at least one endpoint")
        check_unique(endpoints, "served_model_name", "name", "aliases")
        return endpoints

    def names_of(self, endpoint: EndpointConfig, number: int) -> tuple[str, ...]:
        """Return further names of an endpoint, which is the `number`-th of the server; the first must be unique."""
        del number  # a subclass uses it
        return endpoint.aliases if endpoint.name is None else (endpoint.name, *endpoint.aliases)
