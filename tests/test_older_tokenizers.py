"""Folders without tokenizer.json: their older vocabulary files are read by transformers, and no code of theirs is run."""

import json

import numpy as np
import pytest
from models import VOCABULARY, tiny_model, write_json

from penult import Embedder


def older(folder, **stated):
    """Write the tiny model as it lay before there was tokenizer.json: a vocabulary, and the name of a class."""
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
    """A folder whose tokenizer is a class of its own is refused; not a line of that file is run, and nobody is asked to agree."""
    folder, proof = tmp_path / "model", tmp_path / "it ran"
    older(folder, tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    (folder / "own.py").write_text(f"open({str(proof)!r}, 'w').close()\nclass Own: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match=r"model holds no tokenizer\.json, .* without running code of the model's own"):
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
    """Whatever class of error transformers has for it: one sentence that names the folder and says what to do."""
    (older(tmp_path) / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json.*; fetch or make a tokenizer\.json\.$") as caught:
        Embedder.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_has_no_fast_version(tmp_path):
    """One that is Python alone, over bytes here, is refused with what to do once."""
    older(tmp_path, tokenizer_class="ByT5Tokenizer")
    with pytest.raises(
        ValueError, match=r"has a tokenizer without a fast version; convert it to tokenizer\.json once\.$"
    ) as caught:
        Embedder.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_nothing_to_read(tmp_path):
    """No tokenizer of any age is said."""
    (older(tmp_path) / "vocab.txt").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        Embedder.load(tmp_path)


@pytest.mark.parametrize("vocabulary", ["", "[PAD]\n[CLS]\n[SEP]\ncat\n"])
def test_a_vocabulary_without_a_token_for_the_unknown(tmp_path, vocabulary):
    """What no token stands for is an error of the file, at the first text that needs it at the latest."""
    (older(tmp_path) / "vocab.txt").write_text(vocabulary)
    with pytest.raises(ValueError, match=r"cannot encode every text: .*\[UNK\]") as caught, Embedder.load(tmp_path) as e:
        e.embed(["dog"])
    assert str(tmp_path) in str(caught.value)
