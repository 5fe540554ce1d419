"""Parquet files whose pages carry checksums, so that a flipped bit is an error and never a number."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.lib import ArrowException

from rayasd.errors import UserError, one_line
from rayasd.files import replacing

CLASSES = b"classes"  # key of an embeddings file's metadata: the classes that the network tells apart (JSON)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table, whole or not at all."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_parquet(path: Path, remedy: str = "restore it", *, sha256: str | None = None, **options: Any) -> pa.Table:
    """Read a table.

    ``remedy``: what to do where it is damaged; ``sha256``: what the file must have; ``options``: of
    ``pyarrow.parquet.read_table``.

    Raises:
        UserError: the file is damaged.
        OSError: it is missing or cannot be read.
    """
    try:
        source: Path | pa.BufferReader = path
        if sha256 is not None:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise UserError(f"{path} is damaged (it is not what was written): {remedy}")
            source = pa.BufferReader(content)
        table = pq.read_table(source, page_checksum_verification=True, partitioning=None, **options)
        _ = table.column_names  # raises if they are damaged: they have no checksum
        return table
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.errno is not None):
            raise  # it is missing, or its disk fails
        raise UserError(f"{path} is damaged ({one_line(error, 100)}): {remedy}") from None
