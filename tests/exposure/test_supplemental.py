"""Supplemental clips of DCASE 2025: mixed in as noise, or learned against, where settings say so."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rayasd.config import Config
from rayasd.data.catalog import Catalog, scan, write_catalog
from rayasd.data.synthetic import SynthesisPlan, synthesize
from rayasd.data.waveforms import Waveforms, data_fingerprint, decode
from rayasd.exposure.clips import MachineClips, load_training_machines
from rayasd.exposure.mixing import Noise
from rayasd.exposure.training import train
from rayasd.files import digest
from rayasd.unit import RunDirectory, Unit, UnitSpec
from tests.command import Rayasd
from tests.conftest import small_sweep

USES = {
    "off": {},
    "noise": {"supplemental_noise": 1.0},
    "against noise": {"supplemental_anomalies": ("noise",)},
    "against both": {"supplemental_anomalies": ("noise", "clean")},
}


@pytest.fixture(scope="module")
def year_2025(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("2025") / "data"
    plan = SynthesisPlan(year=2025, machines=("fan", "ToyPet"), num_source_train=8, num_test=3, seconds=1.0)
    synthesize(out, plan, num_workers=1)
    return out


@pytest.fixture
def spec_with(tmp_path: Path, year_2025: Path, cache: Path, small_config: Config) -> Callable[..., UnitSpec]:
    catalog = decode(scan(year_2025), small_config.data, cache)

    def make(use: str, scope: str = "machine") -> UnitSpec:
        run = RunDirectory(tmp_path / use / scope)
        write_catalog(run.catalog, catalog)
        exposure = replace(small_config.exposure, epochs=1, scope=scope, **USES[use])
        spec = UnitSpec(
            unit=Unit("train", "both", "fan" if scope == "machine" else "shared", 0),
            config=replace(small_config, exposure=exposure),
            run=run,
            cache=cache,
            data_root=catalog.root,
            data=digest(data_fingerprint(catalog)),
            device="cpu",
        )
        spec.output.mkdir(parents=True)
        return spec

    return make


def sources(spec: UnitSpec, catalog: Catalog | None = None) -> dict[str, list[str]]:
    from rayasd.data.catalog import read_catalog

    machines = load_training_machines(catalog or read_catalog(spec.run.catalog, spec.data_root), spec)
    return {m.name: m.table["clip"].take(m.training).to_pylist() for m in machines}


def test_each_use_changes_what_is_learned_and_the_unit(spec_with: Callable[..., UnitSpec]):
    identities, weights = set(), set()
    for use in USES:
        spec = spec_with(use)
        train(spec)
        identities.add(spec.identity)
        weights.add(load_file(spec.output / "model.safetensors")["extractor.neck.4.weight"].sum().item())
    assert len(identities) == len(weights) == len(USES)


@pytest.mark.parametrize("scope", ["machine", "all"])
def test_supplemental_clips_are_sources_of_their_own(spec_with: Callable[..., UnitSpec], scope: str):
    plain = sources(spec_with("off", scope))
    assert not any("supplemental" in clip for clips in plain.values() for clip in clips)
    noise, both = sources(spec_with("against noise", scope)), sources(spec_with("against both", scope))
    expected = {"fan supplemental"} if scope == "machine" else {"fan supplemental", "ToyPet supplemental"}
    assert noise.keys() - plain.keys() == both.keys() - plain.keys() == expected
    assert [clip.rpartition("/")[2][:31] for clip in noise["fan supplemental"]] == ["section_00_source_supplemental_"]
    assert all("_noise_" in clip for clip in noise["fan supplemental"])
    assert len(both["fan supplemental"]) == 3


def test_noise_is_mixed_at_a_drawn_level_the_same_for_any_rows():
    rng = np.random.default_rng(0)
    samples = (3000 * rng.standard_normal(9000)).astype(np.int16)
    waveforms = Waveforms(samples, np.array([0, 3000, 6000]), np.array([3000] * 3))
    split = np.array(["train", "noise", "clean"], dtype=object)
    machine = MachineClips("fan", None, waveforms, np.array([0]), np.array([]), split, 0.0, 1.0)
    clips = torch.randn(64, 2000)
    noise = Noise([machine, replace(machine, per_batch=1)], 0.5)
    assert [number for _, number in noise.clips] == [1]
    found = noise.mixed(clips, 64, np.arange(64), (1,))
    added = (found - clips).square().mean(1).sqrt() / clips.square().mean(1).sqrt()
    mixed = added[added > 0]
    assert 20 < len(mixed) < 44
    assert (-20 * mixed.log10()).min() >= -0.01
    assert 15 < (-20 * mixed.log10()).max() <= 20.01
    rows = np.array([3, 17, 40])
    assert torch.equal(noise.mixed(clips[rows], 64, rows, (1,)), found[rows])
    assert Noise([machine], 0.0).mixed(clips, 64, np.arange(64), (1,)) is clips


@pytest.mark.parametrize("setting", ["supplemental_noise=0.5", "supplemental_anomalies=clean"])
def test_data_without_such_clips_are_refused_in_one_line(rayasd: Rayasd, tree: Path, tmp_path: Path, setting: str):
    done = rayasd(*small_sweep(tree, tmp_path / "run", "--set", f"exposure.{setting}", "--dry-run"))
    assert done.returncode == 2
    assert f"exposure.{setting.partition('=')[0]}: {tree} has no" in done.stderr
    assert "folders named supplemental" in done.stderr


def test_a_manifest_names_noise_of_ones_own(rayasd: Rayasd, tree: Path, tmp_path: Path):
    lines = ["path,machine,section,domain,split,label"]
    for number, clip in enumerate(sorted((tree / "fan/train").iterdir())):
        lines.append(f"{clip},fan,00,source,{'train' if number else 'noise'},")
    (tmp_path / "clips.csv").write_text("\n".join(lines))
    done = rayasd("data", "check", tmp_path / "clips.csv")
    assert done.returncode == 0, done.stderr
    assert " noise " in done.stdout
