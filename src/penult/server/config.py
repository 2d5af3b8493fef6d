"""What is served: the values that a server is made of.

It knows no file, no web framework and no model. `configfile` reads these values from YAML.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penult.types import Pooling, Precision

HOST, PORT = "0.0.0.0", 5543  # noqa: S104 - DeepSparse's, and those of the page that its users followed
TASK = "transformers_embedding_extraction"
_TASKS = (TASK, "transformer_embedding_extraction")


class ConfigError(ValueError):
    """A configuration that cannot be served; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask for, and how much may wait.

    Attributes:
        max_body_bytes: of one request.
        max_client_batch_size: texts of one request.
        max_text_chars: characters of one text.
        max_concurrent_requests: requests that are answered or wait, for each model; more are sent away with 429.
        max_tick_tokens: the most tokens that run between two looks at the queue: it bounds the wait of a small request
            behind a large one.
        max_answer_values: the most numbers of one answer; `per_token` and /embed_all have thousands of them for a text.
    """

    max_body_bytes: int = 32 * 1024 * 1024
    max_client_batch_size: int = 2048
    max_text_chars: int = 1_000_000
    max_concurrent_requests: int = 512
    max_tick_tokens: int = 4096
    max_answer_values: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1.")


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """One model and how it is served.

    Attributes:
        model: folder, .onnx file, Hub id, `package:` or `zoo:` stub.
        task: DeepSparse's; None: not named, so the model is opened for the OpenAI and TEI routes first.
        name: as DeepSparse's `name`; it is the model's name on the OpenAI routes too.
        route: as DeepSparse's `route`.
        sequence_length: the DeepSparse routes' padded lengths; `bucketing.sequence_lengths` of a file.
        extraction_strategy: of the DeepSparse routes.
        emb_extraction_layer: in DeepSparse's count, 0 the first layer.
        pooling: of the OpenAI and TEI routes, as are all that follow; several are concatenated. None: as the model's files
            say, and where they say nothing, what `extraction_strategy` means (`per_token` means none: then those routes
            answer with an error).
        precision: see `Embedder.load`, as for the next three.
        max_length: None: as the model's files say.
        dimensions: None: all.
        normalize: None: as the model's files say.
        layer_norm: whether a layer norm without weights comes before `dimensions` are kept.
        prompts: put before the texts of a role instead of the model's own prompt. None: as the model's files say.
        files_from: the folder or Hub id of the recipe's files, for a model that lacks them. None: the model's own.
        model_file: the .onnx file, of several in a folder or on the Hub. None: as `Embedder.load` chooses.
        model_task: the task of models that have several; DeepSparse's `task` is another word.
        as_written: the endpoint as its file has it, for GET /config.
        place: where it stands in its file, for errors; empty where there is none.
    """

    model: str
    task: str | None = None
    name: str | None = None
    route: str | None = None
    sequence_length: int | tuple[int, ...] = 128
    extraction_strategy: str = "per_token"
    emb_extraction_layer: int | str | None = -1
    pooling: Pooling | tuple[Pooling, ...] | None = None
    precision: Precision = "fp32"
    max_length: int | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    layer_norm: bool = False
    prompts: Mapping[str, str] | None = None
    files_from: str | None = None
    model_file: str | None = None
    model_task: str | int | None = None
    as_written: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""

    @property
    def chooses_files(self) -> bool:
        """Whether it takes other files than those that the model's reference means, which DeepSparse's routes cannot."""
        return self.files_from is not None or self.model_file is not None


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A whole server.

    Attributes:
        endpoints: what it serves, at least one.
        host: 0.0.0.0 as DeepSparse listens; 127.0.0.1 for this machine alone.
        api_key: None: everybody may ask. Else clients send `Authorization: Bearer KEY`, but for the health routes.
        log_json: the log's lines are JSON objects.
        threads: of each model. None: the physical cores this process may use.
        integration: "local", or "sagemaker": inference is under /invocations, as DeepSparse moved it.
        as_written: the server's part of the file, for GET /config.
    """

    endpoints: tuple[EndpointConfig, ...]
    host: str = HOST
    port: int = PORT
    api_key: str | None = field(default=None, repr=False)
    log_json: bool = False
    threads: int | None = None
    integration: str = "local"
    limits: Limits = field(default_factory=Limits)
    as_written: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ConfigError("No model is named; give --model_path or --config_file.")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; it must be from 0 to 65535.")
        for what in ("name", "route"):
            given = [getattr(endpoint, what) for endpoint in self.endpoints if getattr(endpoint, what) is not None]
            twice = sorted({value for value in given if given.count(value) > 1})
            if twice:
                raise ConfigError(f"Two endpoints have the {what} {twice[0]!r}; each needs its own.")


def check_task(task: str) -> str:
    """Give a task under its one name; DeepSparse read it in any case and with `-` for `_`."""
    if task.lower().replace("-", "_") not in _TASKS:
        raise ConfigError(f"task is {task!r}; penult has one, {TASK!r}.")
    return TASK


def single(model: str, task: str | None = None) -> EndpointConfig:
    """Make the endpoint of a server that was given a model and no file; DeepSparse named it after its task."""
    return EndpointConfig(model=model, task=None if task is None else check_task(task), name=TASK)
