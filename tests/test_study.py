"""A sweep in three lines of Python, as docs/python.md shows it."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

import rayasd
from rayasd import Execution, Study, presets
from rayasd.config import Config
from rayasd.data.catalog import Catalog
from rayasd.errors import RunStopped, UserError
from rayasd.study.watcher import Watcher
from rayasd.sweep.states import State, Sweep
from rayasd.sweep.store import RunStore
from tests.command import Rayasd, SameProcess, environment, same_process
from tests.conftest import SMALL

PAGE = Path(__file__).parents[1] / "docs/python.md"
SIGNALS = [number for number in signal.Signals if number not in (signal.SIGKILL, signal.SIGSTOP)]


@pytest.fixture
def small(tree: Path, cache: Path, small_config: Config, tmp_path: Path, monkeypatch) -> Callable[..., Study]:
    """Make studies of the control of two machines, whose units run in this process."""
    monkeypatch.setenv("RAYASD_CACHE", str(cache))
    monkeypatch.setattr("rayasd.study.driving.LocalExecutor", SameProcess)
    monkeypatch.setattr("rayasd.sweep.checks.worker_pool", same_process)
    given = {"config": small_config, "data": tree, "run_dir": tmp_path / "run", "machines": ["fan", "pump"]}
    return lambda **more: Study(**{**given, "variants": "statistics", **more})


@pytest.mark.slow
def test_the_three_lines_of_the_page_are_a_sweep(tree: Path, cache: Path, tmp_path: Path):
    """They are run as a script, whose workers must not run it again."""
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = [line for line in block.splitlines() if line and not line.startswith(("from", "import"))]
    assert len(lines) == 3
    overrides = "\n".join(f"{key} = {value if value[0] in '[0123456789' else repr(value)}"
                          for key, _, value in (override.partition("=") for override in SMALL))  # fmt: skip
    (tmp_path / "small.toml").write_text(f'extends = "demo"\n{overrides}\n')
    (tmp_path / "data").mkdir()
    (tmp_path / "data/synthetic").symlink_to(tree)
    (tmp_path / "three_lines.py").write_text(block.replace('"demo"', '"small.toml"'))
    done = subprocess.run([sys.executable, "three_lines.py"], cwd=tmp_path, env=environment(cache), timeout=240,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    ranked = done.stdout.splitlines()
    assert sorted(line.split()[0] for line in ranked) == ["both", "statistics"]
    scores = [float(line.split()[1]) for line in ranked]
    assert scores == sorted(scores, reverse=True)
    run = tmp_path / "runs/demo"
    assert [row["variant"] for row in Study.open(run).report().entries().values()] == [r.split()[0] for r in ranked]
    assert (run / "leaderboard.md").exists()


def test_signal_handlers_stay_as_they_are_and_a_second_run_does_nothing(small: Callable[..., Study]):
    before = [signal.getsignal(number) for number in SIGNALS]
    sweep = small().run(executor="local")
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.getitimer(signal.ITIMER_REAL)[1] == 0
    assert set(sweep.states.values()) == {State.DONE}
    assert len(sweep.states) == 4
    study = small()
    board = study.store.paths.leaderboard("md")
    written = board.stat().st_mtime_ns
    again = study.run(Execution(executor="local"))
    assert again.states == sweep.states
    assert not again.moves
    assert board.stat().st_mtime_ns == written
    assert study.report().is_current
    assert study.store.manifest()["invocations"][0]["command"] == [
        "rayasd.Study", "machines=fan,pump", "variants=statistics", "seeds=0",
    ]  # fmt: skip


def test_a_study_runs_in_any_thread(small: Callable[..., Study]):
    found: list[Sweep] = []
    thread = Thread(target=lambda: found.append(small().run(executor="local")))
    thread.start()
    thread.join(240)
    assert found[0].count(State.DONE) == 4


def test_stages_and_machines_one_by_one(small: Callable[..., Study], rayasd: Rayasd):
    small().set_up()
    study = Study.open(small().store.paths.root)
    done = study.run(executor="local", stages=["embed"], only="pump")
    assert [str(unit) for unit in done.units(State.DONE)] == ["embed pump statistics seed 0"]
    with pytest.raises(UserError, match="no unit of .* has been scored yet"):
        _ = study.report().results
    assert study.run(executor="local").count(State.DONE) == 4
    shown = rayasd("report", study.store.paths.root)
    assert (shown.returncode, "statistics" in shown.stdout) == (0, True)


def test_data_may_be_a_catalog_and_labels_are_kept(small: Callable[..., Study], catalog: Catalog, tree: Path):
    from_catalog, from_folder = small(data=catalog).catalog, small().catalog
    assert from_catalog.table.equals(from_folder.table)
    assert small(data=str(tree)).plan.machines == ("fan", "pump")


def test_gpus_that_are_not_used_make_no_ranks():
    assert Execution(gpus_per_unit=2).num_ranks == 2
    assert Execution(gpus_per_unit=2, device="cpu").num_ranks == 1


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"config": "dem"}, "unknown preset 'dem': did you mean 'demo'?"),
        ({"variants": ["bot"]}, "unknown variant 'bot': did you mean 'both'?"),
        ({"seeds": [-1]}, "give whole numbers from 0"),
        ({"machines": "fann"}, "unknown machine 'fann': did you mean 'fan'?"),
        ({"machines": []}, "no machine chosen"),
        ({"data": "nowhere"}, "no such data folder or manifest: nowhere"),
        ({"ground_truth": "nowhere"}, "no ground_truth_"),
    ],
)
def test_bad_input_is_one_line(small: Callable[..., Study], given: dict[str, object], problem: str):
    with pytest.raises(UserError) as refused:
        small(**given).run(executor="local")
    assert problem in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_wrong_execution_is_one_line(small: Callable[..., Study], tmp_path: Path):
    with pytest.raises(UserError, match="unknown executor 'lokal': did you mean 'local'"):
        small().run(executor="lokal")
    with pytest.raises(UserError, match="unknown stage 'trian': did you mean 'train'"):
        small().run(executor="local", stages=["trian"])
    with pytest.raises(UserError, match="max_tries = 0: give at least 1"):
        Execution(max_tries=0)
    with pytest.raises(UserError, match="cpus_per_unit = 0: give more than 0"):
        Execution(cpus_per_unit=0)
    with pytest.raises(UserError, match="999 CPUs and 0 GPUs, but the largest node has"):
        small().run(Execution(cpus_per_unit=999), executor="local")
    with pytest.raises(UserError, match="is not a run directory"):
        Study.open(tmp_path)
    with pytest.raises(UserError, match="has not been set up for this"):
        small().run(executor="local", only=["fan"])


def test_a_watcher_sees_what_happens_and_may_end_it(small: Callable[..., Study]):
    class Impatient(Watcher):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def say(self, line: str) -> None:
            self.lines.append(line)

        def changed(self, sweep: Sweep) -> None:
            if sweep.count(State.DONE):
                raise KeyboardInterrupt

    watcher = Impatient()
    with pytest.raises(KeyboardInterrupt):
        small().run(executor="local", watcher=watcher)
    assert watcher.lines[0].startswith("4 units to do, 0 done before, in ")
    store = small().store
    assert [event["event"] for event in store.events()][-1] == "sweep interrupted"
    assert not store.holders()
    assert small().run(executor="local").count(State.DONE) == 4


def test_a_run_that_somebody_stops_says_so(small: Callable[..., Study]):
    class Stopping(Watcher):
        def progressed(self, sweep: Sweep, progress: object) -> None:
            RunStore(store.paths.root).stop()

    store = small().store
    with pytest.raises(RunStopped, match="stopped as asked"):
        small().run(executor="local", watcher=Stopping())


def test_the_package_stays_light():
    code = "import rayasd, sys; print([m for m in ('click', 'rich', 'pyarrow', 'torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert not hasattr(rayasd, "Studie")


def test_a_study_knows_no_click_and_no_torch():
    code = "from rayasd import Study; import sys; print({'click', 'torch', 'ray', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    for path in (Path(rayasd.__file__).parent / "study").glob("*.py"):
        assert not re.search(r"import (click|rich)|from (click|rich)", path.read_text(encoding="utf-8"))


def test_a_preset_may_be_named(small: Callable[..., Study]):
    assert small(config="demo").config == presets.load("demo", ["evaluation.year=2021"])  # told from the data
