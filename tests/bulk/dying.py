"""Workers that die, for the tests of the pool; a module, since a spawned process imports it."""

import os
import signal

from penult.bulk.worker import Ready


def at_work(pipe, model, role, share):
    pipe.send(Ready(3, 64, {}))
    pipe.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def when_ready(pipe, model, role, share):
    pipe.send(Ready(3, 64, {}))
    os._exit(7)


def at_once(pipe, model, role, share):
    os._exit(7)
