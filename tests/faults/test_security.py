"""Nobody in: files run no code, the cluster asks for a token, what names hold stays text."""

import ast
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rayasd.cluster import folder as ray_folder
from rayasd.cluster.daemon import RayNode
from rayasd.cluster.executor import RayExecutor
from rayasd.cluster.folder import private_folder, root_of_own
from rayasd.cluster.placement import Placement
from rayasd.console import SafeConsole
from rayasd.data.naming import name_problem, shown
from rayasd.errors import UserError
from rayasd.exposure.encoders import ENCODERS
from rayasd.exposure.network import Extractor
from rayasd.exposure.objectives import OBJECTIVES
from rayasd.exposure.training import train
from rayasd.files import read_record, write_text
from rayasd.inlier.detectors import FAMILIES
from rayasd.inlier.pooling import POOLINGS
from rayasd.printing import CONTROL, tell
from rayasd.registry import refuse_code
from rayasd.scoring.output import json_line
from rayasd.sweep.store import RunStore
from rayasd.sweep.worker import FileReporter
from rayasd.unit import Progress
from tests.cli.test_sweep import wait_until
from tests.command import call, command_line, environment
from tests.conftest import SpecOf, small_sweep, write_tree

ROOT = Path(__file__).parents[2]


class Planted:
    """What an attacker puts into a pickle: unpickling makes a file."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self):
        return (Path.touch, (self.sign,))


@pytest.mark.parametrize("write", [lambda value, path: path.write_bytes(pickle.dumps(value)), torch.save],
                         ids=["pickle", "torch"])  # fmt: skip
def test_a_pickle_in_place_of_a_checkpoint_is_not_run(spec_of: SpecOf, tmp_path: Path, write):
    spec, sign = spec_of(), tmp_path / "sign"
    train(spec)
    expected = (spec.output / "model.safetensors").read_bytes()
    write(Planted(sign), spec.output / "state.pt")
    train(spec)
    assert not sign.exists()
    assert (spec.output / "model.safetensors").read_bytes() == expected
    pickle.loads(pickle.dumps(Planted(sign)))  # the trap works
    assert sign.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights.safetensors", "weights.npz"])
def test_a_pickle_in_place_of_pretrained_weights_is_refused(small_config, tmp_path: Path, name: str):
    sign, path = tmp_path / "sign", tmp_path / name
    torch.save(Planted(sign), path)
    config = replace(small_config, network=replace(small_config.network, pretrained=str(path)))
    with pytest.raises(UserError, match="cannot load"):
        Extractor(config)
    assert not sign.exists()


def test_no_code_of_ours_unpickles_or_evaluates():
    forbidden = {"pickle.load", "pickle.loads", "joblib.load", "numpy.load", "np.load", "yaml.load", "eval", "exec",
                 "os.system", "marshal.loads", "shelve.open", "dill.load", "cloudpickle.loads"}  # fmt: skip
    calls = [
        (path.relative_to(ROOT), node)
        for folder in ("rayasd", "jobs")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    names = [(path, ast.unparse(node.func)) for path, node in calls if "allow_pickle=False" not in ast.unparse(node)]
    assert not [found for found in names if found[1] in forbidden]
    shells = [path for path, node in calls for word in node.keywords if word.arg == "shell"]
    assert not shells
    loads = [node for _, node in calls if ast.unparse(node.func) == "torch.load"]
    assert loads
    assert all(
        ast.unparse(word.value) == "True" for node in loads for word in node.keywords if word.arg == "weights_only"
    )
    assert all("weights_only" in [word.arg for word in node.keywords] for node in loads)


@pytest.mark.slow
def test_a_run_names_no_code_without_trust(tree: Path, cache: Path, tmp_path: Path):
    run = tmp_path / "run"
    named = "rayasd.exposure.encoders.controls.Statistics"
    chosen = "--variants", "statistics", "--set", f"variants.statistics.network.encoder={named}"
    command = small_sweep(tree, run, "--machines", "fan", "--detectors", "knn-1", *chosen)
    assert call(*command, cache=cache).returncode == 0
    assert call(*command, cache=cache).returncode == 0  # the user's own command line names it
    clip = next(tree.glob("fan/train/*.wav"))
    for words in (
        ("score", run, clip, "--section", "00"),
        ("pack", run, "-o", tmp_path / "x"),
        ("train", run),
        ("detect", run),
    ):
        refused = call(*words, cache=cache)
        assert (refused.returncode, refused.stderr) == (
            2, f"error: {run} names code to run: {named}; --trust accepts it, if you know who made it\n"
        )  # fmt: skip
        assert call(*words, "--trust", cache=cache).returncode == 0
    refused = call("score", tmp_path / "x", clip, "--section", "00", cache=cache)
    assert "--trust accepts it" in refused.stderr
    for reads in ("status", "report", "leaderboard"):  # which run nothing
        assert call(reads, run, cache=cache).returncode == 0


@pytest.mark.parametrize("text", [
    "os.system", "a.b(x=1)", "z-mean(knn-1, a.b(x=1))", "branches(encoders=['a.b'])", "os.class.x",
    "branches(encoders=('fft', \"branches(encoders=['a.b'])\"))",
])  # fmt: skip
def test_code_is_found_wherever_a_setting_names_it(text: str):
    with pytest.raises(UserError, match="names code to run"):
        refuse_code(Path("run"), [text])


def test_names_of_our_own_are_no_code():
    calls = ["z-mean(knn-1, gmm-2)", "knn(n_neighbors=1, smote=0.5)", "branches(encoders=['stft-resnet(n_fft=64)'])",
             "beats(weights='a/b.pt')"]  # fmt: skip
    refuse_code(Path("run"), [*FAMILIES, *POOLINGS, *ENCODERS, *OBJECTIVES, "knn-4", "gwrp-0.5", "clip-gem-3", *calls])


def test_a_run_directory_of_another_user_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = RunStore(tmp_path)
    monkeypatch.setattr("rayasd.sweep.store.os.geteuid", lambda: 4711)
    with pytest.raises(UserError, match=r"belongs to user .*--trust"), store.held():
        pass
    with store.held(trust=True):
        assert store.paths.lock.exists()


def test_stop_writes_no_file_that_a_lock_names(tmp_path: Path):
    store, precious = RunStore(tmp_path / "run"), tmp_path / "precious"
    precious.write_text("mine")
    with store.held():
        planted = read_record(store.paths.lock) | {"stop": str(precious)}
        store.paths.lock.write_text(json.dumps(planted))
        store.stop()
        assert store.stop_file.read_text() == "by rayasd stop\n"
        store.stop_file.unlink()
        store.stop_file.symlink_to(precious)
        with pytest.raises(UserError, match=f"{store.stop_file} is a link"):
            store.stop()
    assert precious.read_text() == "mine"


def test_a_run_writes_through_no_link(spec_of: SpecOf, tmp_path: Path):
    spec, precious = spec_of(), tmp_path / "precious"
    precious.write_text("mine")
    store = RunStore(spec.run.root)
    store.events_file.symlink_to(precious)
    with pytest.raises(UserError, match="events.jsonl is a link"):
        store.record("x", machine="$(id)")
    for path in (store.paths.config, store.paths.manifest):
        path.unlink(missing_ok=True)
        path.symlink_to(precious)
        write_text(path, "new")
        assert not path.is_symlink()
    spec.output.mkdir(parents=True, exist_ok=True)
    progress = spec.run.progress(spec.unit)
    progress.with_name(f".{progress.name}.{os.getpid()}.part").symlink_to(precious)
    with pytest.raises(UserError, match="is a link"):
        FileReporter(spec.run, spec.unit, None, started=0.0, written=-9.0)(Progress(1, 2))
    assert precious.read_text() == "mine"


_MAY_WRITE = {"data/fetch.py", "data/download.py", "pretrained.py", "cluster/launch.py", "cluster/daemon.py",
              "cluster/doctor.py", "cluster/metrics.py", "scoring/journal.py", "report/html/sounds.py",
              "data/decoding.py", "files.py"}  # fmt: skip
"""Into folders of their own that they have just made, a temporary file, or one that the user names."""


def test_no_code_of_ours_writes_through_links():
    """Files are written by ``replacing`` (a new name), by mode x, or by ``no_links``."""
    found = []
    for path in (ROOT / "rayasd").rglob("*.py"):
        if str(place := path.relative_to(ROOT / "rayasd")) not in _MAY_WRITE:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            new = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.With | ast.FunctionDef)
                   and _replaces(node) for inner in ast.walk(node)}  # fmt: skip
            found += [f"{place}: {ast.unparse(node)}" for node in ast.walk(tree)
                      if isinstance(node, ast.Call) and id(node) not in new and _writes(node)]  # fmt: skip
    assert not found


def _replaces(node: ast.With | ast.FunctionDef) -> bool:
    if isinstance(node, ast.With):
        return any(ast.unparse(item.context_expr).startswith("replacing(") for item in node.items)
    return any(each.arg == "temporary" for each in node.args.args)  # for a block of ``replacing``


def _writes(call: ast.Call) -> bool:
    name = ast.unparse(call.func).rpartition(".")[2]
    modes = [each.value for each in [*call.args[:2], *(word.value for word in call.keywords if word.arg == "mode")]
             if isinstance(each, ast.Constant) and isinstance(each.value, str)]  # fmt: skip
    opens = name == "open" and any(set(mode) & set("wa+") and set(mode) <= set("wabt+r") for mode in modes)
    checked = any(word.arg == "opener" for word in call.keywords)
    return name in ("write_bytes", "touch") or (name == "write_text" and "." in ast.unparse(call.func)) or (
        opens and not checked
    )  # fmt: skip


EVIL = "\x1b]0;owned\x07\x9b31m[bold]a\u202eb"
SHOWN = r"\u001b]0;owned\u0007\u009b31m[bold]a\u202eb"


def test_what_comes_from_outside_is_printed_as_text(capsys: pytest.CaptureFixture[str]):
    tell(f"{EVIL}\n")
    assert capsys.readouterr().out == f"{SHOWN}\n\n"
    console = SafeConsole(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor")
    table = Table(EVIL, title=EVIL)
    table.add_row(Text(EVIL, style="red"), EVIL)
    console.print(EVIL, Text(EVIL), table, Panel(EVIL), style="bold")
    with Live(Text(EVIL), console=console, refresh_per_second=1):
        pass
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "owned" in printed
    assert "\x1b[1m" in printed  # rich's own
    assert not {"\x07", "\x9b", "\u202e"} & set(printed)
    assert "\x1b]" not in printed
    record = json_line({"clip": f"{EVIL}\udcff", "machine": "Lüfter"})
    assert not CONTROL.search(record.removesuffix("\n"))
    assert json.loads(record) == {"clip": f"{EVIL}\udcff", "machine": "Lüfter"}


def test_nothing_of_ours_prints_otherwise():
    allowed = {"printing.py", "console.py"}
    forbidden = ("print", "click.echo", "click.secho", "Console", "traceback.print_exc", "sys.stdout.write",
                 "sys.stderr.write", "rich.print", "pprint")  # fmt: skip
    found = [
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for path in (ROOT / "rayasd").rglob("*.py") if path.name not in allowed
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Call) and ast.unparse(node.func) in forbidden)
        or (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr"))
    ]  # fmt: skip
    streams = {
        f"rayasd/{path}: sys.std{name}" for name in ("out", "err") for path in ("__main__.py", "cluster/job.py")
    }  # flushed; what a command of ours has printed
    assert set(found) == {"rayasd/cli/display.py: sys.stdout", *streams}  # isatty


def test_status_prints_the_holder_of_a_lock_as_text(finished: Path, cache: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    with RunStore(run).held():
        lock = RunStore(run).paths.lock
        lock.write_text(json.dumps(read_record(lock) | {"host": f"{EVIL}\nline"}))
        RunStore(run).record(EVIL)
        printed = call("status", run, cache=cache).stdout
    assert f"on {SHOWN}\\nline since" in printed
    assert f"last: {read_record(lock).get('time', '')}" in printed
    assert not CONTROL.search(printed.replace("\n", ""))


@pytest.mark.parametrize("name", ["a\u202eb.wav", "a\u2066b", "a\u2028b", "\x1b[0m"])
def test_names_that_turn_text_are_refused(name: str):
    assert name_problem(name) == "has a control character in its name"
    assert not CONTROL.search(shown(name))
    assert name_problem("Lüfter 扇風機 مروحة") is None


@pytest.mark.slow
def test_leaderboard_md_holds_no_html(tmp_path: Path, cache: Path):
    machine = "<img src=x onerror=alert(1)>"
    tree = write_tree(tmp_path / "tree", (machine, "fan"))
    run = tmp_path / "run"
    done = call(*small_sweep(tree, run, "--variants", "statistics", "--detectors", "knn-1"), cache=cache)
    assert done.returncode == 0, done.stderr
    text = (run / "leaderboard.md").read_text()
    assert "&lt;img src=x" in text
    assert "<" not in text


@pytest.mark.slow
@pytest.mark.ray
def test_ray_answers_nobody_without_the_token(tree: Path, cache: Path, tmp_path: Path):
    run = tmp_path / "run"
    arguments = small_sweep(tree, run, "--machines", "fan", "--set", "exposure.epochs=20000")
    arguments[arguments.index("local")] = "ray"
    leftover = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "4" * 64}  # of a script for another Ray
    with subprocess.Popen(command_line(*arguments), env=environment(cache, **leftover), stdout=subprocess.PIPE,
                          text=True, stderr=subprocess.STDOUT) as driver:  # fmt: skip
        wait_until(lambda: (run / "models/both/fan/seed=0/progress.json").exists(), driver)
        (session,) = Path("/tmp").glob(f"ra????????/ray/session_*_{driver.pid}")
        folder = session.parents[1]
        assert (folder.stat().st_mode & 0o777, folder.stat().st_uid) == (0o700, os.getuid())
        assert session.parent.stat().st_mode & 0o002  # why it has to be within one that nobody can enter
        discovered = session / "prom_metrics_service_discovery.json"
        wait_until(lambda: discovered.exists() and json.loads(discovered.read_text()), driver, seconds=60)
        assert (session.parent / discovered.name).read_text() == discovered.read_text()  # where the sweep says
        address = json.loads(discovered.read_text())[0]["targets"][0].partition(":")[0]
        agent, gcs = (_port(session, name) for name in ("dashboard_agent_listen", "gcs_server"))
        token = (run / "ray-token").read_text()
        assert (run / "ray-token").stat().st_mode & 0o777 == 0o600
        assert not [path for path in session.rglob("*") if path.is_file() and _holds(path, token)]
        refused = [_status(f"http://{address}:{agent}/{place}") for place in ("logs/", "api/job_agent/jobs/")]
        strangers = {k: v for k, v in environment(cache).items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
        join = f"import ray; ray.init(address='{address}:{gcs}', logging_level='ERROR'); print('IN')"
        join_it = [sys.executable, "-c", join]
        joined = subprocess.run(join_it, env=strangers, capture_output=True, text=True, check=False, timeout=120)
        driver.send_signal(signal.SIGTERM)
        output, _ = driver.communicate(timeout=90)
    assert not folder.exists()
    assert f"Prometheus finds metrics by {folder}/ray/prom_metrics_service_discovery.json" in output
    assert refused == [401, 401]
    assert "IN" not in joined.stdout
    assert joined.returncode != 0
    dashboard = next(line for line in output.splitlines() if line.startswith("dashboard http://127.0.0.1:"))
    assert token not in output
    assert dashboard.endswith(f"its token is in {run / 'ray-token'}")


@pytest.fixture
def short() -> Iterator[Path]:
    """Return a folder whose path is short."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_rays_files_lie_where_nobody_else_can_enter(short: Path):
    old_mask = os.umask(0)
    try:
        made = [
            private_folder(short),
            private_folder(short),
            private_folder(short, "a job"),
            private_folder(short, "b"),
        ]
    finally:
        os.umask(old_mask)
    assert len(set(made)) == 4
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in made)
    made[2].chmod(0o777)
    assert private_folder(short, "a job") == made[2]  # of another launcher of this job
    assert made[2].stat().st_mode & 0o777 == 0o700


