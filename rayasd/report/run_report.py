"""The report of a run: results of its finished scores, by the run's rules or by others. Reading it writes nothing."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayasd import __version__, presets
from rayasd.config import Config, EvaluationConfig, from_dict
from rayasd.data.catalog import Catalog
from rayasd.data.oddities import counted_problems, odd_contents
from rayasd.data.splits import held_out
from rayasd.errors import UserError
from rayasd.evaluation.ensembles import read_ensembles
from rayasd.evaluation.leaderboard import CELLS, RULES, rules_digest
from rayasd.evaluation.published import why_not_benchmark
from rayasd.evaluation.scores import Scored
from rayasd.evaluation.selection import ANY_VARIANT, LEAVE_ONE_OUT
from rayasd.evaluation.years import settled
from rayasd.files import digest
from rayasd.parquet import read_parquet
from rayasd.report.tables import alerts
from rayasd.report.write import Results, compute_results, leaderboard_table, write_results
from rayasd.stages import STAGES
from rayasd.sweep import markers
from rayasd.sweep.states import State, Sweep, survey
from rayasd.sweep.store import RunStore
from rayasd.unit import RunDirectory, Unit
from rayasd.wording import near

EntryRow = dict[str, Any]  # an entry's row of leaderboard.parquet


@dataclass(frozen=True)
class RunReport:
    """The inputs of a run's leaderboard: finished scores, current labels, rules."""

    store: RunStore
    sweep: Sweep  # every unit of the run and its state
    catalog: Catalog
    evaluation: EvaluationConfig

    @classmethod
    def of(cls, run_dir: Path) -> "RunReport":
        """Read a run, to be reported by its own rules.

        Raises UserError: this is not a run, or one of its files is damaged.
        """
        store = RunStore(run_dir)
        sweep = survey(store.specs(), (), retry_failed=False)
        return cls(store, sweep, store.catalog(), store.config().evaluation)

    def by_settings(self, overrides: Sequence[str]) -> "RunReport":
        """Report the same run by rules changed as in ``evaluation.year=2022``.

        Raises UserError: another setting than of ``evaluation``, or a wrong value.
        """
        changes = presets.parse_overrides(overrides)
        for key in changes:
            if not key.startswith("evaluation."):
                raise UserError(
                    f"--set {key}: a report can change evaluation.* alone, the rest is settled by the sweep"
                )
        rules = from_dict(presets.with_overrides(self.store.config().as_dict(), changes)).evaluation
        return replace(self, evaluation=settled(rules, self.catalog.table, self.catalog.dataset))

    @cached_property
    def units(self) -> dict[Unit, Scored]:
        """Scores of the finished detect units. A damaged file raises a UserError when its scores are first used."""
        specs, paths = self.sweep.specs, self.store.paths
        test = self.catalog.table.filter(pc.field("split") == "test")
        domains = dict(zip(test["clip"].to_pylist(), test["domain"].to_pylist(), strict=True))
        return {
            unit: Scored(unit.variant, unit.machine, unit.seed, paths.table(unit),
                         markers.checksum(specs[unit], paths.table(unit)), domains=domains)
            for unit in self.sweep.units(State.DONE) if unit.stage == "detect"
        }  # fmt: skip

    @cached_property
    def damaged(self) -> dict[Unit, str]:
        """Finished detect units whose scores are damaged, and why; reads the scores of all units."""
        found = {}
        for unit, scored in self.units.items():
            try:
                _ = scored.systems
            except (UserError, FileNotFoundError):
                found[unit] = markers.damaged(self.store.paths.table(unit), unit)
        return found

    @cached_property
    def results(self) -> Results:
        """Compute the results of the finished scores. Raises UserError: nothing has been scored yet."""
        planned: dict[str, list[str]] = {}
        for unit in self.sweep.states:
            if unit.stage == "detect":
                planned.setdefault(unit.variant, []).append(unit.machine)
        scored = [scored for unit, scored in self.units.items() if unit not in self.damaged]
        root = self.store.paths.root
        if not scored and any(root.glob("scores/*/*/*/part-0.parquet")):
            raise UserError(
                f"nothing to report: the scores in {root} are damaged, or of another version or configuration; the "
                "command that made them makes them again"
            )
        if not scored:
            raise UserError(f"nothing to report: no unit of {root} has been scored yet")
        results = compute_results(scored, self.catalog.table, self.evaluation, planned)
        resolved = {variant: self.store.config().variant(variant) for variant in planned}
        controls = tuple(v for v, c in resolved.items() if not c.learns)
        source_only = tuple(v for v, c in resolved.items() if self._is_source_only(c, planned[v]))
        board = replace(results.leaderboard, controls=controls, source_only=source_only)
        return replace(results, leaderboard=board)

    @cached_property
    def ranking_cells(self) -> pa.Table:
        """Cells of the sections by which entries are ranked."""
        ranked_on, cells = self.results.leaderboard.ranked_on, self.results.cells
        return cells if ranked_on == LEAVE_ONE_OUT else cells.filter(pc.field("part") == ranked_on)

    def _is_source_only(self, config: Config, machines: Sequence[str]) -> bool:
        """Whether no detector of the first seed is fitted to a target-domain clip, though there are such."""
        seed = min(unit.seed for unit in self.sweep.states)
        known = shown = False
        for machine in set(machines):
            table = self.catalog.of(machine)
            target = pc.equal(table["domain"], "target").to_numpy(zero_copy_only=False)
            known |= bool((target & pc.equal(table["split"], "train").to_numpy(zero_copy_only=False)).any())
            if config.inlier.fit_on == "validation":
                shown |= bool((target & held_out(table, machine, config.exposure, seed)).any())
        return known and not shown and config.inlier.fit_on != "train"

    @cached_property
    def is_current(self) -> bool:
        """Whether the leaderboard on disk was made from just these scores, labels and rules."""
        paths = self.store.paths
        files = [paths.leaderboard(suffix) for suffix in ("parquet", "csv", "md")]
        if not all(path.exists() for path in [*files, paths.cells]):
            return False
        try:
            facts = read_parquet(files[0]).schema.metadata or {}
            read_parquet(paths.cells, sha256=facts.get(CELLS.encode(), b"").decode())
        except UserError:
            return False
        return facts.get(b"inputs") == self._inputs(()).encode()

    @cached_property
    def table(self) -> pa.Table:
        """One row per system, as leaderboard.parquet has them: read where that is current, else computed."""
        if self.is_current:
            return read_parquet(self.store.paths.leaderboard("parquet"))
        return leaderboard_table(self.results.leaderboard, synthetic=self.synthetic)

    @cached_property
    def cells(self) -> pa.Table:
        """The cells behind ``table``."""
        return read_parquet(self.store.paths.cells) if self.is_current else self.results.cells

    @cached_property
    def scored(self) -> Sequence[Scored]:
        """Scores of units and ensembles behind ``table``."""
        if self.is_current:
            return [*self.units.values(), *read_ensembles(self.store.paths.ensembles)]
        return self.results.scored

    def entries(self, *, single_variant: bool = False) -> dict[str, EntryRow]:
        """Return the ranked entries by name, best first.

        ``single_variant``: without those whose variant is chosen section by section.
        """
        rows = self.table.filter(pc.field("rank") > 0).to_pylist()
        rows.sort(key=lambda row: row["rank"])
        return {r["variant"]: r for r in rows if not (single_variant and r["variant"].startswith(ANY_VARIANT))}

    def why_not_published(self, part: str) -> str | None:
        """Return why the run's systems cannot be compared with published ones; None when they can."""
        config, variants = self.store.config(), {unit.variant for unit in self.sweep.states}
        if any(config.variant(variant).exposure.anomalies_aside for variant in variants):
            return "anomalies of its test clips were set aside, which the benchmark does not allow"
        return why_not_benchmark(self.catalog.table, part, self.evaluation, synthetic=self.synthetic)

    @property
    def synthetic(self) -> bool:
        """Whether the clips were made by ``rayasd data synth``."""
        return bool(self._data["synthetic"])

    @cached_property
    def alerts(self) -> list[str]:
        """Reasons to doubt the results, most serious first: leakage in the data, chance level, missing cells."""
        remarks = [f"{what.capitalize()}: {text}." for what, text in self.remarks().items() if text != "none"]
        return remarks + alerts(self.results.leaderboard, self.evaluation, synthetic=self.synthetic)

    def remarks(self) -> dict[str, str]:
        """Return in a line each what was left out of the data, and what is odd about the rest; or none."""
        lost = [f"nothing is left of {', '.join(self._data['emptied'])}"] if self._data.get("emptied") else []
        return {
            "clips left out": "; ".join([counted_problems(self._data.get("skipped", ())), *lost]),
            "odd in the data": "; ".join(map(str, odd_contents(self.catalog.table))) or "none",
        }

    def provenance(self) -> dict[str, Any]:
        """Return what made the report, and from what."""
        last = self._manifest["invocations"][-1]
        return {
            "run": self.store.paths.root.name,
            "command": shlex.join(last["command"]),
            "rayasd": last["rayasd"],
            "revision": last["revision"],
            "data": self._data["root"],
            "data_fingerprint": digest(self._data["fingerprint"])[:12],
            **self.remarks(),
            "synthetic": self.synthetic,
            "evaluation": ", ".join(f"{name}={value}" for name, value in asdict(self.evaluation).items()),
            RULES: rules_digest(self.evaluation),
            "inputs": self._inputs(self.damaged),
        }

    def write(self, to: RunDirectory | None = None) -> str:
        """Write ensembles, cells and leaderboard, into the run or a folder that is laid out as one.

        The run's own are those that ``rayasd score`` and ``pack`` choose by: only for who holds its lock, by its own
        rules. Returns a line that names the files.
        """
        variants, paths = self.store.config().variants, to or self.store.paths
        write_results(paths, self.results, self.provenance(), self.alerts, variants)
        return f"written: {near(paths.leaderboard('md'))} (.csv, .parquet), {near(paths.cells)}"

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        return self.store.manifest()

    @property
    def _data(self) -> dict[str, Any]:
        data: dict[str, Any] = self._manifest["data"]
        return data

    def _inputs(self, damaged: Collection[Unit]) -> str:
        """Digest of all that decides a leaderboard: which scores, which labels and domains, which rules."""
        sweep = self.sweep
        scores = {
            str(unit): ["damaged" if unit in damaged else state, sweep.specs[unit].identity]
            for unit, state in sweep.states.items()
            if unit.stage == "detect"
        }
        labels = [self.catalog.table[name].to_pylist() for name in ("clip", "label", "domain")]
        skipped: Sequence[str] = self._data.get("skipped", ())
        versions = [stage.version for stage in STAGES.values()]
        return digest([__version__, versions, scores, labels, list(skipped), rules_digest(self.evaluation)])
