"""Jobs on a Ray head that this test starts, as a person with the token and one without would send them."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayasd.cluster.daemon import SETTINGS, RayNode, free_ports
from rayasd.cluster.folder import private_folder
from rayasd.cluster.placement import Placement
from rayasd.cluster.submit import follow
from tests.command import Rayasd, command_line, environment
from tests.conftest import small_sweep


@dataclass(frozen=True)
class Cluster:
    address: str
    token: Path

    def words(self, *more: object) -> list[object]:
        python = [] if more[0] in ("--follow", "--stop", "--list") else ["--python", sys.executable]
        return ["submit", "--address", self.address, "--token-file", self.token, *python, *more]


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
    except urllib.error.HTTPError:
        return True  # it wants a token
    except OSError:
        return False
    return True


def own_lines(text: str) -> list[str]:
    """Leave out what Ray logs of its own: some versions tell where they found a token."""
    return [line for line in text.splitlines() if not line.startswith("[")]


def wait_until(condition, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a Ray of this module's own on the loopback, which wants a token."""
    job = f"submit-{os.getpid()}"
    token = tmp_path_factory.mktemp("secret") / "token"
    token.touch(0o600)
    token.write_text("5" * 64)
    place = Placement(job=job, rank=0, size=1, address="127.0.0.1", cpus=2, gpus=0)
    variables = environment(cache, **SETTINGS, RAY_AUTH_TOKEN_PATH=str(token))
    ports, holds = free_ports(place)
    node = RayNode(place, variables, ports, private_folder(Path("/tmp"), job), holds=holds)
    words = dict(word.partition("=")[::2] for word in node.command)
    address = f"http://127.0.0.1:{words['--dashboard-port']}"
    try:
        node.start(None)
        wait_until(lambda: answers(address))
        yield Cluster(address, token)
    finally:
        node.stop()


