import io
import json
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile
from rich.console import Console

from rayasd.errors import UserError
from rayasd.evaluation.scores import Key, read_scores
from rayasd.scoring import load, model, watching
from rayasd.scoring.loading import RunModels
from rayasd.scoring.model import ClipScore, MachineModel, _spans
from rayasd.scoring.output import _harmless, write_scores
from rayasd.scoring.packing import read_pack, write_pack
from tests.command import Rayasd, call, command_line, environment
from tests.conftest import RATE, run_locally

pytestmark = pytest.mark.slow

SYSTEMS = ("knn-1", "gmm-1", "lof-2", "machine-logit", "ldn-2", "varmin-2", "domain-nn",
           "knn(n_neighbors=1, smote=0.5)", "kmeans(n_clusters=2, raw_target=True)")  # fmt: skip
POOLINGS = ("mean", "min", "clip-mean", "clip-rdp-4")


@pytest.fixture(scope="module")
def run(finished: Path, tree: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the finished run other detectors and poolings."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("scored") / "run"))
    return run_locally(tree, cache, folder, "--variants", "both,statistics", "--detectors", ",".join(SYSTEMS),
                       "--set", f"inlier.poolings={','.join(POOLINGS)}", "--accept-changes")  # fmt: skip


@pytest.fixture(scope="module")
def packed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "fan.rayasd"
    write_pack(path, [RunModels(run, entry="both").parts("fan")], licence="CC-BY-4.0")
    return path


def of_sweep(run: Path, variant: str, section: str, detector: str, pooling: str) -> dict[str, float]:
    path = run / f"scores/variant={variant}/machine=fan/seed=0/part-0.parquet"
    found = {key: scores for key, scores in read_scores(path).items()
             if (key.section, key.detector, key.pooling) == (section, detector, pooling)}  # fmt: skip
    (scores,) = found.values()
    assert isinstance(next(iter(found)), Key)
    return dict(zip(scores.clips, scores.scores, strict=True))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("detector", SYSTEMS)
def test_clips_score_as_they_did_in_the_sweep(run: Path, tree: Path, detector: str, pooling: str):
    expected = of_sweep(run, "both", "00", detector, pooling)
    model = load(run, machine="fan", entry="both", detector=detector, pooling=pooling)
    found = {clip.clip: clip for clip in model.score([str(tree / clip) for clip in expected], section="00")}
    scores = [found[str(tree / clip)].score for clip in expected]
    np.testing.assert_allclose(scores, list(expected.values()), rtol=1e-5)
    assert not any(clip.by_product_head for clip in found.values())


def test_detectors_of_clips_and_of_a_machines_bank_score_packed_as_in_the_sweep(run: Path, tree: Path, tmp_path: Path):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    run_locally(tree, tmp_path / "cache", folder, "--variants", "both", "--detectors", "domain-nn,ldn-2",
                "--set", "inlier.poolings=mean,clip-mean-std", "--set", "inlier.per=machine", "--set",
                "inlier.metric=cosine", "--accept-changes")  # fmt: skip
    for detector, pooling in (("domain-nn", "clip-mean-std"), ("ldn-2", "clip-mean-std"), ("ldn-2", "mean")):
        expected = of_sweep(folder, "both", "03", detector, pooling)
        models = RunModels(folder, entry="both", detector=detector, pooling=pooling)
        write_pack(tmp_path / "fan.rayasd", [models.parts("fan")])
        found = list(load(tmp_path / "fan.rayasd").score([tree / clip for clip in expected], section="03"))
        np.testing.assert_allclose([clip.score for clip in found], list(expected.values()), rtol=1e-5)
        assert all((clip.worst is None) == (pooling != "mean") for clip in found)


def test_a_control_scores_as_it_did_in_the_sweep(run: Path, tree: Path):
    expected = of_sweep(run, "statistics", "03", "knn-1", "mean")
    model = load(run, machine="fan", entry="statistics", detector="knn-1", pooling="mean")
    scores = [clip.score for clip in model.score([tree / clip for clip in expected], section="03")]
    np.testing.assert_allclose(scores, list(expected.values()), rtol=1e-5)
    with pytest.raises(UserError, match=r"cannot tell: --section 00\|03"):
        next(model.score([tree / next(iter(expected))]))


def test_the_first_entry_scores_even_if_it_is_the_best_in_hindsight_too(run: Path, tmp_path: Path):
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    board = pq.read_table(copied / "leaderboard.parquet")
    first = pc.equal(board["rank"], 1).fill_null(False)
    place = board.schema.get_field_index("oracle")
    pq.write_table(board.set_column(place, "oracle", first), copied / "leaderboard.parquet")
    (name,) = board.filter(first)["variant"].to_pylist()
    assert RunModels(copied).entry == name


@pytest.mark.parametrize(("variant", "kind", "count"), [("statistics", "leave-one-out", 9), ("both", "held-out", 1)])
def test_decisions_and_p_values_come_from_the_scores_of_normal_clips(
    run: Path, tree: Path, variant: str, kind: str, count: int
):
    model = load(run, machine="fan", entry=variant, detector="knn-1", pooling="mean")
    for clip in model.score(sorted((tree / "fan/source_test").glob("section_00*")), section="00"):
        normal = model._sections["00"].decision.normal
        assert len(normal) == count
        assert clip.calibration == kind
        assert clip.score is not None
        assert clip.p_value == (1 + (normal >= clip.score).sum()) / (1 + count)
        assert clip.threshold == normal[count // 2]
        assert clip.no_threshold is None
        assert clip.anomalous == (clip.score > clip.threshold) == (clip.p_value <= 0.5)
        assert 0 <= (clip.worst or 0) <= clip.end


def test_a_model_without_threshold_says_why(run: Path, tree: Path):
    parts = RunModels(run, entry="both").parts("fan")
    ((origin, embedder),) = parts.embedders.items()
    rules = replace(embedder.config.evaluation, false_alarm_rate=0.1)
    strict = replace(embedder, config=replace(embedder.config, evaluation=rules))
    model = MachineModel(replace(parts, embedders={origin: strict}))
    (clip,) = model.score([tree / "fan/source_test/section_00_source_test_anomaly_0000.wav"], section="00")
    assert (clip.threshold, clip.anomalous, clip.reason) == (None, None, None)
    assert clip.no_threshold == "no threshold: 1 normal clip allows no false-alarm rate below 1/2"
    assert clip.p_value in (0.5, 1.0)
    console = Console(file=io.StringIO(), width=200)
    write_scores([clip], "table", console, model)
    assert f"Section 00: {clip.no_threshold}; --percentile 100 takes the highest of them." in console.file.getvalue()
    known = replace(clip, calibration="trained-on")
    write_scores([known], "table", console, model)
    assert "Section 00: calibrated on clips that were trained on, expect more false alarms." in console.file.getvalue()


def test_a_packed_model_scores_as_the_run_does(run: Path, packed: Path, tree: Path):
    clips = sorted((tree / "fan/source_test").iterdir())
    assert list(load(packed).score(clips)) == list(load(run, machine="fan", entry="both").score(clips))
    assert read_pack(packed).provenance["licence"] == "CC-BY-4.0"
    with pytest.raises(UserError, match="unknown machine 'pump': there are: fan"):
        load(packed, machine="pump")
    with pytest.raises(UserError, match="chosen when it was made"):
        load(packed, detector="knn-1")


def test_a_clip_without_a_section_goes_to_the_nearest_and_a_wrong_one_is_refused(run: Path, packed: Path, tree: Path):
    embeddings = pq.read_table(run / "embeddings/variant=both/machine=fan/seed=0/part-0.parquet").to_pylist()
    logits: dict[str, list[list[float]]] = {}
    for row in embeddings:
        logits.setdefault(row["clip"], []).append(row["product_logits"])
    nearest = {clip: ("00", "03")[int(np.mean(rows, axis=0).argmax())] for clip, rows in logits.items()}
    found = list(load(packed).score([tree / clip for clip in nearest]))
    assert [clip.section for clip in found] == list(nearest.values())
    assert all(clip.by_product_head for clip in found)
    for section in ("77", "0O"):
        with pytest.raises(UserError, match=f"unknown section '?{section}"):
            next(load(packed).score([tree / next(iter(nearest))], section))
    (same,) = load(packed).score([tree / next(iter(nearest))], "section_3")
    assert same.section == "03"
    parts = read_pack(packed)
    ((origin, embedder),) = parts.embedders.items()
    swapped = {
        checkpoint: {
            name: value.flip(0) if name == "objective.product_head.weight" else value for name, value in tensors.items()
        }
        for checkpoint, tensors in embedder.weights.items()
    }
    parts = replace(parts, embedders={origin: replace(embedder, weights=swapped)})
    other = {"00": "03", "03": "00"}
    found = list(MachineModel(parts).score([tree / clip for clip in nearest]))
    assert [clip.section for clip in found] == [other[section] for section in nearest.values()]


def test_a_long_recording_is_scored_in_pieces_with_times(packed: Path, tree: Path, tmp_path: Path):
    train = [soundfile.read(path, dtype="int16")[0] for path in sorted((tree / "fan/train").glob("section_00_source*"))]
    loud = (np.random.default_rng(0).standard_normal(RATE) * 9000).astype(np.int16)
    recording = np.concatenate([train[0], train[1], loud, train[2][: RATE // 2]])
    soundfile.write(tmp_path / "long.wav", recording, RATE)
    pieces = list(load(packed).score([tmp_path / "long.wav"], section="00"))
    assert [(piece.start, piece.end) for piece in pieces] == [(0, 1), (1, 2), (2, 3), (2.5, 3.5)]
    scores = [piece.score for piece in pieces]
    assert max(scores[:2]) < min(scores[2:])  # type: ignore[type-var]
    assert all(piece.start <= (piece.worst or 0) <= piece.end - 0.5 for piece in pieces)


def test_long_recordings_are_read_in_blocks_and_damage_shows_at_their_end(
    packed: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train = sorted((tree / "fan/train").glob("section_03_source*"))
    audio = np.concatenate([soundfile.read(path, dtype="int16")[0] for path in train[:6]])[: 5 * RATE + 99]
    for name in ("whole.flac", "damaged.flac"):
        soundfile.write(tmp_path / name, audio, RATE)
    content = bytearray((tmp_path / name).read_bytes())
    content[26] ^= 1  # of the MD5
    (tmp_path / name).write_bytes(content)
    clips = [train[6], tmp_path / "whole.flac", train[7], tmp_path / "damaged.flac", train[6]]
    at_once = list(load(packed).score(clips))
    few = load(packed).changed(lambda config: replace(config, embedding=replace(config.embedding, batch_size=6)))
    monkeypatch.setattr("rayasd.data.audio._BLOCK", 7000)
    found = list(few.score(clips))
    names = ["whole.flac", "damaged.flac"]
    assert [Path(each.clip).name for each in found] == [
        train[6].name, *[names[0]] * 6, train[7].name, *[names[1]] * 7, train[6].name
    ]  # fmt: skip
    assert [each.reason is None for each in at_once] == [True] * 8 + [False, True]  # of one block: known at once
    whole, same = (of[:8] + of[-1:] for of in (found, at_once))

    def unrounded(each: ClipScore) -> ClipScore:  # windows of training clips all have distance 0: any is the worst
        return replace(each, score=0, p_value=0, worst=each.worst if (each.score or 0) > 1e-5 else 0)

    assert [unrounded(each) for each in whole] == [unrounded(each) for each in same]
    assert [each.score for each in whole] == pytest.approx([each.score for each in same], 1e-4, 1e-6)
    (why,) = [each for each in found if each.reason is not None]
    assert (why.clip, why.reason) == (str(clips[3]), "is damaged: its samples are not those that were encoded")
    assert len({each.section for each in found[1:7]}) == 1
    ((path, scores),) = watching._scored(few, [clips[3]], "03")
    assert (path, [each.reason for each in scores]) == (clips[3], [why.reason])  # type: ignore[union-attr]


def test_recordings_divide_into_pieces_that_cover_them():
    assert _spans(15, 10) == [(0, 15)]
    assert _spans(3, 10) == [(0, 3)]
    assert _spans(20, 10) == [(0, 10), (10, 20)]
    assert _spans(21, 10) == [(0, 10), (10, 20), (11, 21)]


def test_what_cannot_be_read_says_why_and_does_not_stop_the_rest(packed: Path, tree: Path, tmp_path: Path):
    good = next((tree / "fan/train").iterdir())
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "cut.wav").write_bytes(good.read_bytes()[:500])
    soundfile.write(tmp_path / "rate.wav", np.zeros(800, np.int16), 8000)
    names = [tmp_path / "text.wav", good, tmp_path / "cut.wav", tmp_path / "rate.wav", tmp_path / "absent.wav"]
    found = list(load(packed).score(names, section="00"))
    assert [clip.clip for clip in found] == list(map(str, names))
    assert [clip.score is None for clip in found] == [True, False, True, True, True]
    assert all((clip.reason is None) == (clip.score is not None) for clip in found)
    assert "8000 Hz" in str(found[3].reason)


def test_a_clip_for_which_there_is_no_memory_says_so(packed: Path, tree: Path, monkeypatch):
    clips = sorted((tree / "fan/source_test").iterdir())[:3]

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("rayasd.data.audio._read", no_memory)
    reasons = {clip.reason for clip in load(packed).score(clips[:1], section="00")}
    monkeypatch.undo()
    read = model.read_samples
    monkeypatch.setattr(
        model, "read_samples", lambda path, *more: (no_memory if path == clips[1] else read)(path, *more)
    )
    found = list(load(packed).score(clips, section="00"))
    assert reasons == {found[1].reason} == {"needs more memory than there is"}
    assert [clip.score is None for clip in found] == [False, True, False]


def repacked(packed: Path, path: Path, change: Callable[[dict[str, Any]], object] = lambda fan: None, **facts: object
             ) -> Path:  # fmt: skip
    """Change the facts of a packed model of fans, as a stranger could."""
    with zipfile.ZipFile(packed) as archive, zipfile.ZipFile(path, "w") as changed:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "model.json":
                model = json.loads(content)
                change(model["machines"]["fan"])
                content = json.dumps({**model, **facts}).encode()
            changed.writestr(name, content)
    return path


def test_a_packed_model_runs_no_code_of_its_makers_choice(packed: Path, tmp_path: Path):
    with zipfile.ZipFile(packed) as archive:
        fan = json.loads(archive.read("model.json"))["machines"]["fan"]
    leaf = fan["sections"]["00"]

    def with_leaf(path: Path, detector: str = "knn-1", pooling: str = "mean") -> Path:
        other = [*leaf[:3], detector, pooling]
        return repacked(packed, path, lambda fan: fan["sections"].update({"00": ["z-mean", [leaf, other]]}))

    for detector in ("os.system", "antigravity.fly(x=1)", "tests.scoring.test_scoring.Planted", "knn.evil-1"):
        with pytest.raises(UserError, match="names code to run"):
            load(with_leaf(tmp_path / "bad", detector))
    with pytest.raises(UserError, match="names code to run"):
        load(with_leaf(tmp_path / "bad", pooling="os.path.join"))
    for table, setting, value in (
        ("network", "encoder", "os.system"),
        ("network", "encoder", "branches(encoders=('fft', 'os.system'))"),
        ("network", "encoder", "os.class.system"),
        ("network", "encoder", "branches(encoders=['fft', \"branches(encoders=['os.system'])\"])"),
        ("exposure", "objective", "os.system"),
    ):
        changed = {setting: value}
        path = repacked(
            packed, tmp_path / "bad", lambda fan, t=table, c=changed: fan["embedders"][0]["config"][t].update(c)
        )
        with pytest.raises(UserError, match="names code to run"):
            load(path)
    for detector in ("knn-3", "gmm-2", "mahalanobis", "knn(n_neighbors=2)"):
        load(with_leaf(tmp_path / "good", detector))
    own = with_leaf(tmp_path / "own", "sklearn.ensemble.IsolationForest(n_estimators=5)")
    with pytest.raises(UserError, match="--trust"):
        load(own)
    load(own, trust=True)


def test_damaged_and_foreign_files_are_refused_in_one_line(packed: Path, tmp_path: Path):
    content = packed.read_bytes()
    path = tmp_path / "model.rayasd"
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 0xFF
    for bad in (b"", b"no zip at all", content[: len(content) // 2], bytes(flipped)):
        path.write_bytes(bad)
        with pytest.raises(UserError):
            load(path)
    for facts in ({"format": 99}, {"format": 2}, {"machines": []}, {"licence": 1, "machines": {"fan": {}}}):
        with pytest.raises(UserError):
            load(repacked(packed, path, **facts))
    (embedder,), (leaf, *_) = (fan := json.loads(zipfile.ZipFile(packed).read("model.json"))["machines"]["fan"])[
        "embedders"], fan["sections"].values()  # fmt: skip
    for name, value in (
        ("sections", []), ("sections", {"00": ["no-mean", [leaf, leaf]]}), ("sections", {"00": ["z-mean", []]}),
        ("sections", {"00": ["other", *leaf[1:]]}), ("sections", {"00": [*leaf[:2], 77, *leaf[3:]]}),
        ("training", embedder["bank"]), ("training", "absent"), ("embedders", []),
        ("embedders", [embedder | {"scale": "x"}]), ("embedders", [embedder | {"config": {"no": 1}}]),
        ("embedders", [embedder | {"weights": {}}]), ("embedders", [embedder | {"bank": fan["training"]}]),
    ):  # fmt: skip
        with pytest.raises(UserError):
            load(repacked(packed, path, lambda fan, n=name, v=value: fan.update({n: v})))
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    path.write_bytes(empty.getvalue())
    with pytest.raises(UserError, match="no packed model"):
        load(path)
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path / "absent.rayasd")


def test_what_a_run_cannot_give_is_refused(run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="several machines"):
        load(run)
    with pytest.raises(UserError, match="did you mean 'fan'"):
        load(run, machine="fann")
    with pytest.raises(UserError, match="unknown entry 'nothing': there are: both, statistics"):
        load(run, machine="fan", entry="nothing")
    with pytest.raises(UserError, match="unknown seed of both '9': there are: 0"):
        load(run, machine="fan", entry="both", seed=9)
    with pytest.raises(UserError, match="unknown detector 'nonsense-1'"):
        load(run, machine="fan", detector="nonsense-1")
    with pytest.raises(UserError, match="unknown pooling 'rubbish'"):
        load(run, machine="fan", pooling="rubbish")


@pytest.mark.parametrize("given", ["", "\n\n"])
def test_an_empty_input_is_named(given: str, cache: Path):
    done = call("score", "x.rayasd", "-", cache=cache, given=given)
    assert (done.returncode, done.stderr) == (2, "error: no names of clips in the input, one per line\n")


def test_the_commands(run: Path, tree: Path, tmp_path: Path, rayasd: Rayasd):
    clips = tree / "fan/source_test"
    packing = rayasd("pack", run, "--machine", "fan", "-o", tmp_path / "fan.rayasd")
    assert packing.returncode == 0, packing.stderr
    table = rayasd("score", run, "--machine", "fan", "--section", "00", clips)
    assert table.returncode == 0, table.stderr
    assert "Higher scores are more anomalous" in table.stdout
    model = ("score", tmp_path / "fan.rayasd", "--section", "00")
    assert rayasd(*model, clips, "--format", "parquet", "--out", tmp_path / "s.parquet").returncode == 0
    lines = rayasd(*model, clips, "--format", "jsonl").stdout.splitlines()
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert [json.loads(line) for line in lines] == rows
    assert len(rows) == len(list(clips.iterdir()))
    (tmp_path / "bad.wav").write_text("x")
    some = rayasd(*model, tmp_path / "bad.wav", next(clips.iterdir()), "--format", "csv")
    assert (some.returncode, len(some.stdout.splitlines())) == (1, 3)
    for wrong, said in (
        ((run,), "no clips"),
        ((run, tmp_path / "absent"), "no such file"),
        ((run, clips, "--format", "parquet"), "--out"),
        ((tmp_path, clips), "error"),
    ):
        refused = rayasd("score", *wrong)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_a_name_cannot_become_a_formula():
    assert _harmless({"clip": "=1+1.wav", "score": -1.0}) == {"clip": "'=1+1.wav", "score": -1.0}


@pytest.mark.slow
def test_watching_scores_what_is_complete(packed: Path, tree: Path, cache: Path, tmp_path: Path):
    source = next((tree / "fan/source_test").iterdir()).read_bytes()
    process = subprocess.Popen(
        command_line("score", packed, "--section", "00", "--watch", tmp_path),
        env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert "watching" in process.stderr.readline()
    with (tmp_path / "slow.wav").open("wb") as file:
        for begin in range(0, len(source), len(source) // 4 + 1):  # as a recorder writes
            file.write(source[begin : begin + len(source) // 4 + 1])
            file.flush()
            time.sleep(0.6)
    scored = json.loads(process.stdout.readline())
    assert Path(scored["clip"]).name == "slow.wav"
    assert scored["reason"] is None
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0
    assert process.stdout.read() == ""  # once, and whole


def test_without_test_clips_models_can_be_used(tree: Path, cache: Path, tmp_path: Path, rayasd: Rayasd):
    for machine in ("fan", "pump"):
        shutil.copytree(tree / machine / "train", tmp_path / "tree" / machine / "train")
    run = run_locally(tmp_path / "tree", cache, tmp_path / "run", "--variants", "statistics")
    found = rayasd("score", run, "--machine", "FAN", "--section", "0", tree / "fan/source_test", "--format", "jsonl")
    assert found.returncode == 0, found.stderr
    assert all(json.loads(line)["anomalous"] in (True, False) for line in found.stdout.splitlines())
    assert rayasd("pack", run, "--machine", "fan", "-o", tmp_path / "fan.rayasd").returncode == 0
    shutil.copytree(tree / "fan/source_test", tmp_path / "tree/fan/source_test")  # pump alone has none
    run = run_locally(tmp_path / "tree", cache, tmp_path / "other", "--variants", "statistics")
    assert rayasd("score", run, "--machine", "pump", "--section", "03", tree / "pump/train").returncode == 0


def test_recordings_of_the_field_and_other_spellings(run: Path, tree: Path, tmp_path: Path, rayasd: Rayasd):
    sound, _ = soundfile.read(next((tree / "fan/train").iterdir()))
    soundfile.write(tmp_path / "stereo.wav", np.column_stack([sound, sound]), RATE)
    soundfile.write(tmp_path / "slow.wav", sound[::2], RATE // 2)
    words = ("score", run, "--machine", "Fan", tmp_path, "--format", "jsonl")
    refused = rayasd(*words, "--section", "id_00")
    reasons = [json.loads(line)["reason"] for line in refused.stdout.splitlines()]
    assert (refused.returncode, "--resample" in reasons[0], "--channel" in reasons[1]) == (1, True, True)
    limits = []
    for percentile in ("50", "99"):
        done = rayasd(*words, "--section", "0", "--resample", "--channel", "0", "--percentile", percentile)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert {row["section"] for row in rows} == {"00"}
        limits.append(rows[0]["threshold"])
    assert limits[0] < limits[1]
    wrong = rayasd(*words, "--section", "0O")
    assert (wrong.returncode, "unknown section '0O'" in wrong.stderr) == (2, True)
    listed = subprocess.run(
        command_line("score", run, "--machine", "fan", "--section", "00", "-", "--channel", "mean"), text=True,
        input=f"{tmp_path / 'stereo.wav'}\r\n", capture_output=True, env=environment(tmp_path), check=False,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stderr
