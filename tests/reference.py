"""The oracle: BERT and the reducers in NumPy, float64, one text at a time, so that nothing is padded and nothing shared.

It does not use penult. Weights come from a graph's initializers, under the names that `models.bert_weights` also uses.
"""

import re
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from tokenizers import Tokenizer

# Names of onnxruntime-genai's exporter, in which the demo's package has its graph, and those of torch's.
_OTHER_NAMES = (
    (r"^\.?model\.", ""),
    (r"^layers\.-1\.embeddings_norm_layernorm", "embeddings.LayerNorm"),
    (r"^layers\.", "encoder.layer."),
    (r"\.(MatMul\.weight)$", ".weight_T"),
    (r"\.Add\.bias$", ".bias"),
    (r"attn\.q_proj", "attention.self.query"),
    (r"attn\.k_proj", "attention.self.key"),
    (r"attn\.v_proj", "attention.self.value"),
    (r"attn\.o_proj", "attention.output.dense"),
    (r"attention_output_norm_layernorm", "attention.output.LayerNorm"),
    (r"mlp_output_norm_layernorm", "output.LayerNorm"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)


def read_weights(model: Path) -> dict[str, np.ndarray]:
    """Read the weights of a BERT graph as float64."""
    weights = {}
    for tensor in onnx.load(model).graph.initializer:
        name = tensor.name
        for pattern, replacement in _OTHER_NAMES:
            name = re.sub(pattern, replacement, name)
        weights[name] = numpy_helper.to_array(tensor).astype(np.float64)
    return weights


def read_ids(folder: Path, text: str, max_length: int) -> list[int]:
    """Tokenize one text with the folder's tokenizer.json, nothing padded."""
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


def pool(states: np.ndarray, pooling: str, positions: np.ndarray | None = None) -> np.ndarray:
    """(T, H) -> (H,). `positions` (T,), from 1 on, are the weights of weightedmean; None: 1, 2, ..., T."""
    weights = np.arange(1, len(states) + 1) if positions is None else positions
    return {
        "mean": lambda: states.mean(0),
        "max": lambda: states.max(0),
        "cls": lambda: states[0],
        "last": lambda: states[-1],
        "weightedmean": lambda: (states * weights[:, None]).sum(0) / weights.sum(),
        "mean_sqrt_len_tokens": lambda: states.sum(0) / np.sqrt(len(states)),
    }[pooling]()


def normalize(vector: np.ndarray) -> np.ndarray:
    """Divide by the Euclidean norm."""
    return vector / max(np.linalg.norm(vector), 1e-12)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, eps: float = 1e-5) -> np.ndarray:
    """Subtract the mean, divide by the standard deviation, over the last axis."""
    centred = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x + 3, 0, 6) / 6


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-_softplus(-x))


# torch.nn's activations with their default arguments, in evaluation mode.
ACTIVATIONS = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "GELU": gelu,
    "Sigmoid": _sigmoid,
    "SiLU": lambda x: x * _sigmoid(x),
    "LeakyReLU": lambda x: np.where(x > 0, x, 0.01 * x),
    "RReLU": lambda x: np.where(x > 0, x, (1 / 8 + 1 / 3) / 2 * x),
    "ELU": _elu,
    "SELU": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * _elu(x)),
    "CELU": _elu,
    "Softplus": _softplus,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Mish": lambda x: x * np.tanh(_softplus(x)),
    "Hardtanh": lambda x: np.clip(x, -1, 1),
    "ReLU6": lambda x: np.clip(x, 0, 6),
    "Hardswish": lambda x: x * _hard_sigmoid(x),
    "Hardsigmoid": _hard_sigmoid,
    "LogSigmoid": lambda x: -_softplus(-x),
    "Tanhshrink": lambda x: x - np.tanh(x),
    "Softshrink": lambda x: np.where(np.abs(x) > 0.5, x - 0.5 * np.sign(x), 0),
    "Hardshrink": lambda x: np.where(np.abs(x) > 0.5, x, 0),
}
