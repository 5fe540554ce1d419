"""Checks before a sweep starts: settings, data, room on disk."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

from rayasd.config import Config
from rayasd.data.catalog import Catalog, check_outlier_exposure, check_supplemental
from rayasd.data.groups import with_groups
from rayasd.data.splits import set_aside
from rayasd.errors import StorageError, UserError
from rayasd.host import worker_pool
from rayasd.inlier.detectors import parse_detectors
from rayasd.inlier.pooling import check_poolings
from rayasd.pretrained import fingerprint, weight_paths
from rayasd.stages import ALL_MACHINES, STAGES, NumClips, StageName, stages_of
from rayasd.sweep.plan import Plan
from rayasd.sweep.store import RunStore
from rayasd.wording import size


def check_variants(configs: Mapping[str, Config]) -> dict[str, str]:
    """Check what needs no data: detectors, poolings, files of weights.

    Returns the sha256 of each file, or folder, of pretrained weights. Raises UserError: an unknown detector or pooling,
    or a missing file.
    """
    weights: dict[str, str] = {}
    for config in configs.values():
        parse_detectors(config.inlier.detectors, config.inlier)
        check_poolings(config.inlier.poolings)
        weights |= {path: fingerprint(path) for path in weight_paths(config) if path not in weights}
    return weights


def check_data(catalog: Catalog, machines: Sequence[str], configs: Mapping[str, Config]) -> None:
    """Make sure that the clips are enough for what is asked.

    Raises UserError: a machine has no training clips, or no second machine that it asks for, or a test too few
    anomalies.
    """
    if ALL_MACHINES in catalog.machines:
        raise UserError(f"a machine type cannot be called {ALL_MACHINES}: rayasd uses the word for all of them")
    for config in configs.values():
        with_groups(catalog, config.data.groups)  # refuses a rule that matches nothing
        trains, shared = "train" in stages_of(config), config.exposure.scope == "all"
        if trains and not shared:
            check_outlier_exposure(catalog, machines, config.exposure.pseudo_anomalies)
        if trains:
            check_supplemental(catalog, config.exposure)
        if config.exposure.anomalies_aside:
            for machine in sorted({*machines, *(catalog.trained if trains and shared else ())}):
                set_aside(catalog.of(machine), machine, config.exposure)


def check_what_is_left(catalog: Catalog, machines: Sequence[str]) -> None:
    """Make sure that no machine lost all its training clips since they could not be used. Raises UserError: one has."""
    if gone := [machine for machine in machines if machine not in catalog.trained]:
        raise UserError(
            f"no training clips are left of {', '.join(gone)}: rayasd data check {catalog.root} says why, --machines "
            "chooses others"
        )


def check_extractors(configs: Mapping[str, Config]) -> dict[str, int]:
    """Make each network once, so that what is wrong there is refused before every unit fails.

    Returns the number of parameters that each variant's training saves; nothing where that could not be found out.
    Raises UserError: an encoder or an objective that cannot be made.
    """
    alike = {v: repr((c.data, c.front_end, c.network, c.exposure)) for v, c in configs.items()}
    different = {alike[variant]: config for variant, config in configs.items()}
    # in a process of its own: timm brings torch, whose memory the driver would hold for the whole sweep
    with suppress(BrokenProcessPool), worker_pool(1) as pool:  # it was killed, for memory perhaps: the units will tell
        sizes = dict(zip(different, pool.map(_make_network, different.values()), strict=True))
        return {variant: sizes[alike[variant]] for variant in configs}
    return {}


def check_space(
    store: RunStore, config: Config, plan: Plan, catalog: Catalog, num_parameters: Mapping[str, int]
) -> None:
    """Refuse a sweep whose results have no room.

    ``num_parameters``: learned, by variant; of one that is not named, as its trained weights say.

    Raises StorageError: units that are not done need more room than is free.
    """
    clips, needed = NumClips.of(catalog.table), Counter[StageName]()
    resolved = {variant: config.variant(variant) for variant in plan.variants}
    known = {variant: _trained_parameters(store, variant) for variant in plan.variants} | dict(num_parameters)
    for unit in plan.units(config):
        if not store.paths.marker(unit, "DONE").exists():
            size_of = STAGES[unit.stage].output_bytes
            needed[unit.stage] += size_of(unit.machine, resolved[unit.variant], clips, known[unit.variant])
    free = shutil.disk_usage(store.paths.root).free
    if needed.total() > free:
        parts = ", ".join(f"{stage} {size(count)}" for stage, count in needed.items())
        raise StorageError(
            f"this sweep leaves about {size(needed.total())} more in {store.paths.root} ({parts}), {size(free)} are "
            "free: make room, choose another --run-dir, or ask for less (--dry-run shows how much)"
        )


def _trained_parameters(store: RunStore, variant: str) -> int:
    """Count the parameters of a variant's trained extractor; 0 where none has been trained."""
    trained = store.paths.root.glob(f"models/{variant}/*/*/model.safetensors")
    return max((path.stat().st_size // 4 for path in trained), default=0)


def _make_network(config: Config) -> int:
    from rayasd.exposure.network import num_saved_parameters

    return num_saved_parameters(config)
