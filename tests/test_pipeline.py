"""What Pipeline promises to those who come from DeepSparse, against the NumPy oracle and against itself."""

import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import reference
from conftest import data_file
from models import Size, bert_weights, tiny_model
from onnx import TensorProto, helper, numpy_helper

from penult import Context, Embedder, Engine, Pipeline, Scheduler, TextError
from penult.core import engine

TEXTS = ["the cat sat on the mat", "", "dog", "a bright moon over the river " * 4, "  spaces\nand\tlines  ", "日本 🎉 naïve"]
STRATEGIES = ["per_token", "reduce_mean", "reduce_max", "cls_token"]
LENGTH = 16
PAD, CLS = 0, 2


def create(model, strategy="reduce_mean", **options):
    return Pipeline.create(
        task="transformers_embedding_extraction",
        model_path=model,
        extraction_strategy=strategy,
        **{"sequence_length": LENGTH, "return_numpy": True, "num_cores": 1, **options},
    )


def answer(model, texts, strategy="reduce_mean", **options):
    with create(model, strategy, **options) as pipeline:
        return np.stack(pipeline(texts).embeddings)


def states(folder, text, length=LENGTH, layer=-1):
    """Ids and hidden states of one text, nothing padded: the oracle's."""
    ids = reference.read_ids(folder, text, length)
    return np.array(ids), reference.bert(reference.read_weights(folder / "onnx" / "model.onnx"), ids, 4)[layer]


def oracle(folder, text, strategy, length=LENGTH, layer=-1):
    ids, rows = states(folder, text, length, layer)
    kept = rows[(ids != PAD) & (ids != CLS)]
    return {"reduce_mean": kept.mean(0), "reduce_max": kept.max(0), "cls_token": rows[ids == CLS][0]}[strategy]


@pytest.fixture
def pipeline(tiny):
    with create(tiny, return_numpy=False) as opened:
        yield opened


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("layer", [-1, -2, 0, 1])
def test_reduced_vectors_leave_out_cls_and_keep_sep(tiny, strategy, layer):
    """reduce_mean and reduce_max count every row but CLS and PAD, cls_token is the CLS row; layer 0 is the first layer."""
    expected = np.stack([oracle(tiny, t, strategy, layer=layer + 1 if layer >= 0 else layer) for t in TEXTS])
    assert np.abs(answer(tiny, TEXTS, strategy, emb_extraction_layer=layer) - expected).max() <= 2e-5


@pytest.mark.parametrize("side", ["right", "left"])
def test_per_token_is_every_row_flat(tmp_path, side):
    """per_token is sequence_length x hidden in one axis: what the model gives for the text padded on its tokenizer's side."""
    folder = tiny_model(tmp_path)
    (folder / "tokenizer_config.json").write_text(f'{{"padding_side": "{side}"}}')
    found = answer(folder, TEXTS, "per_token").reshape(len(TEXTS), LENGTH, 32)
    with Engine(folder / "onnx" / "model.onnx", threads=1) as engine:
        for text, rows in zip(TEXTS, found, strict=True):
            ids, own = states(folder, text)
            place = slice(len(ids)) if side == "right" else slice(LENGTH - len(ids), None)
            padded, mask = np.zeros((2, 1, LENGTH), np.int64)
            padded[0, place], mask[0, place] = ids, 1
            (whole,) = engine([padded, mask, np.zeros_like(padded)])
            assert np.abs(rows - whole[0]).max() <= 2e-5
            assert side == "left" or np.abs(rows[place] - own).max() <= 2e-5


def test_nothing_is_normalised_and_no_prompt_is_put_before(tmp_path):
    """What a folder says about normalisation, prompts and pooling is not DeepSparse's business."""
    plain = tiny_model(tmp_path / "plain", pooling=None)
    rich = tiny_model(tmp_path / "rich", pooling="max", prompts={"query": "query ", "document": "passage "})
    assert np.array_equal(answer(plain, TEXTS), answer(rich, TEXTS))
    assert np.abs(np.linalg.norm(answer(rich, TEXTS), axis=1) - 1).min() > 0.1


