"""Which operators a graph may use: the version of ONNX's own, and ONNX Runtime's beside them."""

from onnx import ModelProto, helper

MICROSOFT = "com.microsoft"


def opset_of(model: ModelProto) -> int:
    """Give the version of ONNX's own operators."""
    return max((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), default=0)


def allow_microsoft(model: ModelProto) -> None:
    """State that a model of ours uses ONNX Runtime's operators, if it does not yet."""
    if all(o.domain != MICROSOFT for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
