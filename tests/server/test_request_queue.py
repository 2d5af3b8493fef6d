"""The request queue: merging, token budget, limits and errors."""

import asyncio
import itertools
import random
import threading
import time

import numpy as np
import pytest

from penult.core.tokenized import Tokenized
from penult.server.request_queue import QueueClosed, QueueFull, RequestQueue


def read(tokenized: Tokenized) -> list[str]:
    """Return the texts, in which each letter is a token."""
    return [bytes(ids).decode() for ids in tokenized.ids]


class Engine:
    """A fake model: the vector of a text is its length. It records its calls and can be paused."""

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
    """Start a first request, so that the next ones wait."""
    engine.free.clear()
    first = ask(queue, engine.run, ["first"])
    await asyncio.to_thread(engine.entered.wait, 10)
    return first


async def test_an_idle_model_runs_at_once(queue, engine):
    """A request to an idle model runs at once."""
    rows = await ask(queue, engine.run, ["abc", "d"])
    assert rows.tolist() == [[3, 1], [1, 1]]
    assert engine.calls == [["abc", "d"]]


async def test_waiting_requests_are_merged(queue, engine, watcher):
    """Waiting requests run in one call, and each gets its own rows."""
    first = await occupied(queue, engine)
    waiting = [ask(queue, engine.run, ["x" * i]) for i in range(1, 9)]
    await asyncio.sleep(0)
    engine.free.set()
    answers = await asyncio.gather(first, *waiting)
    assert [rows[0][0] for rows in answers] == [5, *range(1, 9)]
    assert [len(call) for call in engine.calls] == [1, 8]
    assert watcher.calls == [(1, 5), (8, 36)]


async def test_a_small_request_passes_a_large_one(queue, engine):
    """A small request runs between the calls of a large one, whose rows keep their order."""
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
    assert "small" in engine.calls[1]  # the next call
    assert len(engine.calls) > 2
    assert max(sum(map(len, call)) for call in engine.calls) <= 100


async def test_rows_of_different_sizes_keep_their_order(queue):
    """Arrays of different sizes, as token vectors are, keep the order of the texts over several calls."""
    calls = []

    def tokens(tokenized):
        texts = read(tokenized)
        calls.append(texts)
        return [np.full(len(text), int(text.rstrip("x"))) for text in texts]

    rows = await ask(queue, tokens, [f"{i}" + "x" * (i % 7) for i in range(200)])
    assert len(calls) > 2
    assert [row.tolist() for row in rows] == [[i] * (len(f"{i}") + i % 7) for i in range(200)]


async def test_different_runs_are_not_merged(queue, engine):
    """Requests with another `run` function are not merged; neither starves."""
    other = Engine()
    first = await occupied(queue, engine)
    waiting = [ask(queue, (engine if i % 2 else other).run, ["x"]) for i in range(6)]
    await asyncio.sleep(0)
    engine.free.set()
    await asyncio.gather(first, *waiting)
    assert len(engine.calls) + len(other.calls) >= 3


async def test_a_request_that_cannot_be_merged_runs_alone(queue, engine):
    """A request that cannot be merged runs in one call of its own, whatever its size."""
    first = await occupied(queue, engine)
    waiting = [ask(queue, engine.run, ["x" * 60] * 3, mergeable=False), ask(queue, engine.run, ["y"])]
    await asyncio.sleep(0)
    engine.free.set()
    await asyncio.gather(first, *waiting)
    assert ["x" * 60] * 3 in engine.calls


async def test_only_the_faulty_request_fails(queue, engine):
    """If a merged call fails, each of its requests runs alone, and only the faulty one fails."""
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


