"""Write a prepared graph as a file of its own, that any ONNX runtime opens without penult."""

from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo

from penult.graph.rewrite.external_data import data_file, save

# A protobuf message ends at 2 GiB; beyond, weights go into a file beside the graph.
_LARGEST = 2**31 - 2**24


def write_standalone(graph: Path, data_folder: Path, target: Path) -> list[Path]:
    """Copy a graph and the weights it points to; give the files that were written.

    Args:
        graph: the prepared graph.
        data_folder: where its external data lie.
        target: the new .onnx file; weights of 2 GiB and more are written to `<target>.data` beside it.
    """
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            info = ExternalDataInfo(tensor)
            # Read here, since onnx's own reader refuses files behind links, which is what the Hub's cache is made of.
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
