"""Prepare a model's graph to run, and cache the result.

This module computes the cache key. `assemble` changes the graph, and is imported only if the entry does not exist yet. An
entry has the checksums of its files; a damaged entry is rebuilt. The model's folder is only read: weights stay in their files,
and the prepared graph refers to them, even if the model was moved.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from penult.core.cache import cache_folder, disk_errors, hash_files, read_note, remembered, writable_folder, write_note
from penult.core.cache_entry import checksums, install, is_complete, making, sweep
from penult.core.config.module_weights import weights_path
from penult.core.memory import check_memory
from penult.core.recipe import Recipe, pad_token_id, stated_positions
from penult.core.source import Source, data_files, data_home
from penult.data import calibration_texts
from penult.graph.wire_format import LARGE_FILE

if TYPE_CHECKING:
    import onnx

_LOGGER = logging.getLogger(__name__)
_FORMAT = 10  # increment when prepared graphs of older versions must not be used anymore
_GRAPH, _META = "model.onnx", "meta.json"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A graph in the cache.

    Attributes:
        graph: the file; its outputs are `sentence_embedding` (B, D) and, if present, `token_embeddings` (B, T, H).
        data_folder: folder of its external data. None: the file's own.
        tensor: tensor of the original graph that is pooled, or that is the vector.
        why: reason for choosing it.
        batch_dependent: whether the original computes its 8-bit scales per batch.
        int8: summary of the quantization. Empty: penult did not quantize it.
        positions: maximum tokens per text by the graph's position table. None: it has no table.
        position_offset: position of a text's first token, if positions are an input of the graph.
        made_unit: whether the graph itself normalizes its vectors.
        own_tokens: the export's own hidden-state output. None: a layer was chosen instead.
        exact: whether the graph computes in fp32 throughout.
    """

    graph: Path
    data_folder: Path | None
    tensor: str
    why: str
    batch_dependent: bool = False
    int8: str = ""
    positions: int | None = None
    position_offset: int = 0
    made_unit: bool = False
    own_tokens: str | None = None
    exact: bool = True


def hash_texts(texts: Sequence[str] | None) -> str:
    """Return the sha256 of calibration texts. None: those shipped with penult."""
    return hashlib.sha256(json.dumps(calibration_texts() if texts is None else list(texts)).encode()).hexdigest()


def hash_model(source: Source, recipe: Recipe | None = None, *, reread: bool = False) -> str:
    """Return the sha256 of a graph, its external data and the weights of the recipe's dense layers.

    Args:
        source: the model.
        recipe: settings of the model. None: without dense layers.
        reread: as in `hash_files`.

    Raises:
        ValueError: a file is outside the model's folder, or is not a regular file.
    """
    steps = () if recipe is None else (*recipe.steps, *recipe.token_steps)
    folders = [step.folder for step in steps if not isinstance(step, str)]
    modules: dict[str, Path] = {}
    for folder in folders:
        with suppress(FileNotFoundError):  # the graph may contain them: `assemble` checks
            path = weights_path(source.folder / folder)
            modules[path.relative_to(source.folder).as_posix()] = path.resolve()
    real = _real_data(source)
    _check_contained(source, real | modules)
    if any(path.stat().st_size > LARGE_FILE for path in real.values()):
        from penult.graph.model_file import check_data_sizes  # noqa: PLC0415 - as in `_make`

        check_data_sizes(source.model, real)
    return hash_files([source.model, *real.values(), *modules.values()], reread=reread)