def _stop_a_node(rays: Path, kept: Path) -> None:
    place = Placement(job="j", rank=0, size=1, address="127.0.0.1", cpus=1, gpus=0)
    RayNode(place, {}, 20000, rays).stop(kept)


def _close_an_executor(rays: Path, kept: Path) -> None:
    ray = SimpleNamespace(shutdown=lambda: None)
    state = {"_ray": ray, "_folder": rays, "_logs": kept, "_lost_any": True, "_running": {}}
    RayExecutor.close(SimpleNamespace(**state, _head_silent=0.0, _forget_token=lambda: None))  # type: ignore[arg-type]


@pytest.mark.parametrize("end", [_stop_a_node, _close_an_executor], ids=["launch", "sweep"])
def test_rays_logs_are_kept_where_nobody_else_can_write_and_through_no_link(
    tmp_path: Path, end: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str]
):
    rays, kept, precious = tmp_path / "ra1", tmp_path / "run/ray-logs", tmp_path / "precious"

    def log(text: str) -> None:
        logs = rays / "ray/session_latest/logs"
        (logs / "old").mkdir(parents=True)
        (logs / "raylet.out").write_text(text)
        for path in (logs, logs / "raylet.out"):
            path.chmod(0o777)  # as Ray has it
        (logs / "token.log").symlink_to(precious)

    precious.write_text("mine")
    log("first")
    end(rays, kept)
    assert kept.stat().st_mode & 0o777 == 0o700
    assert [(path.name, path.stat().st_mode & 0o002) for path in kept.iterdir()] == [("raylet.out", 0)]
    kept.chmod(0o777)  # as earlier versions left it, and then a link was planted
    (kept / "raylet.out").unlink()
    (kept / "raylet.out").symlink_to(precious)
    log("second")
    end(rays, kept)
    assert kept.stat().st_mode & 0o777 == 0o700
    assert (kept / "raylet.out").read_text() == "second"
    shutil.rmtree(kept)
    (tmp_path / "elsewhere").mkdir()
    kept.symlink_to(tmp_path / "elsewhere")
    log("third")
    assert not capsys.readouterr().err
    end(rays, kept)
    assert capsys.readouterr().err == f"Ray's logs are not kept in {kept}: it is a link, or another user's\n"
    assert not list((tmp_path / "elsewhere").iterdir())
    assert precious.read_text() == "mine"


