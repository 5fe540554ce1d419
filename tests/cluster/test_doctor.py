import errno
import json
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayasd import host
from rayasd.cluster import doctor
from rayasd.cluster.placement import Placement
from tests.command import Rayasd

PLACE = Placement(job="j", rank=1, size=2, address="127.0.0.1", cpus=1, gpus=0)


@pytest.mark.slow
def test_the_command_reports_what_is_bad_and_leaves_nothing(rayasd: Rayasd, tmp_path: Path):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        good = rayasd("doctor", "--run-dir", tmp_path / "a/b", "--data", tmp_path, "--format", "json", RAYASD_TMP=short)
        assert not list(Path(short).iterdir())
    assert good.returncode == 0, good.stdout
    answer = json.loads(good.stdout)
    assert answer["bad"] == 0
    severities = {finding["check"]: finding["severity"] for finding in answer["findings"]}
    assert severities["GPUs"] == severities["run folder"] == severities["temp folder"] == "ok"
    (tmp_path / "file").touch()
    slurm = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "CUDA_VISIBLE_DEVICES": ""}
    bad = rayasd("doctor", "--run-dir", tmp_path / "file/run", "--temp-dir", tmp_path / ("x" * 60),
                 "--data", tmp_path / "none", **slurm, SLURM_CPUS_PER_TASK="4096")  # fmt: skip
    assert bad.returncode == 1
    for line in (
        f"cannot write {tmp_path}/file/run: Not a directory",
        f"--temp-dir (RAYASD_TMP) {tmp_path}/{'x' * 60}: too long",
        f"cannot read {tmp_path}/none: No such file or directory",
        "GPUs 0; 2 launchers, but nothing names their job",
        "but Slurm gave 4096: give srun --cpus-per-task=4096 too",
    ):
        assert line in " ".join(bad.stdout.split())
    assert "Traceback" not in bad.stdout + bad.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "work"] == ["file"]


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(doctor, "cpus", lambda _: 1 // 0)
    monkeypatch.setattr(doctor, "gpus", lambda _: ("ok", ""))
    findings = doctor.examine({}, run_dir=tmp_path, cache=tmp_path, data=None, temp_root=Path("/tmp"))
    found = {finding.check: finding for finding in findings}
    assert found["CPUs"].severity == "bad"
    assert "the check failed: ZeroDivisionError" in found["CPUs"].detail


@pytest.mark.parametrize(
    ("seen", "offered", "severity", "detail"),
    [
        (2, 2, "ok", "torch sees 2"),
        (2, 0, "note", "launch offers 0: give --gpus 2"),
        (1, 2, "bad", "launch offers 2, but torch sees 1: compare with nvidia-smi"),
        (0, 0, "ok", "units train on CPUs"),
        (None, 1, "bad", "torch cannot be used: RuntimeError: no kernel image; compare with nvidia-smi"),
    ],
)
def test_gpus_are_compared_with_what_launch_offers(
    monkeypatch: pytest.MonkeyPatch, seen: int | None, offered: int, severity: str, detail: str
):
    done = SimpleNamespace(
        returncode=int(seen is None), stdout=f"{seen}\n", stderr="at\nRuntimeError: no kernel image\n"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    found = doctor.gpus(replace(PLACE, gpus=offered))
    assert found[0] == severity
    assert detail in found[1]


@pytest.mark.parametrize(
    ("texts", "severity", "detail"),
    [
        (["max 100000", "75000 50000"], "note", "launch offers 1: the cgroup's quota allows 1.5"),
        (["-1", "max 100000", "400000 100000"], "ok", "launch offers 2"),
    ],
)
def test_a_quota_of_cpus_is_named(monkeypatch: pytest.MonkeyPatch, texts: list[str], severity: str, detail: str):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(host, "cgroup_files", lambda *_: iter(texts))
    found = doctor.cpus({})
    assert found[0] == severity
    assert detail in found[1]


def test_the_file_system_of_a_path(tmp_path: Path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "r / rootfs rw 0 0\nd / ext4 rw 0 0\nn /net\\040disk nfs4 rw 0 0\nl /net\\040disk/fast lustre rw 0 0\n"
    )
    for path, kind in {"/x": "ext4", "/net disk/runs": "nfs4", "/net disk/fast/a": "lustre", "/net": "ext4"}.items():
        assert doctor.file_system(Path(path), mounts)[0] == kind


def test_folders_are_judged_by_their_file_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(doctor, "file_system", lambda _: ("nfs4", Path("/net")))
    assert doctor.folder(tmp_path, shared=True)[0] == "ok"
    severity, detail = doctor.folder(tmp_path, local=True)  # as a cache
    assert (severity, "better on a disk of the node" in detail) == ("note", True)
    severity, detail = doctor.temp_folder(Path("/tmp"))
    assert severity == "note"
    assert detail.startswith("/tmp (nfs4)")
    assert "Ray's sockets and logs need a disk of this node" in detail
    monkeypatch.setattr(doctor, "file_system", lambda _: ("xfs", Path("/")))
    assert doctor.folder(tmp_path, local=True)[0] == "ok"
    for found in (doctor.folder(tmp_path, shared=True), doctor.recordings(tmp_path, shared=True)):
        assert found[0] == "note"
        assert "probably a disk of this node" in found[1]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=5e7))
    assert doctor.folder(tmp_path)[0] == "bad"
    assert not list(tmp_path.iterdir())


def test_folders_without_locks_are_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(doctor.fcntl, "lockf", refuse)
    severity, detail = doctor.folder(tmp_path)
    assert (severity, "no POSIX locks (No locks available), which a run does not need" in detail) == ("note", True)
    assert not list(tmp_path.iterdir())


def test_folders_whose_names_do_not_do_what_a_run_needs_are_bad(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    whole = Path.open
    with monkeypatch.context() as without:
        without.setattr(doctor.os, "replace", refuse)
        found = doctor.folder(tmp_path)
        assert (found[0], "cannot create and rename files: Operation not permitted" in found[1]) == ("bad", True)
        without.setattr(doctor.os, "replace", lambda *_: None)
        found = doctor.folder(tmp_path)
        assert (found[0], "a rename should replace is still there" in found[1]) == ("bad", True)
    monkeypatch.setattr(doctor.Path, "open", lambda path, mode="r", **how: whole(path, mode.replace("x", "w"), **how))
    found = doctor.folder(tmp_path)
    assert (found[0], "two sweeps could take one run" in found[1]) == ("bad", True)
    assert not list(tmp_path.iterdir())


def test_several_tasks_on_a_node_are_a_note():
    slurm = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
    alone = doctor.placement({**slurm, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"})
    assert alone[0][0] == "ok"
    (severity, detail), _ = doctor.placement({"SLURM_NTASKS": "4", "SLURM_NNODES": "2"})
    assert (severity, "launch needs one task per node" in detail) == ("note", True)
    assert doctor.placement({"SLURM_PROCID": "x", "SLURM_NTASKS": "2"})[0][0] == "bad"
