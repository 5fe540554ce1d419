"""The page of a run: gathers tables, charts and clips, and writes report.html and the charts as files."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import pyarrow.compute as pc
import tomli_w
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from rayasd.ensemble_names import parse_entry
from rayasd.evaluation.cells import members_of
from rayasd.evaluation.leaderboard import Standing
from rayasd.files import now, write_text
from rayasd.report.curves import curve_chart, find_curves
from rayasd.report.html import figures
from rayasd.report.html.evidence import FPR, SectionResult, WrongClip, mean_roc, most_wrong, read_results
from rayasd.report.html.figures import ChartCurve, HeatCell
from rayasd.report.html.maps import MAX_POINTS, EmbeddingMap, draw_sample, read_maps
from rayasd.report.html.run import ReportedRun, facts, published_rank
from rayasd.report.html.sounds import MAX_SECONDS, read_clip, sound, spectrogram_of
from rayasd.report.html.svg import write_drawing
from rayasd.report.tables import WORDS, columns, decision_table, notes
from rayasd.unit import Unit

MAX_ROWS = 300
"""Systems of the leaderboard."""
MAX_SYSTEMS = 4
"""Entries of heat maps, ROC curves and training curves."""
MAX_MAPS = 3
"""Variants whose embeddings are drawn."""
MAX_EPOCHS = 120
"""Points of one training curve."""
MAX_CLIPS = 140
"""Clips with a picture, ten a machine at most."""
MAX_SOUND = 30_000_000
"""Characters of sound, an even share for each machine."""

Charts = dict[str, Markup]
"""Charts by machine."""


@dataclass(frozen=True)
class ShownClip:
    """A clip that went wrong."""

    facts: WrongClip
    picture: str | None
    sound: str | None
    problem: str | None
    """Why there is no picture, or no sound."""

    @property
    def verdict(self) -> str:
        """Say in words what is wrong."""
        share = f"{100 * self.facts.wrongness:.0f}\N{NO-BREAK SPACE}%"
        if self.facts.anomalous:
            return f"anomalous, scored below {share} of the normal clips"
        return f"normal, scored above {share} of the anomalous clips"


def write_page(run: ReportedRun, *, with_audio: bool = False) -> int:
    """Write report.html and the charts in plots/; returns the page's size in bytes."""
    entries = run.entries[:MAX_SYSTEMS]
    results = {entry.variant: _results(run, entry.variant) for entry in entries}
    best = entries[0] if entries else None
    of_best = results[best.variant] if best else []
    seed = min((r.seed for r in of_best if r.seed is not None), default=None)
    scored = [r for r in of_best if r.seed == seed and np.isfinite(r.scores.scores).any()]
    heat_maps = {entry.variant: _heat_map(run, entry) for entry in entries}
    roc = dict(_roc_charts(run, results))
    histograms = {(r.machine, r.section): figures.histogram(r) for r in scored}
    training, trained = _training_charts(run)
    maps, curves = _maps(run), find_curves(run.config.variants, run.leaderboard)
    sentence, published = published_rank(run)
    shown, standings = columns(run.leaderboard), run.leaderboard.standings[:MAX_ROWS]
    text = _template().render(
        css=_part("chart.css") + _part("page.css"),
        js=_part("page.js"),
        run=run,
        written=now()[:16].replace("T", " "),
        facts=facts(run),
        configuration=tomli_w.dumps(run.config.as_dict()),
        problems=_problems(run),
        titles=[column.title for column in shown],
        words=WORDS,
        rows=[(s.rank is not None, [column.text(s) for column in shown]) for s in standings],
        num_systems=len(run.leaderboard.standings),
        notes=notes(run.leaderboard, standings, [column.title for column in shown]),
        published_sentence=sentence,
        published=published,
        heat_maps=[(entry, heat_maps[entry.variant]) for entry in entries],
        systems=[(entry.variant, f"line c{i}") for i, entry in enumerate(entries)],
        best=best,
        roc=roc,
        seed=seed,
        decisions=decision_table(run.cells, best.variant, run.evaluation) if best else None,
        reliability=figures.reliability_chart(best.variant, _reliability(run, of_best)) if best else None,
        histograms={m: [(s, chart) for (of, s), chart in histograms.items() if of == m] for m, _ in histograms},
        maps=maps,
        methods=list(dict.fromkeys(each.method for of_machine in maps.values() for each, _ in of_machine)),
        max_points=MAX_POINTS,
        domains=figures.DOMAINS,
        num_colours=figures.NUM_COLOURS,
        curves=[(curve, curve_chart(curve, run.leaderboard)) for curve in curves],
        training=training,
        trained=trained,
        clips=_wrong_clips(run, best, of_best, with_audio=with_audio),
        with_audio=with_audio,
        max_seconds=MAX_SECONDS,
    )
    write_text(run.out.html, text)
    _write_charts(run, {f"heat-map-{variant}": chart for variant, chart in heat_maps.items()})
    _write_charts(run, {f"roc-{machine}": chart for machine, chart in roc.items()})
    _write_charts(run, {f"scores-{machine}-{section}": chart for (machine, section), chart in histograms.items()})
    _write_charts(run, {f"training-{machine}": chart for machine, chart in training.items()})
    return len(text.encode())


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(str(_part("page.html")))