def prepare(source: Source, recipe: Recipe, *, calibration: Sequence[str] | None = None, reread: bool = False) -> Prepared:
    """Cut the graph, append the reducer and quantize it if the recipe says so; return an earlier result if it is cached.

    Args:
        source: the model.
        recipe: settings that determine the vectors.
        calibration: calibration texts of int8. None: those shipped with penult.
        reread: compare every byte of the result of an earlier call with its checksum.

    Raises:
        OSError: the cache cannot be written.
        ValueError: the file is not a complete ONNX graph or not a transformer, its data are outside its folder, no pooling is
            stated, or no layer can be quantized.
    """
    real = _real_data(source)
    home = data_home(source, real)
    limit = _weight_limit() if recipe.precision == "int8" else None
    names = [path.relative_to(home).as_posix() for path in (source.model.resolve(), *real.values())]
    place = Path("graphs") / _key(recipe, source.home, names, limit)
    folder = cache_folder() / place
    meta = _read_meta(folder, reread=reread)
    if meta is None:
        folder = writable_folder() / place  # another folder if the first cannot be written
        meta = _read_meta(folder, reread=reread)
    if meta is None:
        _check_contained(source, real)
        if os.path.lexists(folder):
            _LOGGER.warning("The prepared graph in %s is damaged or incomplete; preparing it again.", folder)
        meta = _make(source, recipe, real, folder, _Int8(limit, calibration) if limit else None)
    rest = ("int8", "positions", "position_offset", "made_unit", "own_tokens", "exact")
    return Prepared(
        folder / _GRAPH,
        home if meta["external"] else None,
        meta["tensor"],
        meta["why"],
        meta["scales"] == "dynamic",
        **{name: meta[name] for name in rest},
    )


def _read_meta(folder: Path, *, reread: bool) -> dict[str, Any] | None:
    """Return the metadata of a cache entry; None if the entry is missing or damaged."""
    text = read_note(folder / _META)
    meta: dict[str, Any] | None = None if text is None else json.loads(text)
    return meta if meta is not None and is_complete(folder, meta["files"], reread=reread) else None


@dataclass(frozen=True, slots=True)
class _Int8:
    """Settings of the quantization.

    Attributes:
        limit: largest 8-bit weight.
        texts: calibration texts. None: those shipped with penult.
    """

    limit: int
    texts: Sequence[str] | None


