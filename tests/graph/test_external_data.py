"""Graphs are written with weights that a runtime can map, or as a single file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penult.graph.rewrite import standalone
from penult.graph.rewrite.external_data import data_file, save
from penult.graph.rewrite.standalone import write_standalone

WEIGHTS = {
    "tiny": np.arange(5, dtype=np.float32),
    "below": np.arange(255, dtype=np.float32),
    "bytes": np.arange(1024, dtype=np.uint8),
    "odd": np.arange(1025, dtype=np.uint8),
    "almost a page": np.ones(2**20 - 1, dtype=np.uint8),
    "large": np.arange(2**18, dtype=np.float32),
    "large too": np.arange(2**18, dtype=np.float32)[::-1].copy(),
}


def graph(*, raw=True):
    """Build a graph with some weights, each passed to an output."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in WEIGHTS.items()}
    made = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name} out"]) for name in WEIGHTS],
        "g",
        [],
        [helper.make_tensor_value_info(f"{name} out", kinds[name], None) for name in WEIGHTS],
        [
            numpy_helper.from_array(array, name) if raw else helper.make_tensor(name, kinds[name], array.shape, array)
            for name, array in WEIGHTS.items()
        ],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def weights_of(path):
    """Read a graph's weights, including those in its data file."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def places(path):
    """Return name -> (offset, length) of the external weights of a graph."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    said = {t.name: {e.key: e.value for e in t.external_data} for t in tensors if t.data_location == TensorProto.EXTERNAL}
    return {name: (int(entry["offset"]), int(entry["length"])) for name, entry in said.items()}


@pytest.mark.parametrize("raw", [True, False])
def test_weights_become_external_data(tmp_path, raw):
    """Weights from 1 kB on are external, those from 1 MB on start at a page boundary, and no value or argument changes."""
    model, path = graph(raw=raw), tmp_path / "g.onnx"
    before = model.SerializeToString()
    save(model, path)
    assert model.SerializeToString() == before
    assert sorted(tmp_path.iterdir()) == [path, data_file(path)]
    found = weights_of(path)
    assert all(np.array_equal(found[name], array) for name, array in WEIGHTS.items())
    beside = places(path)
    assert set(beside) >= {"odd", "almost a page", "large", "large too"}
    assert "tiny" not in beside
    assert path.stat().st_size < 4096
    assert [beside[name][0] % 2**16 for name in ("large", "large too")] == [0, 0]
    assert beside["large too"][0] == beside["large"][0] + beside["large"][1]
    if raw:
        assert "below" in beside  # 1020 bytes and its name


def test_the_data_file_has_no_needless_padding(tmp_path):
    """Only a large weight is aligned to a page; others follow without a gap, and nothing follows the last."""
    path = tmp_path / "g.onnx"
    save(graph(), path)
    beside = places(path)
    small = [name for name in beside if not name.startswith("large")]
    ends = 0
    for name in small:
        assert beside[name][0] == ends
        ends += WEIGHTS[name].nbytes
    assert beside["large"][0] == -(-ends // 2**16) * 2**16
    assert data_file(path).stat().st_size == sum(beside["large too"])


def test_references_to_other_files_are_kept(tmp_path):
    """A weight in another file stays there."""
    whole, path = tmp_path / "whole.onnx", tmp_path / "g.onnx"
    onnx.save_model(graph(), whole, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    save(onnx.load(whole, load_external_data=False), path)
    assert weights_of(path)["large"].tolist() == WEIGHTS["large"].tolist()
    assert data_file(path).stat().st_size == 0


def with_external_data(folder: Path, *, bare: bool) -> Path:
    """Write a graph with external data; `bare` omits the offset of the first weight and its length."""
    folder.mkdir()
    model = graph()
    if bare:
        del model.graph.initializer[:-1]
        del model.graph.node[:-1]
        del model.graph.output[:-1]
    save(model, folder / "g.onnx")
    if bare:
        model = onnx.load(folder / "g.onnx", load_external_data=False)
        del model.graph.initializer[0].external_data[1:]
        (folder / "g.onnx").write_bytes(model.SerializeToString())
    return folder / "g.onnx"


@pytest.mark.parametrize("bare", [False, True])
def test_one_file_has_all_weights(tmp_path, bare):
    """The weights are in the new file, byte for byte, whether or not the graph states their offsets and lengths."""
    source, target = with_external_data(tmp_path / "from", bare=bare), tmp_path / "to.onnx"
    elsewhere = data_file(source).rename(tmp_path / data_file(source).name).parent
    assert write_standalone(source, elsewhere, target) == [target]
    assert list(tmp_path.glob("to.*")) == [target]
    assert not any(tensor.external_data for tensor in onnx.load(target).graph.initializer)
    found = weights_of(target)
    assert found
    assert all(np.array_equal(array, WEIGHTS[name]) for name, array in found.items())


def test_weights_over_the_limit_go_to_a_second_file(tmp_path, monkeypatch):
    """A protobuf message is limited to 2 GiB (here: to the size of the weights); larger graphs get a data file."""
    source, target = with_external_data(tmp_path / "from", bare=False), tmp_path / "to.onnx"
    assert 2**30 < standalone._LARGEST < 2**31
    size = sum(array.nbytes for array in WEIGHTS.values())
    monkeypatch.setattr(standalone, "_LARGEST", size + 1)
    assert write_standalone(source, source.parent, target) == [target]
    monkeypatch.setattr(standalone, "_LARGEST", size)
    assert write_standalone(source, source.parent, target) == [target, data_file(target)]
    assert "large" in places(target)
    assert all(np.array_equal(array, WEIGHTS[name]) for name, array in weights_of(target).items())
