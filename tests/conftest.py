"""A tiny machine-sound tree and ways to run rayasd on it."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rayasd import presets
from rayasd.config import Config
from rayasd.data.catalog import Catalog, scan, write_catalog
from rayasd.data.waveforms import data_fingerprint, decode
from rayasd.files import digest
from rayasd.stages import StageName
from rayasd.unit import RunDirectory, Unit, UnitSpec
from tests.command import Rayasd, call, call_process

RATE = 16000
SMALL = (
    "front_end.window_seconds=0.5",
    "front_end.n_fft=512",
    "front_end.hop_length=256",
    "front_end.n_mels=32",
    "network.backbone=test_efficientnet",
    "exposure.epochs=3",
    "exposure.batch_size=16",
    "exposure.checkpoint_every=1",
    "embedding.num_windows=3",
    'inlier.detectors=["knn-1", "gmm-1"]',
    "evaluation.false_alarm_rate=0.5",
)
"""Overrides of the demo preset for tests: seconds on one core, and decisions though few clips are held out."""

SHARED = {
    "objective": "sub-cluster-adacos(subclusters=2)",
    "scope": "all",
    "schedule": "constant",
    "mixup_schedule": "half",
}
"""Settings of ``exposure`` that train one network for all machine types."""


def write_clip(path: Path, frequency: float, *, seconds: float = 1.0, seed: int = 0, **options: object) -> None:
    """Write a tone in noise; options go to soundfile (subtype) or say rate and channels."""
    rate, channels = int(options.pop("rate", RATE)), int(options.pop("channels", 1))  # type: ignore[call-overload]
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    tone = 0.2 * np.sin(2 * np.pi * frequency * time)[:, None] + 0.02 * rng.standard_normal((len(time), channels))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone if channels > 1 else tone[:, 0], rate, **options)


def write_tree(root: Path, machines: tuple[str, ...] = ("fan", "pump", "valve")) -> Path:
    """Write a DCASE 2021 tree: sections 00 and 03, 8 + 1 training clips, 3 + 3 test clips a domain, 1 s each."""
    for m, machine in enumerate(machines):
        for s, section in enumerate(("00", "03")):
            base = 300.0 + 400 * m + 150 * s
            for domain, count in (("source", 8), ("target", 1)):
                for n in range(count):
                    name = f"section_{section}_{domain}_train_normal_{n:04}_x.wav"
                    write_clip(root / machine / "train" / name, base + n, seed=n)
                for label, shift in (("normal", 0.0), ("anomaly", 60.0)):
                    for n in range(3):
                        name = f"section_{section}_{domain}_test_{label}_{n:04}.wav"
                        write_clip(root / machine / f"{domain}_test" / name, base + shift + n, seed=50 + n)
    return root


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups; folders, registered later, add their marks before
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Share the tests out among processes: Ray, Slurm and MPI own ports and hosts and go one by one, others by file."""
    for item in items:
        alone = any(item.get_closest_marker(name) for name in ("ray", "slurm", "mpi"))
        item.add_marker(pytest.mark.xdist_group("cluster" if alone else item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group").args[0] != "cluster")  # the longest group first


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three machines, two sections each; read only."""
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Waveform cache that the whole test session shares."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def shared_preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the demo preset with a variant more: ``one``, a network for all machine types."""
    path = tmp_path_factory.mktemp("preset") / "own.toml"
    settings = "\n".join(f"exposure.{key} = {json.dumps(value)}" for key, value in SHARED.items())
    path.write_text(f'extends = "demo"\n[variants.one]\n{settings}\n')
    return path


@pytest.fixture(scope="session")
def small_config() -> Config:
    """A configuration that trains in a second."""
    return presets.load("demo", SMALL)


@pytest.fixture(scope="session")
def catalog(tree: Path, cache: Path, small_config: Config) -> Catalog:
    """Decoded catalog of the tree."""
    return decode(scan(tree), small_config.data, cache)


SpecOf = Callable[..., UnitSpec]


@pytest.fixture
def spec_of(tmp_path: Path, catalog: Catalog, cache: Path, small_config: Config) -> SpecOf:
    """Make unit specs in a run directory of this test's own."""
    run = RunDirectory(tmp_path / "run")
    write_catalog(run.catalog, catalog)

    def make(
        stage: StageName = "train", machine: str = "fan", seed: int = 0, config: Config | None = None, **fields: object
    ) -> UnitSpec:
        spec = UnitSpec(
            unit=Unit(stage, "both", machine, seed),
            config=config or small_config,
            run=run,
            cache=cache,
            data_root=catalog.root,
            data=digest(data_fingerprint(catalog)),
            device="cpu",
        )
        spec = replace(spec, **fields)  # type: ignore[arg-type]
        spec.output.mkdir(parents=True, exist_ok=True)
        return spec

    return make


@pytest.fixture
def rayasd(tmp_path: Path, cache: Path) -> Rayasd:
    """Run the command line within this process, in an empty folder."""
    return partial(call, cache=cache, folder=_empty(tmp_path))


@pytest.fixture
def rayasd_process(tmp_path: Path, cache: Path) -> Rayasd:
    """Run the command line in a process of its own, in an empty folder."""
    return partial(call_process, cache=cache, folder=_empty(tmp_path))


def _empty(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir(exist_ok=True)
    return folder


def small_sweep(tree: Path, run_dir: Path, *more: object) -> list[object]:
    """Arguments of a sweep that takes seconds."""
    words = ["sweep", "--data", tree, "--preset", "demo", "--run-dir", run_dir, "--executor", "local", "--no-html"]
    return [*words, *(word for override in SMALL for word in ("--set", override)), *more]


def run_locally(tree: Path, cache: Path, run_dir: Path, *more: object) -> Path:
    """Sweep undisturbed, within this process; returns the run directory."""
    done = call(*small_sweep(tree, run_dir, *more), cache=cache)
    assert done.returncode == 0, done.stdout + done.stderr
    return run_dir


@pytest.fixture(scope="session")
def finished(tree: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a complete sweep of a variant and a control; read only: who writes to it takes a copy."""
    run = tmp_path_factory.mktemp("finished") / "run"
    done = call(*small_sweep(tree, run, "--variants", "both,statistics"), cache=cache)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "weights random: network.pretrained names no file" in done.stdout
    return run


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real recordings and official labels beside the project; tests that need it skip without."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "data/mimii-mini").is_dir():
        pytest.skip(f"no real recordings at {folder}")
    return folder
