"""What the parts found, as JSON and as one Markdown table; both are rewritten after each part."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rayasd.files import replacing

JSON, MARKDOWN = "gpu.json", "gpu.md"
HEADER = ("part", "figure", "value", "quartiles", "unit", "bound", "verdict", "note")


@dataclass(frozen=True)
class Row:
    """One figure or fact."""

    what: str
    value: float | str
    unit: str = ""
    low: float | None = None
    """First quartile over the timed spans, where there are several."""
    high: float | None = None
    bound: str = ""
    """What the value must be, where it is checked."""
    passed: bool | None = None
    note: str = ""


def at_most(what: str, value: float, bound: float, unit: str = "", note: str = "") -> Row:
    """Check that a value does not exceed a bound; NaN does."""
    return Row(what, _plain(value), unit, bound=f"at most {bound:g}", passed=bool(value <= bound), note=note)


def at_least(what: str, value: float, bound: float, unit: str = "", note: str = "") -> Row:
    """Check that a value reaches a bound; NaN does not."""
    return Row(what, _plain(value), unit, bound=f"at least {bound:g}", passed=bool(value >= bound), note=note)


def _plain(value: float) -> float | str:
    """Make a value fit for JSON, which has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else str(value)


def timed(what: str, values: Sequence[float], unit: str, note: str = "") -> Row:
    """Give the median and the quartiles of several spans."""
    if len(values) < 2:
        return Row(what, values[0], unit, note=note)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Row(what, middle, unit, low, high, note=note)


Status = Literal["ok", "failed", "skipped"]


@dataclass
class Outcome:
    """What a part found."""

    name: str
    status: Status = "ok"
    reason: str = ""
    """Why it failed or was skipped."""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)

    def fail(self, reason: str) -> None:
        """Note a failure; the first one's reason stays."""
        if self.status != "failed":
            self.status, self.reason = "failed", reason


def write(folder: Path, outcomes: Sequence[Outcome], settings: dict[str, object]) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "parts": [asdict(outcome) for outcome in outcomes]}
    texts = {JSON: json.dumps(content, indent=2, allow_nan=False) + "\n", MARKDOWN: table(outcomes)}
    for name, text in texts.items():
        with replacing(folder / name) as path:
            path.write_text(text, encoding="utf-8")


def table(outcomes: Sequence[Outcome]) -> str:
    """Format all rows as a Markdown table; each part has a row of its own too."""
    lines = [HEADER, ("---",) * len(HEADER)]
    for outcome in outcomes:
        lines.append((outcome.name, "whole part", f"{outcome.seconds:.1f}", "", "s", "", outcome.status,
                      outcome.reason))  # fmt: skip
        lines += [_cells(outcome.name, row) for row in outcome.rows]
    return "".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |\n" for line in lines)


def _cells(part: str, row: Row) -> tuple[str, ...]:
    quartiles = "" if row.low is None or row.high is None else f"{number(row.low)} to {number(row.high)}"
    verdict = {True: "ok", False: "failed", None: ""}[row.passed]
    return part, row.what, number(row.value), quartiles, row.unit, row.bound, verdict, row.note


def number(value: float | str) -> str:
    """Format a value for the table."""
    return value if isinstance(value, str) else f"{value:.4g}"
