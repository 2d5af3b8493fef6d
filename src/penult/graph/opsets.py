"""Operator sets of a graph: the version of the standard ONNX operators, and those of ONNX Runtime."""

from onnx import ModelProto, helper

MICROSOFT = "com.microsoft"


def opset_of(model: ModelProto) -> int:
    """Return the version of the standard ONNX operators."""
    return max((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), default=0)


def allow_microsoft(model: ModelProto) -> None:
    """Add ONNX Runtime's operator set to a model's opset imports, if it is missing."""
    if all(o.domain != MICROSOFT for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
