"""The request queue: dynamic batching of the requests of one model, within a token budget.

If the model is idle, a request runs at once. Requests that arrive during a call are merged into the next call. Each call
divides its token budget among them, so that a large request does not block small ones. The queue contains `Tokenized`, so
that sizes are exact. This module does not depend on HTTP or on models.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from penult.core.tokenized import Tokenized

_LOGGER = logging.getLogger(__name__)

_MANY = 4  # minimum requests per call for which the queue waits for the clients' next requests
# As a fraction of the last call's time, with a maximum: the whole wait, and the time without a new request that ends it.
_WAIT, _WAIT_SECONDS = 0.5, 0.04
_GAP, _GAP_SECONDS = 0.25, 0.012
_CLOSING_SECONDS = 300.0

Rows = Sequence[NDArray[Any]] | NDArray[Any]
Run = Callable[[Tokenized], Rows]


class Watcher(Protocol):
    """Observer of the events of a queue."""

    def waiting(self, change: int) -> None:
        """Handle a change of the number of requests in the queue."""

    def waited(self, seconds: float) -> None:
        """Handle the start of a request, after `seconds` in the queue."""

    def ran(self, texts: int, tokens: int, seconds: float) -> None:
        """Handle the end of a call."""


class QueueFull(Exception):  # noqa: N818 - a state of the queue
    """The queue is full.

    Attributes:
        retry_after: estimated seconds until the queue accepts the request.
    """

    def __init__(self, queued_tokens: str, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(f"The queue is full ({queued_tokens}). Retry in {retry_after} s.")


class QueueClosed(Exception):  # noqa: N818 - a state of the queue
    """The queue is closed."""


@dataclass(slots=True, eq=False)
class _Job:
    """A request in the queue."""

    tokenized: Tokenized
    costs: list[int]
    run: Run
    mergeable: bool
    future: "asyncio.Future[Rows]"
    queued: float
    left: deque[int]
    parts: list[tuple[list[int], Rows]] = field(default_factory=list)
    tokens_left: int = 0

    @property
    def kind(self) -> tuple[object, ...]:
        """Key of requests that can run in one call."""
        return (self.run, self.tokenized.role, self.tokenized.fingerprint)

    def take(self, budget: int) -> list[int]:
        """Take texts of at most `budget` tokens in total, but at least one text."""
        if not self.mergeable or self.tokens_left <= budget:
            rows, self.left, self.tokens_left = list(self.left), deque(), 0
            return rows
        rows = []
        while self.left and (not rows or self.costs[self.left[0]] <= budget):
            rows.append(self.left.popleft())
            budget -= self.costs[rows[-1]]
            self.tokens_left -= self.costs[rows[-1]]
        return rows

    def selected(self, rows: list[int]) -> Tokenized:
        """Return the texts of some rows."""
        return self.tokenized if rows == [*range(len(self.tokenized))] else self.tokenized.select(rows)

    def result(self) -> Rows:
        """Merge the parts into one result, in the order of the texts."""
        if len(self.parts) == 1:
            return self.parts[0][1]
        if all(isinstance(values, np.ndarray) for _, values in self.parts):
            first = self.parts[0][1]
            out = np.empty((len(self.tokenized), *np.shape(first)[1:]), np.asarray(first).dtype)
            for rows, values in self.parts:
                out[rows] = values
            return out
        by_row: dict[int, NDArray[Any]] = {}
        for rows, values in self.parts:
            by_row.update(zip(rows, values, strict=True))
        return [by_row[row] for row in range(len(self.tokenized))]


class RequestQueue:
    """The requests of one model, and the thread that runs them.

    Args:
        name: name of the thread.
        max_requests: maximum requests that wait or run.
        max_tokens: maximum tokens that wait or run. An empty queue accepts a single larger request.
        max_wait_seconds: maximum expected wait of a new request.
        max_run_tokens: token budget of one call. A single larger text runs alone.
        watcher: observer of the events of the queue.
    """

    def __init__(
        self,
        name: str,
        *,
        max_requests: int,
        max_tokens: int,
        max_wait_seconds: float,
        max_run_tokens: int,
        watcher: Watcher,
    ) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._max_wait_seconds = max_wait_seconds
        self._max_run_tokens = max_run_tokens
        self._watcher = watcher
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._answered, self._seconds = 0, 0.0  # number of requests that the last call answered, and its seconds
        self._tokens_per_second, self._measured = (
            20_000.0,
            False,
        )  # a high guess until a large call, so that no request is refused
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive() and not self._closing

    async def rows(self, tokenized: Tokenized, run: Run, *, costs: Sequence[int] | None = None, mergeable: bool = True) -> Rows:
        """Run texts, merged with those of other requests; return the rows in the order of the texts.

        Args:
            tokenized: N texts, at least one.
            run: called with the merged texts. Requests are merged if `run`, role and fingerprint are equal.
            costs: tokens of each text, including padding. None: `tokenized.counts`.
            mergeable: whether the texts may be merged with those of other requests, and split into several calls.

        Raises:
            QueueFull: too many requests or tokens wait, or the wait would be too long.
            QueueClosed: the model is closed.
            Exception: any exception that `run` raises for these texts.
        """
        future: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        costs = tokenized.counts.tolist() if costs is None else list(costs)
        total = sum(costs)
        order: Sequence[int] = range(len(costs))
        if mergeable and total > self._max_run_tokens:  # so that each of its calls has similar lengths
            order = sorted(order, key=lambda row: -costs[row])
        job = _Job(tokenized, costs, run, mergeable, future, time.monotonic(), deque(order), tokens_left=total)
        with self._wake:
            if self._closing:
                raise QueueClosed
            self._check_room(total)
            self._jobs.append(job)
            self._watcher.waiting(1)
            self._wake.notify()
        return await future  # cancelled when the client disconnects: the thread then skips the rest of the job

    def check_room(self) -> None:
        """Check that the queue would accept a request of one token.

        Raises:
            QueueFull: it would not.
        """
        with self._wake:
            self._check_room(1)

    def close(self) -> None:
        """Finish the queued requests, then end the thread; wait for at most five minutes."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(_CLOSING_SECONDS)

    def _check_room(self, tokens: int) -> None:
        """Check the limits for a new request of `tokens` tokens.

        The wait is estimated: until the new request ends, each request before it runs about as many tokens as the new one. They
        share the half of each call that is not reserved for the oldest request. An empty queue accepts any request.
        """
        jobs = [job for job in self._jobs if not job.future.cancelled()]
        if not jobs:
            return
        queued_tokens = sum(job.tokens_left for job in jobs)
        before = sum(min(job.tokens_left, tokens) if job.mergeable else job.tokens_left for job in jobs)
        seconds = min(queued_tokens, 2 * before) / self._tokens_per_second
        if len(jobs) >= self._max_requests:
            raise QueueFull(f"{len(jobs)} requests", _pause(queued_tokens / self._tokens_per_second))
        if queued_tokens + tokens > self._max_tokens:
            raise QueueFull(
                f"{queued_tokens} tokens", _pause((queued_tokens + tokens - self._max_tokens) / self._tokens_per_second)
            )
        if seconds > self._max_wait_seconds:
            pause = max(seconds - self._max_wait_seconds, self._max_wait_seconds / 4)
            raise QueueFull(f"an expected wait of {seconds:.0f} s", _pause(pause))

    def _work(self) -> None:
        while True:
            with self._wake:
                self._gather()
                while not self._jobs and not self._closing:
                    self._wake.wait()
                self._drop_cancelled()
                if not self._jobs and self._closing:
                    return
                batch = self._take()
            if batch:
                self._run(batch)

    def _gather(self) -> None:
        """Wait for the next requests of the last call's clients, so that they are merged again.

        An immediate call with the first of them would leave the others to the next call. Many clients with one text each would
        split into groups that run alternately: 9 % fewer requests per second, 12 % more CPU (32 clients, all-MiniLM-L6-v2,
        fp32, 24 tokens per text, two vCPUs of an AMD EPYC). A single client, or one after a pause, is not delayed.
        """
        expected, self._answered = self._answered + len(self._jobs), 0
        if expected < _MANY:
            return
        until = time.monotonic() + min(_WAIT * self._seconds, _WAIT_SECONDS)
        gap = min(_GAP * self._seconds, _GAP_SECONDS)
        while (before := len(self._jobs)) < expected and not self._closing and (left := until - time.monotonic()) > 0:
            self._wake.wait(min(left, gap))
            if len(self._jobs) == before:
                return

    def _drop_cancelled(self) -> None:
        kept = deque(job for job in self._jobs if not job.future.cancelled())
        self._watcher.waiting(len(kept) - len(self._jobs))
        self._jobs = kept

    def _take(self) -> list[tuple[_Job, list[int]]]:
        """Divide the token budget of one call among the requests.

        Half of it is for the oldest request, so that a large one finishes despite a steady flow of small ones. Of the others,
        small ones run whole and large ones divide the rest.
        """
        if not self._jobs:
            return []
        first = self._jobs[0]
        same = [job for job in self._jobs if job.mergeable and job.kind == first.kind] if first.mergeable else [first]
        now, budget, batch = time.monotonic(), self._max_run_tokens, []
        oldest = min(same, key=lambda job: job.queued)
        others = sorted((job for job in same if job is not oldest), key=lambda job: job.tokens_left)
        for turn, job in enumerate([oldest, *others]):
            if budget <= 0:
                break
            if not job.parts:
                self._watcher.waited(now - job.queued)
            share = budget // min(2, len(same)) if job is oldest else budget // (len(same) - turn)
            rows = job.take(max(1, share))
            budget -= sum(job.costs[row] for row in rows)
            batch.append((job, rows))
        if oldest.left and oldest.costs[oldest.left[0]] <= budget:  # the budget that the others left
            batch[0][1].extend(oldest.take(budget))
        # Their remaining texts go behind the requests that could not be merged with them.
        merged = {id(job) for job in same}
        self._jobs = deque([job for job in self._jobs if id(job) not in merged] + same)
        return batch

    def _run(self, batch: list[tuple[_Job, list[int]]]) -> None:
        tokenized = Tokenized.join([job.selected(rows) for job, rows in batch])
        tokens = sum(job.costs[row] for job, rows in batch for row in rows)
        started = time.monotonic()
        try:
            values = batch[0][0].run(tokenized)
        except Exception as error:  # noqa: BLE001 - the thread must continue for other requests
            if len(batch) == 1:
                self._finish(batch[0][0], error)
            else:  # run each request alone, so that only the faulty one fails
                for part in batch:
                    self._run([part])
            return
        self._seconds = seconds = time.monotonic() - started
        rate = tokens / max(seconds, 1e-6)
        # Small calls have a low token rate, which does not predict how fast a full queue drains.
        if tokens >= self._max_run_tokens // 4 or (self._measured and rate > self._tokens_per_second):
            self._tokens_per_second += (0.3 if self._measured else 1.0) * (rate - self._tokens_per_second)
            self._measured = True
        self._watcher.ran(len(tokenized), tokens, seconds)
        start, self._answered = 0, 0
        for job, rows in batch:
            job.parts.append((rows, values[start : start + len(rows)]))
            start += len(rows)
            if not job.left:
                self._answered += 1
                self._finish(job, None)

    def _finish(self, job: _Job, error: Exception | None) -> None:
        with self._wake:
            self._jobs.remove(job)
            self._watcher.waiting(-1)
        value = None if error is not None else job.result()
        try:
            job.future.get_loop().call_soon_threadsafe(_settle, job.future, value, error)
        except RuntimeError:  # the event loop is closed, so no client waits
            _LOGGER.debug("A result was ready after the server had ended.")


def _pause(seconds: float) -> int:
    """Return the seconds after which a client may retry: an integer from 1 to 60."""
    return max(1, min(60, round(seconds)))


def _settle(future: "asyncio.Future[Rows]", value: Rows | None, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    elif value is not None:
        future.set_result(value)
