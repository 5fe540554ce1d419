"""A unit's markers: DONE names every file that it wrote, with size and checksum; FAILED says why there are none.

Only a driver, which holds the run's lock, removes a marker. Everybody else reads.
"""

import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayasd.files import file_digest, now, read_record, write_json
from rayasd.nested import changed_settings
from rayasd.unit import Unit, UnitSpec


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
        "version": spec.version,
        "settings": spec.settings,
        "data": spec.data,
        "files": files,
        "host": socket.gethostname(),
        "time": now(),
        **details,
    }
    write_json(paths.marker(spec.unit, "DONE"), marker)
    paths.marker(spec.unit, "FAILED").unlink(missing_ok=True)


def is_done(spec: UnitSpec) -> bool:
    """Whether the unit's marker exists with this identity, and the files it names exist with their sizes."""
    marker = read_record(spec.run.marker(spec.unit, "DONE"))
    return marker.get("identity") == spec.identity and all(
        _size(spec.output / name) == file["bytes"] for name, file in _files(marker).items()
    )


def why_unusable(spec: UnitSpec) -> str | None:
    """Return why a unit's files must not be used: it is not done, or a file is damaged; reads them all."""
    marker, unit = read_record(spec.run.marker(spec.unit, "DONE")), spec.unit
    if not marker:
        return f"{unit} of {spec.run.root} is not done: rayasd sweep does it"
    for name, file in _files(marker).items():
        path = spec.output / name
        if not path.exists() or file_digest(path) != file["sha256"]:
            return damaged(path, unit)
    if why := why_again(spec):
        return f"{unit} of {spec.run.root} was done with {why}: rayasd sweep does it again"
    return None


def damaged(path: Path, unit: Unit) -> str:
    """Return the error text of a file that is not what its unit wrote."""
    return f"{path} is damaged: it is not what {unit} wrote; rayasd sweep --verify does that again"


def checksum(spec: UnitSpec, path: Path) -> str:
    """Return the sha256 that a unit's marker has for one of its files; empty where it names no such file."""
    return str(_files(read_record(spec.run.marker(spec.unit, "DONE"))).get(path.name, {}).get("sha256", ""))


def why_again(spec: UnitSpec) -> str | None:
    """Return what has changed since a unit was done, old value first; None where nothing has, or it is not done."""
    marker = read_record(spec.run.marker(spec.unit, "DONE"))
    if not marker or marker.get("identity") == spec.identity:
        return None
    before = marker.get("settings")
    if marker.get("version") != spec.version or not isinstance(before, dict):
        return f"version {marker.get('version')} of {spec.unit.stage}, which is now {spec.version}"
    changed = changed_settings(before, spec.settings, "default")
    return ", ".join(changed) or "other data, labels or pretrained weights"


def forget(spec: UnitSpec) -> None:
    """Remove a unit's marker, so that it is done again; only for a driver, which holds the lock."""
    with suppress(OSError):  # where nothing can be written
        spec.run.marker(spec.unit, "DONE").unlink()


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
