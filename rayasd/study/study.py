"""A study in Python: what ``rayasd sweep``, its single stages and ``rayasd report`` do."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rayasd import presets
from rayasd.config import Config
from rayasd.data.catalog import SCHEMA, Catalog, read_catalog
from rayasd.data.ground_truth import scan_labelled, with_ground_truth, with_labels_of
from rayasd.data.waveforms import data_fingerprint, decode
from rayasd.data.years import years_told
from rayasd.evaluation.years import settled_by_data
from rayasd.registry import refuse_code
from rayasd.report.run_report import RunReport
from rayasd.stages import ALL_MACHINES, STAGES
from rayasd.study import notes
from rayasd.study.choices import cache_folder, choose, choose_variants, data_source, parse_seeds
from rayasd.study.driving import check_execution, complete
from rayasd.study.execution import Execution, ExecutorName
from rayasd.study.watcher import Watcher
from rayasd.sweep.checks import check_data, check_extractors, check_space, check_variants, check_what_is_left
from rayasd.sweep.plan import Plan, check_asked, share
from rayasd.sweep.states import Sweep, survey
from rayasd.sweep.store import RunStore
from rayasd.unit import Unit


class Study:
    """Machines, variants and seeds to compare, and the run directory of their results.

    Args:
        config: name of a preset, path of a TOML file, or a configuration.
        data: folder in a DCASE layout, manifest, or catalog; default $RAYASD_DATA, then data/.
        run_dir: where results go; a run that exists there is continued.
        machines: "all", or names: a list, or a text with commas.
        variants: likewise, as the configuration names them; default: its first.
        seeds: whole numbers from 0: "0-4", "0,2", 3, or a list.
        ground_truth: folder of ground_truth_*.csv; default ground_truth_data in the data's folder or right below.
        command: words that the manifest keeps of what was asked; default: these arguments.
        trust: write into a run directory of another user.

    Raises:
        UserError: an unknown preset, setting or variant, or seeds that are none. Data are listed later, and once.
    """

    def __init__(
        self,
        *,
        config: str | Path | Config = "eusipco2022",
        data: str | Path | Catalog | None = None,
        run_dir: str | Path = "runs/default",
        machines: str | Sequence[str] = "all",
        variants: str | Sequence[str] | None = None,
        seeds: str | int | Iterable[int] = 0,
        ground_truth: str | Path | None = None,
        command: Sequence[str] | None = None,
        trust: bool = False,
    ) -> None:
        self._trust = trust
        self._asked = config if isinstance(config, Config) else presets.load(str(config))
        self.store = RunStore(Path(run_dir))
        self.variants = choose_variants(variants, self._asked)
        self.seeds = parse_seeds(seeds)
        self._data, self._machines = data, machines
        self._ground_truth = None if ground_truth is None else Path(ground_truth)
        self._command, self._is_opened = command, False

    @classmethod
    def open(cls, run_dir: str | Path, *, trust: bool = False) -> "Study":
        """Open a run that has been set up, to do what is missing of it or to report it.

        ``trust``: run code that its configuration names by import path, and write even if it is another user's.

        Raises:
            UserError: this is not a run directory, or a file of it is damaged.
        """
        store = RunStore(Path(run_dir))
        plans = store.plans()
        variants, seeds = ([each for plan in plans for each in getattr(plan, name)] for name in ("variants", "seeds"))
        study = cls(config=store.config(), run_dir=run_dir, variants=variants, seeds=seeds, trust=trust)
        study._machines = [machine for plan in plans for machine in plan.machines]
        study._is_opened = True
        return study

    @cached_property
    def config(self) -> Config:
        """The configuration, with ``evaluation.year`` and the channel of DCASE 2026 settled by the data.

        Raises:
            UserError: there are no clips, or they are of another year than asked.
        """
        if self._is_opened:
            return self._asked
        return settled_by_data(self._asked, self.catalog)

    @property
    def year_told(self) -> str | None:
        """Tell in one line which year's rules the data have chosen; None where they were asked for."""
        if self._asked.evaluation.year != "auto" or self._is_opened:
            return None
        _, by = years_told(self.catalog.table, self.catalog.dataset)
        settled = self.config.data.channel != self._asked.data.channel
        channel = ", data.channel = 0, the near microphone" if settled else ""
        return f"evaluation.year = {self.config.evaluation.year}{channel}: {by or 'nothing in the data tells another'}"

    @cached_property
    def configs(self) -> dict[str, Config]:
        """Each variant's resolved configuration."""
        return {variant: self.config.variant(variant) for variant in self.variants}

    @cached_property
    def catalog(self) -> Catalog:
        """The clips with their labels; of a new study, as the folders list them, not decoded.

        Raises:
            UserError: there are none.
        """
        if self._is_opened:
            return self.store.catalog()
        if isinstance(self._data, Catalog):
            found = replace(self._data, table=self._data.table.select(SCHEMA.names))
            found = found if self._ground_truth is None else with_ground_truth(found, self._ground_truth)
        else:
            found = scan_labelled(data_source(self._data), self._ground_truth)
        if self._ground_truth is None and self.store.exists:
            found = with_labels_of(found, read_catalog(self.store.paths.catalog, found.root))
        return found

    @cached_property
    def plan(self) -> Plan:
        """The machines, variants and seeds, checked as far as possible without decoding.

        Raises:
            UserError: an unknown detector or machine, missing weights, or too few clips.
        """
        _ = self._weights
        plan = Plan(choose("machine", self._machines, self.catalog.machines), self.variants, self.seeds)
        check_data(self.catalog, plan.machines, self.configs)
        return plan

    def set_up(
        self, *, cache: str | Path | None = None, accept_changes: bool = False, watcher: Watcher | None = None
    ) -> None:
        """Decode the clips and write the plan into the run directory; ``run`` does this, too. Nothing for a run opened.

        Args:
            cache: of decoded waveforms; default $RAYASD_CACHE, else the user's cache folder.
            accept_changes: go on in a run of another configuration or other data.
            watcher: gets lines on the way.

        Raises:
            UserError: the data, the configuration or the run directory do not allow it.
        """
        if self._is_opened:
            return
        watcher = watcher or Watcher()
        with watcher.busy("listing clips"):
            _ = self.plan
        with self.store.held(trust=self._trust):
            self._set_up(self.store, cache, accept_changes, watcher)

    def run(
        self,
        execution: Execution | None = None,
        *,
        executor: ExecutorName | None = None,
        stages: str | Sequence[str] = "all",
        only: str | Sequence[str] | None = None,
        accept_changes: bool = False,
        watcher: Watcher | None = None,
    ) -> Sweep:
        """Do what is missing: train, embed, detect, and write the leaderboard. May be called in any thread.

        Args:
            execution: where and how units run.
            executor: where they run: instead of what ``execution`` names. "mpi": on the ranks of a script that mpirun
                starts, which all call this; rank 0 drives.
            stages: do these alone; what they build on must be done.
            only: do these machines alone, or with "2/5" the second of five shares, of a run that is set up; others may
                do the rest at the same time.
            accept_changes: go on in a run of another configuration or other data; redo what that changes.
            watcher: gets lines, states and the report on the way.

        Returns:
            States of all units of the run; failed units raise nothing.

        Raises:
            UserError: it cannot work as asked; ``StorageLostError``: storage failed while units ran.
            KeyboardInterrupt: units are left that could still be done; the same call continues.
        """
        how = execution or Execution()
        how = how if executor is None else replace(how, executor=executor)
        run = partial(self._run, how, choose("stage", stages, list(STAGES)), only, accept_changes, watcher or Watcher())
        if how.executor != "mpi":
            return run()
        from rayasd.sweep.executors.mpi import on_rank_0

        return on_rank_0(run) or survey(self.store.specs(), (), retry_failed=False)  # on the other ranks

    def report(self) -> RunReport:
        """Report what is done so far, by the run's own rules; writes nothing.

        Raises:
            UserError: the run is not set up, or a file of it is damaged.
        """
        return RunReport.of(self.store.paths.root)

    def _run(
        self, how: Execution, stages: Sequence[str], only: str | Sequence[str] | None, accept_changes: bool,
        watcher: Watcher,
    ) -> Sweep:  # fmt: skip
        check_execution(how)
        if self._is_opened and not self._trust:  # else, the caller names it
            refuse_code(self.store.paths.root, [text for each in self.configs.values() for text in each.named])
        with watcher.busy("listing clips"):
            units: list[Unit] = list(self.store.specs()) if self._is_opened else self.plan.units(self.config)
        machines = list(dict.fromkeys(unit.machine for unit in units))
        if isinstance(only, str) and "/" in only:
            mine, is_whole = share(units, only), False
            part: tuple[str, ...] = (only.replace("/", "of"),)
        else:
            part = choose("machine", machines if only is None else only, machines)
            mine = [unit for unit in units if unit.machine in part]
            is_whole = only is None or (self._is_opened and set(part) >= set(machines) - {ALL_MACHINES})
            if self._is_opened:
                check_asked(units, stages, part)
        store = self.store if is_whole else RunStore(self.store.paths.root, part)
        with store.held(trust=self._trust):
            if not self._is_opened:
                self._set_up(store, how.cache, accept_changes, watcher)
            return complete(store, [unit for unit in mine if unit.stage in stages], how, watcher)

    @cached_property
    def _weights(self) -> dict[str, str]:
        return check_variants(self.configs)

    def _set_up(self, store: RunStore, cache: str | Path | None, accept_changes: bool, watcher: Watcher) -> None:
        config, plan = self.config, self.plan
        with watcher.busy("building networks"):
            known = store.exists and store.config() == config
            num_parameters = {} if known else check_extractors(self.configs)
        with watcher.decoding() as on_progress:
            catalog = decode(self.catalog, config.data, cache_folder(cache), on_progress=on_progress)
        check_what_is_left(catalog, plan.machines)
        check_data(catalog, plan.machines, self.configs)
        data: dict[str, Any] = {
            "root": str(catalog.root),
            "synthetic": catalog.synthetic,
            "clips": catalog.table.num_rows,
            "skipped": [f"{odd.path} {odd.problem}" for odd in catalog.oddities if odd.unusable],
            "emptied": notes.emptied(self.catalog, catalog),
            "fingerprint": data_fingerprint(catalog),
            "pretrained": self._weights,
        }
        told = [f"note     {self.year_told}"] if self.year_told else []
        for line in [
            *told,
            *notes.oddities(catalog, plan.machines),
            *notes.skipped_anomalies(self.catalog, catalog),
            *(f"skipped  all of {group}" for group in data["emptied"]),
        ]:
            watcher.warn(line)
        check_space(store, config, plan, catalog, num_parameters)
        asked = [f"{name}={','.join(map(str, values))}" for name, values in vars(plan).items()]
        command = ["rayasd.Study", *asked] if self._command is None else self._command
        store.set_up(config, catalog, data, plan, command, accept_changes=accept_changes)
