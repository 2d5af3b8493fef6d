"""Lance datasets as input and output. The only module that imports lance (the extra `lance`)."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from penult.atomic_files import sync_all, sync_folder
from penult.extras import install_hint


def check() -> None:
    """Raise ImportError if lance is not installed; the message says how to install it."""
    _lance()


def look(path: Path) -> tuple[pa.Schema, int]:
    """Return a dataset's schema and number of rows."""
    dataset = _opened(path)
    return dataset.schema, int(dataset.count_rows())


def read(path: Path, skip: int = 0, columns: list[str] | None = None, batch_rows: int = 4096) -> Iterator[pa.RecordBatch]:
    """Read a dataset in row order, starting at row `skip`."""
    # Without scan_in_order, batches arrive in the order of disk reads.
    yield from _opened(path).scanner(columns=columns, offset=skip, batch_size=batch_rows, scan_in_order=True).to_batches()


def write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a dataset of one version to a temporary folder, then rename it over the existing one."""
    temporary, backup = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.before")
    for folder in (temporary, backup):
        shutil.rmtree(folder, ignore_errors=True)
    named = (_aligned(batch).replace_schema_metadata(schema.metadata) for batch in batches)
    reader = pa.RecordBatchReader.from_batches(schema, named)
    try:
        _lance().write_dataset(reader, str(temporary), schema=schema)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_all(temporary)
    if path.exists():
        path.rename(backup)  # a folder cannot be renamed over another one
    temporary.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(backup, ignore_errors=True)


def _aligned(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Copy a batch of a memory-mapped file: its decimals may be aligned to 8 bytes, and Lance's reader requires 16."""
    arrays = [pa.concat_arrays([array, array.slice(0, 0)]) for array in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def _opened(path: Path) -> Any:  # noqa: ANN401 - a dataset
    lance = _lance()
    try:
        return lance.dataset(str(path))
    except ValueError as error:  # raised by lance for a folder that is not a dataset
        raise OSError(str(error)) from error


def _lance() -> Any:  # noqa: ANN401 - a module
    try:
        import lance  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(f"Lance files need {install_hint('lance')}.") from error
    return lance
