"""Reuse of vectors from an older output by text: unchanged rows are not embedded again.

The index is on disk, so that memory does not grow with the older output. Equal text, fingerprint and role give equal
vectors, so a row's id does not matter.
"""

import hashlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from penult.atomic_files import sync_folder
from penult.bulk import tables
from penult.bulk.output import output_files
from penult.bulk.output.output_files import OTHER_FINGERPRINT
from penult.types import Vectors

_INDEX, _VECTORS, _AT_ONCE = "old.sqlite", "old.f32", 500


def check(old: Path, *, fingerprint: str, role: str, text_column: str) -> None:
    """Check that the vectors of an older output can be reused.

    Raises:
        ValueError: the output was created with another model, role or column; the message says which.
    """
    metadata = _metadata(old)
    required = {"penult.fingerprint": fingerprint, "penult.role": role, "penult.text_column": text_column}
    for key, value in required.items():
        if metadata.get(key) != value:
            name = key.removeprefix("penult.")
            note = f" ({OTHER_FINGERPRINT})" if name == "fingerprint" else ""
            raise ValueError(
                f"--from is {old}, whose {name} is {metadata.get(key)!r}, but the {name} of this job is {value!r}. Its vectors "
                "cannot "
                f"be reused{note}. Remove --from."
            )


def build(old: Path, folder: Path, text_column: str) -> None:
    """Write an index of an older output to a folder, unless it exists.

    Raises:
        OSError: the output cannot be read, or the disk is full.
    """
    if (folder / _INDEX).exists():
        return
    try:
        _build(old, folder, text_column)
    except sqlite3.Error as error:
        raise OSError(f"the index of {old} cannot be written to {folder}: {error}") from error


def _build(old: Path, folder: Path, text_column: str) -> None:
    vector_column = _metadata(old)["penult.vector_column"]
    temporary = folder / f"{_INDEX}.part"
    temporary.unlink(missing_ok=True)
    index = sqlite3.connect(temporary)
    index.execute("CREATE TABLE place (text BLOB PRIMARY KEY, row INTEGER) WITHOUT ROWID")
    row = 0
    with (folder / _VECTORS).open("wb") as file:
        for batch in output_files.batches(old, columns=[text_column, vector_column]):
            table = pa.Table.from_batches([batch])
            vectors = tables.vectors_of(table.column(vector_column))
            keys = [_key(text) for text in tables.texts_of(tables.column_of(table, text_column))]
            index.executemany("INSERT OR IGNORE INTO place VALUES (?, ?)", zip(keys, range(row, row + len(keys)), strict=True))
            file.write(np.ascontiguousarray(vectors).tobytes())
            row += len(keys)
        os.fsync(file.fileno())
    index.commit()
    index.close()
    temporary.replace(folder / _INDEX)
    sync_folder(folder)


class Old:
    """The index of an older output, open for reading in one process."""

    def __init__(self, folder: Path, dimension: int) -> None:
        uri = f"{(folder / _INDEX).absolute().as_uri()}?mode=ro&immutable=1"
        # Ray may create an actor in one thread and use it in another.
        self._index = sqlite3.connect(uri, uri=True, check_same_thread=False)
        path = folder / _VECTORS
        rows = path.stat().st_size // (4 * dimension)
        self._vectors = np.memmap(path, np.float32, "r", shape=(rows, dimension)) if rows else np.empty((0, dimension))
        self._dimension = dimension

    def find(self, texts: Sequence[Any]) -> dict[int, int]:
        """Return the older row of each text that has one, by the text's position."""
        keys = {row: _key(text) for row, text in enumerate(texts) if isinstance(text, str)}
        unique = list(set(keys.values()))
        places: dict[bytes, int] = {}
        for start in range(0, len(unique), _AT_ONCE):
            chunk = unique[start : start + _AT_ONCE]
            marks = ",".join("?" * len(chunk))
            places.update(self._index.execute(f"SELECT text, row FROM place WHERE text IN ({marks})", chunk))  # noqa: S608 - marks only
        return {row: places[key] for row, key in keys.items() if key in places}

    def merge(self, good: Sequence[int], taken: dict[int, int], fresh: Vectors) -> Vectors:
        """Merge reused and new vectors in row order: (len(good), D) float32."""
        vectors = np.empty((len(good), self._dimension), np.float32)
        old = [at for at, row in enumerate(good) if row in taken]
        new = [at for at, row in enumerate(good) if row not in taken]
        vectors[old] = self._vectors[[taken[good[at]] for at in old]]
        vectors[new] = fresh
        return vectors


def _metadata(path: Path) -> dict[str, str]:
    if path.suffix not in (".parquet", ".lance"):
        raise ValueError(
            f"--from is {path}, which is not an output with texts and vectors. Pass a .parquet file or a .lance folder."
        )
    return output_files.metadata(path) or {}


def _key(text: str | None) -> bytes:
    return hashlib.blake2b((text or "").encode("utf-8", "surrogatepass"), digest_size=16).digest()