def test_a_folder_that_somebody_else_has_made_is_refused(short: Path, monkeypatch: pytest.MonkeyPatch):
    folder = private_folder(short, "a job")
    shutil.rmtree(folder)
    (short / "elsewhere").mkdir()
    folder.symlink_to(short / "elsewhere")  # a link to one of ours is not one of ours
    with pytest.raises(UserError, match="belongs to another user"):
        private_folder(short, "a job")
    folder.unlink()
    private_folder(short, "a job")
    monkeypatch.setattr(ray_folder.os, "getuid", lambda: 4711)
    with pytest.raises(UserError, match="belongs to another user: choose another --temp-dir"):
        private_folder(short, "a job")


def test_rays_longest_socket_has_a_path_of_107_bytes(short: Path):
    longest = short / ("x" * (26 - len(f"{short}/")))
    socket = private_folder(longest) / "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.0"
    assert len(str(socket)) == 107
    with pytest.raises(UserError, match="too long for Ray's sockets, 26 characters at most"):
        private_folder(Path(f"{longest}x"))
    (short / "file").touch()
    with pytest.raises(UserError, match="cannot make"):
        private_folder(short / "file")


def test_the_root_of_a_sweeps_own_ray_is_chosen_by_variables():
    assert root_of_own({}) == Path("/tmp")
    assert root_of_own({"TMPDIR": "/scratch", "RAY_TMPDIR": "/local"}) == Path("/local")
    assert root_of_own({"TMPDIR": "/scratch"}) == Path("/scratch")
    assert root_of_own({"TMPDIR": "/scratch/of/a/user/with/a/long/name"}) == Path("/tmp")
    assert root_of_own({"TMPDIR": "/scratch", "RAYASD_TMP": "/own"}) == Path("/own")


def _port(session: Path, name: str) -> str:
    """Read a port that a part of Ray writes into a file: the file may be there before its content."""

    def found() -> list[str]:
        return [text for path in session.glob(f"{name}_port_*") if (text := path.read_text().strip()).isdecimal()]

    wait_until(lambda: len(found()) == 1, seconds=60)
    return found()[0]


def _holds(path: Path, token: str) -> bool:
    return token.encode() in path.read_bytes()[:10_000_000]


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
