"""Curves: the score of variants that differ in one number, such as how many real anomalies were trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayasd.evaluation.leaderboard import Leaderboard, Standing
from rayasd.evaluation.selection import LEAVE_ONE_OUT
from rayasd.files import replacing
from rayasd.report.tables import between, percent


@dataclass(frozen=True)
class Curve:
    """Entries of the leaderboard along one setting."""

    setting: str
    name: str
    """What the variants have in common."""
    points: tuple[tuple[float, Standing], ...]
    """Value of the setting and its entry, by rising value."""


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
    titles = [
        curve.setting,
        f"official {leaderboard.year} {part}",
        "95 % interval",
        "AUC",
        "source",
        "target",
        "system",
    ]
    lines = [
        [
            f"{value:g}",
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


def plot_curve(path: Path, curve: Curve, leaderboard: Leaderboard) -> None:
    """Draw score and AUC along the setting, with the score's 95 % intervals (PNG)."""
    from matplotlib.figure import Figure  # a second to import, and few reports have curves

    part = leaderboard.part
    values = [value for value, _ in curve.points]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    whole = [(value, entry) for value, entry in curve.points if entry.interval is not None]
    axes.fill_between(
        [value for value, _ in whole],
        [100 * entry.interval[0] for _, entry in whole if entry.interval],
        [100 * entry.interval[1] for _, entry in whole if entry.interval],
        alpha=0.2, linewidth=0, label="its 95 % interval",
    )  # fmt: skip
    for name, label in ((part, f"official {leaderboard.year} score"), ("source_auc", "source AUC"),
                        ("target_auc", "target AUC")):  # fmt: skip
        scores = [getattr(entry, name) for _, entry in curve.points]
        if any(score is not None for score in scores):
            axes.plot(values, [float("nan") if s is None else 100 * s for s in scores], marker="o", label=label)
    if min(values) >= 0 and max(values) > 4 * sorted(values)[len(values) // 2]:
        axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.set(xlabel=curve.setting, ylabel=f"percent, {_sections(leaderboard)} sections", title=curve.name)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _sections(leaderboard: Leaderboard) -> str:
    return "held-out" if leaderboard.ranked_on == LEAVE_ONE_OUT else leaderboard.ranked_on


def _common_name(names: list[str]) -> str:
    shortest = min(names, key=len)
    length = next((i for i, c in enumerate(shortest) if any(name[i] != c for name in names)), len(shortest))
    return shortest[:length].rstrip("-._0123456789") or shortest
