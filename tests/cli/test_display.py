import io
from pathlib import Path

import pytest
from rich.console import Console

from rayasd import config as configuration
from rayasd.cli.display import print_failures
from rayasd.cli.screen import Screen
from rayasd.errors import UserError
from rayasd.files import write_json
from rayasd.study.choices import choose, parse_seeds
from rayasd.sweep.states import State, Sweep, read_progress
from rayasd.sweep.store import RunStore
from rayasd.unit import RunDirectory, Unit
from rayasd.wording import elapsed
from tests.command import signals_kept

TRAIN, EMBED = Unit("train", "both", "fan", 0), Unit("embed", "both", "fan", 0)


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, height=30, color_system=None)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[Sweep, RunDirectory]:
    run = RunDirectory(tmp_path)
    progress = {
        "done": 5,
        "total": 20,
        "loss": 1.25,
        "clips_per_second": 321.0,
        "seconds_left": 30.0,
        "notes": ["on a cpu"],
    }
    run.progress(TRAIN).parent.mkdir(parents=True)
    write_json(run.progress(TRAIN), progress)
    return Sweep({}, {TRAIN: State.RUNNING, EMBED: State.WAITING}), run


def test_a_terminal_shows_stage_epoch_loss_speed_and_time_left(sweep):
    state, run = sweep
    screen = console(terminal=True)
    with signals_kept(), (display := Screen(screen)).driving(RunStore(run.root)):
        display.changed(state)
        display.progressed(state, read_progress(run, state))
    shown = output(screen)
    for word in ("train", "fan", "5/20", "1.2500", "321", "0:00:30", "1 waiting, 1 running", "on a cpu"):
        assert word in shown


def test_a_log_gets_plain_lines_once(sweep):
    state, run = sweep
    log = console(terminal=False)
    with signals_kept(), (display := Screen(log)).driving(RunStore(run.root)):
        display.changed(state)
        display.progressed(state, read_progress(run, state))
        seen = [
            "on a cpu",
            "cpu (no GPU), float32 as asked; weights random",
            "cpu (no GPU), float32 as asked",
            "windows  1 of 2 s",
        ]
        write_json(run.marker(TRAIN, "DONE"), {"seconds": 12.34, "notes": seen})
        state.move(TRAIN, State.DONE)
        state.move(EMBED, State.FAILED, "bad [data]")
        display.changed(state)
    lines = output(log).splitlines()
    assert "done     train fan both seed 0, 12.3 s" in lines
    assert "failed   embed fan both seed 0: bad [data]" in lines  # brackets are text, not markup
    assert lines.count("device   on a cpu") == lines.count("device   cpu (no GPU)") == 1
    assert [line for line in lines if line.startswith("network")] == ["network  float32 as asked; weights random"]
    assert lines.count("windows  1 of 2 s") == 1
    assert "\x1b" not in output(log)


def test_failures_are_listed_with_their_reasons():
    log = console(terminal=False)
    states = {TRAIN: State.FAILED, EMBED: State.BLOCKED}
    print_failures(log, Sweep({}, states, {TRAIN: "out of memory", EMBED: "out of memory"}), [TRAIN, EMBED])
    assert "1 unit failed, 1 blocked by them" in output(log)
    assert "out of memory" in output(log)
    silent = console(terminal=False)
    print_failures(silent, Sweep({}, {TRAIN: State.DONE}), [TRAIN])
    assert output(silent) == ""


def test_elapsed():
    assert [elapsed(s) for s in (0, 61, 3725.9)] == ["0:00:00", "0:01:01", "1:02:05"]


@pytest.mark.parametrize(("text", "seeds"), [("0", (0,)), ("0,2,2", (0, 2)), ("1-3", (1, 2, 3)), ("5,0-1", (5, 0, 1))])
def test_seeds(text: str, seeds: tuple[int, ...]):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "3-1", "1.5", "0-999999999"])
def test_wrong_seeds_are_refused(text: str):
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_choices():
    assert choose("machine", "all", ["a", "b"]) == ("a", "b")
    assert choose("machine", "b,a,b", ["a", "b"]) == ("b", "a")
    with pytest.raises(UserError, match="no machine chosen"):
        choose("machine", ",", ["a"])


def test_every_setting_has_a_line_of_documentation():
    import ast
    import dataclasses
    import inspect

    tree = ast.parse(inspect.getsource(configuration))
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Config")):
        if cls.name == "Config":
            continue
        fields = [f.name for f in dataclasses.fields(getattr(configuration, cls.name))]
        documented = [
            a.target.id
            for a, b in zip(cls.body, cls.body[1:], strict=False)
            if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name) and isinstance(b, ast.Expr)
        ]
        assert documented == fields