def test_masks_come_from_ids(tiny):
    """A literal [PAD] or [CLS] in a text is left out too, as in DeepSparse."""
    text = "the [PAD] cat [CLS] sat"
    ids, _ = states(tiny, text)
    assert [np.count_nonzero(ids == token) for token in (PAD, CLS)] == [1, 2]
    for strategy in STRATEGIES[1:]:
        assert np.abs(answer(tiny, text, strategy)[0] - oracle(tiny, text, strategy)).max() <= 2e-5


def test_a_fingerprint_tells_the_strategies_apart(tiny):
    """Vectors of another strategy, or of Embedder's own pooling, never pass for the same."""
    prints = []
    for strategy in STRATEGIES[1:]:
        with create(tiny, strategy, sequence_length=64) as pipeline:
            prints.append(pipeline.embedder.fingerprint)
    with Embedder.load(tiny, normalize=False, threads=1) as e:
        prints.append(e.fingerprint)
    assert len(set(prints)) == 4


def test_long_texts_are_cut_in_silence(tiny):
    """4000 words at 16 tokens are the first 14 of them between CLS and SEP; nothing is said."""
    assert np.array_equal(answer(tiny, "cat " * 4000), answer(tiny, "cat " * 14))
    only_specials = answer(tiny, "cat dog", sequence_length=2)
    assert np.array_equal(only_specials, answer(tiny, ""))


def test_no_answer_depends_on_batch_size_or_neighbours(tiny):
    """Texts alone, together and in another order give the same vectors to 1e-6."""
    together = answer(tiny, TEXTS, batch_size=4)
    alone = np.concatenate([answer(tiny, text, batch_size=None) for text in TEXTS])
    assert np.abs(together - alone).max() <= 1e-6
    assert np.abs(answer(tiny, TEXTS[::-1])[::-1] - together).max() <= 1e-6


# --- tokenizers with fewer special tokens -----------------------------------------------------------------------------


