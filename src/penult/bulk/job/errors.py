"""Errors that end a job early."""


class StoppedError(Exception):
    """A job stopped early; the message says why, what is kept, and how to resume."""


class WorkError(RuntimeError):
    """A worker failed in a way that a retry would not fix."""
