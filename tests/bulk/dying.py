"""Worker processes that die or do nothing, for the tests of the pool. A module, because spawned processes import it."""

import os
import signal
import time

from penult.bulk.job.record import Record
from penult.bulk.job.worker import Ready


def answering(pipe, model, role, share):
    """Answer each task with its number and the number of workers on the machine."""
    pipe.send(Ready(3, 64, {}))
    while True:
        try:
            pipe.send(Record(pipe.recv().shard.number, share, 0, 0, 0, 0, 0))
        except EOFError:
            return


def asleep(pipe, model, role, share):
    pipe.send(Ready(3, 64, {}))
    time.sleep(20)


def at_work(pipe, model, role, share):
    pipe.send(Ready(3, 64, {}))
    pipe.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def when_ready(pipe, model, role, share):
    pipe.send(Ready(3, 64, {}))
    os._exit(7)


def at_once(pipe, model, role, share):
    os._exit(7)


def killed(pipe, model, role, share):
    os.kill(os.getpid(), signal.SIGKILL)
