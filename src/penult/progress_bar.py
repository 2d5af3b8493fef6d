"""Progress bars: over texts in Python, over rows on the command line."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 10.0
"""Seconds between two progress lines if standard error is not a terminal."""


@contextmanager
def progress_bar(total: int, *, shown: bool) -> Iterator[Callable[[int], object]]:
    """Yield a function that adds finished texts to a progress bar; unless `shown`, it does nothing.

    A disabled bar, `tqdm(disable=True)`, is not free: it creates a multiprocessing lock, which starts a helper process where
    Python does not fork by default (macOS; Linux from Python 3.14 on).
    """
    if not shown:
        yield lambda _: None
        return
    from tqdm.auto import tqdm  # noqa: PLC0415 - its import warns in notebooks without ipywidgets

    columns, rows = screen()
    with tqdm(total=total, unit="text", desc="embedding", ncols=columns, nrows=rows) as bar:
        yield bar.update


@contextmanager
def rows_written(target: str) -> Iterator[Callable[[int, int], object]]:
    """Yield a function of rows written and total rows: it draws a bar on a terminal, else a line every 10 seconds."""
    if sys.stderr.isatty():
        from tqdm.auto import tqdm  # noqa: PLC0415 - only a terminal needs it

        columns, lines = screen()
        with tqdm(unit="row", desc=f"writing to {target}", ncols=columns, nrows=lines) as bar:

            def draw(rows: int, total: int) -> None:
                bar.total = total
                bar.update(rows - bar.n)

            yield draw
        return
    started = last = time.monotonic()

    def say(rows: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last, rate = now, rows / (now - started)
            left = f"; {duration((total - rows) / rate)} left"
            print(f"penult: {rows:,} of {total:,} rows in {target}; {rate:,.0f} rows/s{left}", file=sys.stderr, flush=True)  # noqa: T201

    yield say


def screen() -> tuple[int | None, int | None]:
    """Return columns and rows for a bar. None: the terminal's size. Some container terminals report 0, which hides the bar."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except OSError:
        return None, None
    return None if size.columns else 100, None if size.lines else 20


def duration(seconds: float) -> str:
    """Return a human-readable duration: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"
