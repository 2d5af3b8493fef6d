"""Quantize a graph file to int8: record activations, choose a scheme per layer, check the vectors, repeat.

The caller passes functions that run sessions, so this module is independent of runtime and tokenizer. Every calibration text
runs alone, so that no padding is recorded.

    fp32 graph --> fuse, unfuse --> record on texts --> quantize within a tolerance --> write --> vectors close enough?
                                                             ^---- a smaller tolerance, or the worst layers in fp32 ----'
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from penult.graph.find.graph_index import GraphIndex
from penult.graph.find.linear import find_linears
from penult.graph.int8.activation_scales import Choice, Seen, Treatment, apply, choices, error_of
from penult.graph.int8.fp16 import widen
from penult.graph.int8.gptq import Floats
from penult.graph.int8.quantize import Group, grouped, quantize
from penult.graph.output_names import VECTORS
from penult.graph.rewrite.external_data import data_file, save
from penult.graph.rewrite.unfuse import unfuse

Run = Callable[[Path, Sequence[str]], Iterable[Mapping[str, NDArray[Any]]]]
Fuse = Callable[[Path, Path], None]

_ROWS = 1024  # of a tensor, kept to measure errors on
_BUDGET = 2**27  # values kept for all tensors together, 512 MiB
_TOLERANCES = (4e-4, 1.5e-4)  # maximum error of a layer; the errors of about 20 layers add up
# The largest 8-bit weight on processors that sum 8-bit products without overflow. Most of them have AVX-512, for which the
# exact Gelu of ONNX Runtime 1.32 is faster than the tanh form; on others the tanh form is faster.
_EXACT = 127
_KEPT = (0.05, 0.1, 0.2)  # fractions of the layers to keep in fp32 if no tolerance is small enough


@dataclass(frozen=True, slots=True)
class Goal:
    """Target cosines between the int8 and fp32 vectors of the calibration texts.

    The target for real passages is 0.998 and 0.995. The minimum is lower here, because the calibration texts contain single
    words and languages that the model may not support, whose vectors are the least accurate.
    """

    mean: float = 0.998
    least: float = 0.991


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of quantization on the calibration texts.

    Attributes:
        layers: number of linear layers in int8.
        kept: number of linear layers in fp32.
        mean: mean cosine to fp32.
        least: minimum cosine to fp32.
    """

    layers: int
    kept: int
    mean: float
    least: float


def make_int8(graph: Path, target: Path, *, fuse: Fuse, run: Run, limit: int, before: str, goal: Goal = Goal()) -> Outcome:
    """Write the int8 version of a graph file.

    Args:
        graph: a standalone file with the output `sentence_embedding`, alone in a folder that is also used for temporary files.
        target: the new file; its weights are written to `<target>.data`. Both files are replaced.
        fuse: writes a file's graph, with the runtime's fusions, to another file in the same folder.
        run: runs a file on every calibration text, one at a time, and yields the requested outputs.
        limit: the largest 8-bit weight, from `int8_support.weight_limit`.
        before: the last hidden state; layers after it are not quantized.
        goal: target cosines.

    Raises:
        ValueError: the graph has no float32 linear layer, or its vectors contain NaN or infinity.
    """
    fused, wide = graph.with_name("fused.onnx"), graph.with_name("wide.onnx")
    half = onnx.load(graph)
    widen(half)
    save(half, wide)
    del half  # frees as much memory as the file has bytes
    fuse(wide, fused)
    index = GraphIndex(onnx.load(fused))
    unfuse(index)
    inner = {name for node in index.links.nodes for name in node.output}
    groups = grouped(find_linears(index, before if before in inner else VECTORS))
    if not groups:
        raise ValueError(
            "This graph has no float32 linear layer that int8 could replace. Export the model in float32, or pass "
            "precision='fp32'."
        )
    watched = graph.with_name("watched.onnx")
    _save_watched(index.model, groups, watched)
    seen, wanted = _watch(run(watched, [VECTORS, *(group.input for group in groups)]), groups)
    if bad := int((~np.isfinite(wanted).all(axis=1)).sum()):
        raise ValueError(
            f"The fp32 vectors of {bad} of {len(wanted)} calibration texts contain NaN or infinity: int8 cannot be calibrated. "
            "The weights may be broken: download the model again. If the model needs other texts, pass them as calibration=."
        )
    best, chosen = float("inf"), Outcome(0, 0, 0.0, 0.0)
    for number, treated in enumerate(_attempts(groups, seen, limit)):
        attempt = graph.parent / str(number) / target.name
        attempt.parent.mkdir()
        save(quantize(index, treated, fast_gelu=limit < _EXACT), attempt)
        got = np.concatenate([found[VECTORS] for found in run(attempt, [VECTORS])])
        outcome = _outcome(groups, treated, _cosines(got, wanted))
        # The distance to the goal: the error as a fraction of the allowed error, the larger of the two.
        short = max((1 - outcome.mean) / (1 - goal.mean), (1 - outcome.least) / (1 - goal.least))
        if short < best:
            best, chosen = short, outcome
            for file in (attempt, data_file(attempt)):
                file.replace(target.with_name(file.name))
        if short <= 1:
            break
    return chosen