def _part(name: str) -> Markup:
    """Read a part of the page that is ours, not the data's."""
    return Markup((resources.files(__package__) / name).read_text(encoding="utf-8"))


def _write_charts(run: ReportedRun, charts: Mapping[str, Markup]) -> None:
    """Write charts as files of their own in plots/."""
    for name, chart in charts.items():
        write_drawing(run.out.plot(name), chart)


def _results(run: ReportedRun, entry: str) -> list[SectionResult]:
    return read_results(entry, run.cells, run.scored, run.labels, run.evaluation)


def _problems(run: ReportedRun) -> list[tuple[str, str]]:
    """List what is missing and why: units, and cells of the chosen systems."""
    found = [(str(unit), reason) for unit, reason in run.problems.items()]
    failed = run.cells.filter((pc.field("status") == "failed") & pc.field("selected")).to_pylist()
    counted = Counter((f"{c['variant']} {c['machine']} section {c['section']}", c["reason"] or "") for c in failed)
    return found + [(f"{where}: {number} cells", reason) for (where, reason), number in counted.items()]


def _heat_map(run: ReportedRun, entry: Standing) -> Markup:
    chosen = run.cells.filter(pc.field("selected") & (pc.field("variant") == entry.variant)).to_pylist()
    found: dict[tuple[str, tuple[str, str, str]], list[dict[str, Any]]] = {}
    for cell in chosen:
        if cell["auc"] is not None or cell["status"] != "ok":  # not one that counts for its pAUC alone
            column = (cell["part"], cell["section"], cell["domain"])
            found.setdefault((cell["machine"], column), []).append(cell)
    return figures.heat_map(f"AUC in percent of {entry.variant}", {k: _heat_cell(v) for k, v in found.items()})


def _heat_cell(cells: Sequence[Mapping[str, Any]]) -> HeatCell:
    good = [cell for cell in cells if cell["auc"] is not None]
    if not good:
        return HeatCell(None, f"{cells[0]['status']}: {cells[0]['reason']}")
    pauc = [cell["pauc"] for cell in good if cell["pauc"] is not None]
    words = [f"pAUC {100 * float(np.mean(pauc)):.2f} %"] if pauc else []
    words += [f"{good[0]['num_normal']} normal and {good[0]['num_anomaly']} anomalous clips"]
    words += [f"mean of {len(good)} seeds"] if len(good) > 1 else []
    return HeatCell(float(np.mean([cell["auc"] for cell in good])), ", ".join(words))


def _roc_charts(run: ReportedRun, results: Mapping[str, list[SectionResult]]) -> Iterator[tuple[str, Markup]]:
    year, held_out = run.evaluation.rule_year, run.leaderboard.ranked_on not in ("development", "evaluation")
    for machine in sorted({r.machine for of_entry in results.values() for r in of_entry}):
        curves = []
        for i, (variant, of_entry) in enumerate(results.items()):
            counted = [r for r in of_entry if r.machine == machine and (held_out or r.part == run.part)]
            domains = sorted({d for r in counted for d in r.domains}) if i == 0 else []
            for name, domain, dash in [(variant, None, ""), *((f"{variant}, {d}", d, d) for d in domains)]:
                tpr = mean_roc(counted, year, run.labels, domain)
                if tpr is not None and (domain is None or len(domains) > 1):
                    curves.append(
                        ChartCurve(name, f"line c{i} {dash if dash in ('source', 'target') else ''}", FPR, tpr)
                    )
        if curves:
            yield machine, figures.roc_chart(machine, curves)


def _reliability(run: ReportedRun, results: Sequence[SectionResult]) -> list[ChartCurve]:
    """Collect the share of normal test clips, by domain, whose p-value is at most each false-alarm rate."""
    values: dict[str, list[NDArray[np.float64]]] = {}
    for result in results:
        for domain in result.domains:
            anomalous, members = members_of(result.scores, domain, run.labels, run.evaluation.rule_year)
            values.setdefault(domain, []).append(result.p_values[members & ~anomalous])
    rates = np.linspace(0.0, 1.0, 201)
    found = {domain: np.sort(np.concatenate(parts)) for domain, parts in sorted(values.items())}
    return [
        ChartCurve(domain, f"line c0 {domain if domain in ('source', 'target') else ''}", rates,
                   np.searchsorted(of_domain, rates + 1e-9, "right") / len(of_domain))
        for domain, of_domain in found.items()
    ]  # fmt: skip


