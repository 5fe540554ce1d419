"""The decoded catalog as a file in the run directory, from which every unit reads what clips there are."""

from pathlib import Path

import pyarrow.parquet as pq

from rayasd.data.catalog import Catalog
from rayasd.files import replacing


def write_catalog(path: Path, catalog: Catalog) -> None:
    """Write a decoded catalog as Parquet."""
    with replacing(path) as temporary:
        pq.write_table(catalog.table, temporary, compression="zstd")


def read_catalog(path: Path, root: Path) -> Catalog:
    """Read a decoded catalog whose clips lie below ``root``."""
    return Catalog(root, pq.read_table(path))
