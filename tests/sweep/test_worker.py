import json
from types import SimpleNamespace

import pytest

from rayasd.sweep import worker
from rayasd.sweep.worker import FileReporter, do_unit
from rayasd.unit import Progress
from tests.conftest import SpecOf


def test_a_unit_is_marked_done_with_checksums_and_leaves_no_rest(spec_of: SpecOf):
    spec = spec_of()
    (spec.output / ".state.pt.abc.part").write_bytes(b"what a killed worker left")
    outcome = do_unit(spec)
    assert outcome.error is None, outcome.details
    marker = json.loads(spec.run.marker(spec.unit, "DONE").read_text())
    assert marker["identity"] == spec.identity
    assert set(marker["files"]) == {"model.safetensors", "config.json", "history.jsonl"}
    assert {path.name for path in spec.output.iterdir()} == {*marker["files"], "DONE"}
    assert marker["clips"] > 0


def test_a_unit_that_raises_is_an_outcome_and_keeps_no_marker(spec_of: SpecOf, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> None:
        raise FileNotFoundError("something is missing")

    monkeypatch.setattr("rayasd.exposure.training.train", fails)
    spec = spec_of()
    spec.run.marker(spec.unit, "DONE").write_text("{}")
    outcome = do_unit(spec)
    assert outcome.error is not None
    assert outcome.error.startswith("FileNotFoundError")
    assert "Traceback" in outcome.details
    assert not outcome.hopeless
    assert not spec.run.marker(spec.unit, "DONE").exists()


def test_a_unit_whose_upstream_is_not_done_names_it(spec_of: SpecOf):
    spec = spec_of("embed")
    spec.run.marker(spec.unit, "DONE").write_text("{}")  # or the driver would take the unit for done
    outcome = do_unit(spec)
    assert not spec.run.marker(spec.unit, "DONE").exists()
    assert outcome.error is not None
    assert outcome.error.startswith("train fan both seed 0 of")
    assert outcome.damaged == spec_of().unit
    assert outcome.hopeless


def test_time_left_counts_from_where_the_unit_went_on(spec_of: SpecOf):
    spec = spec_of()
    reporter = FileReporter(spec.run, spec.unit)
    reporter(Progress(90, 100, note="went on"))
    assert reporter.first is not None
    reporter.first = (90, reporter.first[1] - 10)  # ten seconds ago
    reporter(Progress(95, 100, clips=50, note="now"))
    state = json.loads(spec.run.progress(spec.unit).read_text())
    assert 9 < state["seconds_left"] < 12  # five epochs took ten seconds, five are left
    assert 4 < state["clips_per_second"] <= 5
    assert state["notes"] == ["went on", "now"]


def test_progress_is_written_often_at_first_and_then_every_two_seconds(spec_of: SpecOf, monkeypatch):
    spec, now = spec_of(), [0.0]
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: now[0]))
    reporter = FileReporter(spec.run, spec.unit, spec.run.root / "stop", started=0.0, written=-1.0)
    written, stopped = set(), []
    for tenth in range(301):
        now[0] = tenth / 10
        if tenth == 201:
            (spec.run.root / "stop").touch()
        if reporter(Progress(tenth, 300)):
            stopped.append(now[0])
        written.add(json.loads(spec.run.progress(spec.unit).read_text())["done"] / 10)
    assert len([moment for moment in written if moment < 10]) == 20
    assert len([moment for moment in written if moment >= 10]) == 10
    assert 20 < stopped[0] <= 22  # asked as often as it is written
