import socket
from dataclasses import replace
from pathlib import Path

import pytest

from rayasd.cluster.daemon import PORTS_A_BLOCK, free_ports, ray_command, temporary_folder
from rayasd.cluster.placement import Placement
from rayasd.errors import UserError

HEAD = Placement(job="j", rank=0, size=2, address="127.0.0.1", cpus=4, gpus=1)


def test_everything_that_ray_would_guess_is_said_and_no_secret_is():
    head = ray_command(HEAD, 20000, Path("/tmp/ra1"), None)
    worker = ray_command(replace(HEAD, rank=1), 20100, Path("/tmp/ra1"), "10.0.0.1:20000")
    for words in (head, worker):
        assert {"--block", "--num-cpus=4", "--num-gpus=1", "--node-ip-address=127.0.0.1"} <= set(words)
        assert any(word.startswith("--object-store-memory=") for word in words)
        assert not any("token" in word for word in words)
    assert {"--head", "--port=20000", "--dashboard-host=127.0.0.1", "--temp-dir=/tmp/ra1"} <= set(head)
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
    words = ray_command(HEAD, 20000, Path("/tmp/ra1"), None)
    ports = {word.partition("=")[0]: int(word.partition("=")[2]) for word in words if "port=" in word}
    assert len(set(ports.values())) == len(ports) == 11
    assert all(20000 <= port < 20000 + PORTS_A_BLOCK for port in ports.values())
    named = [port for name, port in ports.items() if "worker-port" not in name]
    assert max(named) < ports["--min-worker-port"] < ports["--max-worker-port"]


def test_a_block_with_a_port_in_use_is_passed_over():
    first = free_ports("j", "127.0.0.1", 0)
    assert free_ports("j", "127.0.0.1", 0) == first  # the job's own place
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 50))
        taken.listen()
        assert free_ports("j", "127.0.0.1", 0) != first


def test_the_temporary_folder_is_short_and_ours(tmp_path: Path):
    folder = temporary_folder(tmp_path, "some-very-long-name-of-a-job" * 3) if len(str(tmp_path)) < 30 else None
    folder = folder or temporary_folder(Path("/tmp"), f"test-{tmp_path}")
    try:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(folder.name) == 10
    finally:
        folder.rmdir()
    with pytest.raises(UserError, match="too long"):
        temporary_folder(tmp_path / ("x" * 60), "j")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make|too long"):
        temporary_folder(tmp_path / "file", "j")
