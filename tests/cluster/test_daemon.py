import os
import socket
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from rayasd.cluster.daemon import RayNode, block_size, free_ports, metric_ports
from rayasd.cluster.placement import Placement

HEAD = Placement(job="j", rank=0, size=2, address="127.0.0.1", cpus=4, gpus=1)


def test_everything_that_ray_would_guess_is_said_and_no_secret_is():
    head = RayNode(HEAD, {}, 20000, Path("/tmp/ra1")).command
    worker = RayNode(replace(HEAD, rank=1), {}, 20100, Path("/tmp/ra1"), head_address="10.0.0.1:20000").command
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
    named = [int(word.partition("=")[2]) for word in words if "port=" in word]
    others = [int(port) for port in metric_ports(20000).values()]
    assert len({*named, *others}) == len(named) + len(others) == 11
    assert all(20000 <= port < 20019 for port in [*named, *others])  # a launcher holds 20019
    assert worker_ports(words) == list(range(20020, 20100))


def worker_ports(words: list[str]) -> list[int]:
    (ports,) = (word.partition("=")[2] for word in words if word.startswith("--worker-port-list="))
    return list(map(int, ports.split(",")))


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
        taken.bind(("127.0.0.1", first + 55))
        taken.listen()
        assert one_block() != first


def one_block() -> int:
    block, holds = free_ports(HEAD)
    close(holds)
    return block


def close(holds: Iterable[socket.socket]) -> None:
    for hold in holds:
        hold.close()


def test_a_block_belongs_to_its_launcher_before_ray_takes_ports(tmp_path: Path):
    large = replace(HEAD, cpus=200)  # three hundreds
    first, holds = free_ports(large)
    others = [free_ports(replace(HEAD, address=address)) for address in ("127.0.0.1", "127.0.0.2")]
    assert len({first // 100 + i for i in range(3)} | {block // 100 for block, _ in others}) == 5
    for _, others_holds in others:
        close(others_holds)
    RayNode(large, {}, first, tmp_path, holds=holds).stop()
    assert free_ports(large)[0] == first


def test_a_block_has_a_port_for_each_worker_of_a_large_node():
    assert [block_size(cpus) for cpus in (1, 70, 71, 512)] == [100, 100, 200, 600]
    ports = worker_ports(RayNode(replace(HEAD, cpus=512), {}, 31400, Path("/tmp/ra1")).command)
    assert len(ports) >= 512 + 10
    assert max(ports) < 32000
    assert not {port for port in ports if port % 100 == 19}  # which the launcher holds
