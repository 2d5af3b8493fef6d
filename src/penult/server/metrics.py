"""Prometheus metrics: TEI's names, so that its dashboards keep working, and a few of penult's own.

This is the only module that imports prometheus_client. Each server has its own registry. All series are created with the
server, so that the first scrape has all of them. Several workers keep their metrics in files, and the worker that is scraped
adds them up.
"""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from penult.server.errors import Reason

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_FAILURES = {"body": "validation", "batch": "batch_size", "text": "validation", "invalid": "validation", "empty": "empty",
             "full": "overloaded", "unable": "backend", "bug": "backend"}  # fmt: skip
_CONTRACTS = ("deepsparse", "openai", "tei")
_CLASSES = ("2xx", "3xx", "4xx", "5xx")


_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's variable; if it is set, metrics are kept in files


class Metrics:
    """The metrics of one server.

    Args:
        shared: whether there are several workers; the environment variable then states the folder of their files.
    """

    def __init__(self, *, shared: bool = False) -> None:
        registry = CollectorRegistry()
        self.registry = CollectorRegistry() if shared else registry
        if shared:
            MultiProcessCollector(self.registry)  # type: ignore[no-untyped-call]
            self.registry.register(_ProcessesCollector(Path(os.environ[_FOLDER])))
        else:
            ProcessCollector(registry=registry)

        def seconds(name: str, description: str) -> Histogram:
            return Histogram(name, description, buckets=_SECONDS, registry=registry)

        self._count = Counter("te_request_count", "Requests for embeddings.", ["method"], registry=registry)
        self._success = Counter("te_request_success", "Answered requests for embeddings.", ["method"], registry=registry)
        self._failure = Counter(
            "te_request_failure", "Rejected and failed requests for embeddings.", ["err"], registry=registry
        )
        self._duration = seconds("te_request_duration", "Seconds from the headers of a request to its response.")
        self._length = Histogram("te_request_input_length", "Tokens per text.", buckets=_SIZES, registry=registry)
        self._embed = seconds("te_embed_duration", "Seconds from the tokenized texts of a request to its vectors.")
        self._tokenize = seconds("te_embed_tokenization_duration", "Seconds of tokenizing the texts of a request.")
        self._queued = seconds("te_embed_queue_duration", "Seconds that a request waited in the queue.")
        self._inference = seconds("te_embed_inference_duration", "Seconds per merged batch in the model.")
        self._queue = Gauge("te_queue_size", "Requests that wait or run.", registry=registry, multiprocess_mode="livesum")
        self._next_size = Histogram("te_batch_next_size", "Texts per merged batch.", buckets=_SIZES, registry=registry)
        self._next_tokens = Histogram("te_batch_next_tokens", "Tokens per merged batch.", buckets=_SIZES, registry=registry)
        self._truncated = Counter("penult_truncated_texts", "Truncated texts.", registry=registry)
        self._gone = Counter("penult_disconnects", "Clients that disconnected before their response.", registry=registry)
        self._responses = Counter("penult_http_responses", "HTTP responses.", ["contract", "status"], registry=registry)
        for method in ("single", "batch"):
            self._count.labels(method)
            self._success.labels(method)
        for err in set(_FAILURES.values()):
            self._failure.labels(err)
        for contract in _CONTRACTS:
            for status in _CLASSES:
                self._responses.labels(contract, status)

    def waiting(self, change: int) -> None:
        """Add a change of the number of requests in a queue."""
        self._queue.inc(change)

    def waited(self, seconds: float) -> None:
        """Record the seconds that a request was queued before it ran."""
        self._queued.observe(seconds)

    def ran(self, texts: int, tokens: int, seconds: float) -> None:
        """Record a merged call."""
        self._next_size.observe(texts)
        self._next_tokens.observe(tokens)
        self._inference.observe(seconds)

    def tokenized(self, sizes: list[int], truncated: int, seconds: float) -> None:
        """Record the tokenization of a request's texts."""
        self._tokenize.observe(seconds)
        for size in sizes:
            self._length.observe(size)
        if truncated:
            self._truncated.inc(truncated)

    def embedded(self, seconds: float) -> None:
        """Record the seconds from queueing a request to its vectors, before they are serialized."""
        self._embed.observe(seconds)

    def asked(self, texts: int) -> None:
        """Record a request for embeddings."""
        self._count.labels("single" if texts == 1 else "batch").inc()

    def answered(self, texts: int, seconds: float) -> None:
        """Record an answered request for embeddings."""
        self._success.labels("single" if texts == 1 else "batch").inc()
        self._duration.observe(seconds)

    def refused(self, reason: Reason) -> None:
        """Record a refused or failed request."""
        if reason in _FAILURES:
            self._failure.labels(_FAILURES[reason]).inc()

    def left(self) -> None:
        """Record a client that disconnected before its answer."""
        self._gone.inc()

    def responded(self, contract: str, status: int) -> None:
        """Record a response."""
        self._responses.labels(contract, f"{min(max(status // 100, 2), 5)}xx").inc()

    def text(self) -> bytes:
        """Return all series in Prometheus' text format, TEI's counters without the suffix `_total`, as in TEI."""
        return re.sub(rb"\b(te_request_(?:count|success|failure))_total\b", rb"\1", generate_latest(self.registry))


class _ProcessesCollector(Collector):
    """Collector of the `process_` series: the sum of memory, CPU and files of all running workers, and the earliest start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        """Yield each series."""
        families: dict[str, Metric] = {}
        for pid in {path.stem.rpartition("_")[2] for path in self._folder.glob("*_*.db")}:
            for family in ProcessCollector(pid=partial(str, pid), registry=CollectorRegistry()).collect():
                first = families.setdefault(family.name, family)
                if first is not family:
                    both = zip(first.samples, family.samples, strict=True)
                    earliest = family.name.endswith("start_time_seconds")
                    first.samples = [
                        one._replace(value=min(one.value, more.value) if earliest else one.value + more.value)
                        for one, more in both
                    ]
        yield from families.values()


def forget(pid: int) -> None:
    """Remove an ended worker from the gauges of running workers; its counters are kept."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]
