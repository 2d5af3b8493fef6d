"""The names of the activations a dense layer may have, for code that must not import onnx.

They are the classes of torch.nn that have no parameters and do one thing element by element, with their default arguments, in
evaluation mode. `graph/rewrite/steps.py` builds them; it has one entry for each name here.
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
