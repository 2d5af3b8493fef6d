"""From a model's files to a graph that is ready to run, kept in the cache.

It knows what names an entry of the cache; what is done to the graph is in `assemble`, which is imported only when an entry has
to be made. An entry is written aside and renamed, so a killed process leaves nothing half-made. The user's folder is only read;
weights stay where they are, the prepared graph points there.
"""

import hashlib
import importlib.metadata
import json
import platform
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from penult.core.cache import cache_folder, hash_files, remembered
from penult.core.config.module_weights import weights_path
from penult.core.recipe import Recipe, pad_token_id, stated_positions
from penult.core.source import Source, data_files
from penult.data import calibration_texts

if TYPE_CHECKING:
    import onnx

_FORMAT = 9  # raise when a prepared graph of an older penult must not be used any more
_GRAPH, _META = "model.onnx", "meta.json"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A graph in the cache.

    Attributes:
        graph: the file; its outputs are `sentence_embedding` (B, D) and, where there is one, `token_embeddings` (B, T, H).
        data_folder: where its external data lie, if not beside it.
        tensor: the tensor of the original graph that was taken.
        why: why it was taken.
        batch_dependent: whether the graph came with 8-bit scales that it measures on each batch.
        int8: what was reached where the graph was made int8 here, in words; empty where it was not.
        positions: how many tokens of a text the graph's table of positions serves. None: it has none.
        position_offset: the position at which a text begins, if the graph takes positions as an input.
        made_unit: whether the graph itself normalizes its vectors.
        own_tokens: the export's own hidden state, where it was taken instead of a layer.
        exact: whether it computes in fp32 throughout.
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
    """Give the sha256 of calibration texts. None: of those that ship with penult."""
    return hashlib.sha256(json.dumps(calibration_texts() if texts is None else list(texts)).encode()).hexdigest()


def hash_model(source: Source, recipe: Recipe | None = None) -> str:
    """Give the sha256 of a graph, of its external data and of the weights of the recipe's dense layers.

    Raises:
        ValueError: one of them lies outside the model's folder, or is no file.
    """
    steps = () if recipe is None else (*recipe.steps, *recipe.token_steps)
    folders = [step.folder for step in steps if not isinstance(step, str)]
    modules: dict[str, Path] = {}
    for folder in folders:
        with suppress(FileNotFoundError):  # the graph may hold them: `assemble` knows
            path = weights_path(source.folder / folder)
            modules[path.relative_to(source.folder).as_posix()] = path.resolve()
    real = _real_data(source)
    _check_contained(source, real | modules)
    return hash_files([source.model, *real.values(), *modules.values()])


def prepare(source: Source, recipe: Recipe, *, calibration: Sequence[str] | None = None) -> Prepared:
    """Cut the graph, append the reducer and make it int8 if asked for; or take what an earlier call left in the cache.

    Args:
        source: the model.
        recipe: what to do with it.
        calibration: texts that an int8 graph is calibrated on. None: those that ship with penult.

    Raises:
        ValueError: the file is no whole ONNX graph, no transformer, its data lie outside its folder, nothing says how to
            pool, or nothing in it can be made int8.
    """
    real = _real_data(source)
    limit = _weight_limit() if recipe.precision == "int8" else None
    key = _key(recipe, source.home, [source.model.resolve(), *real.values()], limit)
    folder = cache_folder() / "graphs" / key
    if not (folder / _META).exists():
        _check_contained(source, real)
        _make(source, recipe, real, folder, _Int8(limit, calibration) if limit else None)
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    data = Path(meta["data_folder"]) if meta["data_folder"] else None
    names = ("int8", "positions", "position_offset", "made_unit", "own_tokens", "exact")
    rest = {name: meta[name] for name in names}
    return Prepared(folder / _GRAPH, data, meta["tensor"], meta["why"], meta["scales"] == "dynamic", **rest)


@dataclass(frozen=True, slots=True)
class _Int8:
    """How a graph is made int8: the largest weight, and the texts (None: those that ship with penult)."""

    limit: int
    texts: Sequence[str] | None


