import csv
import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rayasd.data.catalog import scan
from rayasd.data.ground_truth import scan_labelled, with_ground_truth
from rayasd.data.machine_sounds import MODELS, clip_of, product_of, with_fault
from rayasd.data.synthetic import SynthesisPlan, machine_types, synthesize
from rayasd.errors import UserError

MACHINE_TYPES = machine_types(2021)
PLAN = SynthesisPlan(
    machines=("fan", "valve"), num_sections=4, num_source_train=3, num_target_train=1, num_test=2, seconds=0.5
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "data"
    progress: list[tuple[int, int]] = []
    count = synthesize(out, PLAN, num_workers=2, on_progress=lambda done, total: progress.append((done, total)))
    assert count == 2 * 4 * (3 + 1 + 2 * 2 * 2)
    assert progress[-1] == (count, count)
    return out


def content(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kinds(root: Path) -> dict[str, str]:
    with (root / "attributes.csv").open(newline="") as file:
        return {row["clip"]: row["anomaly"] for row in csv.DictReader(file)}


def test_the_tree_is_dcase_2021(written: Path):
    catalog = with_ground_truth(scan(written), written / "ground_truth_data")
    assert catalog.synthetic
    assert scan(written / "dev_data").synthetic
    above = scan_labelled(written.parent, None)
    assert above.synthetic
    assert above.table["label"].null_count == 0
    assert not catalog.oddities
    assert catalog.machines == ["fan", "valve"]
    rows = catalog.table.to_pylist()
    assert {row["section"] for row in rows if row["clip"].startswith("dev_data")} == {"00", "01", "02"}
    assert {row["section"] for row in rows if row["clip"].startswith("eval_data")} == {"03"}
    assert all(row["label"] is not None for row in rows)
    unnamed = [row for row in scan(written).table.to_pylist() if row["label"] is None]
    assert len(unnamed) == 2 * 2 * 4  # evaluation test clips tell nothing by their names
    info = soundfile.info(written / rows[0]["clip"])
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (16000, 1, "PCM_16", 8000)


def test_supplemental_clips_of_2025_are_named_and_neither_trained_on_nor_tested(tmp_path: Path):
    plan = replace(PLAN, year=2025, machines=("fan", "ToyPet"), num_test=3)
    count = synthesize(tmp_path / "data", plan, num_workers=1)
    catalog = scan(tmp_path / "data")
    assert catalog.table.num_rows == count
    assert not catalog.oddities
    rows = [row for row in catalog.table.to_pylist() if "/supplemental/" in row["clip"]]
    assert Counter((row["machine"], row["split"], row["label"]) for row in rows) == {
        (machine, split, None): number
        for machine in ("fan", "ToyPet")
        for split, number in (("clean", 2), ("noise", 1))
    }


def test_labels_agree_with_the_kinds_of_anomaly(written: Path):
    catalog = with_ground_truth(scan(written), written / "ground_truth_data")
    anomalous = {row["clip"] for row in catalog.table.to_pylist() if row["label"] == 1}
    assert anomalous == set(kinds(written))
    for clip, kind in kinds(written).items():
        assert kind in MODELS[clip.split("/")[1]].faults


def test_the_same_plan_gives_the_same_bytes_however_many_workers(written: Path, tmp_path: Path):
    synthesize(tmp_path / "again", PLAN, num_workers=1)
    assert content(tmp_path / "again") == content(written)


def test_clips_depend_on_their_own_coordinates_alone(written: Path, tmp_path: Path):
    synthesize(tmp_path / "less", replace(PLAN, machines=("valve",), num_sections=1), num_workers=1)
    less, whole = content(tmp_path / "less"), content(written)
    clips = [name for name in less if name.endswith(".wav")]
    assert clips
    assert all(less[name] == whole[name] for name in clips)
    synthesize(tmp_path / "seed", replace(PLAN, machines=("valve",), num_sections=1, seed=1), num_workers=1)
    other = content(tmp_path / "seed")
    assert all(less[name] != other[name] for name in clips)


def test_a_second_call_does_nothing_and_another_plan_is_refused(written: Path, tmp_path: Path):
    before = content(written)
    assert synthesize(written, PLAN) == 0
    with pytest.raises(UserError, match="holds synthetic data of another plan"):
        synthesize(written, replace(PLAN, seed=5))
    assert content(written) == before
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="is not empty"):
        synthesize(tmp_path, PLAN)
    with pytest.raises(UserError, match="is a file"):
        synthesize(tmp_path / "mine.txt", PLAN)


def test_an_interrupted_call_is_completed(written: Path, tmp_path: Path):
    class PowerCut(Exception):
        pass

    def cut(done: int, total: int) -> None:
        raise PowerCut

    with pytest.raises(PowerCut):
        synthesize(tmp_path / "out", PLAN, num_workers=1, on_progress=cut)
    synthesize(tmp_path / "out", PLAN, num_workers=1)
    assert content(tmp_path / "out") == content(written)


def test_recordings_in_the_same_layout_are_left_alone(tmp_path: Path):
    """Evaluation test clips of the real data bear the very names that synthetic ones would."""
    recording = tmp_path / "eval_data" / "fan" / "source_test" / "section_03_source_test_0000.wav"
    recording.parent.mkdir(parents=True)
    recording.write_bytes(b"a real recording")
    with pytest.raises(UserError, match="is not empty"):
        synthesize(tmp_path, PLAN, num_workers=1)
    assert recording.read_bytes() == b"a real recording"


def test_an_interrupted_call_is_not_mixed_with_another_plan(tmp_path: Path):
    def cut(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "out", replace(PLAN, num_source_train=9), num_workers=1, on_progress=cut)
    with pytest.raises(UserError, match="unfinished synthetic data of another plan"):
        synthesize(tmp_path / "out", PLAN, num_workers=1)


def test_progress_need_not_be_watched(tmp_path: Path):
    plan = replace(PLAN, machines=("fan",), num_sections=1)
    assert synthesize(tmp_path / "out", plan, num_workers=1) == 12


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"machines": ("fann",)}, "did you mean 'fan'"),
        ({"machines": ("fan", "valve", "fan")}, "fan is named twice"),
        ({"num_test": 0}, "num_test = 0: must be at least 1"),
        ({"num_sections": 100}, "must be between 1 and 99"),
        ({"difficulty": 1.5}, "between 0 and 1"),
        ({"seconds": 0.1}, "must be at least 0.5"),
        ({"seconds": float("nan")}, "must be at least 0.5"),
    ],
)
def test_an_impossible_plan_is_refused(tmp_path: Path, changes: dict[str, object], said: str):
    with pytest.raises(UserError, match=said):
        synthesize(tmp_path / "out", replace(PLAN, **changes))  # type: ignore[arg-type]


