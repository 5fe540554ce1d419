"""Loading a machine's model from a run or a packed file."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.torch import load_file

from rayasd import __version__
from rayasd.config import Config
from rayasd.data.waveforms import scaling
from rayasd.errors import UserError, unknown
from rayasd.evaluation.ensembles import fuse_ensembles
from rayasd.evaluation.fused import leaves
from rayasd.evaluation.leaderboard import CELLS, RULES, rules_digest
from rayasd.evaluation.scores import FIXED, Calibration, Fusion, Key, Leaf, Scored, SectionScores, Tree, unchosen
from rayasd.evaluation.selection import ANY_VARIANT, CellRow, select
from rayasd.exposure.network import class_names, weights_by_epochs
from rayasd.files import digest
from rayasd.inlier.detectors import FusionSpec, parse_detectors
from rayasd.inlier.features import normal_rows
from rayasd.parquet import read_parquet
from rayasd.pretrained import base_paths, check_unchanged
from rayasd.registry import refuse_code
from rayasd.scoring.model import MachineModel
from rayasd.scoring.packing import chosen_machine, read_pack
from rayasd.scoring.parts import Embedder, Origin, Parts, training_table
from rayasd.scoring.sections import normal_scores
from rayasd.stages import stages_of
from rayasd.sweep.markers import checksum, why_unusable
from rayasd.sweep.states import State, survey
from rayasd.sweep.store import RunStore
from rayasd.unit import Unit, UnitSpec
from rayasd.windows import usual_frames, windows_of


def load(
    source: str | Path, *, machine: str | None = None, entry: str | None = None, seed: int | None = None,
    detector: str | None = None, pooling: str | None = None, device: str = "auto", trust: bool = False,
) -> MachineModel:  # fmt: skip
    """Load a machine's model.

    ``source``: a run directory, or a file that ``rayasd pack`` wrote. ``machine`` may be left out where there is one
    alone. ``device``: auto, cpu, cuda or cuda:N. ``trust``: run detectors, poolings, encoders and objectives that are
    named by import path. The others are of a run, as of ``RunModels``.

    Raises UserError: there is no such thing, it is not finished, or the file is damaged.
    """
    path = Path(source)
    if path.is_dir():
        run = RunModels(path, entry=entry, seed=seed, detector=detector, pooling=pooling, trust=trust)
        return MachineModel(run.parts(chosen_machine(path, machine, run.machines)), device)
    if any(value is not None for value in (entry, seed, detector, pooling)):
        raise UserError(f"{path} is packed: entry, seed, detector and pooling were chosen when it was made")
    return MachineModel(read_pack(path, machine, trust=trust), device)


class RunModels:
    """The models of a run's machines by one entry of its leaderboard."""

    def __init__(
        self, folder: Path, *, entry: str | None = None, seed: int | None = None, detector: str | None = None,
        pooling: str | None = None, trust: bool = False,
    ) -> None:  # fmt: skip
        """Choose an entry.

        By default, it is the one that ranks first, the lowest seed (of one that is not over seeds), and the detector
        and the pooling that the run's report chose. ``trust``: as of ``load``.

        Raises UserError: there is no such entry or seed, or the run has no leaderboard by its own rules.
        """
        self._store, self._detector, self._pooling = RunStore(folder), detector, pooling
        self._specs = self._store.specs()
        self._variants = {unit.variant for unit in self._specs}
        self._manifest, self._catalog = self._store.manifest(), self._store.catalog()
        self._whole: set[Unit] = set()
        self._trust = trust
        self._scored: dict[tuple[str, str, int | None], Scored] = {}
        rows = self._rows(entry, seed)
        seeds = {row["seed"] for row in rows} - {None}
        if seed is not None and seed not in seeds:
            raise unknown(f"seed of {self.entry}", str(seed), map(str, seeds))
        self.seed = min(seeds, default=None) if seed is None else seed
        self._rows_of: dict[str, dict[str, CellRow]] = {}
        for row in rows:
            if row["seed"] == self.seed:
                self._rows_of.setdefault(row["machine"], {})[row["section"]] = row

    @property
    def machines(self) -> list[str]:
        """Machines that the entry has scored."""
        return sorted(self._rows_of)

    def _rows(self, entry: str | None, seed: int | None) -> list[CellRow]:
        """Settle the entry, and list the cells that count for it."""
        if not self._catalog.has_tests:
            fused = [] if entry in self._variants else self._fused_untested()  # which reads all scores
            variant = self._store.plans()[0].variants[0]
            entries = {*self._variants, *(each.variant for each in fused)}
            of_all = {each.machine for each in fused if each.variant == f"{variant}+seeds"}
            whole = of_all >= {
                unit.machine for unit in self._specs if (unit.stage, unit.variant) == ("detect", variant)
            }
            self.entry: str = entry or (f"{variant}+seeds" if whole and seed is None else variant)
            if self.entry not in entries:
                raise unknown("entry", self.entry, entries)
            return [*self._untested(*FIXED), *(
                {"variant": each.variant, "machine": each.machine, "seed": each.seed, **key._asdict()}
                for each in fused if each.variant == self.entry for key in unchosen(each.systems, *FIXED)
            )]  # fmt: skip
        paths, evaluation = self._store.paths, self._store.config().evaluation
        leaderboard = paths.leaderboard("parquet")
        if not leaderboard.exists():
            raise UserError(f"{paths.root} has no leaderboard: rayasd report {paths.root} makes one")
        board = read_parquet(leaderboard, self._again)
        facts = {key.decode(): value.decode() for key, value in (board.schema.metadata or {}).items()}
        if facts.get(RULES) != rules_digest(evaluation):
            raise UserError(f"{leaderboard} was not made by the run's own rules: {self._again}")
        ranked = board.filter(pc.field("rank") > 0).sort_by("rank")["variant"].to_pylist()
        self.entry = entry or ranked[0]
        if self.entry not in ranked:
            raise unknown("entry", self.entry, ranked)
        any_variant = self.entry.startswith(ANY_VARIANT)
        wanted = None if any_variant else [("variant", "=", self.entry), ("selected", "=", True)]
        cells = read_parquet(paths.cells, self._again, sha256=facts.get(CELLS, ""), filters=wanted)
        if any_variant:  # not marked in the cells: each section's variant is chosen as the report chose it
            cells = cells.take(select(cells, evaluation)[1][self.entry])
        rows: list[CellRow] = cells.to_pylist()
        if self.entry in self._variants:
            rows += self._untested(rows[0]["detector"], rows[0]["pooling"], {row["machine"] for row in rows})
        return rows

    def _fused_untested(self) -> list[Scored]:
        """Fuse the ensembles of a run without test clips, whose report writes none."""
        paths = self._store.paths
        done = [u for u in survey(self._specs, (), retry_failed=False).units(State.DONE) if u.stage == "detect"]
        units = [Scored(u.variant, u.machine, u.seed, paths.table(u), checksum(self._specs[u], paths.table(u)))
                 for u in done]  # fmt: skip
        fused = fuse_ensembles(units, {}, self._store.config().evaluation)
        self._scored |= {(each.variant, each.machine, each.seed): each for each in fused}
        return fused

    def _untested(self, detector: str, pooling: str, tested: Collection[str] = ()) -> list[CellRow]:
        """List what scores machines without test clips, in the form of cells: this detector, where they have it."""
        rows: list[CellRow] = []
        for unit in self._specs:
            if (unit.stage, unit.variant) == ("detect", self.entry) and unit.machine not in tested:
                systems = self._systems(unit.variant, unit.machine, unit.seed)
                of_unit = {"variant": unit.variant, "machine": unit.machine, "seed": unit.seed}
                rows += [{**of_unit, **key._asdict()} for key in unchosen(systems, detector, pooling)]
        return rows

    @property
    def _again(self) -> str:
        return f"rayasd report {self._store.paths.root} makes it again"

    def parts(self, machine: str) -> Parts:
        """Take a machine's model out of the run. Raises UserError: it is not finished, damaged, or cannot score."""
        chosen = {section: self._tree(machine, row) for section, row in self._rows_of[machine].items()}
        used: dict[Origin, set[int]] = {}
        for leaf in (leaf for tree in chosen.values() for leaf in leaves(tree)):
            used.setdefault(leaf[:2], set()).add(leaf.checkpoint)
        embedders = {origin: self._embedder(machine, origin, epochs) for origin, epochs in used.items()}
        trees: dict[str, Tree] = {}
        tables = []
        for section, tree in chosen.items():
            training: dict[Leaf, SectionScores] = {}
            trees[section] = self._of_single_detectors(tree, machine, section, embedders, training)
            for number, of in enumerate(training[leaf] for leaf in leaves(trees[section])):
                facts = of.training_clips, of.training, of.training_groups, of.calibration
                tables.append(training_table(section, number, *facts))
        train = self._catalog.of(machine).filter(self._catalog.is_train)
        first = next(iter(trees.values()))
        if isinstance(first, Leaf) and set(trees.values()) == {first}:  # sections without test clips, too
            trees = {**dict.fromkeys(pc.unique(train["section"]).to_pylist(), first), **trees}
        data = self._manifest["data"]
        return Parts(
            machine=machine,
            entry=self.entry,
            clip_seconds=float(np.median(train["frames"].to_numpy())) / self._store.config().data.sample_rate,
            embedders=embedders,
            trees=trees,
            training=pa.concat_tables(tables),
            others=self._others(machine),
            provenance={
                "rayasd": __version__, "entry": self.entry, "seed": self.seed,
                "data": digest(data["fingerprint"]), "synthetic": data.get("synthetic", False),
            },
        )  # fmt: skip

    def _tree(self, machine: str, row: CellRow) -> Tree:
        """Find what the chosen scores of a section come from."""
        key = self._key(row)
        found = self._scores(row["variant"], machine, row["seed"], key)
        if found.failed:
            raise UserError(f"{self.entry} {key.detector} has no scores of {machine} {key.section}: {found.reason}")
        if found.tree is None or any(leaf.variant not in self._variants for leaf in leaves(found.tree)):
            raise UserError(f"the scores of {self.entry} do not say what was fused: {self._again}")
        self._refuse_code(text for leaf in leaves(found.tree) for text in (leaf.detector, leaf.pooling))
        return found.tree

    def _refuse_code(self, texts: Iterable[str]) -> None:
        if not self._trust:
            refuse_code(self._store.paths.root, texts)

    def _key(self, row: CellRow) -> Key:
        detector, pooling = self._detector or row["detector"], self._pooling or row["pooling"]
        return Key(row["section"], row["checkpoint"], detector, pooling)

    def _others(self, machine: str) -> dict[str, Calibration]:
        """Collect the scores of the others' normal clips by each section's system; nothing where all have the same."""
        found, rows = {}, self._rows_of[machine]
        for section, row in rows.items():
            own, systems = self._key(row), self._systems(row["variant"], machine, row["seed"])
            others = (scores for key, scores in systems.items() if key != own and key[1:] == own[1:])
            found[section] = Calibration.pooled(scores.calibrating for scores in others)
        return found if len({(row["variant"], *self._key(row)[1:]) for row in rows.values()}) > 1 else {}

    def _systems(self, variant: str, machine: str, seed: int | None) -> Mapping[Key, SectionScores]:
        """Scores of a unit or an ensemble; files are read once."""
        name = variant, machine, seed
        if name not in self._scored:
            if seed is not None and variant in self._variants:
                path = self._store.paths.table(self._finished(machine, (variant, seed)).unit)
            elif not (path := self._store.paths.ensemble(*name)).exists():
                raise UserError(f"{path} is missing: {self._again}")
            self._scored[name] = Scored(*name, path)
        return self._scored[name].systems

    def _scores(self, variant: str, machine: str, seed: int | None, key: Key) -> SectionScores:
        """Scores of one system."""
        systems = self._systems(variant, machine, seed)
        for kind in ("detector", "pooling"):
            if getattr(key, kind) not in (names := {getattr(each, kind) for each in systems}):
                raise unknown(kind, getattr(key, kind), names)
        if key not in systems:
            path = self._scored[variant, machine, seed].path
            raise UserError(f"{path} has nothing of {machine} as the leaderboard has: {self._again}")
        return systems[key]

    def _finished(self, machine: str, origin: Origin) -> UnitSpec:
        """Find a detect unit, and make sure once that it and what it builds on is whole."""
        unit = Unit("detect", origin[0], machine, origin[1])
        if unit not in self._specs:
            raise UserError(f"{self._store.paths.root} has no {unit} any more: {self._again}")
        spec = self._specs[unit]
        for each in (spec.upstream(stage) for stage in stages_of(spec.config)):
            if each not in self._whole and (why := why_unusable(self._specs[each])):
                raise UserError(why)
            self._whole.add(each)
        return spec

    def _embedder(self, machine: str, origin: Origin, epochs: set[int]) -> Embedder:
        spec = self._finished(machine, origin)
        self._refuse_code(spec.config.named[:2])
        known = self._manifest["data"]["pretrained"]
        check_unchanged({path: known[path] for path in base_paths(spec.config) if path in known})
        embeddings = read_parquet(self._store.paths.table(spec.upstream("embed")))
        learned = embeddings.filter(normal_rows("train"))
        table = self._catalog.table
        classes: list[str] = []
        weights = {}
        if spec.config.network.is_trained:
            models = self._store.paths.output(spec.upstream("train"))
            classes, found = class_names(models), weights_by_epochs(models)
            weights = {each: load_file(found[each]) for each in sorted(epochs)}
        return Embedder(
            config=_settled(spec.config, self._catalog.of(machine)),
            classes=tuple(classes),
            weights=weights,
            scale=scaling(table.filter(pc.is_in(table["clip"], pc.unique(learned["clip"])))),
            bank=embeddings.filter(normal_rows(spec.config.inlier.fit_on) & pc.field("checkpoint").isin([*epochs])),
        )

    def _of_single_detectors(
        self, tree: Tree, machine: str, section: str, embedders: Mapping[Origin, Embedder],
        training: dict[Leaf, SectionScores],
    ) -> Tree:  # fmt: skip
        """Put a fusion in the place of each detector that is one, and collect all leaves' training scores."""
        if isinstance(tree, Fusion):
            members = (self._of_single_detectors(m, machine, section, embedders, training) for m in tree.members)
            return Fusion(tree.method, tuple(members))
        scores = self._scores(tree.variant, machine, tree.seed, Key(section, *tree[2:]))
        spec = parse_detectors([tree.detector], embedders[tree[:2]].config.inlier)[0]
        if not isinstance(spec, FusionSpec):
            training[tree] = scores
            return tree
        normal = normal_scores(spec.members, tree, section, embedders[tree[:2]])
        leaves_of = tuple(tree._replace(detector=name) for name in normal)
        training |= {leaf: replace(scores, training=normal[leaf.detector]) for leaf in leaves_of}
        return Fusion(spec.method, leaves_of)


def _settled(config: Config, table: pa.Table) -> Config:
    """Settle ``data.scale`` and the windows per clip as for the machine's clips."""
    scale = table["scale"][0].as_py() if "scale" in table.column_names else 1.0
    embedding = replace(config.embedding, num_windows=windows_of(config, usual_frames(table)))
    return replace(config, data=replace(config.data, scale=scale), embedding=embedding)