def _weight_limit() -> int:
    """Give the largest 8-bit weight that this processor sums up right; it is measured once for a processor."""
    cpu = Path("/proc/cpuinfo")
    flags = next((line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features"))), "") if (
        cpu.exists()
    ) else platform.processor()  # fmt: skip
    about = "\0".join((platform.machine(), flags, importlib.metadata.version("onnxruntime")))

    def measure() -> int:
        from penult.core.int8 import measure_limit  # noqa: PLC0415 - as in `_make`

        return measure_limit()

    return remembered(cache_folder() / "processors" / hashlib.sha256(about.encode()).hexdigest()[:32], measure)


def read_graph(source: Source) -> "onnx.ModelProto":
    """Read a graph without its external data, which are only checked to be there.

    Raises:
        ValueError: the file is no whole ONNX graph, or its data lie outside its folder.
    """
    from penult.core.assemble import read  # noqa: PLC0415 - as in `_make`

    real = _real_data(source)
    _check_contained(source, real)
    return read(source.model, real)


def count_layers(source: Source) -> int:
    """Count the transformer's layers, or remember what an earlier call counted.

    Raises:
        ValueError: the file is no whole ONNX graph, or no transformer.
    """

    def count() -> int:
        from penult.graph.find.graph_index import GraphIndex  # noqa: PLC0415 - as in `_make`
        from penult.graph.find.layers import hidden_states  # noqa: PLC0415

        return len(hidden_states(GraphIndex(read_graph(source)))) - 1

    return remembered(cache_folder() / "layers" / f"{_FORMAT}-{hash_model(source)}", count)


def _real_data(source: Source) -> dict[str, Path]:
    """Give the real file behind each name under which the graph keeps external data."""
    return {name: (source.model.parent / name).resolve() for name in data_files(source.model)}


def _key(recipe: Recipe, home: Path, data: Iterable[Path], limit: int | None) -> str:
    parts = [
        _FORMAT, recipe.graph_sha256, recipe.layer, recipe.pooling, [str(step) for step in recipe.steps],
        recipe.dimensions, recipe.include_prompt, recipe.precision, str(recipe.rows), sorted(map(str, data)),
        [str(step) for step in recipe.token_steps], recipe.renormalize, recipe.output, recipe.width, recipe.vector_width,
        pad_token_id(home), stated_positions(home), recipe.stated_length,
    ]  # fmt: skip
    if limit is not None:
        # The ranges that calibration sees depend on how texts are read.
        parts += [limit, recipe.calibration_sha256, recipe.tokenizer_sha256, recipe.max_length, recipe.side]
        parts += [recipe.prompts["document"], sorted(recipe.tasks.items()), recipe.lowercase, recipe.special_tokens]
        parts += [sorted(map(str, recipe.tokenizer.items())), recipe.position_offset, sorted(recipe.lengths.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _make(source: Source, recipe: Recipe, real: Mapping[str, Path], folder: Path, int8: _Int8 | None) -> None:
    from penult.core.assemble import assemble  # noqa: PLC0415 - the import of onnx, 0.3 s, that a warm cache does not pay

    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        made = assemble(source, recipe, real, aside / _GRAPH)
        meta = {"tensor": made.tensor, "why": made.why, "data_folder": made.data_folder and str(made.data_folder),
                "scales": made.scales, "int8": "", "positions": made.positions, "position_offset": made.position_offset,
                "made_unit": made.made_unit, "own_tokens": made.own_tokens,
                "exact": made.exact and recipe.precision == "fp32"}  # fmt: skip
        most = recipe.max_length if made.positions is None else min(recipe.max_length, made.positions)
        recipe = replace(recipe, max_length=most, position_offset=made.position_offset)
        if int8 is not None and made.scales == "none":
            meta |= {"data_folder": None, "int8": _convert(aside / _GRAPH, made.data_folder, source, recipe, int8)}
        (aside / _META).write_text(json.dumps(meta), encoding="utf-8")
        _rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _convert(graph: Path, data_folder: Path | None, source: Source, recipe: Recipe, how: _Int8) -> str:
    """Replace a graph by its int8 form; say what was reached."""
    from penult.core.int8 import convert  # noqa: PLC0415 - as in `_make`

    texts = calibration_texts() if how.texts is None else how.texts
    with tempfile.TemporaryDirectory(dir=graph.parent) as work:
        got = convert(graph, data_folder, source, recipe, texts=texts, limit=how.limit, work=Path(work))
    kept = f", {got.kept} kept in fp32" if got.kept else ""
    reached = f"cosine to fp32 on the calibration texts {got.mean:.4f}, least {got.least:.4f}"
    return f"{got.layers} linear layers in 8 bits{kept}; {reached}"


def _rename(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
    except OSError:
        if not (folder / _META).exists():  # another process that was faster is fine, anything else is not
            raise


def _check_contained(source: Source, real: Mapping[str, Path]) -> None:
    """Refuse data outside the model's folder: a graph from elsewhere must not read this machine's other files.

    The files of a Hub snapshot are links into the same cache, so that cache counts as the folder.
    """
    inside = [source.folder.resolve(), source.model.resolve().parent]
    if source.revision is not None:
        inside.append(source.folder.resolve().parents[2])
    for name, path in real.items():
        lexical = PurePosixPath(name)
        if lexical.is_absolute() or ".." in lexical.parts or not any(path.is_relative_to(root) for root in inside):
            raise ValueError(f"{source.model} points to {name!r}, outside its own folder; put the file beside the graph.")
