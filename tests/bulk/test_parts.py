"""Parts of a shard: parts on disk are not embedded again, and no vector depends on where a part ended."""

import dataclasses
import json

import pytest
from bulk.jobs import corpus, rejected

from penult.bulk.job import parts, shard
from penult.bulk.job.parts import Pace, Tick, embed_in_parts, remove_parts

TEXTS = ["a b c", "d", "a b c", "", None, "e f g h", "d", "half \ud800", "a b"]


class Counting:
    """An embedder that counts the texts it tokenizes, and optionally fails at the n-th call."""

    def __init__(self, embedder, fails_at=None):
        self._embedder, self._fails_at, self.texts, self.calls = embedder, fails_at, [], 0
        self.recipe, self.dimension, self.run = embedder.recipe, embedder.dimension, embedder.run

    def tokenize(self, texts, role):
        if self._fails_at is not None and self.calls >= self._fails_at:
            raise KeyboardInterrupt
        tokenized = self._embedder.tokenize(texts, role)  # with bad rows it raises, and is asked for the good ones
        self.calls += 1
        self.texts += texts
        return tokenized


def small(chars):
    pace = Pace()
    pace.chars = chars
    pace.learn = lambda chars, seconds: None
    return pace


def whole(embedder, texts=TEXTS, *, stem, chars=1.0, ticked=None):
    return embed_in_parts(embedder, texts, "document", stem, 7, pace=small(chars), ticked=ticked)


@pytest.mark.parametrize("chars", [1, 5, 9, 1e9])
def test_parts_of_any_size_are_equal(embedder, tmp_path, chars):
    """Vectors, reasons and counts equal those of one call; the last part is never written to disk."""
    expected = whole(embedder, stem=tmp_path / "all", chars=1e9)
    outcome = whole(embedder, stem=tmp_path / "x", chars=chars)
    assert outcome.vectors.tobytes() == expected.vectors.tobytes()
    assert (outcome.good, outcome.bad, outcome.tokens, outcome.cut) == (
        expected.good, expected.bad, expected.tokens, expected.cut,
    )  # fmt: skip
    assert (outcome.good, [*outcome.bad]) == ([0, 1, 2, 3, 5, 6, 8], [4, 7])
    assert outcome.vectors.shape == (7, embedder.dimension)
    assert bool([*tmp_path.glob("x.part.*")]) == (chars < 1e9)
    remove_parts(tmp_path / "x")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("calls", [1, 3, 5])
def test_parts_on_disk_are_not_embedded_again(embedder, tmp_path, calls):
    """Wherever the first run stopped, a second one embeds the rest, and the result is that of one run."""
    first, second = Counting(embedder, calls), Counting(embedder)
    with pytest.raises(KeyboardInterrupt):
        whole(first, stem=tmp_path / "x")
    outcome = whole(second, stem=tmp_path / "x", chars=3)
    assert not {*first.texts} & {*second.texts}
    assert {*first.texts} | {*second.texts} == {text for text in TEXTS if text not in (None, "half \ud800")}
    assert outcome.vectors.tobytes() == whole(embedder, stem=tmp_path / "y").vectors.tobytes()


def test_equal_texts_stay_together(embedder, tmp_path):
    """The model reads equal texts of a shard once."""
    counting = Counting(embedder)
    whole(counting, ["a", "b"] * 50, stem=tmp_path / "x")
    assert counting.calls == 2
    assert counting.texts == ["a"] * 50 + ["b"] * 50


def test_parts_of_other_texts_are_ignored(embedder, tmp_path):
    """A worker of a job with other shards may still be writing: a part counts only for its own texts."""
    whole(embedder, ["a", "b", "c"], stem=tmp_path / "x")
    outcome = whole(embedder, ["d", "b", "c"], stem=tmp_path / "x")
    assert outcome.vectors.tobytes() == embedder.embed(["d", "b", "c"]).tobytes()
    path = next(tmp_path.glob("x.part.0"))
    path.write_bytes(path.read_bytes()[:-4])
    assert whole(embedder, ["d", "b", "c"], stem=tmp_path / "x").vectors.tobytes() == outcome.vectors.tobytes()