def without(folder: Path, token: str) -> Path:
    """Give the token another name, so that nothing says what it is for."""
    made = json.loads((folder / "tokenizer.json").read_text().replace(token, "[X]"))
    (folder / "tokenizer.json").write_text(json.dumps(made | {"padding": None}))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config[f"{token[1:-1].lower()}_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_tokenizer_without_cls(tmp_path):
    """Nothing but PAD is left out, and cls_token says that there is no such row."""
    folder = without(tiny_model(tmp_path), "[CLS]")
    _, rows = states(folder, TEXTS[0])
    assert np.abs(answer(folder, TEXTS[0])[0] - rows.mean(0)).max() <= 2e-5
    with pytest.raises(ValueError, match=r"has no CLS token.*'reduce_mean'"):
        create(folder, "cls_token")


def test_a_tokenizer_without_pad(tmp_path):
    """Padding is left out by the attention mask; no word is taken for padding."""
    folder = without(tiny_model(tmp_path), "[PAD]")
    found = answer(folder, TEXTS, sequence_length=[12, 16])
    assert np.abs(found - np.stack([states(folder, text)[1].mean(0) for text in TEXTS])).max() <= 2e-5


# --- layers ----------------------------------------------------------------------------------------------------------


def test_a_layer_by_the_name_of_a_node_or_tensor(tiny):
    """A str is any node or tensor of the graph, not only the end of a layer."""
    graph = onnx.load(tiny / "onnx" / "model.onnx").graph
    (norm,) = (n for n in graph.node if "encoder.layer.0.output.LayerNorm.weight" in n.input)
    first = answer(tiny, TEXTS, emb_extraction_layer=0)
    assert np.array_equal(answer(tiny, TEXTS, emb_extraction_layer=norm.name), first)
    assert np.array_equal(answer(tiny, TEXTS, emb_extraction_layer=norm.output[0]), first)
    (inner,) = (n for n in graph.node if "encoder.layer.0.intermediate.dense.weight_T" in n.input)
    assert answer(tiny, TEXTS, emb_extraction_layer=inner.name).shape == (len(TEXTS), 4 * 32)


def test_none_leaves_the_graph_uncut(tmp_path):
    """With layer None the head stays on: the logits of every token, a vocabulary wide."""
    folder = tiny_model(tmp_path, mlm_head=True)
    width = len(bert_weights()["embeddings.word_embeddings.weight"])
    assert answer(folder, TEXTS, emb_extraction_layer=None).shape == (len(TEXTS), width)
    assert answer(folder, TEXTS, "per_token", emb_extraction_layer=None).shape == (len(TEXTS), LENGTH * width)
    assert answer(folder, TEXTS).shape == (len(TEXTS), 32)


@pytest.mark.parametrize("layer", [2, -3, 99])
def test_a_layer_that_is_not_there(tiny, layer):
    """A number beyond the layers is an error in DeepSparse's count; -3 of two layers is not the embedding output."""
    with pytest.raises(ValueError, match=rf"emb_extraction_layer is {layer}; the model has 2 layers.*0 \(the first\) to 1"):
        create(tiny, emb_extraction_layer=layer)


@pytest.mark.parametrize(("layer", "error"), [("bogus", ValueError), ("", ValueError), ("-1", ValueError), (1.0, TypeError)])
def test_a_layer_that_is_no_layer(tiny, layer, error):
    """An unknown name and a float are refused."""
    with pytest.raises(error):
        create(tiny, emb_extraction_layer=layer)


def pooled(folder: Path) -> Path:
    """Put a choice of the first token behind a model: one vector a text comes out."""
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.int64(0), "first"))
    model.graph.node.append(helper.make_node("Gather", ["last_hidden_state", "first"], ["pooled"], axis=1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch", 32]))
    onnx.save(model, path)
    return folder


def test_a_graph_that_pools_itself(tmp_path):
    """per_token gives such a graph's vector as it is; there are no rows to reduce, and the error says so."""
    folder = pooled(tiny_model(tmp_path))
    _, rows = states(folder, "dog")
    assert np.abs(answer(folder, "dog", "per_token", emb_extraction_layer=None)[0] - rows[0]).max() <= 2e-5
    for strategy in STRATEGIES[1:]:
        with pytest.raises(ValueError, match="one vector a text already"):
            create(folder, strategy, emb_extraction_layer=None)


# --- what goes in, what comes out --------------------------------------------------------------------------------------


def test_one_item_a_text(pipeline):
    """A str, a list, several strs, inputs=, a tuple, a generator, an array and bytes all give one item a text."""
    a, b = pipeline(["the cat", "dog"]).embeddings
    assert a != b
    assert pipeline("the cat").embeddings == [a]
    assert pipeline(inputs="the cat").embeddings == [a]
    assert pipeline(b"the cat").embeddings == [a]
    for given in (("the cat", "dog"), (t for t in ("the cat", "dog")), np.array(["the cat", "dog"]), [b"the cat", "dog"]):
        assert pipeline(given).embeddings == [a, b]
    assert pipeline("the cat", "dog").embeddings == [a, b]
    assert pipeline(inputs=["the cat", "dog"]).embeddings == [a, b]
    assert pipeline([]).embeddings == []
    assert pipeline(inputs=[]).embeddings == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_items_are_lists_or_arrays(tiny, strategy):
    """Python floats by default, float32 arrays of one axis with return_numpy=True; the numbers are the same."""
    size = LENGTH * 32 if strategy == "per_token" else 32
    with create(tiny, strategy, return_numpy=False) as plain, create(tiny, strategy) as arrays:
        (item,), (array,) = plain("dog").embeddings, arrays("dog").embeddings
    assert type(item) is list
    assert {type(value) for value in item} == {float}
    assert (array.dtype, array.shape) == (np.float32, (size,))
    assert np.array_equal(np.array(item, np.float32), array)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "inputs is a NoneType"),
        (5, "inputs is a int"),
        ({"inputs": "a"}, "inputs is a dict"),
        ([1, 2], r"texts\[0\] is a int, not a str"),
        (["a", None], r"texts\[1\] is a NoneType"),
        ([["a", "b"]], r"texts\[0\] is a list"),
    ],
)
def test_what_is_no_text_is_refused(pipeline, given, said):
    """Anything but texts is a ValueError that names what was given."""
    with pytest.raises(ValueError, match=said):
        pipeline(given)


def test_the_row_that_is_no_text_is_named(pipeline):
    """The error of a list carries the rows, so that a caller can go on without them."""
    with pytest.raises(TextError) as caught:
        pipeline(["a", None, "b", 3])
    assert set(caught.value.rows) == {1, 3}


def test_texts_are_given_one_way(pipeline):
    """None at all, both ways, or another keyword: an error each."""
    with pytest.raises(ValueError, match="Texts were given nowhere"):
        pipeline()
    with pytest.raises(ValueError, match=r"both by position and as inputs="):
        pipeline("a", inputs="b")
    with pytest.raises(TypeError, match="sequences"):
        pipeline(sequences="a")


