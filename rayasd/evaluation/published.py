"""Published systems, and whether a run's data are the benchmark that they were measured on."""

import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayasd.config import EvaluationConfig
from rayasd.data.years import is_development, sections_of
from rayasd.evaluation.selection import LEAVE_ONE_OUT


@dataclass(frozen=True)
class Published:
    """A published official score on one part."""

    name: str
    score: float  # fraction of 1
    source: str  # source of the number


def published_systems(part: str, year: int) -> list[Published]:
    """List the systems with a score on this part of a year's data, best first; others are never compared."""
    systems = [
        Published(system["name"], system[part][str(year)] / 100, system["source"])
        for system in _data()["systems"]
        if str(year) in system.get(part, {})
    ]
    return sorted(systems, key=lambda system: -system.score)


def why_not_benchmark(catalog: pa.Table, part: str, evaluation: EvaluationConfig, *, synthetic: bool) -> str | None:
    """Return why a run's test clips are not the year's benchmark of this part; None when they are.

    It is scored by its year's rules; every machine, section and domain must have about as many test clips as there
    were, all labelled, and the evaluation part exactly as many (2020's excepted). The audio itself is not compared: no
    digests of it are published.
    """
    year = evaluation.rule_year
    name = f"DCASE {year} Task 2"
    if not published_systems(part, year):
        return f"nothing published on {name} is known here"
    if evaluation.development or evaluation.selection == LEAVE_ONE_OUT:
        return "development and evaluation sections are not divided as the benchmark divides them"
    if synthetic:
        return f"the data are synthetic, not {name}"
    of_part = [
        is_development(year, m, s) == (part == "development")
        for m, s in zip(catalog["machine"].to_pylist(), catalog["section"].to_pylist(), strict=True)
    ]
    test = catalog.filter(pa.array(of_part, pa.bool_())).filter(pc.field("split") == "test")
    cells = Counter(zip(*(test[n].to_pylist() for n in ("machine", "section", "domain")), strict=True))
    domains = ("source",) if year == 2020 else ("source", "target")
    wanted = {(m, s, d) for m, s in sections_of(year, part) for d in domains}
    if cells.keys() != wanted:
        there, others = len(cells.keys() & wanted), len(cells.keys() - wanted)
        return f"the data are not {name}: {there} of its {len(wanted)} {part} cells, {others} others"
    count = _data()["num_test_clips"].get(part, {}).get(str(year))
    if count is not None and test.num_rows != count:
        return f"the data are not {name}: {test.num_rows} {part} test clips instead of {count}"
    least, most = _data()["clips_per_cell"][str(year)]
    for cell, number in cells.items():
        if not least <= number <= most:
            return f"the data are not {name}: {' '.join(cell)} has {number} test clips, not {least} to {most}"
    if test["label"].null_count:
        return f"{test['label'].null_count} of the {part} test clips have no label"
    return None


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads((resources.files(__package__) / "published.toml").read_text(encoding="utf-8"))
