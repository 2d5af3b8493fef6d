"""How a job ends before its end."""


class StoppedError(Exception):
    """A job stopped before its end; the message says why, what is kept, and how to go on."""


class WorkError(RuntimeError):
    """A worker failed in a way that another try would not mend."""