def test_calls_from_several_threads(pipeline):
    """Four threads at once get what one gets alone."""
    expected = [pipeline(text).embeddings for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: pipeline(text).embeddings, TEXTS * 5)) == expected * 5


# --- lengths and buckets ------------------------------------------------------------------------------------------------


class Runs:
    """Which shapes every run had, and how many sessions were opened."""

    def __init__(self, monkeypatch):
        self.shapes, self.sessions = [], 0
        run, opened = engine.Engine.run, engine._open

        def recorded(engine, inputs, **options):
            self.shapes.append(inputs["input_ids"].shape)
            return run(engine, inputs, **options)

        def counted(*arguments):
            self.sessions += 1
            return opened(*arguments)

        monkeypatch.setattr(engine.Engine, "run", recorded)
        monkeypatch.setattr(engine, "_open", counted)


def test_each_text_runs_in_the_smallest_bucket_that_holds_it(tiny, monkeypatch):
    """Reduced vectors: a long neighbour costs a short text nothing; one session serves all buckets; numbers do not change."""
    runs = Runs(monkeypatch)
    with create(tiny, sequence_length=[32, 8, 16]) as pipeline:
        del runs.shapes[:]
        found = np.stack(pipeline(TEXTS).embeddings)
    lengths = [len(reference.read_ids(tiny, text, 32)) for text in TEXTS]
    assert sorted(length for rows, length in runs.shapes for _ in range(rows)) == sorted(
        min(bucket for bucket in (8, 16, 32) if bucket >= length) for length in lengths
    )
    assert runs.sessions == 1
    assert np.abs(found - np.stack([oracle(tiny, text, "reduce_mean", 32) for text in TEXTS])).max() <= 2e-5


def test_per_token_has_the_length_of_the_longest_texts_bucket(tiny):
    """All texts of a call share the bucket of the longest; alone, the same text is shorter."""
    with create(tiny, "per_token", sequence_length=[8, 16]) as pipeline:
        assert [len(item) for item in pipeline("dog").embeddings] == [8 * 32]
        assert [len(item) for item in pipeline(["dog", TEXTS[3]]).embeddings] == [16 * 32] * 2
        alone, together = pipeline("dog").embeddings[0], pipeline(["dog", TEXTS[3]]).embeddings[0]
        own = len(reference.read_ids(tiny, "dog", 8)) * 32
        assert np.abs(alone[:own] - together[:own]).max() <= 1e-5
        assert pipeline.sequence_length == 8


def test_without_buckets_no_reduced_vector_is_padded(tiny, monkeypatch):
    """One sequence_length is the limit of a text, not what each text costs."""
    runs = Runs(monkeypatch)
    with create(tiny, sequence_length=64) as pipeline:
        del runs.shapes[:]  # a first load tries whether padding matters
        pipeline(["dog", "the cat"])
    assert max(length for _, length in runs.shapes) <= 5


@pytest.mark.parametrize(
    ("length", "error"),
    [(None, TypeError), ("16", TypeError), (16.0, TypeError), ((8, 16), TypeError), (True, TypeError), ([8, "16"], TypeError),
     (0, ValueError), (-1, ValueError), (1, ValueError), ([], ValueError), ([8, 0], ValueError), (129, ValueError),
     ([16, 1024], ValueError)],
)  # fmt: skip
def test_a_length_that_cannot_be(tiny, length, error):
    """A length of another type, without room for the specials, or beyond the model's 128 positions is refused."""
    with pytest.raises(error):
        create(tiny, sequence_length=length)


# --- files that DeepSparse refused, rewrote or died of -----------------------------------------------------------------


def change(folder: Path, edit) -> Path:
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    return folder


def test_the_models_file_is_never_touched(tmp_path):
    """DeepSparse rewrote model.onnx at every start; here bytes and times stay, and no file is added."""
    folder = tiny_model(tmp_path)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    answer(folder, TEXTS, sequence_length=[8, 16])
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()} == before


def freeze(rows, length):
    def edit(model):
        for node in (*model.graph.input, *model.graph.output):
            for dim, size in zip(node.type.tensor_type.shape.dim, (rows, length), strict=False):
                if size is not None:
                    dim.dim_value = size

    return edit


