"""Write a graph with its weights in a file beside it, which a runtime maps instead of parsing and copying them.

onnx's own writer looks for the data file's name in the current directory and refuses if it finds one there; it knows nothing
of the graph's folder. So a few lines here do it.
"""

from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import set_external_data

_SMALL = 1024  # bytes of a tensor that stays inside the graph
_LARGE = 2**20  # bytes of a tensor that begins at a whole page, of any system
_PAGE = 2**16


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path` and its weights to `<path>.data`; both are replaced. The model given keeps its weights.

    Tensors that are in external files already keep their references.
    """
    shell = onnx.ModelProto()
    shell.CopyFrom(model)
    with data_file(path).open("wb") as data:
        for tensor in shell.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL or tensor.ByteSize() < _SMALL:
                continue
            if not tensor.HasField("raw_data"):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
            if len(tensor.raw_data) >= _LARGE:
                data.write(bytes(-data.tell() % _PAGE))
            set_external_data(tensor, data_file(path).name, offset=data.tell(), length=len(tensor.raw_data))
            data.write(tensor.raw_data)
            tensor.ClearField("raw_data")
    path.write_bytes(shell.SerializeToString())


def data_file(path: Path) -> Path:
    """Name the file of a graph's weights."""
    return path.with_name(f"{path.name}.data")
