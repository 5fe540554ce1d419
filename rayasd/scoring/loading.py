"""Where a machine's model comes from: a run, or a packed file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.torch import load_file

from rayasd import __version__
from rayasd.config import Config
from rayasd.data.catalog import Catalog
from rayasd.data.naming import matching
from rayasd.data.waveforms import scaling
from rayasd.errors import UserError, unknown
from rayasd.evaluation.leaderboard import CELLS, RULES, rules_digest
from rayasd.evaluation.scores import Key, System, read_scores
from rayasd.exposure.embedding import windows_of
from rayasd.exposure.network import class_names, weights_by_epochs
from rayasd.files import digest
from rayasd.inlier.detectors import single_detector
from rayasd.inlier.features import fit_rows
from rayasd.inlier.pooling import check_poolings
from rayasd.parquet import read_parquet
from rayasd.pretrained import base_paths, check_unchanged
from rayasd.scoring.model import MachineModel, Parts
from rayasd.scoring.packing import read_pack
from rayasd.stages import ALL_MACHINES, stages_of
from rayasd.sweep.markers import why_unusable
from rayasd.sweep.store import RunStore
from rayasd.unit import Unit


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Choice of one of a run's models; the run decides what is None."""

    machine: str | None = None
    """May be left out where the run has one alone."""
    variant: str | None = None
    """Default: the one that ranks first."""
    seed: int | None = None
    """Default: the lowest."""
    detector: str | None = None
    """Default: the one that the run's report chose; likewise ``pooling``."""
    pooling: str | None = None


def load(
    source: str | Path,
    *,
    machine: str | None = None,
    variant: str | None = None,
    seed: int | None = None,
    detector: str | None = None,
    pooling: str | None = None,
    device: str = "auto",
    trust: bool = False,
) -> MachineModel:
    """Load a machine's model.

    Args:
        source: a run directory, or a file that ``rayasd pack`` wrote.
        machine: of a run; this and the next four as ``Choice`` says.
        variant: of a run.
        seed: of a run.
        detector: of a run.
        pooling: of a run; how windows become a clip.
        device: auto, cpu, cuda or cuda:N.
        trust: run detectors, poolings and extractors that a packed file names by import path.

    Raises:
        UserError: there is no such thing, it is not finished, or the file is damaged.

    """
    path = Path(source)
    if path.is_dir():
        choice = Choice(machine=machine, variant=variant, seed=seed, detector=detector, pooling=pooling)
        return MachineModel(parts_of_run(path, choice), device)
    if any(value is not None for value in (variant, seed, detector, pooling)):
        raise UserError(f"{path} is packed: variant, seed, detector and pooling were chosen when it was made")
    parts = read_pack(path, trust=trust)
    if machine is not None and machine.casefold() != parts.machine.casefold():
        raise UserError(f"{path} is of {parts.machine}, not of {machine}")
    return MachineModel(parts, device)


def parts_of_run(folder: Path, choice: Choice) -> Parts:
    """Take a machine's model out of a run.

    Raises:
        UserError: there is no such thing, or it is not finished or damaged.

    """
    store = RunStore(folder)
    specs = store.specs()
    machines = sorted({unit.machine for unit in specs} - {ALL_MACHINES})
    if choice.machine is None and len(machines) > 1:
        raise UserError(f"{folder} has several machines: name one of {', '.join(machines)}")
    machine = matching("machine", choice.machine or machines[0], machines)
    chosen = _Chosen(store, machine, choice)
    unit = Unit("detect", chosen.variant, machine, chosen.seed)
    if unit not in specs:
        raise UserError(f"{folder} has no {chosen.variant}, seed {chosen.seed} of {machine}")
    spec = specs[unit]
    if choice.detector is not None:
        single_detector(choice.detector, spec.config.inlier)
    if choice.pooling is not None:
        check_poolings([choice.pooling])
    for stage in stages_of(spec.config):
        if why := why_unusable(specs[spec.upstream(stage)]):
            raise UserError(why)
    manifest = store.manifest()
    known = manifest["data"]["pretrained"]
    check_unchanged({path: known[path] for path in base_paths(spec.config) if path in known})
    embeddings = read_parquet(store.paths.table(spec.upstream("embed")))
    catalog = store.catalog()
    classes: list[str] = []
    weights = {}
    bank = embeddings.filter(fit_rows(spec.config.inlier.fit_on))
    systems = chosen.systems(bank)
    if spec.config.network.is_trained:
        models = store.paths.output(spec.upstream("train"))
        classes, found = class_names(models), weights_by_epochs(models)
        weights = {epochs: load_file(found[epochs]) for epochs in {system.checkpoint for system in systems.values()}}
    bank = bank.filter(pc.field("checkpoint").isin([system.checkpoint for system in systems.values()]))
    return Parts(
        machine=machine,
        config=_settled(spec.config, catalog.of(machine)),
        classes=tuple(classes),
        weights=weights,
        scale=scaling(_clips(catalog, embeddings.filter(fit_rows("train")))),
        clip_seconds=_clip_seconds(catalog, machine, spec.config.data.sample_rate),
        systems=systems,
        bank=bank,
        training=_training(store, unit, systems),
        provenance={
            "rayasd": __version__, "variant": chosen.variant, "seed": chosen.seed,
            "data": digest(manifest["data"]["fingerprint"]), "synthetic": manifest["data"].get("synthetic", False),
        },
    )  # fmt: skip


