"""Folders without tokenizer.json: transformers reads their older vocabulary files, and runs no code of theirs."""

import json
import re

import numpy as np
import pytest
from models import VOCABULARY, tiny_model, write_json

from penult import Embedder
from penult.core.tokenizer import Tokenizer


def older(folder, **stated):
    """Write the tiny model without tokenizer.json: a vocabulary, and the name of a class."""
    tiny_model(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    path = folder / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text()) | {"tokenizer_class": "BertTokenizer"} | stated)
    return folder


def test_the_same_vectors(tmp_path, embedder):
    """A vocabulary gives the ids that tokenizer.json gives, and so the same vectors."""
    texts = ["the cat sat", "A dog on the mat", "", "unknown words"]
    with Embedder.load(older(tmp_path)) as e:
        assert np.array_equal(e.embed(texts), embedder.embed(texts))


def test_code_of_a_model_is_not_run(tmp_path, monkeypatch):
    """A folder with a custom tokenizer class is rejected; no line of its file is run, and no prompt is shown."""
    folder, proof = tmp_path / "model", tmp_path / "it ran"
    older(folder, tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    (folder / "own.py").write_text(f"open({str(proof)!r}, 'w').close()\nclass Own: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match=r"model has no tokenizer\.json, .* without running the model's own code"):
        Embedder.load(folder)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.txt", b"\xff\xfe\x00"),
        ("tokenizer_config.json", b'{"tokenizer_class": "NoSuchTokenizer"}'),
        ("tokenizer_config.json", b'{"tokenizer_class": 7}'),
        ("tokenizer_config.json", b'{"tokenizer_class": "PreTrainedModel"}'),
    ],
)
def test_older_files_that_cannot_be_read(tmp_path, name, content):
    """Whatever error transformers raises, the message names the folder and says what to do."""
    (older(tmp_path) / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"has no tokenizer\.json.*\. Download or create tokenizer\.json\.$") as caught:
        Embedder.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def byte_tokenizer(tmp_path):
    """A folder whose tokenizer is Python only: over bytes, each with the id of its value + 3."""
    return older(tmp_path, tokenizer_class="ByT5Tokenizer", pad_token="<pad>", model_max_length=512)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_tokenizer_that_has_no_fast_version(byte_tokenizer, side):
    """A tokenizer without a fast version gives its ids, truncated and counted as others."""
    result = Tokenizer(byte_tokenizer, max_length=8, side=side)
    encoded = result.tokenize(["cät", "", "a long text"], "q ")
    cut = [byte + 3 for byte in b"q a long text"]
    kept = cut[:7] if side == "right" else cut[-7:]
    assert encoded.ids == [[*(byte + 3 for byte in "q cät".encode()), 1], [116, 35, 1], [*kept, 1]]
    assert (encoded.dropped.tolist(), encoded.prompt_tokens.tolist()) == ([0, 0, 6], [2, 2, 2])
    assert encoded.types == [[0] * len(ids) for ids in encoded.ids]
    assert result.tokenize(["a long text"], "q ", limit=5) == Tokenizer(byte_tokenizer, max_length=5, side=side).tokenize(
        ["a long text"], "q "
    )
    assert (result.special_tokens, result.pad_id) == (1, 0)


def test_a_tokenizer_in_python_without_special_tokens(byte_tokenizer):
    """Its special tokens can be omitted, and its texts lowercased."""
    result = Tokenizer(byte_tokenizer, max_length=3, add_special_tokens=False)
    assert result.tokenize(["abcd"]).ids == [[100, 101, 102]]


def test_a_vocabulary_of_words_split_in_python(tmp_path):
    """PhoBERT's Python tokenizer: CLS and SEP around subwords, and the unknown token."""
    folder = older(tmp_path)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PhobertTokenizer"})
    (folder / "vocab.txt").write_text("the 9\ncat 8\nc@@ 1\nat 1\n")
    (folder / "bpe.codes").write_text("a t</w> 9\nt h 8\nth e</w> 8\n")
    result = Tokenizer(folder, max_length=6)
    encoded = result.tokenize(["the cat", "cat dog", "the the the the the"])
    assert encoded.ids == [[0, 4, 6, 7, 2], [0, 6, 7, 3, 3, 2], [0, 4, 4, 4, 4, 2]]
    assert encoded.dropped.tolist() == [0, 1, 1]
    assert (result.token_id("<s>"), result.cls_token_id, result.token_id("no such")) == (0, None, None)


