"""``rayasd sweep --dry-run``: what a sweep would do, and how long it would take on nodes that are not there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rayasd.cli.display import plain_table
from rayasd.errors import UserError
from rayasd.host import usable_cpus
from rayasd.nested import bounded, build
from rayasd.stages import ALL_MACHINES, EMBED, STAGES, NumClips, StageName, stages_of
from rayasd.study.execution import Execution
from rayasd.study.study import Study
from rayasd.sweep.driver import check_request
from rayasd.sweep.executors import Request, Resources
from rayasd.sweep.forecast import least_seconds, measured_speeds
from rayasd.sweep.plan import lines
from rayasd.sweep.store import RunStore
from rayasd.unit import UnitSpec
from rayasd.wording import counted, elapsed, size

_LISTED = 100  # units


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Nodes that are not there, and how fast they are; 0 or empty: as measured."""

    nodes: int = bounded(1, minimum=1, maximum=100_000)
    cpus_per_node: float = bounded(0.0, minimum=0.0)  # default: as many as here
    gpus_per_node: int = bounded(0, minimum=0)
    like: str = ""  # run whose finished units give the speeds that are not given here; default: the run that is planned
    train: float = bounded(0.0, minimum=0.0)  # clips per second through training steps of one unit
    embed: float = bounded(0.0, minimum=0.0)  # windows per second
    detect: float = bounded(0.0, minimum=0.0)  # clips per second through all detectors

    @classmethod
    def parse(cls, text: str) -> "Simulation":
        """Read ``nodes=128,gpus-per-node=8``. Raises UserError: a word that is not understood."""
        values: dict[str, object] = {}
        for word in text.split(","):
            name, equals, value = word.strip().partition("=")
            if not equals:
                raise UserError(f"--simulate {word}: give KEY=VALUE, for example nodes=128,gpus-per-node=8")
            values[name.replace("-", "_")] = value if name == "like" else _number(word, value)
        return build(cls, values, "--simulate ")


@dataclass(frozen=True)
class DryRun:
    """A sweep that is not started."""

    study: Study
    execution: Execution

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Learned parameters of each trained variant's network."""
        from rayasd.exposure.network import num_parameters  # imports torch: 3 s

        trained = {variant: config for variant, config in self.study.configs.items() if "train" in stages_of(config)}
        return {variant: num_parameters(config) for variant, config in trained.items()}

    @cached_property
    def clips(self) -> NumClips:
        """Clips of each machine; their lengths are known once the run has decoded them."""
        listed, store = NumClips.of(self.study.catalog.table), self.study.store
        decoded = store.paths.catalog.exists()
        return replace(listed, frames=NumClips.of(store.catalog().table).frames) if decoded else listed

    def print_plan(self, console: Console) -> None:
        """Print what the sweep would do, and about how much disk it would take."""
        plan, catalog = self.study.plan, self.study.catalog
        units = plan.units(self.study.config)
        table = plain_table(("stage", "units", "each asks for", "disk, about"), ("units", "disk, about"))
        clips, gpus = self.clips, self.execution.gpus_per_unit
        for stage in STAGES:
            chosen = [unit for unit in units if unit.stage == stage]
            request = f"{self.execution.cpus_per_unit:g} CPU"
            if STAGES[stage].most_gpus:
                request += ", 1 GPU where there are any" if gpus is None else f", {gpus:g} GPU"
            num_bytes = 0.0
            for unit in chosen:
                config, parameters = self.study.configs[unit.variant], self.parameters.get(unit.variant, 0)
                num_bytes += STAGES[stage].output_bytes(unit.machine, config, clips, parameters)
            table.add_row(stage, str(len(chosen)), request, size(num_bytes))
        recordings = sum(catalog.table["size"].to_pylist())
        frozen = {repr((c.data, c.front_end, c.network, c.embedding)): c
                  for c in self.study.configs.values() if not c.network.is_trained}  # fmt: skip
        features = sum(EMBED.output_bytes(m, c, clips, 0) for c in frozen.values() for m in plan.machines)
        table.add_row("decode", str(len(catalog.machines)), "each host", size(recordings))
        table.add_row("features", str(len(frozen) * len(plan.machines)), "each cache", size(features))
        console.print(table)
        dimensions = [f"{counted(len(names), what[:-1])} ({_listed(names)})" for what, names in vars(plan).items()]
        console.print(Text(f"{' x '.join(dimensions)}: {counted(len(units), 'unit')}"))
        if not console.file.isatty():  # for slurm/array.sh
            shared = " and all machines together" * any(unit.machine == ALL_MACHINES for unit in units)
            console.print(Text(f"shares: {len(lines(units))}{shared}"))
        console.print(Text(f"{counted(catalog.table.num_rows, 'clip')} in {catalog.root}"))
        if (told := self.study.year_told) is not None:
            console.print(Text(told))
        if len(units) <= _LISTED:
            for unit in units:
                console.print(Text(f"  {unit}"))

    def simulate(self, console: Console, simulation: Simulation) -> None:
        """Print how long the plan takes at least on nodes that are not there.

        Raises UserError: nodes too small for a unit, or a speed that nobody has measured or given.
        """
        gpus, asked = float(simulation.gpus_per_node), self.execution.gpus_per_unit
        nodes = [Resources(simulation.cpus_per_node or float(usable_cpus()), gpus)] * simulation.nodes
        request = Request(self.execution.cpus_per_unit, min(gpus, 1.0) if asked is None else asked)
        check_request(request, nodes)
        specs = {
            unit: UnitSpec(
                unit=unit, config=self.study.configs[unit.variant], run=self.study.store.paths, cache=Path(),
                data_root=self.study.catalog.root, data="",
            )
            for unit in self.study.plan.units(self.study.config)
        }  # fmt: skip
        stages = [stage for stage in STAGES if any(unit.stage == stage for unit in specs)]
        speeds = _speeds(simulation, stages, self.study.store)
        bounds = least_seconds(specs, self.clips, speeds, request.usable(nodes), request)
        console.print(
            f"\non {counted(len(nodes), 'node')} of {nodes[0]}, with unit speeds of "
            + ", ".join(f"{stage} {speeds[stage]:.3g} {STAGES[stage].work_unit}/s" for stage in stages),
            highlight=False,
        )
        tightest = sorted(bounds.items(), key=lambda item: -item[1])
        bound_by = ", ".join(f"{what} {elapsed(seconds)}" for what, seconds in tightest)
        console.print(f"at least {elapsed(tightest[0][1])}: bound by {bound_by}", highlight=False)


def _speeds(simulation: Simulation, stages: Sequence[StageName], planned: RunStore) -> dict[StageName, float]:
    speeds: dict[StageName, float] = {stage: getattr(simulation, stage) for stage in stages}
    lacking = [stage for stage in stages if not speeds[stage]]
    store = RunStore(Path(simulation.like)) if simulation.like else planned
    measured = measured_speeds(store) if lacking and store.exists else {}
    for stage in lacking:
        if stage not in measured:
            raise UserError(
                f"--simulate: {store.paths.root} has no finished unit that tells how fast {stage} is: "
                f"name a run with like=RUN, or give {stage}={STAGES[stage].work_unit.upper()}_PER_SECOND"
            )
        speeds[stage] = measured[stage]
    return speeds


def _number(word: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"--simulate {word}: {text!r} is no number") from None
    return int(value) if value.is_integer() else value


def _listed(names: Sequence[object]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:3], "…", shown[-1]])
