"""Detect in-place changes of files that a runtime has mapped into memory."""

import os
import weakref
from collections.abc import Sequence
from pathlib import Path


class ChangedFilesError(ValueError):
    """Weight files that have changed since the graph was prepared."""


class MappedFiles:
    """The current state of mapped files. Renaming or deleting a file is not a change, since its mapping stays the same.

    Args:
        paths: the files. They are kept open.

    Raises:
        ChangedFilesError: a file is missing.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._descriptors: list[int] = []
        for path in self._paths:
            try:
                self._descriptors.append(os.open(path, os.O_RDONLY))
            except OSError as error:
                raise ChangedFilesError(f"{path} can no longer be read: {error}") from error
            weakref.finalize(self, os.close, self._descriptors[-1])
        self._stamps = list(map(_stamp, self._descriptors))

    def check(self) -> None:
        """Check that no file was written to since it was opened.

        Raises:
            ChangedFilesError: a file was written to.
        """
        for path, descriptor, stamp in zip(self._paths, self._descriptors, self._stamps, strict=True):
            if _stamp(descriptor) != stamp:
                raise ChangedFilesError(
                    f"{path} was overwritten while the model was open, so the vectors may be wrong. Load the model "
                    "again, and replace the files of a model only by renaming."
                )


def _stamp(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
