from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import soundfile
from sklearn.model_selection import LeaveOneOut

from rayasd.errors import UserError
from rayasd.scoring import load
from rayasd.scoring.loading import RunModels
from rayasd.scoring.model import MachineModel
from rayasd.scoring.packing import write_pack
from rayasd.scoring.recalibration import recalibrated
from tests.command import Rayasd
from tests.conftest import RATE, run_locally, write_clip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tree: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recalibrated") / "run"
    return run_locally(tree, cache, folder, "--variants", "statistics", "--detectors", "knn-1,gmm-1,gmm-8,domain-nn",
                       "--set", "inlier.poolings=mean,clip-mean")  # fmt: skip


@pytest.fixture(scope="module")
def normal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("normal")
    for n in range(7):
        write_clip(folder / "sub" / f"{n}.wav", 900.0 + 5 * n, seed=n)
    return folder


@pytest.mark.parametrize("system", [("knn-1", "mean"), ("knn-1", "clip-mean"), ("domain-nn", "mean")])
def test_the_threshold_is_of_scores_by_detectors_that_have_not_seen_the_clip(
    run: Path, normal: Path, system: tuple[str, str]
):
    model = load(run, machine="fan", entry="statistics", detector=system[0], pooling=system[1])
    clips = np.array(sorted((normal / "sub").iterdir()))
    expected = []
    for fit, (left_out,) in LeaveOneOut().split(clips):
        without = MachineModel(recalibrated(model, "00", normal, clips[fit], pytest.fail))
        expected += [each.score for each in without.score([clips[left_out]], "00")]
    whole = MachineModel(recalibrated(model, "00", normal, clips, pytest.fail))
    np.testing.assert_allclose(whole.fitted("00")["00"].calibration.scores, expected, rtol=1e-5)
    assert whole.fitted("00")["00"].decision.threshold == pytest.approx(np.sort(expected)[3])  # 0.5 of 8
    assert {each.calibration for each in whole.score(clips, "00")} == {"leave-one-out"}


def test_a_bank_of_the_whole_machine_gives_its_other_sections_new_scores(
    tree: Path, cache: Path, normal: Path, tmp_path: Path
):
    run = run_locally(tree, cache, tmp_path / "run", "--variants", "statistics", "--detectors", "knn-1",
                      "--set", "inlier.per=machine")  # fmt: skip
    model = load(run, machine="fan")
    again = [
        tree / clip for clip in pc.unique(model.parts.training.filter(pc.field("section") == "03")["clip"]).to_pylist()
    ]
    new = MachineModel(recalibrated(model, "00", tree, again, pytest.fail))  # section 03's own clips in 00, too
    assert (model.fitted("03")["03"].calibration.scores > 0).sum() == 7  # of 9, of which two sound the same
    np.testing.assert_allclose(new.fitted("03")["03"].calibration.scores, 0, atol=1e-5)


def test_pieces_of_a_recording_are_held_out_together(run: Path, normal: Path, tmp_path: Path):
    model = load(run, machine="fan", detector="knn-1", pooling="mean")
    for n in range(3):
        write_clip(tmp_path / f"{n}.wav", 700.0 + 40 * n, seconds=4.0 if n == 0 else 1.0, seed=n)
    new = MachineModel(recalibrated(model, "00", tmp_path, sorted(tmp_path.iterdir()), pytest.fail))
    section = new.fitted("00")["00"]
    assert (len(section.calibration.scores), section.decision.num_groups) == (6, 3)
    assert "recalibrated/00/0.wav#t=1,2" in new.parts.training["clip"].to_pylist()


