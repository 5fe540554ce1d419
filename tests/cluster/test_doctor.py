import errno
import importlib.metadata
import json
import os
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayasd import host
from rayasd.cluster.doctor import job, node, software
from rayasd.cluster.doctor.examination import examine
from rayasd.cluster.placement import Placement
from rayasd.errors import UserError
from tests.command import Rayasd

PLACE = Placement(job="j", rank=1, size=2, address="127.0.0.1", cpus=1, gpus=0)
GPU = {"name": "H200", "bytes": 150e9, "capability": "9.0", "trouble": None}


@pytest.mark.slow
def test_the_command_says_what_is_bad_and_leaves_nothing(rayasd: Rayasd, tmp_path: Path):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        good = rayasd("doctor", "--run-dir", tmp_path / "a/b", "--data", tmp_path, "--format", "json", RAYASD_TMP=short)
        assert not list(Path(short).iterdir())
    assert good.returncode == 0, good.stdout
    answer = json.loads(good.stdout)
    assert answer["bad"] == 0
    states = {finding["what"]: finding["state"] for finding in answer["findings"]}
    assert states["packages"] == states["torch, GPUs"] == states["run folder"] == states["temp folder"] == "ok"
    (tmp_path / "file").touch()
    slurm = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "CUDA_VISIBLE_DEVICES": ""}
    bad = rayasd("doctor", "--run-dir", tmp_path / "file/run", "--temp-dir", tmp_path / ("x" * 60),
                 "--data", tmp_path / "none", **slurm, SLURM_CPUS_PER_TASK="4096")  # fmt: skip
    assert bad.returncode == 1
    for said in (
        f"cannot write {tmp_path}/file/run: Not a directory",
        f"--temp-dir (RAYASD_TMP) {tmp_path}/{'x' * 60}: too long",
        f"cannot read {tmp_path}/none: No such file or directory",
        "GPUs 0; 2 launchers, but nothing names their job",
        "but Slurm gave 4096: give srun --cpus-per-task=4096 too",
        "SLURM_CPUS_PER_TASK=4096 SLURM_NTASKS=2 SLURM_PROCID=1",
    ):
        assert said in " ".join(bad.stdout.split())
    assert "Traceback" not in bad.stdout + bad.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "work"] == ["file"]


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(software, "packages", lambda: 1 // 0)
    monkeypatch.setattr(software, "_ask", lambda *_: (None, "exit code -6: it said nothing"))
    findings = examine({}, run_dir=tmp_path, cache=tmp_path, data=None, temp_root=Path("/tmp"))
    said = {finding.what: (finding.state, finding.said) for finding in findings}
    assert said["packages"][0] == "bad"
    assert "could not be checked: ZeroDivisionError" in said["packages"][1]
    assert said["torch, GPUs"] == (
        "bad",
        "torch, torchaudio and soundfile do not load: exit code -6: it said nothing",
    )


@pytest.mark.parametrize(
    ("gpus", "given", "options", "state", "said"),
    [
        ([GPU], 1, {}, "ok", "1 × H200, 150 GB, capability 9.0; torch for CUDA 13.0, driver 580"),
        ([GPU, GPU], 2, {"visible": "0,1"}, "ok", "2 × H200, 150 GB, capability 9.0 (CUDA_VISIBLE_DEVICES=0,1);"),
        ([GPU, GPU | {"trouble": "no kernel image"}], 2, {}, "bad", "; GPU 1: no kernel image"),
        ([GPU, GPU], 0, {}, "note", "launch would offer 0: give --gpus 2"),
        ([GPU], 2, {"visible": "0"}, "bad", "driver 580; launch would offer 2, but torch sees 1"),
        ([], 2, {"cuda": None}, "bad", "torch for CPUs, driver 580; launch would offer 2, but torch sees 0"),
        ([], 2, {"driver": None}, "bad", "driver not found; launch would offer 2, but torch sees 0"),
        ([], 0, {}, "note", "no GPU; torch for CUDA 13.0, driver 580; units train on CPUs"),
        ([], 0, {"visible": ""}, "ok", "no GPU (CUDA_VISIBLE_DEVICES=);"),
        ([], 0, {"driver": None}, "ok", "no GPU; torch for CUDA 13.0, driver not found; units train on CPUs"),
    ],
)
def test_gpus_are_compared_with_what_launch_would_offer(
    monkeypatch: pytest.MonkeyPatch, gpus: list, given: int, options: dict, state: str, said: str
):
    monkeypatch.setattr(software, "_ask", lambda *_: ({"cuda": options.get("cuda", "13.0"), "gpus": gpus}, ""))
    monkeypatch.setattr(software, "_driver", lambda: options.get("driver", "580"))
    environment = {"CUDA_VISIBLE_DEVICES": options["visible"]} if "visible" in options else {}
    found = software.torch_and_gpus(environment, replace(PLACE, gpus=given))
    assert found[0] == state
    assert said in found[1]


@pytest.mark.parametrize(
    ("texts", "state", "said"),
    [
        (["max 100000", "75000 50000"], "note", "launch would offer 1: the cgroup's quota allows 1.5"),
        (["-1", "max 100000", "400000 100000"], "ok", "launch would offer 2"),
    ],
)
def test_a_quota_of_cpus_is_named(monkeypatch: pytest.MonkeyPatch, texts: list[str], state: str, said: str):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(host, "cgroup_files", lambda *_: iter(texts))
    found = node.cpus({})
    assert found[0] == state
    assert said in found[1]


def test_memory_that_is_little_is_a_note(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(node, "cgroup_files", lambda *_: iter(["8000000000", "max"]))
    state, said = node.memory()
    assert state == "note"
    assert said.startswith("8 GB for this cgroup")
    assert "a training takes up to 9.6 GB on processors: ask for more (--mem)" in said


def test_the_file_system_of_a_path(tmp_path: Path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "r / rootfs rw 0 0\nd / ext4 rw 0 0\nn /net\\040disk nfs4 rw 0 0\nl /net\\040disk/fast lustre rw 0 0\n"
    )
    for path, kind in {"/x": "ext4", "/net disk/runs": "nfs4", "/net disk/fast/a": "lustre", "/net": "ext4"}.items():
        assert node.file_system(Path(path), mounts)[0] == kind


def test_folders_are_judged_by_their_file_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(node, "file_system", lambda _: ("nfs4", Path("/net")))
    assert node.folder(tmp_path, shared=True)[0] == "ok"
    state, said = node.folder(tmp_path, local=True)  # as a cache
    assert (state, "better on a disk of the node" in said) == ("note", True)
    state, said = node.temp_folder(Path("/tmp"))
    assert state == "note"
    assert said.startswith("/tmp (nfs4)")
    assert "Ray's sockets and logs want a disk of this node" in said
    monkeypatch.setattr(node, "file_system", lambda _: ("xfs", Path("/")))
    assert node.folder(tmp_path, local=True)[0] == "ok"
    for found in (node.folder(tmp_path, shared=True), node.recordings(tmp_path, shared=True)):
        assert found[0] == "note"
        assert "most likely of this node alone" in found[1]
    monkeypatch.setattr(node.shutil, "disk_usage", lambda _: SimpleNamespace(free=5e7))
    assert node.folder(tmp_path)[0] == "bad"
    state, said = node.shared_memory()
    assert (state, "Ray falls back" in said) == ("note", True)
    assert not list(tmp_path.iterdir())


def test_folders_without_locks_are_bad(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(node.fcntl, "lockf", refuse)
    state, said = node.folder(tmp_path)
    assert (state, "cannot lock files: No locks available" in said) == ("bad", True)
    assert not list(tmp_path.iterdir())


def test_few_open_files_are_a_note(monkeypatch: pytest.MonkeyPatch):
    for soft, state in ((1024, "note"), (65536, "ok")):
        monkeypatch.setattr(node.resource, "getrlimit", lambda _, soft=soft: (soft, 1 << 20))
        assert node.open_files()[0] == state


def test_a_clock_that_is_off_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert node.folder(tmp_path)[0] == "ok"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 60)
    state, said = node.folder(tmp_path)
    assert state == "note"
    assert "s from this node's clock" in said


@pytest.mark.parametrize(
    ("world", "size", "state", "said"),
    [
        (1, 1, "ok", "MPICH 4, world of size 1"),
        (2, 2, "ok", "world of size 2"),
        (1, 2, "note", "MPICH 4, world of size 1, but 2 launched: start with its own mpirun"),
    ],
)
def test_mpis_world_is_compared_with_the_launchers(
    monkeypatch: pytest.MonkeyPatch, world: int, size: int, state: str, said: str
):
    monkeypatch.setattr(software.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(software, "_ask", lambda *_: ({"size": world, "library": "MPICH 4"}, ""))
    place = Placement(job="j", rank=0, size=size, address="127.0.0.1", cpus=1, gpus=0)
    found = software.mpi(place)
    assert found[0] == state
    assert said in found[1]


def test_ports_need_an_address_of_this_host(monkeypatch: pytest.MonkeyPatch):
    assert job.ports(PLACE)[0] == "ok"
    elsewhere = Placement(job="j", rank=0, size=2, address="192.0.2.77", cpus=1, gpus=0)
    assert job.ports(elsewhere) == (
        "bad",
        "192.0.2.77 is no address of this host (Cannot assign requested address): give launch --node-address",
    )

    def none(*_: object) -> int:
        raise UserError("no free block")

    monkeypatch.setattr(job, "free_ports", none)
    assert job.ports(PLACE) == ("bad", "no free block")


@pytest.mark.parametrize(
    ("address", "state", "said"),
    [
        ("", "ok", "unset"),
        ("auto", "note", "Ray finds out"),
        ("127.0.0.1:9", "bad", "does not answer ([Errno 111] Connection refused)"),
        ("http://127.0.0.1:9", "bad", "a sweep wants HOST:PORT"),
    ],
)
def test_a_standing_cluster_must_answer(address: str, state: str, said: str):
    found = job.ray_address({"RAY_ADDRESS": address})
    assert found[0] == state
    assert said in found[1]


def test_a_token_is_found_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "token"
    file.write_text("secret")
    file.chmod(0o644)
    named = {"RAY_AUTH_TOKEN_PATH": str(file)}
    found = [
        job.ray_token({}),
        job.ray_token({"RAY_AUTH_TOKEN": "secret"}),
        job.ray_token(named),
        job.ray_token({"RAY_AUTH_MODE": "token"}),
        job.ray_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}),
        job.ray_token({"RAY_AUTH_MODE": "disabled"}),
    ]
    file.chmod(0o600)
    found.append(job.ray_token(named))
    file.write_text("")
    found.append(job.ray_token(named))
    assert [state for state, _ in found] == ["ok", "ok", "note", "bad", "bad", "note", "ok", "bad"]
    assert found[2][1] == f"{file} can be read by others: chmod 600 {file}"
    assert not any("secret" in said for _, said in found)


def test_threads_and_tasks():
    assert node.threads({})[0] == node.threads({"OMP_NUM_THREADS": "1"})[0] == "ok"
    assert node.threads({"OMP_NUM_THREADS": "16"})[0] == "note"
    assert job.launcher({"SLURM_NTASKS": "2", "SLURM_NNODES": "2"})[0] == "ok"
    state, said = job.launcher({"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "PATH": "/bin"})
    assert (state, "launch wants one a node" in said, "PATH" in said) == ("note", True, False)
    assert job.placement({"SLURM_PROCID": "x", "SLURM_NTASKS": "2"})[0][0] == "bad"


def test_packages_are_compared_with_what_rayasd_asks_for(monkeypatch: pytest.MonkeyPatch):
    def version(name: str, real=importlib.metadata.version) -> str:
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"torch": "2.11.1+cu130", "torchaudio": "2.10.0"}.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    state, said = software.packages()
    assert state == "bad"
    assert re.match(
        r"timm is not installed, rayasd needs >=[\d.]+; torchaudio 2\.10\.0, rayasd needs <2\.12,>=2\.11 \(", said
    )
