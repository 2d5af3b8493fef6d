"""The queue before an engine: merging, sharing, bounds, and who hears of a failure."""

import asyncio
import threading
import time

import numpy as np
import pytest

from penult.core.tokenized import Tokenized
from penult.server.request_queue import QueueFull, RequestQueue


def read(tokenized: Tokenized) -> list[str]:
    """Return the texts of which each letter is a token."""
    return [bytes(ids).decode() for ids in tokenized.ids]


class Engine:
    """An engine whose vector of a text is its length; it notes its calls, and can be held."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()

    def run(self, tokenized: Tokenized) -> np.ndarray:
        texts = read(tokenized)
        self.calls.append(texts)
        self.entered.set()
        assert self.free.wait(10)
        if "bad" in texts:
            raise ValueError("bad text")
        return np.array([[len(text), 1] for text in texts], np.float32)


class Watcher:
    def __init__(self) -> None:
        self.in_queue = 0
        self.calls: list[tuple[int, int]] = []

    def waiting(self, change: int) -> None:
        self.in_queue += change

    def waited(self, seconds: float) -> None:
        assert seconds >= 0

    def ran(self, texts: int, tokens: int, seconds: float) -> None:
        self.calls.append((texts, tokens))


BOUNDS = {"max_requests": 40, "max_tokens": 10_000, "max_wait_seconds": 30}


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def watcher():
    return Watcher()


@pytest.fixture
def queue(watcher):
    queue = RequestQueue("test", **BOUNDS, max_run_tokens=100, watcher=watcher)
    yield queue
    queue.close()
    assert watcher.in_queue == 0


def ask(queue, run, texts, **options):
    tokenized = Tokenized.of([list(text.encode()) for text in texts], None, [0] * len(texts), 0)
    return asyncio.ensure_future(queue.rows(tokenized, run, **options))


async def occupied(queue, engine) -> asyncio.Future:
    """Occupy the engine with a first request, so that what comes next must wait."""
    engine.free.clear()
    first = ask(queue, engine.run, ["first"])
    await asyncio.to_thread(engine.entered.wait, 10)
    return first


async def test_an_idle_engine_runs_at_once(queue, engine):
    """A request that finds nobody waiting is not kept for others to join."""
    rows = await ask(queue, engine.run, ["abc", "d"])
    assert rows.tolist() == [[3, 1], [1, 1]]
    assert engine.calls == [["abc", "d"]]


async def test_what_waits_is_merged(queue, engine, watcher):
    """Requests that wait for the engine run in one call, and each gets its own rows."""
    first = await occupied(queue, engine)
    waiting = [ask(queue, engine.run, ["x" * i]) for i in range(1, 9)]
    await asyncio.sleep(0)
    engine.free.set()
    answers = await asyncio.gather(first, *waiting)
    assert [rows[0][0] for rows in answers] == [5, *range(1, 9)]
    assert [len(call) for call in engine.calls] == [1, 8]
    assert watcher.calls == [(1, 5), (8, 36)]


async def test_a_large_request_gives_way(queue, engine):
    """A request of many calls lets a small one in between, and its own rows still come in order."""
    texts = [f"{i}" + "x" * (i % 7) for i in range(200)]
    engine.free.clear()
    large = ask(queue, engine.run, texts)
    await asyncio.to_thread(engine.entered.wait, 10)
    small = ask(queue, engine.run, ["small"])
    await asyncio.sleep(0)
    engine.free.set()
    assert (await small).tolist() == [[5, 1]]
    rows = await large
    assert rows[:, 0].tolist() == [len(text) for text in texts]
    assert "small" in engine.calls[1]  # the very next one
    assert len(engine.calls) > 2
    assert max(sum(map(len, call)) for call in engine.calls) <= 100


async def test_rows_of_unlike_sizes_come_in_order(queue):
    """A request of many calls whose answers are one array per text, as those of tokens are, has them in its order."""
    calls = []

    def tokens(tokenized):
        texts = read(tokenized)
        calls.append(texts)
        return [np.full(len(text), int(text.rstrip("x"))) for text in texts]

    rows = await ask(queue, tokens, [f"{i}" + "x" * (i % 7) for i in range(200)])
    assert len(calls) > 2
    assert [row.tolist() for row in rows] == [[i] * (len(f"{i}") + i % 7) for i in range(200)]


async def test_different_runs_are_not_merged(queue, engine):
    """Requests of another function, as of another role, run apart; neither starves."""
    other = Engine()
    first = await occupied(queue, engine)
    waiting = [ask(queue, (engine if i % 2 else other).run, ["x"]) for i in range(6)]
    await asyncio.sleep(0)
    engine.free.set()
    await asyncio.gather(first, *waiting)
    assert len(engine.calls) + len(other.calls) >= 3


async def test_a_request_that_cannot_be_merged_runs_alone_and_whole(queue, engine):
    """A request whose rows depend on their neighbours has a call of its own, however large."""
    first = await occupied(queue, engine)
    waiting = [ask(queue, engine.run, ["x" * 60] * 3, mergeable=False), ask(queue, engine.run, ["y"])]
    await asyncio.sleep(0)
    engine.free.set()
    await asyncio.gather(first, *waiting)
    assert ["x" * 60] * 3 in engine.calls


async def test_only_the_guilty_hears_of_a_failure(queue, engine):
    """When a merged call fails, each of its requests runs alone: the others are answered."""
    first = await occupied(queue, engine)
    good, bad, fine = (ask(queue, engine.run, [text]) for text in ("good", "bad", "fine"))
    await asyncio.sleep(0)
    engine.free.set()
    assert (await good).tolist() == [[4, 1]]
    with pytest.raises(ValueError, match="bad text"):
        await bad
    assert (await fine).tolist() == [[4, 1]]
    await first
    assert (await ask(queue, engine.run, ["next"])).tolist() == [[4, 1]]


async def test_a_full_queue_says_when_to_come_back(queue, engine):
    """Over the bound, a request is refused at once with a number of seconds."""
    first = await occupied(queue, engine)
    waiting = [ask(queue, engine.run, ["x"]) for _ in range(39)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as full:
        await ask(queue, engine.run, ["one too many"])
    assert 1 <= full.value.retry_after <= 60
    engine.free.set()
    await asyncio.gather(first, *waiting)
    assert (await ask(queue, engine.run, ["now"])).tolist() == [[3, 1]]


async def test_cancelled_work_is_dropped(queue, engine):
    """What nobody waits for any more is not run, also in the middle of a large request."""
    first = await occupied(queue, engine)
    gone = ask(queue, engine.run, ["gone"])
    large = ask(queue, engine.run, ["z" * 50] * 20)
    stays = ask(queue, engine.run, ["stays"])
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    engine.free.set()
    await asyncio.gather(first, stays)
    large.cancel()
    await asyncio.sleep(0)
    begun = len(engine.calls)
    await ask(queue, engine.run, ["last"])
    assert not [call for call in engine.calls if "gone" in call]
    assert len(engine.calls) <= begun + 2


async def test_closing_finishes_what_waits(watcher, engine):
    """close() answers every request that is in the queue."""
    queue = RequestQueue("test", **BOUNDS, max_run_tokens=10, watcher=watcher)
    first = await occupied(queue, engine)
    waiting = [ask(queue, engine.run, ["x" * 9]) for _ in range(5)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(queue.close))
    time.sleep(0.01)
    engine.free.set()
    await closing
    assert len(await asyncio.gather(first, *waiting)) == 6
    assert not queue.alive