def _weight_limit() -> int:
    """Return the largest 8-bit weight whose products this processor sums without saturating; measured once per processor."""
    cpu = Path("/proc/cpuinfo")
    flags = next((line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features"))), "") if (
        cpu.exists()
    ) else platform.processor()  # fmt: skip
    key = "\0".join((platform.machine(), flags, importlib.metadata.version("onnxruntime")))

    def measure() -> int:
        from penult.core.int8 import measure_limit  # noqa: PLC0415 - as in `_make`

        return measure_limit()

    return remembered(cache_folder() / "processors" / hashlib.sha256(key.encode()).hexdigest()[:32], measure)


def read_graph(source: Source) -> "onnx.ModelProto":
    """Read a graph without its external data; only their presence is checked.

    Raises:
        ValueError: the file is not a complete ONNX graph, or its data are outside its folder.
    """
    from penult.core.assemble import read  # noqa: PLC0415 - as in `_make`

    real = _real_data(source)
    _check_contained(source, real)
    return read(source.model, real)


def count_layers(source: Source) -> int:
    """Return the number of the transformer's layers, from the cache if possible.

    Raises:
        ValueError: the file is not a complete ONNX graph, or not a transformer.
    """

    def count() -> int:
        from penult.graph.find.graph_index import GraphIndex  # noqa: PLC0415 - as in `_make`
        from penult.graph.find.layers import hidden_states  # noqa: PLC0415 - as in `_make`

        return len(hidden_states(GraphIndex(read_graph(source)))) - 1

    return remembered(cache_folder() / "layers" / f"{_FORMAT}-{hash_model(source)}", count)


def _real_data(source: Source) -> dict[str, Path]:
    """Return the real file of each location of the graph's external data."""
    return {name: (source.model.parent / name).resolve() for name in data_files(source.model)}


def _key(recipe: Recipe, home: Path, names: Sequence[str], limit: int | None) -> str:
    parts = [
        _FORMAT, recipe.graph_sha256, recipe.layer, recipe.pooling, [str(step) for step in recipe.steps],
        recipe.dimensions, recipe.include_prompt, recipe.precision, str(recipe.rows), sorted(names),
        [str(step) for step in recipe.token_steps], recipe.renormalize, recipe.output, recipe.width, recipe.vector_width,
        pad_token_id(home), stated_positions(home), recipe.stated_length,
    ]  # fmt: skip
    if limit is not None:
        # The activation ranges depend on the tokenization of the calibration texts.
        parts += [limit, recipe.calibration_sha256, recipe.tokenizer_sha256, recipe.max_length, recipe.side]
        parts += [recipe.prompts["document"], sorted(recipe.tasks.items()), recipe.lowercase, recipe.special_tokens]
        parts += [sorted(map(str, recipe.tokenizer.items())), recipe.position_offset, sorted(recipe.lengths.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _make(
    source: Source, recipe: Recipe, real: Mapping[str, Path], folder: Path, int8: _Int8 | None
) -> dict[str, Any]:  # fmt: skip
    """Create a cache entry, and return its metadata."""
    if int8 is None:
        _check_memory(source, real, int8=False)
    from penult.core.assemble import assemble  # noqa: PLC0415 - onnx: 0.3 s, which a warm load saves

    cache = folder.parent.parent
    for notes in ("hashes", "layers", "processors"):
        sweep(cache / notes, ".*")
    with disk_errors(cache), making(folder.parent, "making") as temporary, disk_errors(cache):
        graph = assemble(source, recipe, real, temporary / _GRAPH)
        meta = {"tensor": graph.tensor, "why": graph.why, "external": graph.external, "scales": graph.scales, "int8": "",
                "positions": graph.positions, "position_offset": graph.position_offset, "made_unit": graph.made_unit,
                "own_tokens": graph.own_tokens, "exact": graph.exact and recipe.precision == "fp32"}  # fmt: skip
        max_length = recipe.max_length if graph.positions is None else min(recipe.max_length, graph.positions)
        recipe = replace(recipe, max_length=max_length, position_offset=graph.position_offset)
        if int8 is not None and graph.scales == "none":
            _check_memory(source, real, int8=True)
            data_folder = data_home(source, real) if graph.external else None
            meta |= {"external": False, "int8": _convert(temporary / _GRAPH, data_folder, source, recipe, int8)}
        temporary.chmod(folder.parent.stat().st_mode & 0o755)  # temporary folders are private; caches are copied
        meta["files"] = checksums(temporary)
        write_note(temporary / _META, json.dumps(meta))
        install(temporary, folder, lambda: _read_meta(folder, reread=False) is not None)
    return meta


def _check_memory(source: Source, real: Mapping[str, Path], *, int8: bool) -> None:
    weights = sum(path.stat().st_size for path in (source.model, *real.values()))
    copied = "Load it on a machine with more memory and copy the cache folder here"
    if int8:
        # MiniLM-L6, 90 MB of weights: peak memory 545 MB, of which 111 MB stay resident (ONNX Runtime 1.32).
        check_memory(f"Making {source.model} int8", weights, 4.7, f"{copied}, or pass precision='fp32'.", held=True)
    else:
        check_memory(f"The first load of {source.model}", weights, 1.0, f"{copied}, or raise the limit.", held=False)


def _convert(graph: Path, data_folder: Path | None, source: Source, recipe: Recipe, int8: _Int8) -> str:
    """Replace a graph by its int8 form, and return a summary."""
    from penult.core.int8 import convert  # noqa: PLC0415 - as in `_make`

    texts = calibration_texts() if int8.texts is None else int8.texts
    with tempfile.TemporaryDirectory(dir=graph.parent) as work:
        outcome = convert(graph, data_folder, source, recipe, texts=texts, limit=int8.limit, work=Path(work))
    exceptions = f", {outcome.kept} kept in fp32" if outcome.kept else ""
    cosine = f"cosine to fp32 on the calibration texts: mean {outcome.mean:.4f}, minimum {outcome.least:.4f}"
    return f"{outcome.layers} linear layers in 8 bits{exceptions}; {cosine}"


def _check_contained(source: Source, real: Mapping[str, Path]) -> None:
    """Raise an error for data outside the model's folder: a downloaded graph must not read other files of this machine.

    The files of a Hub snapshot are links into the Hub's cache, which counts as the folder.
    """
    inside = [source.folder.resolve(), source.model.resolve().parent]
    if source.revision is not None:
        inside.append(source.folder.resolve().parents[2])
    for name, path in real.items():
        lexical = PurePosixPath(name)
        if lexical.is_absolute() or ".." in lexical.parts or not any(path.is_relative_to(root) for root in inside):
            raise ValueError(f"{source.model} refers to {name!r}, outside its folder. Put the file beside the graph.")
