"""Read an ONNX file without its weights.

Loading a ModelProto with its weights takes twice the size of the file: the bytes and the parsed copy. Here the data of each
large initializer is replaced by a reference to the file itself, as external data, which ONNX Runtime maps.
"""

import mmap
import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo

from penult.graph.wire_format import LARGE_FILE, Layout, Weight, layout, sized_field

OWN = "."
"""Location of data in the graph's own file; no other file can have this name."""

# Types of weights. Other integers and booleans are shapes, positions and masks, which the passes read.
_WEIGHTS = frozenset(
    (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8)
)


def read_model(path: Path) -> onnx.ModelProto:
    """Read a graph without the data of external and of large initializers.

    The location of the large initializers is `OWN`.

    Raises:
        google.protobuf.message.DecodeError: the file is not an ONNX file.
    """
    try:
        os.fspath(path.resolve()).encode()  # a location must be valid UTF-8
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            plan = layout(data)
            if plan is not None and plan.weights:
                return onnx.ModelProto.FromString(b"".join(_without_weights(data, plan)))
    except ValueError:  # a path that is not Unicode; an empty file, which cannot be mapped
        pass
    return onnx.load(path, load_external_data=False)


def location_of(tensor: TensorProto) -> str:
    """Return the location of a tensor's external data; empty if the data is in the tensor."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return ""
    return next((str(entry.value) for entry in tensor.external_data if entry.key == "location"), "")


def refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Set the external data reference of a tensor."""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def read_values(tensor: TensorProto, file: Path) -> NDArray[np.generic]:
    """Return the memory-mapped values of a tensor whose data is in `file`."""
    info = ExternalDataInfo(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(file, dtype=dtype, mode="r", offset=info.offset or 0, shape=tuple(tensor.dims))


def with_values(tensor: TensorProto, file: Path) -> TensorProto:
    """Return a copy of a tensor with its data loaded from `file`."""
    return numpy_helper.from_array(np.array(read_values(tensor, file)), tensor.name)


def check_data_sizes(path: Path, real: Mapping[str, Path]) -> None:
    """Raise for an external data file that is far larger than the part that the graph reads, before other code reads it.

    Args:
        path: the graph file.
        real: location -> real file.

    Raises:
        ValueError: a file is far too large, for example a sparse one.
    """
    large = {name: file for name, file in real.items() if file.stat().st_size > LARGE_FILE}
    if not large:
        return
    try:
        model = read_model(path)
    except DecodeError:
        return  # reported when the graph is read
    ends = dict.fromkeys(large, 0)
    for tensor in model.graph.initializer:
        location = location_of(tensor)
        if location in ends:
            info = ExternalDataInfo(tensor)
            item = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            ends[location] = max(ends[location], (info.offset or 0) + (info.length or prod(tensor.dims) * item))
    for name, file in large.items():
        if (size := file.stat().st_size) > 2 * ends[name] + LARGE_FILE:
            raise ValueError(
                f"{file} has {size:,} bytes, but {path} uses only the first {ends[name]:,}. Download the file again."
            )


def _without_weights(data: mmap.mmap, plan: Layout) -> Iterator[bytes]:
    """Yield the bytes of a ModelProto whose large initializers refer to their data in the file."""
    yield data[: plan.graph.start]
    parts, end = [], plan.graph.value
    for weight in plan.weights:
        parts.append(data[end : weight.tensor.start])
        tensor = _reference(data, weight)
        end = weight.tensor.start if tensor is None else weight.tensor.end
        if tensor is not None:
            parts.append(sized_field(weight.tensor.number, tensor.SerializeToString()))
    yield sized_field(plan.graph.number, b"".join((*parts, data[end : plan.graph.end])))
    yield data[plan.graph.end :]


def _reference(data: mmap.mmap, weight: Weight) -> TensorProto | None:
    """Return a tensor that refers to its data in the file; None if the data must stay in the tensor."""
    raw = weight.data
    tensor = TensorProto.FromString(data[weight.tensor.value : raw.start] + data[raw.end : weight.tensor.end])
    if tensor.data_type not in _WEIGHTS or tensor.data_location or tensor.external_data:
        return None
    length = raw.end - raw.value
    if length != prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize:
        return None  # broken: ONNX Runtime will reject it
    refer(tensor, OWN, raw.value, length)
    return tensor
