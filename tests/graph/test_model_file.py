"""A graph is read without its large weights, and otherwise as onnx reads it, whatever the file holds."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import Size, bert_graph, bert_weights
from onnx import ModelProto, TensorProto, helper, numpy_helper

from penult.graph import wire_format
from penult.graph.model_file import OWN, location_of, read_model, read_values, with_values

LARGE = wire_format.LARGE
SMALL_BERT = bert_graph(bert_weights(Size(8, 1, 2, 16)), 2)
RNG = np.random.default_rng(0)


def weight(kind, bytes_, name="w"):
    """Make a tensor of random bytes, one row."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    array = RNG.integers(0, 2, bytes_ // dtype.itemsize).astype(dtype)
    return numpy_helper.from_array(array, name)


def model_of(*tensors):
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [], list(tensors))
    return helper.make_model(graph)


def read(folder, model, *, tail=b""):
    """Write a model and read it."""
    path = folder / "model.onnx"
    path.write_bytes((model if isinstance(model, bytes) else model.SerializeToString()) + tail)
    return read_model(path), path


def filled(model, path):
    """Put the weights back."""
    for tensor in model.graph.initializer:
        if location_of(tensor) == OWN:
            offset, length = (int(entry.value) for entry in tensor.external_data if entry.key != "location")
            tensor.raw_data = path.read_bytes()[offset : offset + length]
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return model


def as_ever(path):
    """Read a model with its weights, as onnx does; None where it does not parse."""
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError:
        return None


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE,
                                  TensorProto.INT8, TensorProto.UINT8])  # fmt: skip
@pytest.mark.parametrize("front", range(4))
def test_large_weights_stay_in_the_file(tmp_path, kind, front):
    """From 64 KiB on, of every type of weights, at whatever place of the file they begin; the values are theirs."""
    large, small = weight(kind, LARGE, "w"), weight(kind, LARGE - 8, "small")
    model = model_of(TensorProto(name="n" * front, data_type=1, dims=[0]), small, large)
    there, path = read(tmp_path, model)
    assert [location_of(tensor) for tensor in there.graph.initializer] == ["", "", OWN]
    assert there.ByteSize() < LARGE + 200
    assert np.array_equal(read_values(there.graph.initializer[2], path), numpy_helper.to_array(large))
    assert with_values(there.graph.initializer[2], path) == large
    assert filled(there, path) == model


def test_what_passes_read_is_loaded(tmp_path):
    """Integers and booleans, which are positions and masks, weights that are not bytes, and weights in other files."""
    numbers = helper.make_tensor("floats", TensorProto.FLOAT, [LARGE], np.ones(LARGE, np.float32))
    elsewhere = TensorProto(name="elsewhere", data_type=TensorProto.FLOAT, dims=[LARGE], data_location=TensorProto.EXTERNAL)
    elsewhere.external_data.add(key="location", value="w" * LARGE)
    wrong = weight(TensorProto.FLOAT, LARGE, "of another size")
    wrong.dims[0] += 1
    tensors = [weight(TensorProto.INT64, LARGE), weight(TensorProto.BOOL, LARGE, "b"), numbers, elsewhere, wrong]
    model = model_of(*tensors)
    assert read(tmp_path, model)[0] == model


def test_a_message_in_parts(tmp_path):
    """Protobuf merges a message that comes twice, and of two values takes the last; so a file of that kind is loaded."""
    model = model_of(weight(TensorProto.FLOAT, LARGE))
    twice, path = read(tmp_path, model, tail=model_of(weight(TensorProto.FLOAT, LARGE)).SerializeToString())
    assert len(twice.graph.initializer) == 2
    assert twice == as_ever(path)
    tensor = weight(TensorProto.FLOAT, LARGE).SerializeToString() + weight(TensorProto.FLOAT, LARGE).SerializeToString()
    graph = wire_format.sized_field(5, tensor)
    again, path = read(tmp_path, wire_format.sized_field(7, graph))
    assert again == as_ever(path)
    assert len(again.graph.initializer[0].raw_data) == LARGE


@pytest.mark.parametrize("file", [b"", b"\x00", b"\x3b", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x3a\x05\x2a",
                                  b"\x3b\x3c\x3a\x00", b"\x08\x80", b"\x0d\x00\x00\x00", b"\xba\x00\x02\x12\x00"])  # fmt: skip
def test_no_model(tmp_path, file):
    """Nothing, tags of no field, groups, sizes and numbers beyond the end, a field written in more bytes than it needs."""
    path = tmp_path / "model.onnx"
    path.write_bytes(file)
    expected = as_ever(path)
    if expected is None:
        with pytest.raises(DecodeError):
            read_model(path)
    else:
        assert read_model(path) == expected


def test_too_many_fields_are_left_to_protobuf(tmp_path, monkeypatch):
    """A file of millions of fields is not walked in Python."""
    model = model_of(weight(TensorProto.FLOAT, LARGE))
    assert location_of(read(tmp_path, model)[0].graph.initializer[0]) == OWN
    many = model_of(*(weight(TensorProto.FLOAT, LARGE, f"w{i}") for i in range(9)))
    monkeypatch.setattr(wire_format, "_MOST_FIELDS", 40)  # of the whole file: each weight has a few
    assert location_of(read(tmp_path, model)[0].graph.initializer[0]) == OWN
    assert read(tmp_path, many)[0] == many


def test_a_folder_that_is_not_unicode(tmp_path):
    """A reference is text, so a graph in such a folder is loaded with its weights."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes Unicode only")
    model = model_of(weight(TensorProto.FLOAT, LARGE))
    assert read(folder, model)[0] == model


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6), st.floats(0, 1))
@example([], 1.0)
def test_a_damaged_file_is_read_as_ever(tmp_path_factory, changes, end):
    """Whatever bytes are altered or missing: the same model, or the same refusal, as if onnx had read it."""
    data = bytearray(SMALL_BERT.SerializeToString())
    data = data[: int(len(data) * end)]
    for place, byte in changes:
        data[int(place * (len(data) - 1)) : int(place * (len(data) - 1)) + 1] = bytes([byte])
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    path.write_bytes(data)
    expected = as_ever(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire_format, "LARGE", 32)
        try:
            there = read_model(path)
        except DecodeError:
            there = None
    assert (there is None) == (expected is None)
    if there is not None:
        assert changes or end < 1 or any(location_of(tensor) == OWN for tensor in there.graph.initializer)
        assert filled(there, path).SerializeToString(deterministic=True) == ModelProto.SerializeToString(
            expected, deterministic=True
        )
