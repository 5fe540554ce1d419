"""Every entry of a leaderboard scores new clips as its own scores files say."""

import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rayasd.errors import UserError
from rayasd.evaluation.scores import Key, SectionScores, read_scores
from rayasd.scoring import load
from rayasd.scoring.loading import RunModels
from rayasd.scoring.packing import read_pack, write_pack
from tests.command import Rayasd
from tests.conftest import run_locally, write_clip

pytestmark = pytest.mark.slow

FUSION = "z-min(knn-1, mahalanobis)"
ENSEMBLES = ("seeds", "checkpoints", "detectors", "seeds+detectors", "both&one", "both&one+seeds", "greedy")
ENTRIES = ("both", "one", "both+seeds", "one+checkpoints", "both+detectors", "one+seeds+detectors", "both&one",
           "both&one+seeds", "all+greedy")  # fmt: skip


def sweep(tree: Path, cache: Path, preset: Path, folder: Path, *more: object) -> Path:
    """Two variants, one of them with a network of all machines, with two seeds, three checkpoints and a fusion."""
    return run_locally(
        tree, cache, folder, "--preset", preset, "--variants", "both,one", "--seeds", "0,1", "--detectors",
        f"knn-1,gmm-1,{FUSION}", "--set", "inlier.poolings=mean,clip-mean", "--set", "exposure.keep_every=1", "--set",
        "inlier.fit_on=train", "--set", f"evaluation.ensembles={','.join(ENSEMBLES)}", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tree: Path, cache: Path, shared_preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sweep(tree, cache, shared_preset, tmp_path_factory.mktemp("entries") / "run")


def scored(run: Path, entry: str, machine: str, seed: int | None) -> Mapping[Key, SectionScores]:
    folder = "scores" if entry in ("both", "one") else "ensembles"
    number = "all" if seed is None else seed
    return read_scores(run / f"{folder}/variant={entry}/machine={machine}/seed={number}/part-0.parquet")


def chosen(run: Path, entry: str, machine: str, seed: int | None) -> dict[str, SectionScores]:
    """Scores of the systems that count for the entry, by section."""
    rows = pq.read_table(run / "cells.parquet").filter(pc.field("selected") & (pc.field("variant") == entry))
    return {
        row["section"]: scored(run, entry, machine, seed)[Key(*(row[name] for name in Key._fields))]
        for row in rows.to_pylist() if (row["machine"], row["seed"]) == (machine, seed)
    }  # fmt: skip


def test_every_entry_scores_packed_as_its_scores_files_say(run: Path, tree: Path, tmp_path: Path):
    board = pq.read_table(run / "leaderboard.parquet").filter(pc.field("rank") > 0)
    assert set(board["variant"].to_pylist()) > set(ENTRIES)
    for entry in ENTRIES:
        models = RunModels(run, entry=entry)
        assert models.machines == ["fan", "pump", "valve"]
        write_pack(tmp_path / "all.rayasd", map(models.parts, models.machines))
        for machine in ("fan", "valve"):
            model = load(tmp_path / "all.rayasd", machine=machine)
            expected = chosen(run, entry, machine, models.seed)
            assert model.sections == sorted(expected) == ["00", "03"]
            for section, scores in expected.items():
                found = list(model.score([tree / clip for clip in scores.clips], section))
                np.testing.assert_allclose(
                    [clip.score for clip in found], scores.scores, rtol=1e-5, atol=2e-6, err_msg=entry
                )
                known = np.sort(scores.calibrating.scores)
                np.testing.assert_allclose(model._sections[section].decision.normal, known, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("pooling", ["mean", "clip-mean"])
def test_a_fusion_of_detectors_scores_as_in_the_sweep(run: Path, tree: Path, tmp_path: Path, pooling: str):
    models = RunModels(run, entry="both+seeds", detector=FUSION, pooling=pooling)
    parts = models.parts("pump")
    write_pack(tmp_path / "pump.rayasd", [parts])
    model = load(tmp_path / "pump.rayasd")
    assert {leaf.detector for leaf in model.parts.leaves["03"]} == {"knn-1", "mahalanobis"}
    checkpoint = model.parts.leaves["03"][0].checkpoint
    scores = scored(run, "both+seeds", "pump", None)[Key("03", checkpoint, FUSION, pooling)]
    found = list(model.score([tree / clip for clip in scores.clips], "03"))
    np.testing.assert_allclose([clip.score for clip in found], scores.scores, rtol=1e-5, atol=2e-6)
    assert all((clip.worst is None) == (pooling != "mean") for clip in found)


def test_the_first_in_rank_is_taken_and_scores_from_the_run_and_packed_alike(run: Path, tree: Path, rayasd: Rayasd):
    board = pq.read_table(run / "leaderboard.parquet").filter(pc.field("rank") == 1)
    packing = rayasd("pack", run, "-o", "run.rayasd")
    assert packing.returncode == 0, packing.stderr
    lines = packing.stdout.splitlines()
    assert [line.partition(",")[0] for line in lines[:3]] == ["fan", "pump", "valve"]
    assert all(board["variant"][0].as_py() in line for line in lines[:3])
    words = ("--machine", "pump", "--section", "03", tree / "pump/source_test", "--format", "csv")
    packed = rayasd("score", "run.rayasd", *words)
    assert packed.returncode == 0, packed.stderr
    assert packed.stdout == rayasd("score", run, *words).stdout
    for wrong, said in (
        (("run.rayasd",), "has several machines: name one of fan, pump, valve"),
        (("run.rayasd", "--machine", "pomp"), "unknown machine 'pomp': did you mean 'pump'?"),
        ((run, "--machine", "pump", "--entry", "both+seed"), "unknown entry 'both+seed': did you mean 'both+seeds'?"),
        ((run, "--machine", "pump", "--entry", "both", "--seed", "7"), "unknown seed of both '7': there are: 0, 1"),
        ((run, "--machine", "pump", "--entry", "both+seeds", "--seed", "0"), "there are: none"),
        (("run.rayasd", "--machine", "pump", "--entry", "both"), "run.rayasd is packed"),
    ):
        refused = rayasd("score", *wrong, tree / "pump/source_test")
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
        assert said in refused.stderr


def test_what_members_and_machines_share_is_packed_once(run: Path, tmp_path: Path):
    def packed(entry: str, machines: list[str]) -> dict[str, int]:
        models = RunModels(run, entry=entry)
        write_pack(tmp_path / "x.rayasd", map(models.parts, machines))
        with zipfile.ZipFile(tmp_path / "x.rayasd") as archive:
            assert sorted(archive.namelist()) == sorted(set(archive.namelist()))
            facts = json.loads(archive.read("model.json"))["machines"].values()
        embedders = [each for of in facts for each in of["embedders"]]
        return {
            "weights": len({name for each in embedders for name in each["weights"].values()}),
            "banks": len({each["bank"] for each in embedders}),
        }

    assert packed("one+seeds+detectors", ["fan", "pump", "valve"]) == {"weights": 2, "banks": 6}
    assert packed("one+checkpoints", ["fan", "pump"]) == {"weights": 3, "banks": 2}
    assert packed("both+detectors", ["fan"]) == {"weights": 1, "banks": 1}


@pytest.mark.parametrize("entry", ["both&one+seeds", "one+seeds+detectors", "both"])
def test_recalibration_fits_all_members_of_a_section_and_leaves_the_others(
    run: Path, tree: Path, tmp_path: Path, rayasd: Rayasd, entry: str
):
    for n in range(6):
        write_clip(tmp_path / f"normal/{n}.wav", 2000.0 + n, seed=n)
    write_pack(tmp_path / "old", map(RunModels(run, entry=entry).parts, ("fan", "pump")), "CC0-1.0")
    words = ("--machine", "fan", "--section", "0", "--normal", tmp_path / "normal", "-o", tmp_path / "new")
    done = rayasd("recalibrate", tmp_path / "old", *words)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/new: fan, section 00: threshold " in done.stdout
    assert "from 6 normal clips" in done.stdout
    old, new = (load(tmp_path / name, machine="fan") for name in ("old", "new"))
    assert read_pack(tmp_path / "new", "pump").training == read_pack(tmp_path / "old", "pump").training
    assert new.parts.provenance["licence"] == "CC0-1.0"
    assert new.parts.provenance["recalibrated"] == {"00": 6}
    clips = sorted((tree / "fan/source_test").glob("section_03*"))
    assert list(new.score(clips, "03")) == list(old.score(clips, "03"))
    before, after = (
        list(model.score(sorted((tmp_path / "normal").iterdir()), "00")) for model in (old, new)
    )  # as loud as ever, but normal now
    assert all(clip.anomalous for clip in before)
    assert not any(clip.anomalous for clip in after)
    assert {clip.calibration for clip in after} == {"leave-one-out"}
    for origin, embedder in new.parts.embedders.items():
        rows = embedder.bank.filter(pc.field("section") == "00")
        assert embedder.bank.schema == old.parts.embedders[origin].bank.schema
        assert len(pc.unique(rows["clip"])) == 6


def test_a_member_that_was_tampered_with_is_refused(run: Path, tmp_path: Path):
    whole, bad = tmp_path / "whole", tmp_path / "bad"
    write_pack(whole, [RunModels(run, entry="both&one+seeds").parts("fan")])
    with zipfile.ZipFile(whole) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert len(members) == 1 + 4 * 2 + 1
    for name in members.keys() - {"model.json"}:
        with zipfile.ZipFile(bad, "w") as archive:
            for other, content in members.items():
                flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
                archive.writestr(other, flipped if other == name else content)
        with pytest.raises(UserError, match=f"bad is damaged: {name} is not what was packed"):
            load(bad)


def test_an_entry_whose_variant_is_chosen_section_by_section_scores(
    run: Path, tree: Path, cache: Path, shared_preset: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    sweep(tree, cache, shared_preset, folder, "--set", "evaluation.selection=leave-one-section-out", "--accept-changes")
    for entry in ("any variant", "any variant+seeds"):
        models = RunModels(folder, entry=entry)
        model = load(folder, machine="fan", entry=entry)
        for section, row in models._rows_of["fan"].items():
            key = Key(*(row[name] for name in Key._fields))
            scores = scored(folder, row["variant"], "fan", models.seed)[key]
            found = list(model.score([tree / clip for clip in scores.clips], section))
            np.testing.assert_allclose([clip.score for clip in found], scores.scores, rtol=1e-5, atol=2e-6)


def test_sections_with_systems_of_their_own_decide_as_in_the_run(
    run: Path, tree: Path, cache: Path, shared_preset: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    rules = ("selection=leave-one-section-out", "threshold_per=machine")
    sets = [word for rule in rules for word in ("--set", f"evaluation.{rule}")]
    sweep(tree, cache, shared_preset, folder, *sets, "--accept-changes")
    several = 0
    for entry in ("both", "one", "both+seeds", "both+detectors", "both&one"):
        models = RunModels(folder, entry=entry)
        write_pack(tmp_path / "all.rayasd", map(models.parts, models.machines))
        for machine in models.machines:
            model = load(tmp_path / "all.rayasd", machine=machine)
            several += bool(model.parts.others)
            for section, row in models._rows_of[machine].items():
                decision = model._section(section).decision
                assert decision.threshold == pytest.approx(row["threshold"], rel=1e-5), (entry, machine, section)
                assert decision.num_groups == row["num_calibration"]
    assert several > 0
