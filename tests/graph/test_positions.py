"""The position table is found by its use, and the first position of a text by the rows of the table."""

import numpy as np
import onnx
import pytest
from conftest import data_file
from graph_kit import ZOO_FILES, Draft, outlined, position_offset, position_table, shuffled, stored
from models import Size, bert_graph, bert_weights
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

from penult.graph.find.positions import PositionTable

TABLES = {
    "albert-mlm": 128, "bert-base": 128, "bert-mlm": 128, "bert-mlm-external": 128, "bert-seqcls": 128, "bert-tokcls": 128, "distilbert-mlm": 128,
    "electra-discriminator": 128, "gpt2-lm": 128, "mpnet-mlm": 130, "roberta-mlm": 130,
    "deberta-mlm": None, "deberta-v2-mlm": None, "llama-lm": None, "modernbert-mlm": None, "qwen3-lm": None,
    "t5-encoder": None, "t5-seq2seq": None,
}  # fmt: skip


class Tables(Draft):
    """A draft with the forms in which exporters count tokens; the position table has 18 rows."""

    def input(self, name, *shape, kind=TensorProto.INT64):
        """Add an input."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape or ["batch", "sequence"]))
        return name

    def length(self):
        """Return the number of tokens, a scalar."""
        return self.op("Gather", self.op("Shape", "input_ids"), self.constant(1))

    def range(self):
        """Return 0 .. T - 1."""
        return self.op("Range", self.constant(0), self.length(), self.constant(1))

    def closed(self, places=None, table=None, looked_up=None):
        """Return a model of one layer that adds rows of a table to its tokens."""
        if looked_up is None:
            looked_up = self.op("Gather", table or self.weight(18, 8), places)
        return self.model(self.post_norm_layer(self.op("Add", self.embed(), looked_up)))


def table_of(model):
    """Return the rows, the first row and whether positions are an input; the same for all names and inside local functions."""
    table = position_table(model)
    for other in (shuffled(model)[0], outlined(model)):
        again = position_table(other)
        assert (again and (again.rows, again.asked)) == (table and (table.rows, table.asked))
    return table and (table.rows, table.first, table.asked)


def counted(d, *, exclusive=0, pad=1):
    """Return positions as in RoBERTa: a running sum of the tokens that are not padding, times the mask, plus the padding id."""
    mask = d.op("Cast", d.op("Not", d.op("Equal", "input_ids", d.constant(pad))), to=TensorProto.INT64)
    total = d.op("Mul", d.op("CumSum", mask, d.constant(1), exclusive=exclusive), mask)
    return d.op("Add", total, d.constant(np.array(pad)))


def test_a_range_that_a_graph_counts():
    """BERT of one exporter, GPT-2: 0 .. T-1, computed from the number of tokens."""
    d = Tables()
    assert table_of(d.closed(d.range())) == (18, 0, False)
    assert table_of(bert_graph(bert_weights(Size(positions=40)), 4)) == (40, 0, False)
    d = Tables()
    assert table_of(d.closed(d.op("Add", d.range(), d.constant(2)))) == (18, 2, False)
    d = Tables()
    old = d.op("Squeeze", d.op("Transpose", d.op("NonZero", d.op("ConstantOfShape", d.op("Shape", "input_ids")))))
    assert table_of(d.closed(old)) == (18, 0, False)


def test_a_running_sum_of_real_tokens():
    """RoBERTa and similar models count from the row after padding."""
    d = Tables()
    assert table_of(d.closed(counted(d))) == (18, 2, False)
    d = Tables()
    assert table_of(d.closed(counted(d, exclusive=1))) == (18, 1, False)
    d = Tables()
    mask = d.input("attention_mask")
    assert table_of(d.closed(d.op("Sub", d.op("CumSum", mask, d.constant(1)), d.constant(1)))) == (18, 0, False)


@pytest.mark.parametrize("external", [False, True])
def test_a_stored_range_that_is_sliced(external):
    """BERT: a buffer (1, P) is sliced to T, and so is a buffer of zeros for token types; its data need not be present."""
    d = Tables()
    cut = [d.constant(np.array([0])), d.op("Unsqueeze", d.length(), d.constant(np.array([0]))), d.constant(np.array([1]))]
    buffers = [d.constant(np.arange(2, 18)[None]), d.constant(np.zeros((1, 16), np.int64))]
    places, zeros = (d.op("Slice", buffer, *cut) for buffer in buffers)
    types = d.op("Gather", d.weight(5, 8), d.op("GatherElements", zeros, places, axis=1))
    looked_up = d.op("Add", d.op("Gather", d.weight(18, 8), places), types)
    model = d.closed(looked_up=looked_up)
    for tensor in model.graph.initializer if external else ():
        if tensor.name in buffers:
            set_external_data(tensor, "data", offset=0, length=128)
            tensor.ClearField("raw_data")
    assert table_of(model) == (18, None if external else 2, False)


@pytest.mark.parametrize("shape", [(18, 8), (1, 18, 8), (18, 1, 8)])
def test_a_table_that_is_sliced(shape):
    """A parameter is sliced to the length of the text, without an index."""
    d = Tables()
    end = d.op("Unsqueeze", d.length(), d.constant(np.array([0])))
    assert table_of(d.closed(looked_up=d.op("Slice", d.weight(*shape), d.constant(np.array([1])), end))) == (18, 1, False)


def test_positions_as_an_input():
    """An input provides them; what the graph adds to them is known."""
    d = Tables()
    assert table_of(d.closed(d.input("position_ids"))) == (18, 0, True)
    d = Tables()
    hidden = d.op("Equal", d.input("attention_mask"), d.constant(0))
    assert table_of(d.closed(d.op("Where", hidden, d.constant(1), d.input("position_ids")))) == (18, 0, True)
    d = Tables()
    assert table_of(d.closed(d.op("Sub", d.input("position_ids"), d.constant(-2)))) == (18, 2, True)
    d = Tables()
    assert table_of(d.closed(d.op("Div", d.input("position_ids"), d.constant(2)))) == (18, None, True)


@pytest.mark.parametrize("how", ["Cast", "DequantizeLinear", "behind", "QLinear"])
def test_a_table_of_fewer_bits(how):
    """Half precision is cast, integers are dequantized before or after the lookup."""
    d = Tables()
    places = d.range()
    small = d.constant(d.rng.integers(-9, 9, (18, 8)).astype(np.float16 if how == "Cast" else np.int8))
    scale = d.constant(np.float32(0.1)), d.constant(np.int8(0))
    if how == "behind":
        looked_up = d.op("DequantizeLinear", d.op("Gather", small, places), *scale)
    elif how == "Cast":
        looked_up = d.op("Gather", d.op("Cast", small, to=1), places)
    else:
        looked_up = d.op("Gather", d.op("DequantizeLinear", small, *scale), places)
    if how == "QLinear":
        tokens = d.op("QuantizeLinear", d.embed(), *scale)
        added = d.op(
            "QLinearAdd", tokens, *scale, d.op("QuantizeLinear", looked_up, *scale), *scale, *scale, domain="com.microsoft"
        )
        model = d.model(d.post_norm_layer(d.op("DequantizeLinear", added, *scale)))
    else:
        model = d.closed(looked_up=looked_up)
    assert table_of(model) == (18, 0, False)


def test_the_fused_operators_of_a_runtime():
    """One operator looks up ids, types and positions, another adds the positions and normalizes."""
    d = Tables()
    parts = d.weight(20, 8), d.weight(18, 8), "", d.weight(8), d.weight(8)
    d.op("EmbedLayerNormalization", "input_ids", "", *parts, domain="com.microsoft")
    assert table_of(d.model(d.post_norm_layer("x0"))) == (18, 0, False)
    d = Tables()
    asked = d.input("position_ids")
    parts = d.weight(20, 8), d.weight(18, 8), "", d.weight(8), d.weight(8), "", asked
    d.op("EmbedLayerNormalization", "input_ids", "", *parts, domain="com.microsoft")
    assert table_of(d.model(d.post_norm_layer("x0"))) == (18, 0, True)
    d = Tables()
    d.op("EmbedLayerNormalization", "input_ids", "", d.weight(20, 8), "", "", d.weight(8), d.weight(8), domain="com.microsoft")
    assert table_of(d.model(d.post_norm_layer("x0"))) is None
    d = Tables()
    looked_up = d.op("Gather", d.weight(18, 8), d.range())
    added = d.op("SkipLayerNormalization", d.embed(), looked_up, d.weight(8), domain="com.microsoft")
    assert table_of(d.model(d.post_norm_layer(added))) == (18, 0, False)


def test_other_tables_are_not_position_tables():
    """Rotary tables multiply, relative ones are added to scores, token types are not positions, and mixed tokens get none."""
    d = Tables()
    assert table_of(d.model(d.post_norm_layer(d.embed()))) is None
    d = Tables()
    rotated = d.op("Mul", d.embed(), d.op("Gather", d.weight(18, 8), d.range()))
    assert table_of(d.model(d.post_norm_layer(d.op("Add", rotated, d.embed())))) is None
    d = Tables()
    x = d.embed()
    scores = d.op("MatMul", x, d.op("Transpose", d.dense(x), perm=[0, 2, 1]))
    row, column = (d.op("Unsqueeze", d.range(), d.constant(np.array([axis]))) for axis in (0, 1))
    bias = d.op("Gather", d.weight(18, 2), d.op("Abs", d.op("Sub", row, column)))
    scores = d.op("Add", scores, d.op("ReduceMax", bias, d.constant(np.array([2])), keepdims=0))
    assert table_of(d.model(d.norm(d.op("Add", d.op("MatMul", d.op("Softmax", scores), x), x)))) is None
    d = Tables()
    assert table_of(d.closed(d.input("token_type_ids"), d.weight(18, 8))) is None
    d = Tables()
    assert table_of(d.closed(d.range(), d.weight(3, 8))) is None
    d = Tables()
    layer = d.post_norm_layer(d.embed())
    assert table_of(d.model(d.post_norm_layer(d.op("Add", layer, d.op("Gather", d.weight(18, 8), d.range()))))) is None


def test_the_shortest_of_two_tables():
    """The shorter table limits the length of a text."""
    d = Tables()
    places = d.range()
    tables = [d.op("Gather", d.weight(rows, 8), places) for rows in (20, 18)]
    assert table_of(d.closed(looked_up=d.op("Add", *tables))) == (18, 0, False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bart-seq2seq", (34, 2)), ("opt-lm", (34, 2)), ("gpt-neo-lm-fused", (32, 0)), ("deberta-v2-conv-mlm", (32, 0)),
        ("megatron-bert-splade", (32, 0)), ("ernie-attention-pooling", (32, 0)), ("mobilebert-mlm", (32, 0)),
        ("lfm2-lm", None), ("mixtral-lm", None), ("nomic-bert-layer-mix", None), ("xlnet", None), ("gpt-neox-lm", None),
        ("mistral-opset23", None),
    ],
)  # fmt: skip
def test_real_exports(name, expected):
    """Both exporters, fused and decomposed, learned, rotary and relative positions."""
    table = position_table(stored(name)[0])
    assert (table and (table.rows, table.first)) == expected


def test_the_zoo():
    """Every export of an architecture, in any precision, has the table of its configuration or none."""
    found = {}
    for file in ZOO_FILES:
        table = position_table(onnx.load(data_file(f"zoo/{file}"), load_external_data=False))
        found.setdefault(file.partition("/")[0], set()).add(table and table.rows)
    assert {"bert-mlm", "electra-discriminator", "t5-encoder"} <= set(found)
    known = {name: {rows} for name, rows in TABLES.items() if name in found}
    assert {name: found[name] for name in known} == known


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bge-m3/onnx/model", (8194, 2)), ("all-minilm/onnx/model_O4", (512, 0)), ("max-seq-over-table/onnx/model", (64, 0)),
     ("clip-text/0_CLIPModel/onnx/text_model", (77, 0)), ("jina-v2/onnx/model", None), ("nomic-v1-5/onnx/model", None),
     ("all-minilm/onnx/model_qint8_avx512_vnni", (512, 0)), ("matryoshka-mpnet/onnx/model", (514, 2)), ("potion/onnx/model", None)],
)  # fmt: skip
def test_the_gallery(name, expected):
    """External data, int8, fp16, ALiBi, and rotary positions whose configuration states a length without a table."""
    table = position_table(onnx.load(data_file(f"gallery/{name}.onnx"), load_external_data=False))
    assert (table and (table.rows, table.first)) == expected


def with_position_ids(rows, zero=(), kind=np.float32, *, shift=0):
    """Return a model with positions as an input, and rows of zeros in its table."""
    d = Tables()
    values = d.rng.integers(1, 9, (rows, 8)).astype(kind)
    values[:, 0] = 100
    values[list(zero)] = 7 if kind == np.int8 else 0
    table = d.constant(values)
    if kind == np.int8:
        table = d.op("DequantizeLinear", table, d.constant(np.float32(0.1)), d.constant(np.int8(7)))
    places = d.input("position_ids")
    return d.closed(d.op("Add", places, d.constant(shift)) if shift else places, table)


@pytest.mark.parametrize(
    ("rows", "zero", "pad", "stated", "expected"),
    [
        (66, [1], 1, {"stated_rows": 66, "stated_length": 64}, 2),  # RoBERTa
        (514, [1], 1, {"stated_rows": 514, "stated_length": 514}, 2),  # with a length that counts the rows of padding
        (512, [1], 1, {"stated_length": 512}, 2),  # with a table of another length
        (512, [0], 0, {}, 1),  # ProphetNet
        (66, [0, 1], 1, {}, 2),
        (66, [1], 0, {"stated_length": 64}, 2),  # MPNet whose padding id is stated otherwise
        (66, [1], None, {}, 2),
        (66, [], 1, {}, 2),  # trained where a padding row is not kept at zero
        (70, [], 1, {"stated_length": 68}, 2),
        (70, [], 1, {"stated_rows": 68}, 2),
        (512, [], 0, {"stated_rows": 512, "stated_length": 510}, 0),  # BERT
        (512, [], 1, {}, 0),
        (77, [], 50000, {"stated_length": 77}, 0),  # CLIP
        (77, [], None, {"stated_rows": 77}, 0),
        (600, [], 0, {"stated_rows": 600}, 0),
        (20, range(20), 1, {}, 0),
    ],
)  # fmt: skip
def test_the_first_position_of_a_text(rows, zero, pad, stated, expected):
    """0, or the row after padding: by the zero rows, otherwise by the length."""
    assert position_offset(with_position_ids(rows, zero), pad, **stated) == expected
    assert position_offset(with_position_ids(rows, zero, np.int8), pad, **stated) == expected


@pytest.mark.parametrize(
    ("rows", "zero", "pad", "stated"),
    [
        (514, [], 3, {"stated_rows": 514}),  # two rows more than a power of two, which padding 3 does not explain
        (514, [], None, {}),
        (512, [], 1, {"stated_length": 510}),
        (600, [5], 1, {}),
        (600, [5, 9], None, {}),
    ],
)
def test_contradictions_are_rejected(rows, zero, pad, stated):
    """The message shows the rows, the stated numbers and the observed ones, and what to do."""
    said = rf"the table has {rows} positions .* the padding id is {pad}, and .* is|are .*\. Export the graph without position_ids\."
    with pytest.raises(ValueError, match=said):
        position_offset(with_position_ids(rows, zero), pad, **stated)


def test_the_forms_of_an_added_constant():
    """A constant of the graph, as an attribute or reshaped, is a number; one with several numbers, or a broken one, is not."""
    for write, first in (
        (lambda d: d.op("Constant", value_int=3), 3),
        (lambda d: d.op("Unsqueeze", d.op("Cast", d.constant(3), to=7), d.constant(np.array([0]))), 3),
        (lambda d: d.op("Constant", value_ints=[1, 2]), None),
        (lambda d: d.constant(np.float32(3)), None),
        (lambda d: "broken", None),
    ):
        d = Tables()
        d.weights.append(TensorProto(name="broken", data_type=77, dims=[1]))
        assert table_of(d.closed(d.op("Add", d.input("position_ids"), write(d)))) == (18, first, True)


def test_rows_of_a_sparse_table_are_not_read():
    """A sparse table has a shape, and its rows are not read."""
    model = with_position_ids(66, [1])
    dense = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [66, 8])
    values = helper.make_tensor(dense.name, TensorProto.FLOAT, [1], [1.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("", TensorProto.INT64, [1], [0]), [66, 8])
    model.graph.initializer.remove(dense)
    model.graph.sparse_initializer.append(sparse)
    assert position_offset(model, 1) == 2
    with pytest.raises(ValueError, match="its rows cannot be read"):
        position_offset(model, 0)


def test_no_offset_is_added_twice():
    """OPT adds 2 itself; a graph without the input, or without a table, needs no offset."""
    assert position_offset(with_position_ids(66, [1], shift=2), 1) == 0
    d = Tables()
    assert position_offset(d.closed(counted(d)), 1) == 0
    d = Tables()
    assert position_offset(d.model(d.post_norm_layer(d.embed())), 1) == 0
    d = Tables()
    unknown = d.closed(d.op("Div", d.input("position_ids"), d.constant(2)))
    with pytest.raises(ValueError, match="the position of the first token is unknown"):
        position_offset(unknown, 1)


def test_external_rows_are_read_by_the_caller():
    """A table in another file is read through `read`; if it returns None, the length alone decides."""
    model = with_position_ids(66, [1])
    name = position_table(model).tensor
    table = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(table)
    set_external_data(table, "data", offset=0, length=values.nbytes)
    table.ClearField("raw_data")
    asked = []
    assert position_offset(model, 1, read=lambda tensor: asked.append(tensor.name) or values) == 2
    assert asked == [name]
    assert position_offset(model, 1) == 2
    assert position_offset(model, 0, read=lambda tensor: values) == 2
    with pytest.raises(ValueError, match="its rows cannot be read"):
        position_offset(model, 0, read=lambda tensor: None)
    with pytest.raises(ValueError, match="its rows cannot be read"):
        position_offset(model, 0, read=lambda tensor: values[:7])


def test_the_report_of_roberta_with_positions():
    """bugcases/03: rows 66, row 1 is zero, padding is 1."""
    case = "03-roberta-position-ids-input/case-M13-roberta-position-ids-input/model/onnx/model.onnx"
    model = onnx.load(data_file(f"bugcases/{case}"))
    assert position_table(model) == PositionTable("m.embeddings.position_embeddings.weight", 66, 0, asked=True)
    assert position_offset(model, 1, stated_rows=66, stated_length=64) == 2


def test_broken_constants_are_not_read():
    """A stored range or a table with data that do not match its shape is ignored."""
    d = Tables()
    cut = [d.constant(np.array([0])), d.op("Unsqueeze", d.length(), d.constant(np.array([0])))]
    buffer = d.constant(np.arange(18)[None])
    model = d.closed(d.op("Slice", buffer, *cut))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    weights[buffer].raw_data = b"123"
    assert table_of(model) == (18, None, False)
    model = with_position_ids(66)
    table = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [66, 8])
    table.data_type = 77
    assert position_offset(model, 1) == 2