def _outcome(groups: Sequence[Group], treated: Mapping[str, tuple[Group, Treatment]], cosines: Floats) -> Outcome:
    every = sum(len(group.layers) for group in groups)
    layers = sum(len(group.layers) for group, _ in treated.values())
    return Outcome(layers, every - layers, float(cosines.mean()), float(cosines.min()))


def _save_watched(model: onnx.ModelProto, groups: Sequence[Group], path: Path) -> None:
    """Write a model with the inputs of the groups as additional outputs."""
    outputs = model.graph.output
    stated = {output.name for output in outputs}
    more = [group.input for group in groups if group.input not in stated]
    outputs.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in more)
    save(model, path)
    del outputs[len(outputs) - len(more) :]


def _watch(runs: Iterable[Mapping[str, NDArray[Any]]], groups: Sequence[Group]) -> tuple[dict[str, Seen], Floats]:
    """Return range and sample of every recorded tensor, and the vectors (N, D); texts alternate between the two halves."""
    widths = {group.input: group.layers[0].weight.shape[0] for group in groups}
    rows = min(_ROWS, max(64, _BUDGET // sum(widths.values())))
    low = {name: np.full((2, width), np.inf, dtype=np.float32) for name, width in widths.items()}
    high = {name: np.full((2, width), -np.inf, dtype=np.float32) for name, width in widths.items()}
    sample: dict[str, list[Floats]] = {name: [] for name in widths}
    vectors = []
    chance = np.random.default_rng(0)
    for number, found in enumerate(runs):
        half = number % 2
        vectors.append(found[VECTORS])
        for name, width in widths.items():
            x = found[name].reshape(-1, width)
            low[name][half] = np.minimum(low[name][half], x.min(axis=0))
            high[name][half] = np.maximum(high[name][half], x.max(axis=0))
            if half == 1 or number == 0:
                sample[name].append(x[chance.permutation(len(x))[: rows // 8]])
    seen = {}
    for name in widths:
        every = np.concatenate(sample[name])
        seen[name] = Seen(low[name], high[name], every[chance.permutation(len(every))[:rows]])
    return seen, np.concatenate(vectors)


def _attempts(groups: Sequence[Group], seen: Mapping[str, Seen], limit: int) -> Iterable[dict[str, tuple[Group, Treatment]]]:
    """Yield schemes for all groups with decreasing tolerances, then without the groups with the largest errors."""
    searches = {group.input: _Search(seen[group.input], group) for group in groups}
    treated: dict[str, tuple[Group, Treatment]] = {}
    for tolerance in _TOLERANCES:
        for group in groups:
            search = searches[group.input]
            if search.narrow(tolerance):
                treated[group.input] = group, search.apply(limit)
        yield treated
    worst = sorted(treated, key=lambda name: -searches[name].error)
    for share in _KEPT:
        left = set(worst[: max(1, round(share * len(worst)))])
        yield {name: pair for name, pair in treated.items() if name not in left}


class _Search:
    """Lazy search over the quantization schemes of one group, from the cheapest on."""

    def __init__(self, seen: Seen, group: Group) -> None:
        self._seen = seen
        self._weights = [layer.weight for layer in group.layers]
        self._biases = [layer.bias for layer in group.layers]
        self._untried = choices(len(seen.low[0]), sum(weight.shape[1] for weight in self._weights))
        self._tried: list[tuple[float, Choice]] = []
        self.error = float("inf")
        self._choice = self._untried[0][0]

    def narrow(self, tolerance: float) -> bool:
        """Choose the cheapest scheme within `tolerance`, else about the most accurate one; return whether it changed."""
        before = self._choice, self.error
        while self._untried and all(error > tolerance for error, _ in self._tried):
            errors = [(error_of(self._seen, self._weights, choice), choice) for choice in self._untried.pop(0)]
            self._tried.append(min(errors, key=lambda pair: pair[0]))
        enough = max(tolerance, 1.1 * min(error for error, _ in self._tried))
        self.error, self._choice = next(pair for pair in self._tried if pair[0] <= enough)
        return before != (self._choice, self.error)

    def apply(self, limit: int) -> Treatment:
        """Quantize the group with the chosen scheme."""
        return apply(self._seen, self._weights, self._biases, self._choice, limit=limit)


def _cosines(a: Floats, b: Floats) -> Floats:
    lengths = np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return np.asarray((a * b).sum(axis=1) / lengths, dtype=np.float32)
