"""Tables of clips as people keep them: CSV of any separator, line end and encoding, or Parquet."""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow.lib import ArrowException

from rayasd.errors import UserError, one_line

_FACT = re.compile(r"# (root|rate|column): *(.*?)\r?\n")
"""A first line of a manifest: the folder of its paths, or the rate and column of numbers in files."""


def read_table(path: Path) -> tuple[list[dict[str, Any]], list[str], dict[str, str]]:
    """Read a table.

    Returns rows by column; the columns, as they are spelled; and what first lines ``# root: FOLDER``, ``# rate: HZ``
    and ``# column: NAME`` say. Raises UserError: it is no table, or cannot be opened.
    """
    with _reading(path):
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path)
            return table.to_pylist(), table.column_names, {}
        text, facts = decoded(path.read_bytes()), {}
        while match := _FACT.match(text):
            facts[match[1]], text = match[2].strip(), text[match.end() :]
        head = text.partition("\n")[0]
        separator = max(",;\t|", key=head.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        return list(reader), columns, facts


def read_rows(path: Path) -> list[list[str]]:
    """Read the rows of a CSV file without a header. Raises UserError: as ``read_table``."""
    with _reading(path):
        return list(csv.reader(io.StringIO(decoded(path.read_bytes()), newline="")))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}") from None
    except (ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table: {one_line(error)}") from None


def words(value: object) -> str:
    """Return a cell as text: a missing one, and the nan of pandas, are empty."""
    text = "" if value is None or value != value else str(value).strip()
    return "" if text.lower() == "nan" else text


def decoded(content: bytes) -> str:
    """Return the text of a file in UTF-8 or UTF-16, with plain line ends."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16").replace("\r\n", "\n")
    return content.decode("utf-8-sig").replace("\r\n", "\n")
