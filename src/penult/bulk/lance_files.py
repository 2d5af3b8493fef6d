"""Lance datasets as input and output. The only file that imports lance (the extra `lance`)."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from penult.atomic_files import sync_all, sync_folder
from penult.extras import install_hint


def check() -> None:
    """Raise ImportError with what to install, if lance is missing."""
    _lance()


def look(path: Path) -> tuple[pa.Schema, int]:
    """Give a dataset's columns and its number of rows."""
    dataset = _opened(path)
    return dataset.schema, int(dataset.count_rows())


def read(path: Path, skip: int = 0, columns: list[str] | None = None, batch_rows: int = 4096) -> Iterator[pa.RecordBatch]:
    """Read a dataset in its order, from the row `skip` on."""
    # Without scan_in_order, batches come in the order in which the disk delivers them.
    yield from _opened(path).scanner(columns=columns, offset=skip, batch_size=batch_rows, scan_in_order=True).to_batches()


def write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a dataset of one version aside, and put it in the place of what is there."""
    aside, before = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.before")
    for folder in (aside, before):
        shutil.rmtree(folder, ignore_errors=True)
    named = (_aligned(batch).replace_schema_metadata(schema.metadata) for batch in batches)
    reader = pa.RecordBatchReader.from_batches(schema, named)
    try:
        _lance().write_dataset(reader, str(aside), schema=schema)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_all(aside)
    if path.exists():
        path.rename(before)  # a folder cannot be renamed over another one
    aside.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(before, ignore_errors=True)


def _aligned(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Copy a batch of a mapped file: there a decimal may begin at any eighth byte, and Lance's reader wants the sixteenth."""
    arrays = [pa.concat_arrays([array, array.slice(0, 0)]) for array in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def _opened(path: Path) -> Any:  # noqa: ANN401 - a dataset
    lance = _lance()
    try:
        return lance.dataset(str(path))
    except ValueError as error:  # what lance makes of a folder that is no dataset
        raise OSError(str(error)) from error


def _lance() -> Any:  # noqa: ANN401 - a module
    try:
        import lance  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(f"Lance files need {install_hint('lance')}.") from error
    return lance
