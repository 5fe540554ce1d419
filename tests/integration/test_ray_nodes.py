"""Nodes that are not like the driver's host are told from those that are, before a unit runs."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayasd.cluster import nodes
from rayasd.cluster.nodes import Software, software_here
from rayasd.errors import UserError

ROOT = Path(__file__).parents[2]


def judged(mine: Software, theirs: Software, seconds: float = 0.0) -> list[str]:
    ray = SimpleNamespace(get=lambda _: (theirs, time.time() + seconds), exceptions=SimpleNamespace(RayError=OSError))
    return nodes._judged(ray, None, "node07", mine)


def test_other_packages_are_named_before_other_code():
    mine = Software({"rayasd": "0.1", "torch": "2.11.0"}, "a")
    assert judged(mine, mine) == []
    with pytest.raises(UserError, match="^node07 has torch None, not 2.11.0: install the same on all nodes$"):
        judged(mine, Software({"rayasd": "0.1", "torch": None}, "b"))
    with pytest.raises(UserError, match="has another rayasd of the same version: install"):
        judged(mine, mine._replace(code="b"))


@pytest.mark.parametrize(("seconds", "notes"), [(0.0, []), (3600.0, ["the clock of node07 is +3600 s off"])])
def test_a_clock_that_is_off_is_noted(seconds: float, notes: list[str]):
    mine = software_here()
    assert judged(mine, mine, seconds) == notes


CHECK = """
import sys, ray
from rayasd.errors import UserError
from rayasd.cluster.nodes import check_nodes
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
try:
    print(check_nodes(ray, [node for node in ray.nodes() if node["Alive"]]))
except UserError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.ray
def test_a_node_with_another_rayasd_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ray.cluster_utils import Cluster

    def check() -> str:
        """Ask as a sweep does, from a process whose folder Ray does not put before the nodes' own."""
        done = subprocess.run([sys.executable, tmp_path / "check.py", cluster.address], cwd=tmp_path, check=False,
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        return done.stdout.strip() or done.stderr

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (tmp_path / "check.py").write_text(CHECK)
    shutil.copytree(ROOT / "rayasd", tmp_path / "theirs/rayasd", ignore=shutil.ignore_patterns("__pycache__"))
    cluster = Cluster()
    try:
        for path in (ROOT, tmp_path / "theirs"):
            cluster.add_node(num_cpus=1, object_store_memory=80_000_000, env_vars={"PYTHONPATH": str(path)})
        assert check() == "[]"
        code = tmp_path / "theirs/rayasd/errors.py"
        code.write_text(code.read_text() + "# another\n")
        assert check().endswith("has another rayasd of the same version: install the same on all nodes")
        (tmp_path / "theirs/rayasd/cluster/nodes.py").unlink()
        assert "cannot run rayasd: " in check()
    finally:
        cluster.shutdown()