@pytest.mark.parametrize("shape", [(1, 8), (1, 128), (4, 16), (1, None), (None, 24)])
@pytest.mark.parametrize("strategy", ["per_token", "reduce_mean"])
def test_a_file_that_deepsparse_has_rewritten(tiny, tmp_path, monkeypatch, shape, strategy):
    """Only its inputs' shapes are frozen: it takes any length and several rows again, with the same numbers."""
    frozen = change(shutil.copytree(tiny, tmp_path / "frozen"), freeze(*shape))
    expected = answer(tiny, TEXTS, strategy)
    runs = Runs(monkeypatch)
    assert np.array_equal(answer(frozen, TEXTS, strategy), expected)
    assert max(rows for rows, _ in runs.shapes) > 1


def build_in(rows, length):
    """Freeze the sizes into the nodes too, as an export without dynamic axes does."""

    def edit(model):
        freeze(rows, length)(model)
        for tensor in model.graph.initializer:
            if tensor.name in ("split", "merge"):
                sizes = numpy_helper.to_array(tensor)  # 0 takes over the size that there is
                tensor.CopyFrom(numpy_helper.from_array(np.array([rows or 0, length or 0, *sizes[2:]]), tensor.name))

    return edit


@pytest.mark.parametrize("shape", [(1, 16), (4, 16), (100, 16), (4, None), (None, 16)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_export_with_static_shapes(tiny, tmp_path, monkeypatch, strategy, shape):
    """Batches are formed to exactly the graph's rows and length, whatever length or buckets were asked for."""
    static = change(shutil.copytree(tiny, tmp_path / "static"), build_in(*shape))
    for length in (16, 8, [8, 16]):
        expected = answer(tiny, TEXTS, strategy, sequence_length=length)
        with monkeypatch.context() as patched:
            runs = Runs(patched)
            assert np.abs(answer(static, TEXTS, strategy, sequence_length=length) - expected).max() <= 2e-5
        assert {(rows if shape[0] else None, tokens if shape[1] else None) for rows, tokens in runs.shapes} == {shape}


def test_more_than_a_static_export_holds(tiny, tmp_path):
    """A length above the graph's own is an error that names both; Embedder takes the graph's where nobody asked."""
    static = change(shutil.copytree(tiny, tmp_path / "static"), build_in(1, 16))
    with pytest.raises(
        ValueError, match=r"sequence_length=32 exceeds the fixed length of 16 tokens that this graph was exported with"
    ):
        create(static, sequence_length=32)
    with Embedder.load(static, truncate="right", threads=1) as e:
        assert e.recipe.max_length == 16
        assert e.recipe.origin["max_length"] == "the graph's frozen shape"
        assert e.embed(TEXTS).shape == (len(TEXTS), 32)


def int32_inputs(model):
    for i, node in enumerate(model.graph.input):
        name, node.type.tensor_type.elem_type = node.name, TensorProto.INT32
        for reader in model.graph.node:
            reader.input[:] = [f"{name}/wide" if read == name else read for read in reader.input]
        model.graph.node.insert(i, helper.make_node("Cast", [name], [f"{name}/wide"], to=TensorProto.INT64))


def ir_10(model):
    model.ir_version = 10


def roberta_names(model):
    for tensor in model.graph.initializer:
        for node in model.graph.node:
            node.input[:] = [f"roberta.{read}" if read == tensor.name else read for read in node.input]
        tensor.name = f"roberta.{tensor.name}"


def no_node_names(model):
    for node in model.graph.node:
        node.name = ""


@pytest.mark.parametrize("edit", [int32_inputs, ir_10, roberta_names, no_node_names])
def test_what_deepsparse_could_not_read(tiny, tmp_path, edit):
    """int32 inputs, IR version 10, names of another family, no names at all: the same vectors."""
    folder = change(shutil.copytree(tiny, tmp_path / "model"), edit)
    for strategy in STRATEGIES:
        assert np.abs(answer(folder, TEXTS, strategy) - answer(tiny, TEXTS, strategy)).max() <= 1e-6


@pytest.mark.parametrize(
    ("file", "least"), [("model_fp16.onnx", 0.99999), ("model_int8.onnx", 0.9999), ("model_qdq.onnx", 0.999)]
)
def test_precisions_that_deepsparse_refused_or_died_of(file, least):
    """fp16, dynamic int8 and QDQ point where fp32 does."""
    folder = data_file("zoo/bert-mlm")
    for strategy in STRATEGIES:
        found, exact = answer(folder / file, TEXTS, strategy), answer(folder / "model.onnx", TEXTS, strategy)
        cosines = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
        assert cosines.min() >= least


def test_where_a_model_may_lie(tiny, tmp_path):
    """A folder, its file, model.onnx beside its tokenizer, a Path: all the same model."""
    flat = tmp_path / "flat"
    shutil.copytree(tiny, flat)
    shutil.move(flat / "onnx" / "model.onnx", flat / "other.onnx")
    expected = answer(tiny, "dog")
    for path in (str(tiny), tiny, tiny / "onnx" / "model.onnx", flat, str(flat / "other.onnx")):
        assert np.array_equal(answer(path, "dog"), expected)
    with pytest.raises(FileNotFoundError, match="No model at"):
        create(str(tmp_path / "missing"))


# --- SparseZoo ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """An empty cache of the sparsezoo package."""
    monkeypatch.setenv("SPARSEZOO_MODELS_PATH", str(tmp_path / "zoo"))
    return tmp_path / "zoo"


@pytest.mark.parametrize("layout", ["deployment", "beside", "nested"])
def test_a_stub_whose_files_are_still_here(tiny, zoo, layout):
    """zoo: stubs are looked up where the sparsezoo package left them, in each of its layouts."""
    model = zoo / "neuralmagic" / "bert-base-wikipedia_bookcorpus-pruned90"
    model.mkdir(parents=True)
    shutil.copytree(tiny, model / "deployment")
    shutil.rmtree(model / "deployment" / "onnx")
    where = {"deployment": "deployment/model.onnx", "beside": "model.onnx", "nested": "model.onnx/model.onnx"}[layout]
    (model / where).parent.mkdir(exist_ok=True)
    shutil.copy(tiny / "onnx" / "model.onnx", model / where)
    for stub in (model.name, f"neuralmagic/{model.name}", f"{model.name}?recipe=original"):
        assert np.array_equal(answer(f"zoo:{stub}", "dog"), answer(tiny, "dog"))


def test_a_stub_whose_files_are_gone(tiny, zoo):
    """The error says that SparseZoo is closed, what the cache does hold, and how to name a model."""
    with pytest.raises(FileNotFoundError, match=r"closed in June 2025.*it has no models.*Hub id such as"):
        create("zoo:bert-base-none")
    shutil.copytree(tiny, zoo / "0a1b-2c3d" / "deployment")
    with pytest.raises(FileNotFoundError, match=r"one that it has: 0a1b-2c3d"):
        create("zoo:nlp/masked_language_modeling/bert-base/pytorch/huggingface/wikipedia_bookcorpus/base-none")
    with pytest.raises(FileNotFoundError, match="SparseZoo closed"):
        create("zoo:../0a1b-2c3d")


def test_without_a_model_the_default_is_looked_for(zoo):
    """DeepSparse had a default model; it is named, and looked for in the cache."""
    with pytest.raises(FileNotFoundError, match="zoo:bert-large-wikipedia_bookcorpus-pruned90"):
        create(None)


# --- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    ["transformers_embedding_extraction", "transformers-embedding-extraction", "Transformers_Embedding_Extraction",
     "transformer_embedding_extraction"],
)  # fmt: skip
def test_the_tasks_name(tiny, task):
    """Any case, - or _, and the page's own misspelling."""
    with Pipeline.create(task=task, model_path=tiny, num_cores=1) as pipeline:
        assert pipeline.task == "transformers_embedding_extraction"


@pytest.mark.parametrize("task", ["embedding_extraction", "embedding", "text_classification", "", None])
def test_another_task(tiny, task):
    """Another task is refused with the one there is."""
    with pytest.raises(ValueError, match="penult has one, 'transformers_embedding_extraction'"):
        Pipeline.create(task=task, model_path=tiny)


@pytest.mark.parametrize("strategy", ["mean", "cls", "REDUCE_MEAN", None, 1, ""])
def test_another_strategy(tmp_path, strategy):
    """A strategy is one of the four words; it is refused before the model is looked for."""
    with pytest.raises(ValueError, match="per_token, reduce_mean, reduce_max, cls_token"):
        create(tmp_path / "missing", strategy)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"engine_type": "torchscript"}, ValueError), ({"engine_type": "bogus"}, ValueError), ({"batch_size": "2"}, TypeError),
     ({"batch_size": -1}, ValueError), ({"num_cores": -1}, ValueError), ({"num_cores": "2"}, TypeError),
     ({"num_streams": -1}, ValueError), ({"scheduler": "bogus"}, ValueError), ({"scheduler": 3}, ValueError),
     ({"executor": "2"}, ValueError), ({"context": Context(num_cores=2)}, ValueError), ({"foo": 1}, TypeError),
     ({"input_shapes": "[1,16]", "sequence_length": [8, 16]}, ValueError)],
)  # fmt: skip
def test_values_that_deepsparse_refused(tiny, options, error):
    """Each is refused here too."""
    with pytest.raises(error):
        create(tiny, **options)


