"""The steps before and after the pooling: dense layers, layer norms, normalization.

Each step works on the last axis, so it applies to vectors (B, D) and token embeddings (B, T, H). It uses only operators whose
semantics are the same from opset 11 on. Formulas, defaults and epsilons are those of torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from penult.graph.activations import ACTIVATIONS
from penult.graph.rewrite.builder import Builder


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer y = activation(x W + b), with a residual connection y + x or y + x R.

    Attributes:
        weight: W, (H, D).
        bias: b, (D,), or None.
        activation: one of `penult.graph.activations.ACTIVATIONS`.
        residual: None, "same" for y + x (then H = D), or R, (H, D).
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    activation: str
    residual: NDArray[np.float32] | Literal["same"] | None = None


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, over the last axis; weight and bias (D,)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    epsilon: float = 1e-5


Step: TypeAlias = Dense | LayerNorm | str
"""The str "normalize" is division by the Euclidean norm."""


def append_step(build: Builder, x: str, step: Step, *, axis: int) -> str:
    """Append a step on the tensor `x`, whose last axis is `axis`, and return the name of the result.

    Raises:
        ValueError: the step or activation is not supported.
    """
    if isinstance(step, Dense):
        return _dense(build, x, step)
    if isinstance(step, LayerNorm):
        return _layer_norm(build, x, step, axis=axis)
    if step != "normalize":
        raise ValueError(f"The step is {step!r}; it must be a Dense, a LayerNorm or 'normalize'.")
    return normalize(build, x, axis=axis)


def normalize(build: Builder, x: str, *, axis: int) -> str:
    """Append division by the Euclidean norm, at least 1e-12, like torch.nn.functional.normalize."""
    norm = build.reduce("ReduceL2", x, axis=axis, keepdims=1)
    return build.op("Div", x, build.op("Max", norm, build.float(1e-12)))


def width_after(step: Step, width: int | None) -> int | None:
    """Return the output width of a step for the input width `width`; None if unknown."""
    return step.weight.shape[1] if isinstance(step, Dense) else width


def _dense(build: Builder, x: str, dense: Dense) -> str:
    y = build.op("MatMul", x, build.constant(dense.weight))  # (..., H) -> (..., D)
    if dense.bias is not None:
        y = build.op("Add", y, build.constant(dense.bias))
    y = _activate(build, y, dense.activation)
    if dense.residual is None:
        return y
    same = isinstance(dense.residual, str)
    return build.op("Add", y, x if same else build.op("MatMul", x, build.constant(np.asarray(dense.residual))))


def _layer_norm(build: Builder, x: str, norm: LayerNorm, *, axis: int) -> str:
    # Two passes instead of mean(x * x) - mean(x)^2, which suffers from cancellation if the mean is large.
    centered = build.op("Sub", x, build.reduce("ReduceMean", x, axis=axis, keepdims=1))
    variance = build.reduce("ReduceMean", build.op("Mul", centered, centered), axis=axis, keepdims=1)
    deviation = build.op("Sqrt", build.op("Add", variance, build.float(norm.epsilon)))
    scaled = build.op("Mul", build.op("Div", centered, deviation), build.constant(norm.weight))
    return build.op("Add", scaled, build.constant(norm.bias))


def _activate(build: Builder, y: str, name: str) -> str:
    if name in _SINGLE:
        kind, attributes = _SINGLE[name]
        return build.node(kind, [y], attributes)
    if name in _COMPOSED:
        return _COMPOSED[name](build, y)
    raise ValueError(f"The activation is {name!r}; it must be one of {', '.join(ACTIVATIONS)}.")


def _gelu(build: Builder, y: str) -> str:
    """Append the exact form, x / 2 (1 + erf(x / sqrt 2)), which is torch's default."""
    erf = build.op("Erf", build.op("Div", y, build.float(2.0**0.5)))
    return build.op("Mul", build.op("Mul", y, build.float(0.5)), build.op("Add", erf, build.float(1.0)))


def _silu(build: Builder, y: str) -> str:
    return build.op("Mul", y, build.op("Sigmoid", y))


def _mish(build: Builder, y: str) -> str:
    return build.op("Mul", y, build.op("Tanh", build.op("Softplus", y)))


def _hard_tanh(build: Builder, y: str) -> str:
    return build.op("Clip", y, build.float(-1.0), build.float(1.0))


def _relu6(build: Builder, y: str) -> str:
    return build.op("Clip", y, build.float(0.0), build.float(6.0))


def _hard_swish(build: Builder, y: str) -> str:
    return build.op("Mul", y, build.node("HardSigmoid", [y], _SIXTH))  # the operator HardSwish exists only from opset 14 on


def _log_sigmoid(build: Builder, y: str) -> str:
    return build.op("Neg", build.op("Softplus", build.op("Neg", y)))  # log(sigmoid(y)) would be -inf below -104


def _tanh_shrink(build: Builder, y: str) -> str:
    return build.op("Sub", y, build.op("Tanh", y))


_SIXTH: Mapping[str, float] = {"alpha": 1 / 6, "beta": 0.5}
# One operator each, with torch's default arguments.
_SINGLE: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "Identity": ("Identity", {}),
    "Tanh": ("Tanh", {}),
    "ReLU": ("Relu", {}),
    "Sigmoid": ("Sigmoid", {}),
    "LeakyReLU": ("LeakyRelu", {"alpha": 0.01}),
    "RReLU": ("LeakyRelu", {"alpha": (1 / 8 + 1 / 3) / 2}),  # random only in training; otherwise the middle of its range
    "ELU": ("Elu", {"alpha": 1.0}),
    "CELU": ("Elu", {"alpha": 1.0}),  # the same for alpha 1; Celu needs opset 12
    "SELU": ("Selu", {}),
    "Softplus": ("Softplus", {}),
    "Softsign": ("Softsign", {}),
    "Hardsigmoid": ("HardSigmoid", _SIXTH),
    "Softshrink": ("Shrink", {"lambd": 0.5, "bias": 0.5}),
    "Hardshrink": ("Shrink", {"lambd": 0.5, "bias": 0.0}),
}
_COMPOSED: Mapping[str, Callable[[Builder, str], str]] = {
    "GELU": _gelu,
    "SiLU": _silu,
    "Mish": _mish,
    "Hardtanh": _hard_tanh,
    "ReLU6": _relu6,
    "Hardswish": _hard_swish,
    "LogSigmoid": _log_sigmoid,
    "Tanhshrink": _tanh_shrink,
}
BUILT: tuple[str, ...] = (*_SINGLE, *_COMPOSED)
"""Names of the implemented activations: those of `penult.graph.activations.ACTIVATIONS`, in another order."""
