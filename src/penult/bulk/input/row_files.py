"""Files that are read row by row: CSV, TSV, JSON lines, JSON, text and documents. Does not import Arrow."""

from collections.abc import Iterator

from penult.bulk.input import csv_rows, documents, json_rows, streams, text_rows
from penult.bulk.input.input_files import Input
from penult.bulk.input.rows import Item, Row, UnreadableError


def items(file: Input) -> Iterator[Item]:
    """Yield all rows of a file in order; values from its folder names (`key=value`) fill missing columns.

    Raises:
        UnreadableError: the file is damaged, or its content does not match its extension.
    """
    try:
        if file.format != "document" and (problem := streams.foreign(file.path)):
            raise OSError(f"it {problem}")
        for item in _items(file):
            yield _filled(item, file) if file.partitions else item
    except OSError as error:
        raise UnreadableError(f"{file.name} cannot be read: {error}") from error


def columns(file: Input) -> list[str]:
    """Return the columns of a file whose columns are known without its rows: CSV and TSV by header, text, documents."""
    if file.format == "csv":
        return csv_rows.columns_of(file.path, file.name, file.options)
    if file.format == "tsv":
        return csv_rows.columns_of(file.path, file.name, file.options, "\t")
    return list(text_rows.COLUMNS if file.format == "text" else documents.COLUMNS)


def _items(file: Input) -> Iterator[Item]:
    if file.format == "document":
        return (documents.read_document(*of, file.options) for of in [(file.path, file.name, file.id)])
    readers = {
        "csv": csv_rows.read_csv,
        "tsv": csv_rows.read_tsv,
        "jsonl": json_rows.read_lines,
        "json": json_rows.read_values,
        "text": text_rows.read_text,
    }
    return readers[file.format](file.path, file.name, file.options)


def _filled(item: Item, file: Input) -> Item:
    if not isinstance(item, Row):
        return item
    missing = {key: value for key, value in file.partitions if item.values.get(key) is None}
    return Row(item.line, item.values | missing, item.size)
