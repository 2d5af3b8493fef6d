"""Write a prepared graph as a standalone file that any ONNX runtime loads without penult."""

from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo

from penult.graph.rewrite.external_data import data_file, save

# A protobuf message is at most 2 GiB; larger weights go to a file beside the graph.
_LARGEST = 2**31 - 2**24


def write_standalone(graph: Path, data_folder: Path, target: Path) -> list[Path]:
    """Copy a graph with its external weights; return the files that were written.

    Args:
        graph: the prepared graph.
        data_folder: the folder of its external data.
        target: the new .onnx file; weights of 2 GiB or more are written to `<target>.data` beside it.
    """
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            info = ExternalDataInfo(tensor)
            # Read here, because onnx's own reader rejects symlinks, which the Hub's cache consists of.
            with (data_folder / info.location).open("rb") as file:
                file.seek(info.offset or 0)
                tensor.raw_data = file.read(info.length) if info.length else file.read()
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights < _LARGEST:
        onnx.save_model(model, target)
        return [target]
    save(model, target)
    return [target, data_file(target)]
