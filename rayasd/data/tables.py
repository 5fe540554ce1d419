"""Tables of clips as people keep them: CSV of any separator, line end and encoding, or Parquet."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow.lib import ArrowException

from rayasd.errors import UserError, one_line

ROOT_LINE = "# root:"
"""Begins the first line of a manifest whose paths are relative to another folder than its own."""

Records = list[dict[str, Any]]


def read_table(path: Path) -> tuple[Records, list[str], str | None]:
    """Read a table.

    Returns:
        Rows by column; the columns, as they are spelled; the folder that a first line ``# root: FOLDER`` names.

    Raises:
        UserError: it is no table, or cannot be opened.

    """
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path)
            return table.to_pylist(), table.column_names, None
        text = _decoded(path.read_bytes())
        root = None
        if text.startswith(ROOT_LINE):
            line, _, text = text.partition("\n")
            root = line.removeprefix(ROOT_LINE).strip()
        head = text.partition("\n")[0]
        separator = max(",;\t|", key=head.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        return list(reader), columns, root
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}") from None
    except (ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a manifest: {one_line(error)}") from None


def read_rows(path: Path) -> list[list[str]]:
    """Read the rows of a CSV file without a header.

    Raises:
        UserError: it is no such file, or cannot be opened.

    """
    try:
        return list(csv.reader(io.StringIO(_decoded(path.read_bytes()), newline="")))
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {one_line(error)}") from None


def in_lower_case(records: Records, columns: Sequence[str], known: Sequence[str]) -> tuple[Records, list[str]]:
    """Rename columns that are one of ``known`` but for their case (Path, LABEL)."""
    names = {column: column.lower() for column in columns if column.lower() in known and column.lower() not in columns}
    return [{names.get(k, k): v for k, v in row.items()} for row in records], [names.get(c, c) for c in columns]


def words(value: object) -> str:
    """Return a cell as text: a missing one, and the nan of pandas, are empty."""
    text = "" if value is None or value != value else str(value).strip()
    return "" if text.lower() == "nan" else text


def _decoded(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16").replace("\r\n", "\n")
    return content.decode("utf-8-sig").replace("\r\n", "\n")
