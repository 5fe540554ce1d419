"""Thin entry points outside the package."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import environment

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_ray_job_is_a_sweep(tree: Path, cache: Path):
    command = [sys.executable, ROOT / "jobs/sweep.py", "--data", tree, "--preset", "demo", "--dry-run"]
    shown = subprocess.run(command, env=environment(cache), capture_output=True, text=True, check=True, timeout=120)
    assert "train fan both seed 0" in shown.stdout


@pytest.mark.parametrize("script", [*sorted((ROOT / "slurm").glob("*.sh")), ROOT / ".ci/run"], ids=lambda p: p.name)
def test_shell_scripts_parse(script: Path):
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o111


def test_shell_scripts_are_clean():
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck")
    scripts = [*ROOT.glob("slurm/*.sh"), ROOT / "slurm/job.bash", ROOT / "tests/slurm/install.sh", ROOT / ".ci/run"]
    checked = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("script", "restarts", "requeued"), [("train", "0", "7"), ("train", "10", None), ("array", "0", "5_3")]
)
def test_near_the_time_limit_the_batch_script_interrupts_and_requeues(
    tmp_path: Path, script: str, restarts: str, requeued: str | None
):
    """Slurm's own commands and rayasd are played by scripts that note how they were called."""
    work = f"echo $* > {tmp_path}/work; trap 'exit 75' USR1; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done"
    commands = {
        "srun": work,
        "rayasd": work,
        "scontrol": f"echo $* >> {tmp_path}/scontrol; echo '   Command={ROOT}/slurm/{script}.sh --data x'",
        "squeue": "echo RUNNING",
        "sleep": 'exec /bin/sleep $([ "$1" = 60 ] && echo 0 || echo "$1")',
    }
    (tmp_path / "bin").mkdir()
    for name, body in commands.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    variables = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts, "SLURM_NNODES": "2",
                 "RAYASD_VENV": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}  # fmt: skip
    if script == "array":
        variables |= {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3", "RAYASD_PART": "share",
                      "RAYASD_TASKS": "8"}  # fmt: skip
    with subprocess.Popen(["bash", ROOT / f"slurm/{script}.sh", "--data", "x"], env={**os.environ, **variables},
                          stdout=subprocess.PIPE, text=True) as job:  # fmt: skip
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        job.send_signal(signal.SIGUSR1)
        output, _ = job.communicate(timeout=20)
    assert job.returncode == 75
    called = (tmp_path / "work").read_text().strip()
    if script == "array":
        assert called == "sweep --data x --executor local --only 3/8"
    else:
        assert "--ntasks-per-node=1 --cpu-bind=none" in called
        assert "rayasd launch --temp-dir /tmp -- " in called
        assert called.endswith(" -- sweep --data x")
    assert (f"requeue {requeued}" in (tmp_path / "scontrol").read_text()) == (requeued is not None)
    assert ("back into the queue" in output) == (requeued is not None)
