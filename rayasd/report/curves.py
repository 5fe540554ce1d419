"""Curves: the score of variants that differ in one number, such as how many real anomalies were trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from rayasd.evaluation.leaderboard import Leaderboard, Standing
from rayasd.report.html.svg import PlotArea, drawing, text, ticks
from rayasd.report.tables import INTERVAL, between, percent


@dataclass(frozen=True)
class Curve:
    """Entries of the leaderboard along one setting."""

    setting: str
    name: str  # settings that the variants share
    points: tuple[tuple[float | str, Standing], ...]  # value of the setting and its entry, in order


def find_curves(variants: Mapping[str, Mapping[str, Any]], leaderboard: Leaderboard) -> list[Curve]:
    """Find the variants with an entry that differ in one numeric setting alone, two values or more."""
    entries = {entry.variant: entry for entry in leaderboard.ranked}
    groups: dict[tuple[str, str], list[tuple[float, Standing]]] = {}
    for variant, overrides in variants.items():
        for setting, value in overrides.items():
            if variant in entries and isinstance(value, int | float) and not isinstance(value, bool):
                common = repr(sorted((k, v) for k, v in overrides.items() if k != setting))
                groups.setdefault((setting, common), []).append((value, entries[variant]))
    curves = []
    for (setting, _), points in groups.items():
        if len({value for value, _ in points}) > 1:
            ordered = tuple(sorted(points, key=lambda point: point[0]))
            curves.append(Curve(setting, _common_name([p.variant for _, p in ordered]), ordered))
    return curves


def curve_rows(curve: Curve, leaderboard: Leaderboard) -> tuple[list[str], list[list[str]]]:
    """Titles and lines of a curve's table, in percent."""
    part = leaderboard.part
    titles = [curve.setting, "score", INTERVAL, "AUC", "source", "target", "system"]
    lines = [
        [
            _label(value),
            percent(getattr(entry, part), getattr(entry, f"{part}_std")),
            between(entry.interval),
            percent(entry.auc),
            percent(entry.source_auc),
            percent(entry.target_auc),
            f"{entry.detector} {entry.pooling}",
        ]
        for value, entry in curve.points
    ]
    return titles, lines


def curve_chart(curve: Curve, leaderboard: Leaderboard) -> Markup:
    """Draw score and AUC along the setting, evenly spaced, with the score's 95 % intervals."""
    part = leaderboard.part
    scores = {
        name: [getattr(entry, column) for _, entry in curve.points]
        for name, column in (("score", part), ("source AUC", "source_auc"),
                             ("target AUC", "target_auc"))
    }  # fmt: skip
    bounds = [bound for _, entry in curve.points for bound in entry.interval or ()]
    numbers = [value for values in scores.values() for value in values if value is not None] + bounds
    low, high = (100 * min(numbers), 100 * max(numbers)) if numbers else (0.0, 100.0)
    places = np.arange(len(curve.points))
    plane = PlotArea(34, 22, 300, 180, (-0.3, len(places) - 0.7), (low - 2, high + 2))
    marks = [(float(place), _label(value).split()[0]) for place, (value, _) in zip(places, curve.points, strict=True)]
    frame = plane.axes(marks, ticks(low - 2, high + 2), curve.setting, f"percent, {leaderboard.where} sections")
    whiskers = [
        plane.path([x, x], [100 * bound for bound in found], "threshold", f"95 % {between(found)}")
        for x, (_, entry) in zip(places, curve.points, strict=True)
        if (found := entry.interval) is not None
    ]
    lines, ends = [], []
    for i, (name, values) in enumerate(scores.items()):
        percents = [np.nan if value is None else 100 * value for value in values]
        if not np.isnan(percents[-1]):
            ends.append((float(plane.points(places[-1:], percents[-1:])[0, 1]), name))
        lines.append(plane.path(places, percents, f"line c{i}", name))
    names, below = [], -np.inf
    for y, name in sorted(ends):  # beside the lines' ends, and not one over the other
        below = max(y, below + 13)
        names.append(text(338, below + 4, name, class_="label"))
    return drawing(440, 250, f"{curve.name}, by {curve.setting}", frame, *whiskers, *lines, *names)


def _label(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _common_name(names: list[str]) -> str:
    shortest = min(names, key=len)
    length = next((i for i, c in enumerate(shortest) if any(name[i] != c for name in names)), len(shortest))
    return shortest[:length].rstrip("-._0123456789") or shortest
