"""An optional progress bar over texts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    total: int, *, shown: bool, description: str = "embedding", unit: str = "text"
) -> Iterator[Callable[[int], object]]:
    """Yield a function that adds finished texts to a progress bar; unless `shown`, it does nothing.

    A disabled bar, `tqdm(disable=True)`, is not free: it makes a lock between processes, which starts a helper process where
    Python does not fork by default (macOS; Linux from Python 3.14 on).
    """
    if not shown:
        yield lambda _: None
        return
    from tqdm.auto import tqdm  # noqa: PLC0415 - its import warns in notebooks without ipywidgets

    with tqdm(total=total, unit=unit, desc=description) as bar:
        yield bar.update
