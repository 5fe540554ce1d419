import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rayasd.cluster.daemon import MOST_WORKERS, PORTS_PER_BLOCK, RayNode, free_ports, metric_ports
from rayasd.cluster.placement import Placement

HEAD = Placement(job="j", rank=0, size=2, address="127.0.0.1", cpus=4, gpus=1)


def test_everything_that_ray_would_guess_is_said_and_no_secret_is():
    head = RayNode(HEAD, {}, 20000, Path("/tmp/ra1")).command
    worker = RayNode(replace(HEAD, rank=1), {}, 20600, Path("/tmp/ra1"), head_address="10.0.0.1:20000").command
    for words in (head, worker):
        assert {"--block", "--num-cpus=4", "--num-gpus=1", "--node-ip-address=127.0.0.1"} <= set(words)
        assert any(word.startswith("--object-store-memory=") for word in words)
        assert not any("token" in word for word in words)
    assert {"--head", "--port=20000", "--dashboard-host=127.0.0.1", "--temp-dir=/tmp/ra1/ray"} <= set(head)
    assert "--address=10.0.0.1:20000" in worker
    head_only = (
        "--head",
        "--port",
        "--dashboard-port",
        "--ray-client-server-port",
        "--temp-dir",
        "--include-dashboard",
    )
    assert not [word for word in worker if word.partition("=")[0] in head_only]


def test_all_ports_are_different_and_of_the_block():
    words = RayNode(HEAD, {}, 20000, Path("/tmp/ra1")).command
    ports = {word.partition("=")[0]: int(word.partition("=")[2]) for word in words if "port=" in word}
    assert len(set(ports.values())) == len(ports) == 11
    assert all(20000 <= port < 20000 + PORTS_PER_BLOCK for port in ports.values())
    named = [port for name, port in ports.items() if "worker-port" not in name]
    others = [int(port) for port in metric_ports(20000).values()]
    assert len({*named, *others}) == len(named) + len(others)
    assert max(*named, *others) < ports["--min-worker-port"] < ports["--max-worker-port"]


def test_ray_reads_the_variables_of_metric_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read = "from ray.dashboard.consts import DASHBOARD_METRIC_PORT as d\n" \
           "from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT as a\nprint(d, a)"  # fmt: skip
    monkeypatch.setattr(RayNode, "command", [sys.executable, "-c", read])
    node = RayNode(HEAD, os.environ, 20000, tmp_path)
    node.start(None)
    assert node.process is not None
    node.process.wait(60)
    assert node.log.read_text().split() == list(metric_ports(20000).values())


def test_a_block_with_a_port_in_use_is_passed_over():
    first = one_block()
    assert one_block() == first  # the job's own place
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 550))
        taken.listen()
        assert one_block() != first


def one_block() -> int:
    block, hold = free_ports("j", "127.0.0.1", 0)
    hold.close()
    return block


def test_a_block_belongs_to_its_launcher_before_ray_takes_ports(tmp_path: Path):
    first, hold = free_ports("j", "127.0.0.1", 0)
    others = [free_ports("j", address, 0) for address in ("127.0.0.1", "127.0.0.2")]
    assert len({first, *(block for block, _ in others)}) == 3
    for _, socket_of_it in others:
        socket_of_it.close()
    RayNode(HEAD, {}, first, tmp_path, hold=hold).stop()
    assert one_block() == first


def test_a_block_has_a_port_for_each_worker_of_a_large_node():
    words = RayNode(replace(HEAD, cpus=MOST_WORKERS), {}, 31400, Path("/tmp/ra1")).command
    first, last = (int(word.partition("=")[2]) for word in words if "-worker-port=" in word)
    assert last - first + 1 >= MOST_WORKERS + 10 > 512
    assert last < 32000
