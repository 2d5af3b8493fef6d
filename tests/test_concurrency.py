"""One Embedder shared by many callers, and processes that end or are interrupted: correct vectors or a clean error."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import default_sigint

from penult import Embedder
from penult.core.shutdown_guard import ShutdownGuard

TEXTS = [" ".join(["the cat", "a dog sat", "moon", "river stone eats fish"][i % 4 :]) * (1 + i % 3) for i in range(24)]
SECONDS = 60


def shares(n):
    """Return a list of texts per caller, of many lengths and orders."""
    rng = np.random.default_rng(0)
    return [rng.permutation(len(TEXTS))[: 1 + i % len(TEXTS)] for i in range(n)]


def test_sixteen_threads(tiny):
    """Sixteen threads that call every method of one Embedder at once each get the vectors of their texts."""
    start = threading.Barrier(16)
    with Embedder.load(tiny, threads=2, truncate="right") as e:
        vectors, tokens, counts = e.embed(TEXTS), e.embed_tokens(TEXTS), e.count_tokens(TEXTS)

        def work(rows):
            start.wait(SECONDS)
            mine = [TEXTS[i] for i in rows]
            for _ in range(4):
                assert np.abs(e.embed(mine) - vectors[rows]).max() <= 1e-6
                assert np.abs(np.concatenate(list(e.embed_stream(iter(mine), window=5))) - vectors[rows]).max() <= 1e-6
                for actual, row in zip(e.embed_tokens(mine), rows, strict=True):
                    assert np.abs(actual - tokens[row]).max() <= 1e-5
                assert (e.count_tokens(mine) == counts[rows]).all()
            return len(rows)

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(work, shares(16), timeout=SECONDS)) == [len(rows) for rows in shares(16)]


async def test_tasks_of_one_loop(embedder):
    """Sixty tasks through asyncio.to_thread get their own vectors, while the event loop keeps running."""
    vectors = embedder.embed(TEXTS)
    turns, done = 0, asyncio.Event()

    async def turn():
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0)

    async def task(rows):
        actual = await asyncio.to_thread(embedder.embed, [TEXTS[i] for i in rows])
        return np.abs(actual - vectors[rows]).max()

    clock = asyncio.create_task(turn())
    async with asyncio.timeout(SECONDS):
        worst = await asyncio.gather(*(task(rows) for rows in shares(60)))
    done.set()
    await clock
    assert max(worst) <= 1e-6
    assert turns > 60


def test_closed_while_others_embed(tiny):
    """After close(), running batches finish: each caller gets correct vectors or the error of a closed embedder."""
    e = Embedder.load(tiny, threads=1, truncate="right")
    vectors, answers, started = e.embed(TEXTS), [], threading.Event()

    def work():
        try:
            for _ in range(10_000):
                answers.append(np.abs(e.embed(TEXTS) - vectors).max() <= 1e-6)
                started.set()
        except RuntimeError as error:
            answers.append(str(error).startswith("The engine is closed"))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert started.wait(SECONDS)
    e.close()
    for worker in workers:
        worker.join(SECONDS)
        assert not worker.is_alive()
    assert all(answers)


_BUSY = """
import sys, threading, time
from penult import Embedder
e = Embedder.load(sys.argv[1], threads=2, truncate="right")
texts = ["the cat sat on the mat " * 8] * 512
busy = threading.Event()
def work():
    while True:
        e.embed(texts)
        busy.set()
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
assert busy.wait(60)
time.sleep(float(sys.argv[2]))
print("main returns", flush=True)
"""


@pytest.mark.parametrize("wait", ["0", "0.03", "0.1"])
def test_the_interpreter_ends_while_threads_embed(tiny, wait):
    """A program that returns while daemon threads embed exits with status 0, at once and without output."""
    ended = subprocess.run([sys.executable, "-c", _BUSY, str(tiny), wait], capture_output=True, text=True, timeout=SECONDS)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "main returns\n", "")


_INTERRUPTED = """
import sys, time
import numpy as np
from penult import Embedder
e = Embedder.load(sys.argv[1], threads=2, truncate="right")
expected = e.embed(["the cat"])
def texts():
    while True:
        yield "the cat sat on the mat " * 8
try:
    print("ready", flush=True)
    if sys.argv[2] == "stream":
        for part in e.embed_stream(texts(), window=2048): pass
    else:
        while True: e.embed(["the cat sat on the mat " * 8] * 20_000)
except KeyboardInterrupt:
    again = e.embed(["the cat"])
    print("interrupted", np.abs(again - expected).max() <= 1e-6, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("how", ["list", "stream"])
def test_an_interrupt_in_the_middle(tiny, how):
    """Ctrl-C during a long call raises KeyboardInterrupt within seconds, and the Embedder still works."""
    command = [sys.executable, "-c", _INTERRUPTED, str(tiny), how]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=default_sigint, **pipes) as child:  # noqa: PLW1509 - takes no lock
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        threading.Event().wait(1.0)  # the call has no other sign of being under way
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        try:
            out, err = child.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()
            pytest.fail("the interrupt was not heard within 20 seconds")
    assert (child.returncode, out) == (0, "interrupted True\n"), err


def test_exit_waits_for_running_calls():
    """At exit, running calls are waited for, a later call of a daemon thread blocks, and the main thread may still call."""
    guard, entered, go, late = ShutdownGuard(), threading.Event(), threading.Event(), threading.Event()

    def inside():
        with guard:
            entered.set()
            assert go.wait(SECONDS)

    def later():
        with guard:
            late.set()

    threading.Thread(target=inside, daemon=True).start()
    assert entered.wait(SECONDS)
    ending = threading.Thread(target=guard._state.get().end)
    ending.start()
    ending.join(0.2)
    assert ending.is_alive()
    threading.Thread(target=later, daemon=True).start()
    go.set()
    ending.join(SECONDS)
    assert not ending.is_alive()
    assert not late.wait(0.2)
    with guard:
        pass


_FORKED = """
import os, sys, threading
from penult import Embedder
e = Embedder.load(sys.argv[1], threads=2, truncate="right")
expected = e.embed(["the cat"])
def work():
    while True: e.embed(["the cat sat on the mat " * 8] * 512)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
children = []
for _ in range(5):
    if not (pid := os.fork()):
        os._exit(0 if (e.embed(["the cat"]) == expected).all() else 1)  # as multiprocessing ends its children
    children.append(pid)
print([os.waitpid(pid, 0)[1] for pid in children])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_forks_in_the_middle(tiny):
    """Children forked while threads embed give the same vector and do not wait for the parent's threads."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORKED, str(tiny)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert (ended.returncode, ended.stdout) == (0, "[0, 0, 0, 0, 0]\n"), ended.stderr
