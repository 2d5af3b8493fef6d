"""DeepSparse's Engine interface: arrays in, arrays out, and clear errors for invalid inputs."""

import logging

import numpy as np
import onnx
import pytest
from models import bert_graph, bert_weights
from onnx import TensorProto, helper

from penult import Engine, Scheduler

IDS = np.array([[2, 5, 6, 3], [2, 7, 3, 0]])
MASK = (IDS > 0).astype(np.int64)
INPUTS = [IDS, MASK, np.zeros_like(IDS)]
NAMES = ["input_ids", "attention_mask", "token_type_ids"]


@pytest.fixture(scope="module")
def model(tiny):
    return tiny / "onnx" / "model.onnx"


@pytest.fixture
def engine(model):
    with Engine(model, num_cores=1) as opened:
        yield opened


def test_inputs_by_order_or_by_name(engine):
    """Inputs can be a list or tuple in the graph's order or a dict, for a call, run and mapped_run."""
    (expected,) = engine(INPUTS)
    assert expected.shape == (2, 4, 32)
    named = dict(zip(NAMES, INPUTS, strict=True))
    for result in (engine(tuple(INPUTS)), engine(dict(reversed(named.items()))), engine.run(INPUTS)):
        assert np.array_equal(result[0], expected)
    assert np.array_equal(engine.mapped_run(INPUTS)["last_hidden_state"], expected)
    fortran = [np.asfortranarray(array) for array in INPUTS]
    assert not fortran[0].flags.c_contiguous
    assert np.array_equal(engine(fortran)[0], expected)


def test_inputs_and_outputs_are_listed(engine):
    """Names, threads and batch size are properties."""
    assert engine.input_names == NAMES
    assert engine.output_names == ["last_hidden_state"]
    assert engine.num_cores == 1
    assert engine.batch_size is None


def test_compile_is_the_same(model, engine):
    """Engine.compile equals Engine, from a file or its bytes."""
    for source in (model, str(model), model.read_bytes()):
        with Engine.compile(source, 2, num_cores=1) as compiled:
            assert compiled.batch_size == 2
            assert np.array_equal(compiled(INPUTS)[0], engine(INPUTS)[0])


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (INPUTS[:2], ValueError, r"inputs has 2 arrays; the graph takes 3: input_ids, attention_mask, token_type_ids"),
        ([], ValueError, "inputs has 0 arrays"),
        ({"input_ids": IDS}, ValueError, "missing: attention_mask, token_type_ids"),
        ({**dict(zip(NAMES, INPUTS, strict=True)), "x": IDS}, ValueError, "unknown: x"),
        ([IDS.astype(np.int32), *INPUTS[1:]], ValueError, r"'input_ids' is int32.*must be int64.*\.astype\('int64'\)"),
        ([IDS.astype(np.float32), *INPUTS[1:]], ValueError, "float32"),
        ([IDS[0], *INPUTS[1:]], ValueError, r"'input_ids' is int64 \(4,\); its shape must be"),
        ([IDS, MASK[:1], INPUTS[2]], ValueError, r"'attention_mask' is int64 \(1, 4\); its 'batch' axis is 2 in"),
        ([IDS, MASK[:, :3], INPUTS[2]], ValueError, r"'sequence' axis is 4 in 'input_ids'"),
        ([IDS + 1000, *INPUTS[1:]], ValueError, "'input_ids' has the id 1[0-9]+; ids must be from 0 to"),
        ([*INPUTS[:2], INPUTS[2] + 2], ValueError, "'token_type_ids' has the id 2; ids must be from 0 to 1"),
        ([IDS - 1, *INPUTS[1:]], ValueError, r"has the id -1; ids must be at least 0"),
        ([IDS.tolist(), *INPUTS[1:]], TypeError, "'input_ids' is a list; pass a NumPy array of int64"),
        (IDS, TypeError, "inputs is a ndarray; pass a list of arrays in the order input_ids"),
        (None, TypeError, "inputs is a NoneType"),
        ("text", TypeError, "inputs is a str"),
    ],
)
def test_inputs_that_do_not_fit(engine, inputs, error, message):
    """A wrong count, name, dtype, rank, size or id raises an error, and the engine stays usable."""
    with pytest.raises(error, match=message):
        engine(inputs)
    assert engine(INPUTS)[0].shape == (2, 4, 32)


