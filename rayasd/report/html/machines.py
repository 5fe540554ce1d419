"""All evidence about one machine under the best entry: cells, ROC curves, scores, embeddings, training, wrong clips."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup

from rayasd.ensemble_names import parse_entry
from rayasd.evaluation.cells import labels_of
from rayasd.evaluation.leaderboard import Standing
from rayasd.report.html import figures, sounds
from rayasd.report.html.evidence import FPR, WrongClip, mean_roc, most_wrong, read_results
from rayasd.report.html.figures import ChartCurve
from rayasd.report.html.heat import HeatTable, cell_groups, heat_table
from rayasd.report.html.maps import EmbeddingMap, draw_sample, read_map, unusual_windows
from rayasd.report.html.summary import done, entries
from rayasd.report.run_report import RunReport
from rayasd.report.tables import decisions_of, percent
from rayasd.stages import ALL_MACHINES
from rayasd.unit import Unit

MAX_SYSTEMS = 4  # entries of heat maps, ROC curves and training curves
MAX_EPOCHS = 120  # points of one training curve
MAX_CLIPS = 140  # clips with a picture, at most ten per machine
FEW_SOUNDS = 2  # clips of a machine that are heard if not asked for more


class ShownClip(NamedTuple):
    """A clip on the wrong side, to see and perhaps to hear; or why it cannot be read."""

    facts: WrongClip
    picture: Markup | None = None
    sound: str | None = None
    problem: str | None = None


class Gallery:
    """Makes the evidence of each machine; reads the scores of each entry once."""

    def __init__(self, report: RunReport, *, with_audio: bool) -> None:
        self.report, self.with_audio = report, with_audio
        self.entries = entries(report)[:MAX_SYSTEMS]
        self.best: Standing | None = self.entries[0] if self.entries else None
        self.labels, self.paths = labels_of(report.catalog.table), report.store.paths
        self.cells, self.config = report.results.cells, report.store.config()
        self.results = {
            each.variant: read_results(each.variant, self.cells, report.results.scored, self.labels, report.evaluation)
            for each in self.entries
        }
        self.of_best = self.results[self.best.variant] if self.best else []
        self.seed = min((r.seed for r in self.of_best if r.seed is not None), default=None)
        self.machines = sorted(pc.unique(self.cells["machine"]).to_pylist())
        self.done = done(report)
        ranked = [entry.variant for entry in report.results.leaderboard.ranked]
        trained = {unit.variant for unit in self.done if unit.stage == "train" and self.paths.history(unit).is_file()}
        self.trained = sorted(trained, key=lambda v: (ranked.index(v) if v in ranked else len(ranked), v))[:MAX_SYSTEMS]

    def overview(self) -> HeatTable:
        """Table of the best entry's cells, one row per machine."""
        best = self.best.variant if self.best else ""
        return heat_table({machine: cell_groups(self.cells, best, machine) for machine in self.machines})

    def evidence(self, machine: str) -> dict[str, Any]:
        """Return the content of a machine's section of the page, by the names that the template uses."""
        training, trained = self._training(machine)
        return {
            "machine": machine,
            "summary": self._summary(machine),
            "heat": heat_table({each.variant: cell_groups(self.cells, each.variant, machine) for each in self.entries}),
            "roc": self._roc(machine),
            "histograms": self._histograms(machine),
            "maps": self._maps(machine),
            "training": training,
            "trained": trained,
            "clips": self._wrong_clips(machine),
        }

    def _summary(self, machine: str) -> str:
        auc = self.best.machines.get(machine) if self.best else None
        table = self.report.catalog.of(machine)
        num_train, num_test = (table.filter(pc.field("split") == split).num_rows for split in ("train", "test"))
        words = [f"AUC {percent(auc)}"] if auc is not None else []
        decided = (
            decisions_of(self.report.ranking_cells, self.best.variant, "machine").get((machine,)) if self.best else None
        )
        if decided and decided.false_alarms is not None:
            words += [f"false alarms {percent(decided.false_alarms)} %", f"recall {percent(decided.recall)} %"]
        return ", ".join([*words, f"{num_train} training clips, {num_test} test clips"])

    def _roc(self, machine: str) -> Markup | None:
        board, year, curves = self.report.results.leaderboard, self.report.evaluation.rule_year, []
        held_out = board.ranked_on not in ("development", "evaluation")
        for i, (variant, of_entry) in enumerate(self.results.items()):
            counted = [r for r in of_entry if r.machine == machine and (held_out or r.part == board.part)]
            domains = sorted({d for r in counted for d in r.domains}) if i == 0 else []
            for name, domain, dash in [(variant, None, ""), *((f"{variant}, {d}", d, d) for d in domains)]:
                tpr = mean_roc(counted, year, self.labels, domain)
                if tpr is not None and (domain is None or len(domains) > 1):
                    dash = dash if dash in ("source", "target") else ""
                    curves.append(ChartCurve(name, f"line c{i} {dash}", FPR, tpr))
        return figures.roc_chart(machine, curves) if curves else None

    def _histograms(self, machine: str) -> list[tuple[str, str, Markup]]:
        """Draw the best entry's scores: section, what its decisions came to, chart."""
        found = []
        decisions = decisions_of(self.cells, self.best.variant, "machine", "section") if self.best else {}
        for result in self.of_best:
            if (result.machine, result.seed) == (machine, self.seed) and np.isfinite(result.scores.scores).any():
                decided = decisions.get((machine, result.section))
                words = "no decisions" if decided is None else decided.no_threshold or ""
                if decided and decided.false_alarms is not None:
                    words = f"false alarms {percent(decided.false_alarms)} %, recall {percent(decided.recall)} %"
                found.append((result.section, words, figures.histogram(result)))
        return found

    def _units(self, machine: str) -> list[tuple[Unit, int | None]]:
        """Embed units of the best entry's variants on a machine, with the checkpoint to take."""
        if self.best is None:
            return []
        chosen = parse_entry(self.best.variant).variants
        units = [u for u in sorted(self.done) if u.stage == "embed" and u.machine == machine]
        found = [next((unit for unit in units if unit.variant == variant), None) for variant in chosen]
        checkpoint = self.best.checkpoint if len(chosen) == 1 else None
        return [(unit, checkpoint) for unit in found if unit is not None and self.paths.table(unit).is_file()]

    def _maps(self, machine: str) -> list[tuple[EmbeddingMap, Markup]]:
        sample = draw_sample(self.report.catalog.of(machine), machine)
        maps = [read_map(self.paths, unit, checkpoint, sample) for unit, checkpoint in self._units(machine)]
        return [(each, figures.embedding_map(each)) for each in maps if each is not None]

    def _training(self, machine: str) -> tuple[Markup | None, dict[str, str]]:
        """Draw the losses; returns the classes of the lines by variant, too."""
        curves, trained = [], {}
        for unit in self.done:
            if unit.stage != "train" or unit.machine not in (machine, ALL_MACHINES) or unit.variant not in self.trained:
                continue
            text = self.paths.history(unit).read_text(encoding="utf-8")
            if not (lines := [json.loads(line) for line in text.splitlines()]):
                continue
            kept = np.unique(np.linspace(0, len(lines) - 1, MAX_EPOCHS).round().astype(int))
            epochs = np.array([lines[i]["epoch"] for i in kept], np.float64)
            for name, dash in (("loss", ""), ("validation_loss", "target")):
                values = np.array([lines[i].get(name) for i in kept], np.float64)
                if np.isfinite(values).any():
                    trained[unit.variant] = line = f"line c{self.trained.index(unit.variant)}"
                    words = f"{unit.variant}, seed {unit.seed}, {name.replace('_', ' ')}"
                    curves.append(ChartCurve(words, f"{line} {dash}", epochs, values))
        return (figures.training_chart(machine, curves) if curves else None), trained

    def _wrong_clips(self, machine: str) -> list[ShownClip]:
        of_machine = [result for result in self.of_best if result.machine == machine]
        number = max(1, min(10, MAX_CLIPS // len(self.machines)))
        wrong = most_wrong(of_machine, self.report.evaluation.rule_year, self.labels, number)
        if not wrong or self.best is None:
            return []
        variant = parse_entry(self.best.variant).variants[0]
        config = self.config.variant(variant) if variant in self.config.variants else self.config
        named = self.report.catalog.table.filter(pc.field("clip").isin([clip.clip for clip in wrong]))
        picture, rows = sounds.spectrogram_of(config), {row["clip"]: row for row in named.to_pylist()}
        windows: Mapping[str, tuple[float, float]] = {}
        for unit, checkpoint in self._units(machine)[:1]:
            windows = unusual_windows(self.paths, unit, checkpoint, list(rows), config.front_end.window_seconds)
        shown = []
        for i, clip in enumerate(wrong):
            samples = sounds.read_clip(self.report.catalog.root, rows[clip.clip], self.config)
            if isinstance(samples, str):
                shown.append(ShownClip(clip, problem=samples))
                continue
            is_heard = self.with_audio or i < FEW_SOUNDS
            heard = sounds.sound(samples, self.config.data.sample_rate) if is_heard else None
            drawn = picture(f"Log-mel spectrogram of {clip.clip}", samples, windows.get(clip.clip))
            shown.append(ShownClip(clip, drawn, heard))
        return shown