# Commands that speak to this Ray are processes: Ray's core keeps a token for as long as its process lives.


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_is_followed_and_its_exit_code_comes_through(rayasd_process: Rayasd, cluster: Cluster, tmp_path: Path):
    shown = rayasd_process(*cluster.words("--", "report", "--help"))
    assert shown.returncode == 0, shown.stderr
    assert "Print RUN's leaderboard and write report.html" in shown.stdout
    refused = rayasd_process(*cluster.words("--job-id", "bad", "--", "report", "nothing-here"))
    assert refused.returncode == 2
    assert f"error: {tmp_path / 'work' / 'nothing-here'} is not a run directory" in refused.stdout
    again = rayasd_process(*cluster.words("--follow", "bad"))
    assert (again.returncode, again.stdout) == (2, refused.stdout)
    spaces = tmp_path / "a b"
    spaces.mkdir()
    elsewhere = rayasd_process(*cluster.words("--folder", spaces, "--", "report", "nothing here"))
    assert f"error: {spaces}/nothing here is not a run directory" in elsewhere.stdout
    nowhere = rayasd_process(*cluster.words("--folder", tmp_path / "nix", "--", "report", "--help"))
    assert nowhere.returncode != 0
    assert f"error: No such file or directory: {tmp_path / 'nix'}" in nowhere.stdout
    taken = rayasd_process(*cluster.words("--job-id", "bad", "--", "report", "--help"))
    assert taken.returncode == 2
    assert "Job with submission_id bad already exists" in taken.stderr
    assert "failed" in rayasd_process(*cluster.words("--list")).stdout
    for action in ("--follow", "--stop"):
        unknown = rayasd_process(*cluster.words(action, "nix"))
        assert (unknown.returncode, len(own_lines(unknown.stderr))) == (2, 1)
        assert "Job nix does not exist" in unknown.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_without_the_token_nothing_is_done_and_one_line_says_why(
    rayasd_process: Rayasd, cluster: Cluster, tmp_path: Path
):
    wrong = tmp_path / "wrong"
    wrong.write_text("6" * 64)
    said = f"error: the cluster at {cluster.address} refuses the request: give its token by --token-file or"
    words = ("submit", "--address", cluster.address, "--", "report", "--help")
    for variables in ({}, {"RAY_AUTH_TOKEN_PATH": str(wrong)}, {"RAY_AUTH_TOKEN": "7" * 64}):
        refused = rayasd_process(*words, HOME=str(tmp_path), **variables)
        assert (refused.returncode, refused.stdout) == (2, "")
        (line,) = own_lines(refused.stderr)
        assert line.startswith(said)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_goes_on_without_its_watcher_until_it_is_stopped(
    rayasd_process: Rayasd, cluster: Cluster, tree: Path, cache: Path, tmp_path: Path
):
    sweep = small_sweep(tree, Path("run"), "--set", "exposure.epochs=3000")
    sweep[sweep.index("local")] = "ray"
    sent = rayasd_process(*cluster.words("--no-wait", "--job-id", "long", "--", *sweep))
    assert (sent.returncode, sent.stdout) == (0, "long\n")
    run = tmp_path / "work/run"
    wait_until(lambda: list(run.glob("models/both/*/seed=0/state.pt")))
    with subprocess.Popen(command_line(*cluster.words("--follow", "long")), env=environment(cache), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watcher:  # fmt: skip
        assert watcher.stdout is not None
        wait_until(lambda: "to do, 0 done before" in watcher.stdout.readline(), 30)
        watcher.send_signal(signal.SIGINT)
        _, errors = watcher.communicate(timeout=30)
    assert watcher.returncode == 75
    assert "job long continues" in errors
    assert "Traceback" not in errors
    assert "running" in rayasd_process(*cluster.words("--list")).stdout
    stopped = rayasd_process(*cluster.words("--stop", "long"))
    assert (stopped.returncode, stopped.stdout) == (0, "job long: stopped\n")
    last = rayasd_process(*cluster.words("--follow", "long"))
    assert last.returncode == 77
    assert last.stdout.endswith("interrupted: the same command continues from here\n")
    assert not list(run.glob("lock*"))
    sent = rayasd_process(*cluster.words("--no-wait", "--job-id", "again", "--", *sweep))
    assert sent.returncode == 0
    wait_until(lambda: (run / "events.jsonl").read_text().count("sweep started") == 2)
    assert rayasd_process("stop", run, "--wait", 60).returncode == 0
    last = rayasd_process(*cluster.words("--follow", "again"))
    assert last.returncode == 77
    assert last.stdout.endswith("stopped as asked\n"), last.stdout
    (listed,) = [line for line in rayasd_process(*cluster.words("--list")).stdout.splitlines() if "again" in line]
    assert listed.split()[1] == "stopped"
    assert f"{sys.executable} -m rayasd sweep --data " in listed  # the command comes first


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:9", "no Ray dashboard answers at http://127.0.0.1:9: [Errno 111] Connection refused"),
        ("127.0.0.1:9", "no Ray dashboard answers at http://127.0.0.1:9"),
        ("ray://127.0.0.1:9", "give the dashboard's, for example http://HEAD:8265"),
    ],
)
def test_where_nobody_listens_one_line_says_so_at_once(rayasd_process: Rayasd, address: str, said: str):
    began = time.monotonic()
    refused = rayasd_process("submit", "--address", address, "--list", timeout=60)
    assert time.monotonic() - began < 10
    assert refused.returncode == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_one_thing_at_a_time(rayasd: Rayasd):
    for words in ([], ["--list", "--stop", "x"], ["--follow", "x", "--", "report"]):
        refused = rayasd("submit", "--address", "127.0.0.1:9", *words)
        assert refused.returncode == 2
        assert "give one of: -- COMMAND, --follow ID, --stop ID, --list" in refused.stderr


def test_an_unknown_command_is_not_sent(rayasd: Rayasd):
    refused = rayasd("submit", "--address", "127.0.0.1:9", "--", "swep")
    assert refused.returncode == 2
    assert "unknown command 'swep': did you mean 'sweep'?" in refused.stderr


@pytest.mark.parametrize(
    ("status", "code", "followed"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 77)],
)
def test_how_a_job_ends_is_an_exit_code(status: str, code: int | None, followed: int):
    from ray.job_submission import JobStatus

    async def tail_job_logs(_: str) -> AsyncIterator[str]:
        yield "working\n"

    job = SimpleNamespace(status=JobStatus(status), driver_exit_code=code, message="its node was lost")
    said: list[str] = []
    client = SimpleNamespace(get_job_info=lambda _: job, tail_job_logs=tail_job_logs)
    assert follow(client, "j", said.append) == followed
    assert "".join(said) == "working\n" + ("its node was lost\n" if code is None and followed == 1 else "")