def test_a_model_whose_vectors_depend_on_the_batch(embedder, tmp_path):
    """Its shards have one part, so that the clock does not affect vectors."""
    counting = Counting(embedder)
    counting.recipe = dataclasses.replace(embedder.recipe, batch_invariant=False)
    whole(counting, ["a", "b", "c"], stem=tmp_path / "x")
    assert (counting.calls, [*tmp_path.iterdir()]) == (1, [])


def test_ticks(embedder, tmp_path, monkeypatch):
    """They count rows done, on disk and from an earlier run; a batch emits a tick if the last one is old enough."""
    monkeypatch.setattr(parts, "_TICK_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        whole(Counting(embedder, 1), ["a", "b", None, "c"], stem=tmp_path / "x")
    ticks = []
    whole(embedder, ["a", "b", None, "c"], stem=tmp_path / "x", ticked=ticks.append)
    tokens = [int(count) for count in embedder.count_tokens(["a", "b"])]
    assert ticks == [
        Tick(7, rows=1, tokens=tokens[0], kept=1, earlier=1),
        Tick(7, rows=2, tokens=tokens[0], kept=1, earlier=1),
        Tick(7, rows=2, tokens=sum(tokens), kept=2, earlier=1),
        Tick(7, rows=3, rejected=1, tokens=sum(tokens), kept=3, earlier=1),
        Tick(7, rows=4, rejected=1, tokens=sum(tokens), kept=3, earlier=1),
    ]


def test_the_pace():
    """It follows the duration of parts, and grows at most fourfold; a text counts only as far as the model reads it."""
    pace = Pace()
    pace.learn(4000, parts.PART_SECONDS / 100)
    assert pace.chars == 16_000
    pace.learn(16_000, parts.PART_SECONDS / 2)
    assert pace.chars == 32_000
    pace.learn(32_000, parts.PART_SECONDS * 8)
    assert pace.chars == 4000
    pace.learn(0, 0)
    assert pace.chars == 1
    texts = ["x" * 1000, "x" * 1000, "y", "z"]
    assert parts._end(texts, range(4), 0, 1.0, 10) == (2, 11)
    assert parts._end(texts, range(4), 0, 12.0, 10) == (3, 13)
    assert parts._end(texts, range(4), 2, 99.0, 10) == (4, 4)


def test_a_job_that_stops_in_a_shard(job, embedder, tmp_path, monkeypatch):
    """The message counts the rows on disk, the next run continues after them, and the output is that of an undisturbed run."""
    source = corpus(tmp_path / "in.jsonl", 64)
    lines = source.read_text().splitlines()
    source.write_text("\n".join([*lines[:40], json.dumps({"id": "bad", "text": None, "n": 0, "tags": []}), *lines[40:]]))
    job(source, out="undisturbed.parquet")
    monkeypatch.setattr(shard, "Pace", lambda: small(1))
    calls, embed_texts = [], parts.embed_texts

    def failing(embedder, texts, *rest):
        if len(calls) == 30:
            raise OSError("No space left on device")
        calls.append(len(texts))
        return embed_texts(embedder, texts, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(parts, "embed_texts", failing)
        with pytest.raises(Exception, match=r"No space left on device. \d+ of 65 rows are done"):
            job(source)
    kept = sum(calls)
    calls.clear()
    monkeypatch.setattr(
        parts, "embed_texts", lambda embedder, texts, *rest: (calls.append(len(texts)), embed_texts(embedder, texts, *rest))[1]
    )
    job(source)
    assert kept + sum(calls) == 65
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()
    assert [row["record"]["id"] for row in rejected(tmp_path / "out.parquet")] == ["bad"]
