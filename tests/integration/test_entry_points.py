"""Thin entry points outside the package."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment

ROOT = Path(__file__).parents[2]


def test_the_ray_job_is_a_sweep(tree: Path, cache: Path):
    command = [sys.executable, ROOT / "jobs/sweep.py", "--data", tree, "--preset", "demo", "--dry-run"]
    shown = subprocess.run(command, env=environment(cache), capture_output=True, text=True, check=True, timeout=120)
    assert "train fan both seed 0" in shown.stdout


@pytest.mark.parametrize("script", [*sorted((ROOT / "slurm").glob("*.sh")), ROOT / ".ci/run"], ids=lambda p: p.name)
def test_shell_scripts_parse(script: Path):
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o111
