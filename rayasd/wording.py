"""Numbers and paths as people read them."""

from pathlib import Path


def counted(count: float, noun: str) -> str:
    """Write a number with its noun: 1 unit, 2 units, 0.5 GPUs."""
    number = f"{count:g}" if isinstance(count, float) else str(count)
    return f"{number} {noun}" if count == 1 else f"{number} {noun}s"


def size(num_bytes: float) -> str:
    """Write a number of bytes, to three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def near(path: Path) -> Path:
    """Shorten a path below the working folder to how it is named from there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def elapsed(seconds: float) -> str:
    """Write a duration as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
