"""Child process of `penult export`: load the transformers class, export it with torch, and verify the result.

The interpreter may belong to another environment, so this module does not import penult. Standard output has one JSON object
per line: {"progress": text} any number of times, then {"done": {...}} or {"error": sentence}.
"""

import contextlib
import importlib.metadata
import inspect
import json
import logging
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Say = Callable[[str], None]

OUTPUT = "last_hidden_state"
# Maximum difference to torch of an accepted export, relative to the largest value of torch's result.
TOLERANCE = 1e-4
# Weights of more bytes than this are stored in a separate file: a protobuf message is limited to 2 GB.
INLINE_BYTES = int(os.environ.get("PENULT_EXPORT_INLINE_BYTES", "1500000000"))
_SMALL_TENSOR = 1024  # bytes; smaller tensors stay in the graph, because shape inference reads some of them
_ALIGNMENT = 4096  # bytes; page-aligned tensors can be mapped into memory
_LONG = 1024  # tokens of the long sequence in the check
_LONGEST = 4104  # tokens; longer sequences take too long on a CPU
# Settings with a length beyond which a model's computation changes.
_SWITCHES = re.compile(r"window|local_attention|chunk|block_size|original_max_position")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
_WORDS = 160  # maximum characters shown of another library's message
_TEXTS = (
    "moon",
    "The wide river carries stones and sand to the sea.",
    "A statement is a unit of code: the interpreter reads it, and the object changes its value; then 27.3 days pass, Ünïcödé.",
)


class ExportError(Exception):
    """A model that cannot be exported; the message is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One export configuration: the attention implementation, and tracing by torch.export ("dynamo") or TorchScript."""

    attention: str
    dynamo: bool

    def __str__(self) -> str:
        return f"{'torch.export' if self.dynamo else 'TorchScript'} with {self.attention} attention"


ATTEMPTS = tuple(Attempt(attention, dynamo) for attention in ("sdpa", "eager") for dynamo in (True, False))