async def test_a_full_queue_states_retry_after(queue, engine):
    """A request over the limit is refused at once, with the seconds until a retry."""
    first = await occupied(queue, engine)
    waiting = [ask(queue, engine.run, ["x"]) for _ in range(39)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as full:
        await ask(queue, engine.run, ["one too many"])
    assert 1 <= full.value.retry_after <= 60
    engine.free.set()
    await asyncio.gather(first, *waiting)
    assert (await ask(queue, engine.run, ["now"])).tolist() == [[3, 1]]


async def test_a_large_request_finishes_despite_small_ones(queue, engine):
    """The oldest request gets half of each call, whatever the number of small requests."""
    first = await occupied(queue, engine)
    large = ask(queue, engine.run, ["x" * 10] * 30)
    small: set[asyncio.Future] = set()

    def add(done=None):
        small.discard(done)
        if not large.done():
            small.add(new := ask(queue, engine.run, ["y" * 9]))
            new.add_done_callback(add)

    for _ in range(30):  # always more than one call
        add()
    await asyncio.sleep(0)
    engine.free.set()
    await asyncio.wait_for(large, 20)
    calls = [call for call in engine.calls[1:] if any(text[0] == "x" for text in call)]
    assert len(calls) <= 7  # 300 tokens, 50 per call, after the first request
    assert all(sum(map(len, call)) <= 110 for call in engine.calls)  # the last text of a call may exceed the budget
    await asyncio.gather(first, *small)


async def test_small_requests_pass_large_ones(queue, engine):
    """Small requests get the other half of each call before large ones that are not the oldest."""
    first = await occupied(queue, engine)
    large = [ask(queue, engine.run, ["x" * 10] * 30) for _ in range(5)]
    await asyncio.sleep(0)
    small = ask(queue, engine.run, ["y"])
    await asyncio.sleep(0)
    engine.free.set()
    await small
    assert any("y" in call for call in engine.calls[:3])
    await asyncio.gather(first, *large)


async def test_a_long_wait_is_refused(queue, engine):
    """A request with a too long expected wait is refused; a small one with a short wait is accepted."""
    queue._max_wait_seconds, queue._tokens_per_second = 2, 100
    first = await occupied(queue, engine)
    waiting = ask(queue, engine.run, ["x" * 50] * 10)
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match=r"an expected wait of 5 s\)\. Retry in 3 s") as full:
        await ask(queue, engine.run, ["y" * 50] * 10)
    assert full.value.retry_after == 3
    small = ask(queue, engine.run, ["y"])
    await asyncio.sleep(0)
    engine.free.set()
    await asyncio.gather(first, waiting, small)


async def test_the_wait_for_a_request_that_cannot_be_merged(queue, engine):
    """The expected wait of a small request includes the whole of a request that cannot be merged."""
    queue._max_wait_seconds, queue._tokens_per_second = 2, 100
    first = await occupied(queue, engine)
    whole = ask(queue, engine.run, ["x" * 50] * 10, mergeable=False)
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="an expected wait of 5 s"):
        await ask(queue, engine.run, ["y"])
    engine.free.set()
    await asyncio.gather(first, whole)


async def test_too_many_tokens_are_refused(queue, engine):
    """The tokens in the queue are limited, but an empty queue accepts a request of any size."""
    engine.free.clear()
    lone = ask(queue, engine.run, ["x" * 100] * 200)
    await asyncio.to_thread(engine.entered.wait, 10)
    with pytest.raises(QueueFull, match=r"19900 tokens"):
        await ask(queue, engine.run, ["y"])
    engine.free.set()
    assert len(await lone) == 200
    assert len(await ask(queue, engine.run, ["x" * 100] * 200)) == 200


async def test_cancelled_requests_do_not_count(queue, engine):
    """A cancelled request does not count towards the limits."""
    queue._max_requests, queue._max_tokens = 2, 3000
    first = await occupied(queue, engine)
    gone = ask(queue, engine.run, ["x" * 100] * 29)
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    again = ask(queue, engine.run, ["x" * 100] * 29)
    await asyncio.sleep(0)
    engine.free.set()
    assert len(await again) == 29
    await first


async def test_the_token_rate_is_measured_on_full_calls(queue, engine):
    """Small calls do not change the estimated token rate."""
    run = engine.run

    def slowly(tokenized):
        time.sleep(0.02 if len(tokenized) == 1 else 0.5)
        return run(tokenized)

    for _ in range(5):
        await ask(queue, slowly, ["x"])
    assert queue._tokens_per_second == 20_000
    await ask(queue, slowly, ["x" * 50] * 2)
    assert 0 < queue._tokens_per_second <= 200


async def test_rows_of_many_requests_keep_their_order(queue):
    """Requests of any sizes get the rows of their own texts in order."""
    queue._max_tokens = 1_000_000
    draw = random.Random(0)

    def run(tokenized):
        return np.array([int(text.rstrip("x")) for text in read(tokenized)])

    numbers = itertools.count(1000)
    requests = [
        [f"{next(numbers)}".ljust(draw.randint(4, 90), "x") for _ in range(draw.choice((1, 2, 3, 40)))] for _ in range(38)
    ]
    answers = await asyncio.gather(*(ask(queue, run, texts) for texts in requests))
    for texts, rows in zip(requests, answers, strict=True):
        assert [*rows] == [int(text.rstrip("x")) for text in texts]


async def test_a_closed_queue_refuses_requests(watcher, engine):
    """A closed queue raises QueueClosed."""
    queue = RequestQueue("test", **BOUNDS, max_run_tokens=10, watcher=watcher)
    queue.close()
    with pytest.raises(QueueClosed):
        await asyncio.wait_for(ask(queue, engine.run, ["x"]), 10)


async def test_cancelled_work_is_dropped(queue, engine):
    """A cancelled request does not run, and the rest of a cancelled large request is dropped."""
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
    calls_before = len(engine.calls)
    await ask(queue, engine.run, ["last"])
    assert not [call for call in engine.calls if "gone" in call]
    assert len(engine.calls) <= calls_before + 2


async def test_closing_finishes_waiting_requests(watcher, engine):
    """close() finishes every request in the queue."""
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
