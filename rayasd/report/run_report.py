"""The report of a run: the leaderboard made of what is done of it, whether that still stands, and its entries."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rayasd import __version__
from rayasd.config import EvaluationConfig
from rayasd.data.catalog import Catalog
from rayasd.data.oddities import counted_problems, odd_contents
from rayasd.errors import UserError
from rayasd.evaluation.cells import labels_of
from rayasd.evaluation.leaderboard import Leaderboard
from rayasd.evaluation.published import why_not_benchmark
from rayasd.evaluation.scores import Scored
from rayasd.evaluation.selection import ANY_VARIANT
from rayasd.files import digest
from rayasd.parquet import read_parquet
from rayasd.report.html.run import ReportedRun
from rayasd.report.write import write_report
from rayasd.sweep.driver import State, Sweep, survey
from rayasd.sweep.markers import forget
from rayasd.sweep.store import RunStore
from rayasd.unit import STAGE_FACTS

Row = dict[str, Any]
"""An entry's row of leaderboard.parquet."""


@dataclass(frozen=True)
class RunReport:
    """What a run's leaderboard is made of: its scores that stand, the labels as they are known now, the rules."""

    store: RunStore
    sweep: Sweep
    """Every unit of the run and where it stands."""
    catalog: Catalog
    evaluation: EvaluationConfig

    @classmethod
    def of(cls, run_dir: Path) -> "RunReport":
        """Read a run as it stands, by its own rules.

        Raises:
            UserError: this is no run, or a file of it is damaged.

        """
        store = RunStore(run_dir)
        sweep = survey(store.specs(), (), retry_failed=False)
        return cls(store, sweep, store.catalog(), store.config().evaluation)

    def by_rules(self, evaluation: EvaluationConfig) -> "RunReport":
        """Report the same run by other rules."""
        return replace(self, evaluation=evaluation)

    def scored(self) -> list[Scored]:
        """List the finished detect units' scores; units whose scores are damaged are no longer done."""
        for unit in self.sweep.units(State.DONE):
            if unit.stage == "detect" and (why := self.store.damage(unit)):
                forget(self.store.paths, unit)
                self.sweep.move(unit, State.FAILED, why)
                self.sweep.damaged.add(unit)
        return [
            Scored(unit.variant, unit.machine, unit.seed, self.store.paths.table(unit))
            for unit in self.sweep.units(State.DONE)
            if unit.stage == "detect"
        ]

    def ensembles(self) -> list[Scored]:
        """List the ensembles' scores, as the last report wrote them."""
        found = []
        for path in sorted(self.store.paths.ensembles.glob("*/*/*/part-0.parquet")):
            variant, machine, seed = (folder.name.partition("=")[2] for folder in reversed(path.parents[:3]))
            found.append(Scored(variant, machine, None if seed == "all" else int(seed), path))
        return found

    def write(self) -> Leaderboard:
        """Write cells and leaderboard of what stands.

        Raises:
            UserError: nothing has been scored yet.

        """
        planned: dict[str, list[str]] = {}
        for unit in self.sweep.states:
            if unit.stage == "detect":
                planned.setdefault(unit.variant, []).append(unit.machine)
        scored = self.scored()  # before anybody says what stands
        paths, variants = self.store.paths, self.store.config().variants
        return write_report(paths, scored, self.catalog.table, self.evaluation, planned, self.provenance(), variants)

    def stands(self) -> bool:
        """Whether the leaderboard on disk was made from just these scores, labels and rules."""
        paths = self.store.paths
        files = [paths.leaderboard(suffix) for suffix in ("parquet", "csv", "md")]
        if not all(path.exists() for path in [*files, paths.cells]):
            return False
        try:
            read_parquet(paths.cells)
            board = read_parquet(files[0])
        except UserError:
            return False
        return (board.schema.metadata or {}).get(b"inputs") == self._inputs().encode()

    def entries(self, *, single_variant: bool = False) -> dict[str, Row]:
        """Read the ranked entries by name, best first; writes the report first if it is stale.

        ``single_variant``: without those whose variant is chosen section by section.
        """
        if not self.stands():
            self.write()
        rows = read_parquet(self.store.paths.leaderboard("parquet"), filters=[("rank", ">", 0)]).to_pylist()
        rows.sort(key=lambda row: row["rank"])
        return {r["variant"]: r for r in rows if not (single_variant and r["variant"].startswith(ANY_VARIANT))}

    def why_not_published(self, part: str) -> str | None:
        """Say why the run's systems cannot stand among published ones; None when they can."""
        config, variants = self.store.config(), {unit.variant for unit in self.sweep.states}
        if any(config.variant(variant).exposure.anomalies_aside for variant in variants):
            return "anomalies of its test clips were set aside, which the benchmark does not allow"
        return why_not_benchmark(self.catalog.table, part, self.evaluation, synthetic=self.synthetic)

    @property
    def synthetic(self) -> bool:
        """Whether the clips were made by ``rayasd data synth``."""
        return bool(self._data["synthetic"])

    def remarks(self) -> dict[str, str]:
        """Say in a line each what was left out of the data, and what is odd about what was not; or none."""
        lost = [f"nothing is left of {', '.join(self._data['emptied'])}"] if self._data.get("emptied") else []
        return {
            "clips left out": "; ".join([counted_problems(self._data.get("skipped", ())), *lost]),
            "odd in the data": "; ".join(map(str, odd_contents(self.catalog.table))) or "none",
        }

    def provenance(self) -> dict[str, Any]:
        """Say what made the report, and of what."""
        last = self._manifest["invocations"][-1]
        return {
            "run": self.store.paths.root.name,
            "command": " ".join(last["command"]),
            "rayasd": last["rayasd"],
            "revision": last["revision"],
            "data": self._data["root"],
            "data_fingerprint": digest(self._data["fingerprint"])[:12],
            **self.remarks(),
            "synthetic": self.synthetic,
            "evaluation": ", ".join(f"{name}={value}" for name, value in asdict(self.evaluation).items()),
            "inputs": self._inputs(),
        }

    def write_page(self, board: Leaderboard, *, with_audio: bool = False) -> int:
        """Write report.html beside the leaderboard that has just been written; returns its size in bytes."""
        from rayasd.report.html.page import write_page  # charts and sounds, which nothing else needs

        states, reasons = self.sweep.states, self.sweep.reasons
        run = ReportedRun(
            paths=self.store.paths,
            config=self.store.config(),
            evaluation=self.evaluation,
            catalog=self.catalog,
            labels=labels_of(self.catalog.table),
            leaderboard=board,
            cells=read_parquet(self.store.paths.cells),
            scored=[*self.scored(), *self.ensembles()],
            done=self.sweep.units(State.DONE),
            problems={u: reasons.get(u, state) for u, state in states.items() if state is not State.DONE},
            provenance=self.provenance(),
            why_not_published=self.why_not_published(board.part),
        )
        return write_page(run, with_audio=with_audio)

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        return self.store.manifest()

    @property
    def _data(self) -> dict[str, Any]:
        data: dict[str, Any] = self._manifest["data"]
        return data

    def _inputs(self) -> str:
        """Digest of all that decides a leaderboard: which scores, which labels, which rules."""
        sweep = self.sweep
        scores = {
            str(unit): [state, sweep.specs[unit].identity]
            for unit, state in sweep.states.items()
            if unit.stage == "detect"
        }
        labels = [self.catalog.table[name].to_pylist() for name in ("clip", "label")]
        skipped: Sequence[str] = self._data.get("skipped", ())
        versions = [facts.version for facts in STAGE_FACTS.values()]
        return digest([__version__, versions, scores, labels, list(skipped), asdict(self.evaluation)])