def _training_charts(run: ReportedRun) -> tuple[Charts, list[tuple[str, str]]]:
    """Draw each machine's losses, and the variants in them with their classes."""
    histories: dict[str, list[tuple[Unit, list[dict[str, Any]]]]] = {}
    for unit in run.done:
        path = run.paths.history(unit)
        if unit.stage == "train" and path.is_file():
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if lines:
                histories.setdefault(unit.machine, []).append((unit, lines))
    ranked = [entry.variant for entry in run.leaderboard.ranked]
    trained = {unit.variant for of_machine in histories.values() for unit, _ in of_machine}
    shown = sorted(trained, key=lambda v: (ranked.index(v) if v in ranked else len(ranked), v))[:MAX_SYSTEMS]
    charts = {}
    for machine, of_machine in sorted(histories.items()):
        curves = []
        for unit, lines in of_machine:
            if unit.variant not in shown:
                continue
            kept = np.unique(np.linspace(0, len(lines) - 1, MAX_EPOCHS).round().astype(int))
            epochs = np.array([lines[i]["epoch"] for i in kept], np.float64)
            for name, dash in (("loss", ""), ("validation_loss", "target")):
                values = np.array([lines[i].get(name) for i in kept], np.float64)
                if np.isfinite(values).any():
                    words = f"{unit.variant}, seed {unit.seed}, {name.replace('_', ' ')}"
                    curves.append(ChartCurve(words, f"line c{shown.index(unit.variant)} {dash}", epochs, values))
        if curves:
            charts[machine] = figures.training_chart(machine, curves)
    return charts, [(variant, f"line c{i}") for i, variant in enumerate(shown)]


def _maps(run: ReportedRun) -> dict[str, list[tuple[EmbeddingMap, Markup]]]:
    """Draw the maps of each machine, of the first variants in rank."""
    chosen: dict[str, int | None] = {}
    for entry in run.leaderboard.ranked:
        variants, _ = parse_entry(entry.variant)
        for variant in variants:
            if variant in run.config.variants and len(chosen) < MAX_MAPS:
                chosen.setdefault(variant, entry.checkpoint if variant == entry.variant else None)
    maps: dict[str, list[tuple[EmbeddingMap, Markup]]] = {}
    embedded = sorted(unit for unit in run.done if unit.stage == "embed" and unit.variant in chosen)
    for machine in sorted({unit.machine for unit in embedded}):
        sample = draw_sample(run.catalog.of(machine), machine)
        for variant, checkpoint in chosen.items():
            unit = next((u for u in embedded if (u.machine, u.variant) == (machine, variant)), None)
            found = [] if unit is None else read_maps(run.paths, unit, checkpoint, sample)
            maps.setdefault(machine, []).extend((each, figures.embedding_map(each)) for each in found)
    return maps


def _wrong_clips(
    run: ReportedRun, best: Standing | None, results: Sequence[SectionResult], *, with_audio: bool
) -> dict[str, list[ShownClip]]:
    """Read each machine's worst clips under the first in rank, over all labelled sections."""
    if best is None:
        return {}
    machines = sorted({result.machine for result in results})
    number = max(1, min(10, MAX_CLIPS // len(machines)))
    wrong = {
        machine: most_wrong([r for r in results if r.machine == machine], run.evaluation.rule_year, run.labels, number)
        for machine in machines
    }
    if not any(wrong.values()):
        return {}
    variant = parse_entry(best.variant).variants[0]
    picture = spectrogram_of(run.config.variant(variant) if variant in run.config.variants else run.config)
    table = run.catalog.table
    names = [name for name in ("clip", "size", "scale") if name in table.column_names]
    rows = {r["clip"]: r for r in table.select(names).to_pylist()}
    shown: dict[str, list[ShownClip]] = {}
    for machine, clips in wrong.items():
        left = MAX_SOUND // len(machines)
        for clip in clips:
            samples = read_clip(run.catalog.root, rows[clip.clip], run.config)
            if isinstance(samples, str):
                shown.setdefault(machine, []).append(ShownClip(clip, None, None, samples))
                continue
            heard = sound(samples, run.config.data.sample_rate) if with_audio else None
            left -= len(heard or "")
            problem = "no sound: the page would become too large" if heard and left < 0 else None
            heard = None if problem else heard
            shown.setdefault(machine, []).append(ShownClip(clip, picture(samples), heard, problem))
    return shown