@pytest.mark.parametrize(
    ("name", "content", "package", "install"),
    [
        (
            "sentencepiece.bpe.model",
            b"\n\x0e\n\x05<unk>\x15",
            "sentencepiece",
            r"the extra penult\[sentencepiece\] \(pip install .*\)",
        ),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "tiktoken", "it with `pip install tiktoken`"),
    ],
)
def test_a_vocabulary_whose_package_is_missing(tmp_path, monkeypatch, name, content, package, install):
    """If another package is needed to read a vocabulary, the error names the file, the package and how to install it."""
    folder = older(tmp_path, tokenizer_class="XLMRobertaTokenizer")
    (folder / "vocab.txt").unlink()
    (folder / name).write_bytes(content)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(ValueError, match=rf"{name} needs the package {package}, which is not installed") as caught:
        Tokenizer(folder, max_length=8)
    assert re.search(rf"Install {install}\.$", str(caught.value))


def test_a_pointer_to_a_vocabulary(tmp_path):
    """For a vocabulary that is a Git LFS pointer, the error says so."""
    folder = older(tmp_path)
    (folder / "vocab.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ValueError, match=r"vocab\.txt is a Git LFS pointer, not the tokenizer\. Run `git lfs pull`"):
        Tokenizer(folder, max_length=8)


@pytest.mark.parametrize("stated", [{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}, None])
def test_a_sentencepiece_model(tmp_path, stated):
    """A SentencePiece model alone, with or without tokenizer_config.json, gives its ids and EOS."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs the extra penult[sentencepiece]")
    (tmp_path / "texts").write_text("the cat sat on the mat\na dog and a cat in the river\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts"), model_prefix=str(tmp_path / "spiece"), vocab_size=40, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    write_json(tmp_path / "config.json", {"model_type": "t5", "vocab_size": 200})
    if stated is not None:
        write_json(tmp_path / "tokenizer_config.json", stated)
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    texts = ["the cat sat", "", "a dog on the river"]
    assert Tokenizer(tmp_path, max_length=64).tokenize(texts).ids == [[*own.encode(text), 1] for text in texts]


def test_settings_and_lower_case(tmp_path):
    """Settings reach transformers, and texts are lowercased before its tokenizer."""
    folder = older(tmp_path)
    assert Tokenizer(folder, max_length=8).tokenize(["The"]).ids == [[2, VOCABULARY.index("the"), 3]]
    cased = Tokenizer(folder, max_length=8, settings={"do_lower_case": False, "use_fast": True})
    assert cased.tokenize(["The"]).ids == [[2, 1, 3]]
    lowered = Tokenizer(folder, max_length=8, settings={"do_lower_case": False}, lowercase=True)
    assert lowered.tokenize(["The"]).ids == [[2, VOCABULARY.index("the"), 3]]


def test_nothing_to_read(tmp_path):
    """A folder without any tokenizer is an error that says so."""
    (older(tmp_path) / "vocab.txt").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        Embedder.load(tmp_path)


@pytest.mark.parametrize("vocabulary", ["", "[PAD]\n[CLS]\n[SEP]\ncat\n"])
def test_a_vocabulary_without_an_unknown_token(tmp_path, vocabulary):
    """A part of a text without a token is an error of the file, at the latest at the first text that has one."""
    (older(tmp_path) / "vocab.txt").write_text(vocabulary)
    with pytest.raises(ValueError, match=r"cannot encode every text: .*\[UNK\]") as caught, Embedder.load(tmp_path) as e:
        e.embed(["dog"])
    assert str(tmp_path) in str(caught.value)
