"""Write a graph with its weights in a separate file, which a runtime maps instead of parsing and copying them.

onnx's own writer is not used: it looks for the data file in the current directory instead of the graph's folder, and fails if
a file of that name exists there.
"""

from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from penult.graph.model_file import refer

_SMALL = 1024  # bytes; a smaller tensor stays in the graph
_LARGE = 2**20  # bytes; a tensor of this size or more is aligned to `_PAGE`, a multiple of every system's page size
_PAGE = 2**16


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path` and its weights to `<path>.data`, replacing both files. The model is not changed.

    Tensors that are already external keep their references.
    """
    shell = without_weights(model)
    with data_file(path).open("wb") as data:
        for tensor in model.graph.initializer:
            small = tensor.data_location == TensorProto.EXTERNAL or tensor.ByteSize() < _SMALL
            shell.graph.initializer.append(tensor if small else _moved(tensor, data, data_file(path).name))
    path.write_bytes(shell.SerializeToString())


def data_file(path: Path) -> Path:
    """Return the path of a graph's weights file."""
    return path.with_name(f"{path.name}.data")


def without_weights(model: ModelProto) -> ModelProto:
    """Return a copy of a model without its initializers."""
    shell = ModelProto()
    _copy_without("graph", model, shell)
    _copy_without("initializer", model.graph, shell.graph)
    return shell


def _copy_without(name: str, message: ModelProto | GraphProto, copy: ModelProto | GraphProto) -> None:
    """Copy all fields of a message except one."""
    for field, value in message.ListFields():
        if field.name == name:
            continue
        if isinstance(value, Message):
            getattr(copy, field.name).CopyFrom(value)
        elif isinstance(value, int | str):
            setattr(copy, field.name, value)
        else:
            getattr(copy, field.name).extend(value)


def _moved(tensor: TensorProto, data: BinaryIO, location: str) -> TensorProto:
    """Write the data of a tensor to a file; return a tensor that refers to it."""
    raw = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
    if len(raw) >= _LARGE:
        data.write(bytes(-data.tell() % _PAGE))
    moved = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    refer(moved, location, data.tell(), len(raw))
    data.write(raw)
    return moved