def test_segments_of_a_recording_by_their_names_are_one(run: Path, tmp_path: Path):
    model = load(run, machine="fan", detector="knn-1", pooling="mean")
    for n in range(8):
        write_clip(tmp_path / f"may_{n // 4}_seg_{n:03}.wav", 700.0 + 40 * n, seed=n)
    loud = np.tile([0.95, -0.95], RATE // 2)  # a range beyond that of int16
    soundfile.write(tmp_path / "loud.wav", loud, RATE)
    for n in range(2):
        write_clip(tmp_path / f"segment_{n}.wav", 500.0, seed=20 + n)  # a bare number names no recording
    said: list[str] = []
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    section = MachineModel(recalibrated(model, "00", tmp_path, sorted(tmp_path.iterdir()), said.append)).fitted("00")[
        "00"
    ]
    assert (len(section.calibration.scores), section.decision.num_groups) == (11, 5)
    assert said == [f"{tmp_path / 'silent.wav'} is left out: all its samples are the same"]


def test_clips_that_the_network_was_trained_on_stay_so(tree: Path, cache: Path, normal: Path, tmp_path: Path):
    run = run_locally(tree, cache, tmp_path / "run", "--variants", "both", "--detectors", "knn-1")
    model, said = load(run, machine="fan"), list[str]()
    old = model.parts.training.filter((pc.field("section") == "00") & (pc.field("calibration") == "trained-on"))
    again = [tree / clip for clip in old["clip"].to_pylist()]
    for clip in again:
        (tmp_path / "again").mkdir(exist_ok=True)
        (tmp_path / "again" / clip.name).write_bytes(clip.read_bytes())
    new = MachineModel(
        recalibrated(model, "00", tmp_path / "again", sorted((tmp_path / "again").iterdir()), said.append)
    )
    assert new.fitted("00")["00"].calibration.kind == "trained-on"
    assert [text.partition(" of ")[0] for text in said] == [f"the network was trained on {len(again)} clips"]
    fresh = MachineModel(recalibrated(model, "00", normal, sorted((normal / "sub").iterdir()), pytest.fail))
    assert fresh.fitted("00")["00"].calibration.kind == "leave-one-out"


def test_what_it_needs_is_said_in_one_line(run: Path, normal: Path, tmp_path: Path, rayasd: Rayasd):
    write_pack(tmp_path / "fan", [RunModels(run, detector="gmm-8", pooling="clip-mean").parts("fan")])
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.wav").write_text("no audio")
    write_clip(tmp_path / "one/a.wav", 700.0)
    out = ("-o", tmp_path / "new")
    for words, said in (
        ((run, "--machine", "fan", "--section", "00", "--normal", tmp_path / "empty"), "no audio files in"),
        ((run, "--machine", "fan", "--section", "00", "--normal", tmp_path / "absent"), "no such folder"),
        ((run, "--machine", "fan", "--section", "00", "--normal", tmp_path / "bad"), "has no clip that can be read"),
        ((run, "--machine", "fan", "--section", "07", "--normal", normal), "unknown section '07'"),
        ((run, "--machine", "fan", "--normal", normal), "has several sections: name one of 00, 03 by --section"),
        ((run, "--machine", "fan", "--section", "00", "--detector", "knn-1", "--normal", tmp_path / "one"),
         "one has 1 recording: detectors need two, and thresholds more"),
        ((tmp_path / "fan", "--section", "00", "--normal", normal), "are these enough normal clips?"),
        ((tmp_path / "absent", "--section", "00", "--normal", normal), "cannot read"),
    ):  # fmt: skip
        refused = rayasd("recalibrate", *words, *out)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
        assert len([line for line in refused.stderr.splitlines() if "is left out" not in line]) == 1
        assert not (tmp_path / "new").exists()


def test_few_clips_make_a_model_without_a_threshold(run: Path, normal: Path, tmp_path: Path, rayasd: Rayasd):
    model = load(run, machine="fan", detector="knn-1", pooling="mean")
    strict = model.changed(
        lambda config: replace(
            config,
            evaluation=replace(config.evaluation, false_alarm_rate=0.1),
            inlier=replace(config.inlier, calibration_folds=0),  # which makes no scores of normal clips
        )
    )
    write_pack(tmp_path / "fan", [strict.parts])
    (tmp_path / "normal").mkdir()
    for n in range(3):
        (tmp_path / f"normal/{n}.wav").write_bytes((normal / f"sub/{n}.wav").read_bytes())
    (tmp_path / "normal/bad.wav").write_text("no audio")
    words = ("--section", "00", "--normal", tmp_path / "normal", "-o", tmp_path / "new")
    done = rayasd("recalibrate", tmp_path / "fan", *words)
    assert done.returncode == 0, done.stderr
    assert "3 normal clips allow no false-alarm rate below 1/4" in done.stdout
    assert "bad.wav is left out: " in done.stderr
    with pytest.raises(UserError, match="has no clip that can be read"):
        recalibrated(load(tmp_path / "new"), "00", tmp_path / "normal", [tmp_path / "normal/bad.wav"], lambda _: None)
