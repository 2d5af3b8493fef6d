"""The oracle: BERT and the reducers in NumPy, float64, one text at a time, so that nothing is padded and nothing shared.

It knows no penult code. Weights come from a graph's initializers, under the names that `models.bert_weights` also uses.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from tokenizers import Tokenizer


def read_weights(model: Path) -> dict[str, np.ndarray]:
    """Read the weights of a BERT graph as float64."""
    graph = onnx.load(model).graph
    return {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in graph.initializer}


def read_ids(folder: Path, text: str, max_length: int) -> list[int]:
    """Tokenise one text with the folder's tokenizer.json, nothing padded."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer.encode(text).ids


def bert(weights: dict[str, np.ndarray], ids: list[int], heads: int, *, eps: float = 1e-12) -> list[np.ndarray]:
    """Run BERT on one text: its hidden states in order, the embedding output first, (T, H) each."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}

    def linear(x, name):
        return x @ w[f"{name}.weight_T"] + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    count = len(ids)
    e = "embeddings."
    x = (
        w[f"{e}word_embeddings.weight"][ids]
        + w[f"{e}token_type_embeddings.weight"][0]
        + w[f"{e}position_embeddings.weight"][:count]
    )
    x = norm(x, f"{e}LayerNorm")
    states, layer = [x], 0
    while f"encoder.layer.{layer}.output.dense.bias" in w:
        p = f"encoder.layer.{layer}."
        q, k, v = (
            linear(x, f"{p}attention.self.{n}").reshape(count, heads, -1).transpose(1, 0, 2) for n in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(count, -1)
        x = norm(linear(mixed, f"{p}attention.output.dense") + x, f"{p}attention.output.LayerNorm")
        x = norm(linear(gelu(linear(x, f"{p}intermediate.dense")), f"{p}output.dense") + x, f"{p}output.LayerNorm")
        states.append(x)
        layer += 1
    return states


def gelu(x: np.ndarray) -> np.ndarray:
    """x/2 (1 + erf(x / sqrt 2))."""
    from math import erf

    return x / 2 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def pool(states: np.ndarray, pooling: str) -> np.ndarray:
    """(T, H) -> (H,)."""
    return {"mean": lambda: states.mean(0), "max": lambda: states.max(0), "cls": lambda: states[0], "last": lambda: states[-1]}[
        pooling
    ]()


def normalize(vector: np.ndarray) -> np.ndarray:
    """Divide by the Euclidean norm."""
    return vector / max(np.linalg.norm(vector), 1e-12)
