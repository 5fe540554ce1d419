"""A unit's markers: DONE names every file that it wrote, with size and checksum; FAILED says why there are none."""

import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayasd.files import file_digest, now, read_record, write_json
from rayasd.unit import RunDirectory, Unit, UnitSpec


def mark_done(spec: UnitSpec, **details: Any) -> None:
    """Write a unit's marker, last of all its files; names them with sizes and checksums."""
    paths = spec.run
    markers = {paths.marker(spec.unit, "DONE"), paths.marker(spec.unit, "FAILED"), paths.progress(spec.unit)}
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(spec.output.iterdir())
        if path not in markers and not path.name.startswith(".")
    }
    marker = {
        "identity": spec.identity,
        "files": files,
        "host": socket.gethostname(),
        "time": now(),
        **details,
    }
    write_json(paths.marker(spec.unit, "DONE"), marker)
    paths.marker(spec.unit, "FAILED").unlink(missing_ok=True)


def is_done(spec: UnitSpec) -> bool:
    """Whether the unit's marker stands, is of this identity, and the files it names are there in their size."""
    marker = read_record(spec.run.marker(spec.unit, "DONE"))
    return marker.get("identity") == spec.identity and all(
        _size(spec.output / name) == file["bytes"] for name, file in _files(marker).items()
    )


def damage(paths: RunDirectory, unit: Unit) -> str | None:
    """Say which file of a finished unit is missing or not the one that its marker tells of; None if all are."""
    marker = paths.marker(unit, "DONE")
    for name, file in _files(read_record(marker)).items():
        path = paths.output(unit) / name
        if not path.exists() or file_digest(path) != file["sha256"]:
            return f"{path} is damaged: it is not what {unit} wrote; rayasd sweep does that again"
    return None


def forget(paths: RunDirectory, unit: Unit) -> None:
    """Take back that a unit is done: the next sweep does it again."""
    with suppress(OSError):  # where nothing can be written
        paths.marker(unit, "DONE").unlink()


def mark_failed(spec: UnitSpec, reason: str, details: str, tries: int) -> None:
    """Write the failure marker, with the traceback for those who ask."""
    marker = {"identity": spec.identity, "reason": reason, "tries": tries, "time": now(), "traceback": details}
    write_json(spec.run.marker(spec.unit, "FAILED"), marker)


def failure(spec: UnitSpec) -> str | None:
    """Reason why the unit failed for good in an earlier sweep of the same configuration, if it did."""
    marker = read_record(spec.run.marker(spec.unit, "FAILED"))
    return str(marker.get("reason")) if marker.get("identity") == spec.identity else None


def _files(marker: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give size and sha256 of each file that a marker names; those of a damaged one fit no file."""
    files = marker.get("files", {})
    whole = isinstance(files, dict) and all(
        isinstance(file, dict) and {"bytes", "sha256"} <= file.keys() for file in files.values()
    )
    return files if whole else {"DONE": {"bytes": -2, "sha256": ""}}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