def sound(machine: str, kind: str | None = None, strength: float = 1.0, section: int = 0) -> np.ndarray:
    """Render one clip; the same room, speed and place every time."""
    product = product_of(machine, section, 0)
    if kind is not None:
        product = with_fault(product, kind, strength, np.random.default_rng(1))
    return clip_of(product, "source", 32000, 16000, np.random.default_rng(2))


def spectral_distance(a: np.ndarray, b: np.ndarray) -> float:
    def bands(x: np.ndarray) -> np.ndarray:
        power = np.abs(np.fft.rfft(x)) ** 2
        return np.log(power[1:16001].reshape(200, -1).mean(axis=1))

    return float(np.abs(bands(a) - bands(b)).mean())


@pytest.mark.parametrize(("machine", "kind"), [(m, kind) for m in MACHINE_TYPES for kind in MODELS[m].faults])
def test_every_fault_changes_the_sound(machine: str, kind: str):
    assert not np.array_equal(sound(machine), sound(machine, kind))
    assert np.abs(sound(machine, kind)).max() < 1.0  # full scale is never reached


@pytest.mark.parametrize(
    ("machine", "kind"), [("fan", "missing harmonic"), ("valve", "worn seat"), ("slider", "late strokes")]
)
def test_a_stronger_fault_is_further_away(machine: str, kind: str):
    weak, strong = (spectral_distance(sound(machine), sound(machine, kind, s)) for s in (0.25, 1.75))
    assert strong > weak


@pytest.mark.slow
def test_less_difficult_anomalies_stand_out_more(tmp_path: Path):
    def outlyingness(difficulty: float) -> float:
        """How much further than a normal clip an anomalous one lies from its nearest normal clip."""
        plan = replace(
            PLAN, machines=("pump", "slider"), num_sections=1, num_test=16, seconds=1.0, difficulty=difficulty
        )
        synthesize(tmp_path / str(difficulty), plan, num_workers=1)
        ratios = []
        for machine in plan.machines:
            folder = tmp_path / str(difficulty) / "dev_data" / machine / "source_test"
            normal, anomalous = (
                [soundfile.read(path)[0] for path in sorted(folder.glob(f"*_{label}_*"))]
                for label in ("normal", "anomaly")
            )
            assert len(normal) == len(anomalous) == 16
            near, far = (
                np.mean([min(spectral_distance(x, y) for y in normal if y is not x) for x in clips])
                for clips in (normal, anomalous)
            )
            ratios.append(far / near)
        return float(np.mean(ratios))

    assert outlyingness(0.0) > outlyingness(1.0)


@pytest.mark.parametrize("machine", MACHINE_TYPES)
def test_products_differ(machine: str):
    assert spectral_distance(sound(machine, section=0), sound(machine, section=1)) > 0.1
