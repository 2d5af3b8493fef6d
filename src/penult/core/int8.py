"""Run the calibration texts for `graph.int8.calibrate`, and measure the largest safe 8-bit weight on this processor.

This module composes the tokenizer, the engine and the graph passes, for `prepare` only.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.core.engine import Engine, fuse
from penult.core.model_inputs import Meaning, feed
from penult.core.model_tokenizer import tokenizer_of
from penult.core.recipe import Recipe
from penult.core.source import Source
from penult.graph.int8.calibrate import Outcome, make_int8
from penult.graph.int8.int8_support import weight_limit
from penult.graph.output_names import TOKENS
from penult.graph.rewrite.standalone import write_standalone

_LEAST_MEAN = 0.95  # minimum mean cosine: far below any trained model (the goal is 0.998), far above a broken one
_LONG = 4  # number of full-length texts, joined from the short ones


def measure_limit() -> int:
    """Return the largest 8-bit weight that is safe on this processor, 127 or 64."""
    return weight_limit(lambda model, inputs: Engine(model, threads=1).run(inputs))


def convert(graph: Path, data_folder: Path | None, source: Source, recipe: Recipe, *, texts: Sequence[str], limit: int,
            work: Path) -> Outcome:  # fmt: skip
    """Replace a prepared fp32 graph by its 8-bit form.

    Args:
        graph: the file; it is replaced.
        data_folder: folder of its external data, if it is not the graph's own.
        source: the model, for its tokenizer.
        recipe: tokenization settings.
        texts: calibration texts.
        limit: result of `measure_limit`.
        work: an empty folder for intermediate files.

    Raises:
        ValueError: no layer can be quantized, the vectors would differ too much, or there are no texts.
    """
    if not texts:
        raise ValueError("calibration is empty. Pass texts like those to embed, or omit it.")
    tokenizer = tokenizer_of(source, recipe)
    tasks: list[int | None] = [*sorted(set(recipe.tasks.values()))] or [None]  # each has its own activation ranges
    joined = [" ".join(texts[start::_LONG]) for start in range(_LONG)]
    tokenized = tokenizer.tokenize([*texts, *joined], recipe.prompts["document"])
    plain = work / "fp32.onnx"
    write_standalone(graph, data_folder or graph.parent, plain)

    def run(path: Path, outputs: Sequence[str]) -> Iterator[Mapping[str, NDArray[Any]]]:
        engine = Engine(path)
        shape = next((tensor.shape for tensor in engine.inputs if tensor.name == "input_ids"), ())
        rows, length = (size if isinstance(size, int) else None for size in (*shape, None, None)[:2])
        for row, ids in enumerate(tokenized.ids):
            if length is not None and len(ids) > length:
                continue
            padded = tokenizer.pad(
                tokenized, [row] * (rows or 1), length or max(1, len(ids)), pool_prompt=recipe.include_prompt
            )
            for task in tasks:
                meaning = Meaning(position_offset=recipe.position_offset, task=task)
                arrays = engine.run(feed(engine.inputs, padded, meaning=meaning), outputs=outputs)
                yield {
                    name: np.asarray(array[: len(array) // (rows or 1)]) for name, array in zip(outputs, arrays, strict=True)
                }

    outcome = make_int8(plain, graph, fuse=fuse, run=run, limit=limit, before=TOKENS)
    if outcome.mean < _LEAST_MEAN:
        raise ValueError(
            "int8 does not suit this model: on the calibration texts, the mean cosine of its vectors to those of fp32 is "
            f"{outcome.mean:.2f}, and below {_LEAST_MEAN} search results differ. Pass texts like yours as calibration=, or "
            "pass precision='fp32'."
        )
    return outcome
