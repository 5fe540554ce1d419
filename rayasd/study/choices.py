"""Parse names, seeds and folders from short forms and defaults."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rayasd.config import Config
from rayasd.data.naming import matching
from rayasd.errors import UserError

DEFAULT_DATA = Path("data")
MAX_SEEDS = 10_000


def choose(kind: str, names: str | Iterable[str], available: Sequence[str]) -> tuple[str, ...]:
    """Resolve 'all', a comma-separated choice or a list of names among what is available.

    Raises UserError: an unknown name, or none.
    """
    if names == "all":
        return tuple(available)
    parts = names.split(",") if isinstance(names, str) else names
    chosen = tuple(dict.fromkeys(matching(kind, part.strip(), available) for part in parts if part.strip()))
    if not chosen:
        raise UserError(f"no {kind} chosen: all, or some of {', '.join(available)}")
    return chosen


def choose_variants(names: str | Iterable[str] | None, config: Config) -> tuple[str, ...]:
    """Resolve a choice among a configuration's variants; None is the first of them.

    Raises UserError: an unknown name, or none.
    """
    return choose("variant", next(iter(config.variants), "") if names is None else names, sorted(config.variants))


def parse_seeds(given: str | int | Iterable[int]) -> tuple[int, ...]:
    """Read seeds such as '0,1,2', '0-4', 3 or [0, 1]. Raises UserError: not whole numbers from 0."""
    text = str(given) if isinstance(given, str | int) else ",".join(map(str, given))
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"--seeds {text}: give whole numbers from 0, for example 0,1,2 or 0-4")
        if int(last or first) - int(first) >= MAX_SEEDS:
            raise UserError(f"--seeds {text}: more than {MAX_SEEDS} seeds")
        if int(last or first) < int(first):
            raise UserError(f"--seeds {text}: {part.strip()} is an empty range")
        if int(last or first) >= 1 << 63:
            raise UserError(f"--seeds {text}: a seed must be below 2^63")
        seeds += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(seeds))


def data_source(given: str | Path | None) -> Path:
    """Return where the clips are: as given, else $RAYASD_DATA, else data/.

    Raises UserError: none of them exists; names two ways to get some.
    """
    if place := given or os.environ.get("RAYASD_DATA"):
        return Path(place)
    if DEFAULT_DATA.is_dir():
        return DEFAULT_DATA
    raise UserError(
        "no data: give --data ROOT or set RAYASD_DATA; to make some, 'rayasd data synth data' (synthetic machines) or "
        "'rayasd data index FOLDER' (your own recordings)"
    )


def cache_folder(given: str | Path | None) -> Path:
    """Return where decoded waveforms go: as given, else $RAYASD_CACHE, else the user's cache folder.

    Raises UserError: none is given, and the user has no home folder.
    """
    if place := given or os.environ.get("RAYASD_CACHE"):
        return Path(place).absolute()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayasd"
    except RuntimeError:
        raise UserError("you have no home folder: choose one with --cache DIR or RAYASD_CACHE") from None