def test_a_text_beyond_the_positions(engine):
    """More tokens than positions raise an error of the graph."""
    long = np.full((1, 129), 5)
    with pytest.raises(
        ValueError, match="ONNX Runtime rejected the inputs: an axis has the size 129, but the graph has 128 there "
    ):
        engine([long, np.ones_like(long), np.zeros_like(long)])


def test_a_frozen_shape_is_checked(tmp_path):
    """A graph of fixed sizes accepts only these."""
    model = bert_graph(bert_weights(), 4)
    for node in model.graph.input:
        node.type.tensor_type.shape.dim[1].dim_value = 6
    onnx.save(model, tmp_path / "m.onnx")
    with (
        Engine(tmp_path / "m.onnx", num_cores=1) as engine,
        pytest.raises(ValueError, match=r"its shape must be \('batch', 6\)"),
    ):
        engine(INPUTS)


def test_batch_size_is_checked(model):
    """With batch_size, every run must have that many rows; without it, or below 1, any number."""
    with Engine(model, batch_size=2, num_cores=1) as two:
        assert len(two(INPUTS)[0]) == 2
        with pytest.raises(ValueError, match=r"the engine has batch_size=2"):
            two([array[:1] for array in INPUTS])
    with Engine(model, batch_size=0, num_cores=1) as free:
        assert len(free([array[:1] for array in INPUTS])[0]) == 1


def test_an_empty_cache_may_have_any_name(tmp_path):
    """An axis of size 0, such as an empty cache, may have the name of another axis."""
    nodes = [helper.make_node("Concat", ["past", "new"], ["all"], axis=1)]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "sequence"]) for name in ("past", "new")]
    out = helper.make_tensor_value_info("all", TensorProto.FLOAT, ["batch", "total"])
    graph = helper.make_graph(nodes, "g", infos, [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    with Engine(tmp_path / "m.onnx", num_cores=1) as engine:
        assert engine([np.zeros((1, 0), np.float32), np.ones((1, 3), np.float32)])[0].shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"num_cores": -1}, ValueError), ({"num_cores": 1.5}, TypeError), ({"num_streams": -1}, ValueError),
     ({"scheduler": "bogus"}, ValueError), ({"scheduler": 3}, ValueError), ({"batch_size": "2"}, TypeError),
     ({"threads": 0}, ValueError), ({"providers": ["NoSuch"]}, ValueError)],
)  # fmt: skip
def test_invalid_options(model, options, error):
    """Invalid options are refused when the engine is created."""
    with pytest.raises(error):
        Engine(model, **options)


@pytest.mark.parametrize(
    "options",
    [{"num_streams": 2}, {"scheduler": "elastic"}, {"scheduler": Scheduler.multi_stream}, {"input_shapes": [[1, 16]]}],
)
def test_ignored_options_are_logged_once(model, engine, caplog, options):
    """Ignored options are logged in one line, and do not change the outputs."""
    with caplog.at_level(logging.WARNING, logger="penult"), Engine(model, num_cores=1, **options) as other:
        other(INPUTS)
        assert np.array_equal(other(INPUTS)[0], engine(INPUTS)[0])
    (record,) = caplog.records
    assert f"{next(iter(options))}=" in record.getMessage()


def test_invalid_files_and_a_closed_engine(tmp_path, model):
    """A missing file, a file that is not a graph and a closed engine raise errors."""
    with pytest.raises(FileNotFoundError, match="No graph at"):
        Engine(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(ValueError, match="ONNX Runtime cannot open"):
        Engine(tmp_path / "bad.onnx")
    engine = Engine(model, num_cores=1)
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine(INPUTS)
