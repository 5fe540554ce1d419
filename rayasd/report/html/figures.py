"""The charts of the page: ROC curves, score histograms, training curves, embedding maps, spectrograms."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from rayasd.evaluation.metrics import MAX_FPR
from rayasd.report.html.evidence import FPR, SectionResult
from rayasd.report.html.maps import EmbeddingMap
from rayasd.report.html.svg import PlotArea, drawing, log_ticks, short, tag, ticks
from rayasd.report.tables import percent

NUM_COLOURS = 8  # colours of chart.css: c0 to c7
NUM_BINS = 30
LABELS = {0: "normal", 1: "anomalous", None: "unknown"}
DOMAINS = ("source", "target", "unknown")
_LABEL_CLASSES = {0: "c0", 1: "c1", None: "c7"}


class ChartCurve(NamedTuple):
    """A line of a chart."""

    name: str
    class_: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def roc_chart(machine: str, curves: Sequence[ChartCurve]) -> Markup:
    """Draw ROC curves over the range of false-positive rates that the pAUC takes, shaded."""
    areas = (f"{curve.name}, area {percent(float(np.trapezoid(curve.y, FPR)))} %" for curve in curves)
    title = f"ROC curves of {machine}: " + "; ".join(areas)
    return _square(title, "false-positive rate", "true-positive rate", curves, MAX_FPR)


def reliability_chart(variant: str, curves: Sequence[ChartCurve]) -> Markup:
    """Draw false-alarm rates that were measured on normal test clips over those that p-values promise."""
    title = f"Promised and measured false-alarm rate of {variant}: {', '.join(curve.name for curve in curves)}"
    return _square(title, "promised false-alarm rate", "measured", curves)


def _square(title: str, x: str, y: str, curves: Sequence[ChartCurve], shaded: float | None = None) -> Markup:
    area = PlotArea(34, 22, 238, 238, (0, 1), (0, 1))
    marks = [(value, f"{value:g}") for value in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    band = "" if shaded is None else area.band((0, shaded), "shade", f"pAUC: false-positive rate up to {shaded:g}")
    lines = [area.path(curve.x, curve.y, curve.class_, curve.name) for curve in reversed(curves)]
    return drawing(280, 294, title, band, area.axes(marks, marks, x, y), area.path([0, 1], [0, 1], "chance"), *lines)


def histogram(result: SectionResult) -> Markup:
    """Draw the scores of a section's test clips, one panel per domain, by label, with the threshold of decisions."""
    scores = result.scores.scores
    finite = scores[np.isfinite(scores)]
    low, high = _bulk(finite)
    if result.threshold is not None:
        low, high = min(low, result.threshold), max(high, result.threshold)
    margin = 0.03 * (high - low) or abs(low) * 0.01 or 0.01
    edges = np.linspace(low - margin, high + margin, NUM_BINS + 1)
    domains = sorted(set(result.scores.domains))
    height, shapes = 96.0, []
    for row, domain in enumerate(domains):
        of_domain = (result.scores.domains == domain) & np.isfinite(scores)
        shares = {}
        for label in LABELS:
            values = scores[of_domain & (result.labels == label)]
            if len(values):
                shares[label] = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
        top = max((share.max() for share in shares.values()), default=1.0) * 1.08
        plane = PlotArea(34, 22 + row * (height + 34), 230, height, (edges[0], edges[-1]), (0, 100 * top))
        last = row == len(domains) - 1
        shapes += [
            plane.axes(ticks(edges[0], edges[-1], 4), ticks(0, 100 * top, 3), "anomaly score" if last else "",
                       f"{domain}: % of clips"),
            *(plane.steps(edges, 100 * share, f"bars {_LABEL_CLASSES[label]}") for label, share in shares.items()),
        ]  # fmt: skip
        if result.threshold is not None:
            shapes.append(plane.upright(result.threshold, "threshold", f"threshold {result.threshold:.4g}"))
    title = f"Scores of {result.machine}, section {result.section}: {', '.join(domains)}" + (
        "; no threshold" if result.threshold is None else f"; threshold {result.threshold:.4g}"
    )
    return drawing(276, 22 + len(domains) * (height + 34) + 4, title, *shapes)


def _bulk(values: NDArray[np.float64]) -> tuple[float, float]:
    """Range of nearly all values; few that lie far out do not stretch it."""
    low, first, third, high = np.quantile(values, [0.005, 0.25, 0.75, 0.99])
    reach = 4 * (third - first) or high - low
    return max(float(low), float(first - reach)), min(float(high), float(third + reach))


def training_chart(machine: str, curves: Sequence[ChartCurve]) -> Markup:
    """Draw losses over epochs on a logarithmic scale."""
    values = np.concatenate([curve.y for curve in curves])
    values = values[np.isfinite(values) & (values > 0)]
    low, high = (values.min() / 1.1, values.max() * 1.1) if len(values) else (0.1, 1.0)
    last = max(float(curve.x[-1]) for curve in curves)
    plane = PlotArea(42, 22, 230, 170, (0, max(last, 1.0)), (low, high), log_y=True)
    frame = plane.axes(ticks(0, max(last, 1.0)), log_ticks(low, high), "epoch", "loss")
    lines = [plane.path(curve.x, curve.y, curve.class_, curve.name) for curve in curves]
    return drawing(280, 228, f"Training and validation loss of {machine}", frame, *lines)


def embedding_map(found: EmbeddingMap) -> Markup:
    """Draw one point per clip: a dot if normal, a cross if anomalous, a square if unknown; coloured by classes."""
    x, y = found.places.T
    plane = PlotArea(6, 6, 268, 228, _range(x), _range(y))
    pixels = plane.points(x, y)
    shapes = []
    for group in dict.fromkeys(found.groups):
        members = [i for i, of_clip in enumerate(found.groups) if of_clip == group]
        section, domain, label = group
        shape = {0: "h0", 1: "m-2.5-2.5l5 5m-5 0l5-5", None: "m-2-2h4v4h-4z"}[label]
        path = "".join(f"M{short(float(pixels[i, 0]))} {short(float(pixels[i, 1]))}{shape}" for i in members)
        classes = f"{map_classes(found.sections, section, domain, label)} {'dots' if label == 0 else 'marks'}"
        title = tag("title", f"section {section}, {domain}, {LABELS[label]}")
        shapes.append(tag("path", title, d=path, class_=classes))
    frame = tag("rect", x=0.5, y=0.5, width=279, height=239, class_="frame")
    return drawing(280, 240, f"Embeddings of {found.machine}, {found.variant}", frame, *shapes)


def map_classes(sections: Sequence[str], section: str, domain: str, label: int | None) -> str:
    """Classes of a point by which chart.css colours it."""
    of_section = sections.index(section) % NUM_COLOURS
    of_domain = DOMAINS.index(domain) if domain in DOMAINS else len(DOMAINS) - 1
    return f"by-section-{of_section} by-domain-{of_domain} by-label-{ {0: 0, 1: 1, None: 2}[label] }"


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin
