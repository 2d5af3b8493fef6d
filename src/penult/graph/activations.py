"""Names of the activations that a dense layer may have, for code that must not import onnx.

They are the element-wise classes of torch.nn without parameters, with default arguments, in evaluation mode.
`graph/rewrite/steps.py` implements each of them.
"""

ACTIVATIONS: tuple[str, ...] = (
    "Identity",
    "Tanh",
    "ReLU",
    "GELU",
    "Sigmoid",
    "SiLU",
    "LeakyReLU",
    "RReLU",
    "ELU",
    "SELU",
    "CELU",
    "Softplus",
    "Softsign",
    "Mish",
    "Hardtanh",
    "ReLU6",
    "Hardswish",
    "Hardsigmoid",
    "LogSigmoid",
    "Tanhshrink",
    "Softshrink",
    "Hardshrink",
)