IGNORED = {
    "batch_size": 4, "num_streams": 2, "scheduler": "async", "model_size": 256, "input_shapes": "[1,16]", "executor": 2,
    "benchmark": True, "alias": "x", "logger": object(), "config": "c", "tokenizer": "t", "trust_remote_code": True,
}  # fmt: skip


@pytest.mark.parametrize("name", IGNORED)
def test_what_has_no_meaning_is_said_once(tiny, caplog, name):
    """An argument without a meaning is accepted and named in one line of the log; the vectors are the same."""
    with caplog.at_level(logging.WARNING, logger="penult"), create(tiny, **{name: IGNORED[name]}) as pipeline:
        pipeline("dog")
        found = pipeline("dog").embeddings[0]
    (record,) = caplog.records
    assert f"{name}=" in record.getMessage()
    assert np.array_equal(found, answer(tiny, "dog")[0])


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": None}, {"engine_type": "onnxruntime"}, {"num_cores": 0}, {"context": Context(num_cores=1)}]
)
def test_what_has_a_meaning_is_not_said(tiny, caplog, options):
    """Defaults, threads and the other engine's name leave the log empty."""
    with caplog.at_level(logging.WARNING, logger="penult"), create(tiny, **options) as pipeline:
        pipeline("dog")
    assert not caplog.records


@pytest.mark.parametrize("scheduler", [None, "sync", "single_stream", "Multi", "elastic", "e", *Scheduler])
def test_schedulers_are_names_or_objects(tiny, scheduler):
    """DeepSparse's names, and its class, are accepted."""
    with create(tiny, scheduler=scheduler) as pipeline:
        assert len(pipeline("dog").embeddings) == 1


def test_threads(tiny):
    """num_cores, or the context's, is the number of threads."""
    for options in ({"num_cores": 2}, {"num_cores": None, "context": Context(num_cores=2)}):
        with create(tiny, **options) as pipeline:
            assert pipeline.engine.num_cores == 2


def test_attributes(tiny):
    """What is cheap can be read; what is gone says what to do instead; what never was is a plain AttributeError."""
    with create(tiny, batch_size=1, emb_extraction_layer=0) as pipeline:
        assert (pipeline.model_path, pipeline.sequence_length, pipeline.batch_size) == (str(tiny), LENGTH, 1)
        assert (pipeline.extraction_strategy, pipeline.emb_extraction_layer) == ("reduce_mean", 0)
        assert pipeline.engine_type == "deepsparse"
        assert "sentence_embedding" in pipeline.engine.output_names
        assert "reduce_mean" in repr(pipeline)
        with pytest.raises(AttributeError, match="AutoTokenizer"):
            _ = pipeline.tokenizer
        with pytest.raises(AttributeError, match="penult bench"):
            _ = pipeline.timer_manager
        assert not hasattr(pipeline, "nothing")
    with pytest.raises(RuntimeError, match="closed"):
        pipeline("dog")


def test_more_layers_than_two(tmp_path):
    """-4 of four layers is the first."""
    folder = tiny_model(tmp_path, size=Size(layers=4))
    assert np.array_equal(answer(folder, TEXTS, emb_extraction_layer=-4), answer(folder, TEXTS, emb_extraction_layer=0))
    assert np.array_equal(answer(folder, TEXTS, emb_extraction_layer=3), answer(folder, TEXTS))
    assert np.array_equal(answer(folder, TEXTS, emb_extraction_layer=True), answer(folder, TEXTS, emb_extraction_layer=1))