class Encoder(torch.nn.Module):  # type: ignore[misc,unused-ignore]  # torch is not installed where this file is type-checked
    """A transformer with text inputs only and the last hidden state as its output."""

    def __init__(self, model: Any, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = tuple(inputs)
        self._options = {"return_dict": True, "use_cache": False}
        self._options = {name: value for name, value in self._options.items() if name in _parameters(model)}

    def forward(self, *inputs: Any) -> Any:
        """Return the last hidden state, (B, T, H), from the inputs named at construction."""
        return self.model(**dict(zip(self.inputs, inputs, strict=True)), **self._options)[0]


@dataclass(frozen=True, slots=True)
class Exported:
    """Result of an export: the attempt, the versions, and the maximum difference to torch, relative to the largest value."""

    way: str
    torch: str
    transformers: str
    difference: float


def export(folder: Path, out: Path, say: Say) -> Exported:
    """Export the transformer in a folder to `out/model.onnx`.

    Raises:
        ExportError: the model cannot be loaded, or no exporter produced a graph with torch's result.
    """
    config = _config(folder)
    say(f"exporting {folder.name} ({config.model_type}) to ONNX with torch {torch.__version__} ...")
    failures: list[str] = []
    attention, encoder, checks = "", None, []
    for attempt in ATTEMPTS:
        try:
            if attempt.attention != attention:
                attention, encoder = attempt.attention, None  # free the weights before loading them again
                encoder = load(folder, attention)
                checks = _checks(encoder, folder)
            if encoder is None:
                continue
            difference = _export_once(encoder, attempt, checks, out)
        except ExportError as error:
            failures.append(f"{attempt}: {error}")
            continue
        say(f"checked against torch on three texts and {len(checks) - 4} further lengths: largest difference {difference:.1e}")
        return Exported(str(attempt), torch.__version__, transformers.__version__, difference)
    raise ExportError(_in_words(folder, config, failures))


def load(folder: Path, attention: str) -> Encoder:
    """Load the transformers class for a folder in fp32; for an encoder-decoder that needs a target, only the encoder.

    Raises:
        ExportError: no class of transformers loads it, or weights that affect the result are missing.
    """
    inputs = _input_names(folder)
    failures = []
    for kind in _classes(folder):
        try:
            model, missing = _from_pretrained(kind, folder, attention)
            encoder = _runnable(model, inputs)
        except Exception as error:  # noqa: BLE001 - any class of any library: the boundary to the model's own code
            failures.append(_first_line(error))
            continue
        if not missing or _finite_without(model, missing, encoder):
            return encoder
        failures.append(f"{len(missing)} weights are missing, such as {missing[0]}")
    raise ExportError(failures[0])


def store(source: Path, out: Path) -> None:
    """Write a graph to `out` with its weights inside, or all in `out` + "_data" if they exceed `INLINE_BYTES`.

    Tensors are read and written one at a time, whatever the exporter's layout.
    """
    model = onnx.load(source, load_external_data=False)
    nodes = [*_nodes(model.graph), *(node for function in model.functions for node in function.node)]
    for node in nodes:  # stack traces: as large as a small model, and they contain paths of this machine
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    tensors = list(_tensors(model.graph))
    tensors += [tensor for function in model.functions for node in function.node for tensor in _node_tensors(node)]
    outside = sum(map(_byte_count, tensors)) > INLINE_BYTES
    with out.with_name(f"{out.name}_data").open("wb") if outside else contextlib.nullcontext() as data:
        for tensor in tensors:
            raw = _external_bytes(tensor, source.parent)
            if raw is not None:
                tensor.ClearField("external_data")
                tensor.data_location = onnx.TensorProto.DEFAULT
                tensor.raw_data = raw
            if data is not None and len(tensor.raw_data) >= _SMALL_TENSOR:
                data.write(b"\0" * (-data.tell() % _ALIGNMENT))
                _move(tensor, data, f"{out.name}_data")
    onnx.save(model, out)


def _config(folder: Path) -> Any:
    stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (folder / "adapter_config.json").exists():
        raise ExportError(
            f"{folder.name} has an adapter (adapter_config.json) beside or instead of a complete model. Merge it into its base "
            "model with peft's merge_and_unload(), save that, and export the saved folder."
        )
    if "quantization_config" in stated:
        raise ExportError(f"{folder.name} has quantized weights (quantization_config). Export the model in fp32 or bf16.")
    if isinstance(stated.get("auto_map"), dict) and "AutoModel" in stated["auto_map"]:
        # A transformers class with the same name and model_type may compute something else (causal or not).
        raise ExportError(
            f"{folder.name} has custom model code (auto_map in config.json), which penult does not run, and transformers' own "
            "class may give other vectors. Export it with its code and pass that folder; or, if transformers' class is "
            "known to give the same vectors, remove auto_map from config.json."
        )
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        known = importlib.metadata.version("transformers")
        raise ExportError(f"transformers {known} cannot read config.json of {folder.name}: {_first_line(error)}.") from error


def _classes(folder: Path) -> list[Any]:
    """Return AutoModel's class, then the classes that config.json names, if transformers has them."""
    config = _config(folder)
    try:
        auto = transformers.AutoModel._model_mapping[type(config)]  # there is no public API for the class
    except KeyError as error:
        raise ExportError(f"transformers has no AutoModel class for model_type {config.model_type!r}") from error
    auto = auto[0] if isinstance(auto, tuple | list) else auto
    module = inspect.getmodule(auto)
    named = [getattr(module, name, None) for name in getattr(config, "architectures", None) or []]
    return [auto, *(kind for kind in named if kind is not None and kind is not auto)]


def _from_pretrained(kind: Any, folder: Path, attention: str) -> tuple[Any, list[str]]:
    config = _config(folder)
    _no_cache(config)
    dtype = {"dtype" if _transformers_version() >= (4, 56) else "torch_dtype": torch.float32}
    model, info = kind.from_pretrained(
        folder,
        config=config,
        attn_implementation=attention,
        local_files_only=True,
        output_loading_info=True,
        **dtype,
    )
    # Experts are selected by index in a loop or by a grouped matrix product; only the batched product can be traced.
    with contextlib.suppress(AttributeError, ValueError, KeyError):
        model.set_experts_implementation("batched_mm")
    return model.eval(), sorted(info["missing_keys"])


def _no_cache(config: Any) -> None:
    if hasattr(config, "use_cache"):
        config.use_cache = False
    for name in getattr(config, "sub_configs", None) or ():
        if (part := getattr(config, name, None)) is not None:
            _no_cache(part)


def _transformers_version() -> tuple[int, int]:
    major, minor = transformers.__version__.split(".")[:2]
    return int(major), int(minor)


def _input_names(folder: Path) -> list[str]:
    """Return the names of the inputs that the folder's tokenizer returns, which the model runs on."""
    tokenizer = _tokenizer(folder)
    if tokenizer is not None:
        return [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokenizer.model_input_names]
    types = getattr(_config(folder), "type_vocab_size", None) or 0
    return ["input_ids", "attention_mask", *(["token_type_ids"] if types > 1 else [])]


def _tokenizer(folder: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception:  # noqa: BLE001 - the tokenizer is in another folder, or needs a package that is not installed
        return None


def _runnable(model: Any, inputs: Sequence[str]) -> Encoder:
    """Return the part that runs on text only: the whole model, or its encoder if the decoder needs a target."""
    parts = [model]
    if getattr(model.config, "is_encoder_decoder", False):
        parts.append(model.get_encoder())
    failure: Exception | None = None
    for part in parts:
        allowed = _parameters(part)
        # Exporters restore the mode of the outermost module at the end: in training mode, dropout would then be active.
        encoder = Encoder(part, [name for name in inputs if name in allowed])
        encoder.eval()
        try:
            _run_torch(encoder, _feeds([[3, 4, 5]], 0, encoder.inputs))
        except Exception as error:  # noqa: BLE001 - the class of the error without a target differs between models
            failure = failure or error
            continue
        return encoder
    raise ExportError(_first_line(failure or ValueError("the model does not run")))


def _parameters(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _finite_without(model: Any, missing: Sequence[str], encoder: Encoder) -> bool:
    """Return whether the result does not depend on the weights that the folder lacks, such as those of a pooler.

    They are set to NaN: any output that depends on them becomes NaN, too.
    """
    weights = model.state_dict()
    with torch.no_grad():
        for name in missing:
            if name in weights and weights[name].is_floating_point():
                weights[name].fill_(float("nan"))
        result = _run_torch(encoder, _feeds([[3, 4, 5, 6, 7, 8]], 0, encoder.inputs))
    return bool(np.isfinite(result).all())


@dataclass(frozen=True, slots=True)
class _Check:
    """Inputs with torch's result."""

    feeds: Arrays
    result: NDArray[np.float32]


def _checks(encoder: Encoder, folder: Path) -> list[_Check]:
    """Return the checks of an export: three texts alone and in one padded batch, a single token, and a long sequence."""
    config = encoder.model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    tokenizer = _tokenizer(folder)
    size = int(getattr(config, "vocab_size", 0) or 0) or 100
    pad = int(getattr(config, "pad_token_id", None) or 0)
    rows = _rows(tokenizer, size)
    batches = [[rows[0]], [rows[1]], [rows[2]], rows, [rows[1][:1]]]
    limits = [getattr(config, name, None) for name in _LENGTHS]
    limit = min([value for value in limits if isinstance(value, int) and value > 0], default=2**20)
    switches = [length + 8 for length in _switch_lengths(config.to_dict()) if length + 8 <= min(limit, _LONGEST)]
    # Positions may start after the padding id, so the last rows of the position table are not used.
    longest = min(max([_LONG, *switches]), limit - pad - 2)
    checks = [_check(encoder, _feeds(batch, pad, encoder.inputs)) for batch in batches]
    ids = [int(value) for value in np.random.default_rng(0).integers(0, size, max(longest, 1))]
    # A length that torch itself rejects cannot be checked.
    with contextlib.suppress(IndexError, RuntimeError, ValueError):
        checks.append(_check(encoder, _feeds([[value if value != pad else rows[1][0] for value in ids]], pad, encoder.inputs)))
    return checks


def _check(encoder: Encoder, feeds: Arrays) -> _Check:
    result = _run_torch(encoder, feeds)
    if not np.isfinite(result).all() and "attention_mask" not in feeds:
        raise ExportError("torch's own result has NaN or infinite values")
    return _Check(feeds, result)


def _rows(tokenizer: Any, size: int) -> list[list[int]]:
    """Return the ids of three texts; random ids if transformers cannot load a tokenizer from the folder."""
    generator = np.random.default_rng(1)
    rows = [[int(value) for value in generator.integers(0, size, length)] for length in (3, 12, 40)]
    if tokenizer is None:
        return rows
    rows_of_texts = [[int(value) for value in tokenizer(text)["input_ids"]][:64] for text in _TEXTS]
    usable = all(rows_of_texts) and max(max(row) for row in rows_of_texts) < size
    return rows_of_texts if usable else rows


def _switch_lengths(values: Mapping[str, Any]) -> Iterator[int]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _switch_lengths(value)
        elif _SWITCHES.search(str(key)):
            numbers = value if isinstance(value, list) else [value]
            yield from (number for number in numbers if type(number) is int and number > 1)


def _feeds(rows: Sequence[Sequence[int]], pad: int, names: Sequence[str]) -> Arrays:
    shape = (len(rows), max(map(len, rows)))
    ids, mask = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}
    return {name: known[name] for name in names}


def _run_torch(encoder: Encoder, feeds: Arrays) -> NDArray[np.float32]:
    with torch.no_grad():
        result: NDArray[np.float32] = encoder(*[torch.from_numpy(feeds[name]) for name in encoder.inputs]).float().numpy()
    return result


def _export_once(encoder: Encoder, attempt: Attempt, checks: Sequence[_Check], out: Path) -> float:
    """Make one export attempt and return the maximum difference to torch.

    Raises:
        ExportError: the exporter failed, or its graph gives a different result.
    """
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as work:
        raw, final = Path(work) / "raw" / "model.onnx", Path(work) / "model.onnx"
        raw.parent.mkdir()
        try:
            _trace(encoder, attempt.dynamo, raw)
            store(raw, final)
        except Exception as error:  # exporters raise their own and built-in exception classes
            raise ExportError(f"the exporter failed: {_first_line(error)}") from error
        difference = _difference(final, checks)
        for path in (final.with_name("model.onnx_data"), final):
            if path.exists():
                path.replace(out / path.name)
    return difference


def _trace(encoder: Encoder, dynamo: bool, path: Path) -> None:  # noqa: FBT001
    # Padding in the example prevents the shortcut for masks of ones in the graph; sizes of 1 would become fixed.
    pad = int(getattr(encoder.model.config, "pad_token_id", None) or 0)
    example = _feeds([[3, 4, 5, 6, 7, 8, 9, 10, 11], [3, 4, 5, 6, 7, 8, 9]], pad, encoder.inputs)
    inputs = tuple(torch.from_numpy(example[name]) for name in encoder.inputs)
    axes = {0: "batch", 1: "sequence"}
    shapes: dict[str, Any] = (
        {"dynamic_shapes": (tuple(dict(axes) for _ in inputs),)}
        if dynamo
        else {"dynamic_axes": dict.fromkeys((*encoder.inputs, OUTPUT), axes), "opset_version": 17}
    )
    with torch.no_grad():
        torch.onnx.export(
            encoder, inputs, str(path), input_names=list(encoder.inputs), output_names=[OUTPUT], dynamo=dynamo, **shapes
        )


def _difference(path: Path, checks: Sequence[_Check]) -> float:
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]
        differences = []
        for check in checks:
            got = session.run([OUTPUT], {name: check.feeds[name] for name in names})[0]
            differences.append(_relative(check, got))
            if not differences[-1] <= TOLERANCE:
                shape = " x ".join(map(str, check.feeds["input_ids"].shape))
                raise ExportError(f"its result for {shape} tokens differs from torch's by {differences[-1]:.1e}")
    except ExportError:
        raise
    except Exception as error:  # onnxruntime's exception classes have no common base class
        raise ExportError(f"onnxruntime cannot run the exported graph: {_first_line(error)}") from error
    return max(differences)


def _relative(check: _Check, got: NDArray[np.float32]) -> float:
    """Return the maximum difference on real tokens, relative to the largest value; NaN if a value is NaN."""
    if got.shape != check.result.shape:
        return float("inf")
    mask = check.feeds.get("attention_mask", np.ones(got.shape[:2], np.int64)) > 0
    expected, got = check.result[mask], got[mask]
    return float(np.abs(expected - got).max() / max(float(np.abs(expected).max()), 1e-30))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(graph)


def _byte_count(tensor: onnx.TensorProto) -> int:
    stated = {entry.key: entry.value for entry in tensor.external_data}
    return int(stated["length"]) if "length" in stated else tensor.ByteSize()


def _external_bytes(tensor: onnx.TensorProto, folder: Path) -> bytes | None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    stated = {entry.key: entry.value for entry in tensor.external_data}
    with (folder / stated["location"]).open("rb") as file:
        file.seek(int(stated.get("offset", 0)))
        return bytes(file.read(int(stated.get("length", -1))))


def _move(tensor: onnx.TensorProto, data: IO[bytes], location: str) -> None:
    offset = data.tell()
    length = data.write(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def _in_words(folder: Path, config: Any, failures: Sequence[str]) -> str:
    reasons = list(dict.fromkeys(failure.rstrip(".") for failure in failures))[-2:]  # eager attention is the simplest attempt
    return (
        f"{folder.name} (model_type {config.model_type!r}) cannot be exported to ONNX with torch {torch.__version__} and "
        f"transformers {transformers.__version__}: {'; '.join(reasons)}. Export it with another tool, such as optimum-cli, and "
        "save the graph as onnx/model.onnx in the folder."
    )


def _first_line(error: BaseException) -> str:
    """Return the first line of the root cause: exporters wrap it in pages of advice."""
    while error.__cause__ is not None and not isinstance(error, ExportError):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:_WORDS].rstrip(".: ")


def _end_with_parent() -> None:
    """Exit when standard input closes, so that no process of many gigabytes survives a killed parent."""

    def wait() -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock, held at shutdown, would abort the process
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _be_killed_first() -> None:
    """Raise this process's OOM score, so that Linux kills it first when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def main() -> None:
    """Export argv[1] to argv[2]; answer on standard output, without the libraries' own messages."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    _end_with_parent()
    _be_killed_first()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    try:
        done = export(Path(sys.argv[1]), Path(sys.argv[2]), lambda text: answer(progress=text))
    except ExportError as error:
        answer(error=str(error))
    except MemoryError:
        answer(error=f"{Path(sys.argv[1]).name} does not fit into memory. Export it on a machine with more memory.")
    except Exception as error:  # noqa: BLE001 - the process boundary: the parent shows one sentence
        answer(error=f"{Path(sys.argv[1]).name} cannot be exported to ONNX: {type(error).__name__}: {_first_line(error)}.")
    else:
        answer(done=asdict(done))


if __name__ == "__main__":
    main()
