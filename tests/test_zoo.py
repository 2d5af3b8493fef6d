"""Every architecture and export of the model zoo, end to end: tokenizer, cut, inputs, session, padding."""

import numpy as np
import pytest
from conftest import data_folder

from penult import Embedder

ZOO = data_folder("zoo")
FILES = sorted(path.relative_to(ZOO).as_posix() for path in ZOO.glob("**/*.onnx"))


@pytest.mark.parametrize("file", FILES)
def test_token_vectors_equal_torchs(file, tmp_path, monkeypatch):
    """embed_tokens gives torch's last hidden state of each text: to 1e-4 in fp32, to 2e-2 of the largest value in fp16."""
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path))
    folder = ZOO / file.partition("/")[0]
    with np.load(folder / "reference.npz") as stored:
        expected = [
            states[mask == 1] for states, mask in zip(stored["last_hidden_state"], stored["attention_mask"], strict=True)
        ]
        texts, ids = (
            stored["texts"].tolist(),
            [row[mask == 1] for row, mask in zip(stored["input_ids"], stored["attention_mask"], strict=True)],
        )
    with Embedder.load(ZOO / file, pooling="mean", normalize=False, threads=1, max_length=64) as e:
        assert e.count_tokens(texts).tolist() == [len(row) for row in ids]
        actual = e.embed_tokens(texts)
        assert [states.shape for states in actual] == [states.shape for states in expected]
        worst = max(np.abs(a - b).max() for a, b in zip(actual, expected, strict=True))
        if "int8" in file or "qdq" in file:
            cosine = [np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(actual, expected, strict=True)]
            assert min(cosine) > 0.9  # the arithmetic differs, the tensor does not: exactness is tests/graph's business
        else:
            assert worst <= (2e-2 * max(np.abs(b).max() for b in expected) if "fp16" in file else 1e-4)
        assert np.abs(e.embed(texts) - [states.mean(0) for states in actual]).max() <= 1e-4