class _Chosen:
    """System that scores: the one that the run's report chose, where nothing else is asked for."""

    def __init__(self, store: RunStore, machine: str, choice: Choice) -> None:
        self._choice = choice
        self._cells: list[dict[str, Any]] = []
        if not store.catalog().has_tests:
            self._take_fixed(store, machine)
            return
        leaderboard = store.paths.leaderboard("parquet")
        again = f"rayasd report {store.paths.root} makes it again"
        if not leaderboard.exists():
            raise UserError(f"{store.paths.root} has no leaderboard: rayasd report {store.paths.root} makes one")
        board = read_parquet(leaderboard, again)
        facts = {key.decode(): value.decode() for key, value in (board.schema.metadata or {}).items()}
        if facts.get(RULES) != rules_digest(store.config().evaluation):
            raise UserError(f"{leaderboard} was not made by the run's own rules: {again}")
        rows = [row for row in board.to_pylist() if row["num_seeds"] and (row["rank"] or not row["oracle"])]
        plans = store.plans()
        variants = list(dict.fromkeys(name for plan in plans for name in plan.variants))
        single = [row for row in rows if row["variant"] in variants]
        ranked = sorted((row for row in single if row["rank"]), key=lambda row: row["rank"])
        self.variant = choice.variant or (ranked or single)[0]["variant"]
        if self.variant not in variants:
            raise unknown("variant", self.variant, variants)
        own = [row for row in [*ranked, *single] if row["variant"] == self.variant]
        if not own:
            raise UserError(f"{store.paths.root} has not scored {self.variant}")
        self._first = own[0]
        seeds = (seed for plan in plans if self.variant in plan.variants for seed in plan.seeds)
        self.seed = min(seeds) if choice.seed is None else choice.seed
        cells = read_parquet(store.paths.cells, again, sha256=facts.get(CELLS, ""), filters=[("selected", "=", True)])
        self._cells = [
            row for row in cells.to_pylist()
            if (row["variant"], row["machine"], row["seed"]) == (self.variant, machine, self.seed)
        ]  # fmt: skip

    def _take_fixed(self, store: RunStore, machine: str) -> None:
        """Take what no test clip has chosen: the first variant, its knn-1 and mean pooling where it has them."""
        plan = store.plans()[0]
        self.variant = self._choice.variant or plan.variants[0]
        self.seed = min(plan.seeds) if self._choice.seed is None else self._choice.seed
        path = store.paths.table(Unit("detect", self.variant, machine, self.seed))
        if not path.exists():
            raise UserError(f"{store.paths.root} has not scored {self.variant}, seed {self.seed} of {machine}")
        key = min(read_scores(path), key=lambda each: (each.detector != "knn-1", each.pooling != "mean"))
        self._first = {"checkpoint": None, "detector": key.detector, "pooling": key.pooling}

    def systems(self, bank: pa.Table) -> dict[str, System]:
        """Choose for each section of the bank."""
        last = pc.max(bank["checkpoint"]).as_py()
        chosen = {row["section"]: row for row in self._cells}
        systems = {}
        for section in sorted(pc.unique(bank["section"]).to_pylist()):
            row = chosen.get(section, self._first)
            checkpoint = last if row["checkpoint"] is None else int(row["checkpoint"])
            detector, pooling = self._choice.detector or row["detector"], self._choice.pooling or row["pooling"]
            systems[section] = System(self.variant, checkpoint, detector, pooling)
        return systems


def _settled(config: Config, table: pa.Table) -> Config:
    """Settle ``data.scale`` and the windows per clip as for the machine's clips."""
    scale = table["scale"][0].as_py() if "scale" in table.column_names else 1.0
    embedding = replace(config.embedding, num_windows=windows_of(config, table))
    return replace(config, data=replace(config.data, scale=scale), embedding=embedding)


def _clips(catalog: Catalog, windows: pa.Table) -> pa.Table:
    """Catalog rows of the clips that these windows are of."""
    return catalog.table.filter(pc.is_in(catalog.table["clip"], pc.unique(windows["clip"])))


def _clip_seconds(catalog: Catalog, machine: str, rate: int) -> float:
    train = catalog.of(machine).filter(catalog.is_train)
    return float(np.median(train["frames"].to_numpy())) / rate


def _training(store: RunStore, unit: Unit, systems: dict[str, System]) -> pa.Table:
    """Scores of normal clips to set thresholds by; none of a system that the run has not scored."""
    sections, scores = [], []
    found = read_scores(store.paths.table(unit))
    for section, system in systems.items():
        key = Key(section, system.checkpoint, system.detector, system.pooling)
        if key in found:
            scores += found[key].calibrating.tolist()
            sections += [section] * len(found[key].calibrating)
    return pa.table({"section": pa.array(sections, pa.string()), "score": pa.array(scores, pa.float64())})
