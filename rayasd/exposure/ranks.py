"""Train one unit with several processes ("ranks") of one host: one GPU each (NCCL), or all on CPUs (Gloo).

Each rank computes its own rows of every batch and the loss of the whole batch. torch's DistributedDataParallel averages
the gradients. One process alone uses nothing of torch.distributed.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rayasd.arrays import Indices
from rayasd.errors import NoGPUError, UserError
from rayasd.host import end_with_parent, freed_memory_kept, how_it_ended
from rayasd.unit import Progress, Report, Stopped, UnitSpec, silent

_TIMEOUT = timedelta(hours=1)
"""Limit of one communication: longer than a validation by the first rank, for which the others wait."""


@dataclass(frozen=True)
class Ranks:
    """One of the processes that train a unit together; by default there is only this one."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this rank validates, writes and reports."""
        return self.rank == 0

    def rows(self, num_clips: int) -> Indices:
        """Return this rank's rows of a batch.

        Raises UserError: there are several ranks, and fewer than two clips for each: batch norms need two.
        """
        if self.size > 1 and num_clips < 2 * self.size:
            raise UserError(f"a batch of {num_clips} clips is too small for {self.size} ranks: lower --ranks-per-unit")
        return np.arange(self.rank, num_clips, self.size)

    def data_parallel(self, network: torch.nn.Module) -> torch.nn.Module:
        """Wrap a network so that its backward pass averages the gradients of all ranks.

        On GPUs, batch norms then take their statistics over all ranks. On CPUs, each rank takes those of its own rows:
        torch has no SyncBatchNorm for CPUs. Running statistics are then those of the first rank, which writes them.
        """
        if self.size == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
            return network
        if next(network.parameters()).is_cuda:
            from timm.layers import convert_sync_batchnorm  # torch's own would drop the activations of timm's layers

            network = convert_sync_batchnorm(network)
        # find_unused_parameters keeps torch from rearranging gradients after the first step: a training that goes on
        # would add those of three ranks in another order
        return torch.nn.parallel.DistributedDataParallel(network, broadcast_buffers=False, find_unused_parameters=True)

    def gather(self, own: Tensor, num_clips: int) -> Tensor:
        """Return the whole batch's embeddings (N, D), given those of this rank's rows."""
        if self.size == 1:
            return own
        from torch.distributed.nn.functional import all_gather

        padded = F.pad(own, (0, 0, 0, -(-num_clips // self.size) - len(own)))
        return torch.stack(all_gather(padded), dim=1).flatten(0, 1)[:num_clips]

    def average_gradients(self, module: torch.nn.Module) -> None:
        """Average the gradients of a module that each rank applies to the whole batch: on GPUs, roundings differ."""
        for parameter in module.parameters() if self.size > 1 else ():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.size


Work = Callable[[Ranks, UnitSpec, Report], None]  # a module's function that every rank of a unit calls


def on_ranks(work: Work, spec: UnitSpec, report: Report) -> None:
    """Call ``work`` in ``spec.num_ranks`` new processes; end all of them before returning or raising.

    They share ``spec.num_threads``. With CUDA (``spec.device`` auto or cuda), rank n computes on ``cuda:n``. Reports of
    the first rank go to ``report``, and its answer goes back. The processes end with this one, even if it is killed.

    Raises UserError: fewer CUDA devices are visible than there are ranks; RuntimeError: a rank died, or raised an error
    (its traceback is a note) that is no UserError, Stopped or OSError: these are raised as they are.
    """
    devices = _devices(spec)
    processes: dict[Connection, subprocess.Popen[bytes]] = {}
    with TemporaryDirectory() as folder:
        try:
            for rank, device in enumerate(devices):
                pipe, process = _start()
                processes[pipe] = process
                own = replace(spec, device=device, num_threads=max(1, spec.num_threads // spec.num_ranks))
                pipe.send((work, own, Ranks(rank, spec.num_ranks), f"file://{folder}/store"))
            _supervise(processes, report)
        finally:
            for process in processes.values():
                process.kill()
            for pipe, process in processes.items():
                process.wait()
                pipe.close()


def _devices(spec: UnitSpec) -> list[str]:
    """Return the device of each rank."""
    if spec.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device {spec.device!r} with {spec.num_ranks} ranks: choose auto, cpu or cuda")
    if spec.device == "cpu" or (spec.device == "auto" and not torch.cuda.is_available()):
        return ["cpu"] * spec.num_ranks
    visible = torch.cuda.device_count()
    if visible < spec.num_ranks:
        raise NoGPUError(f"{spec.num_ranks} ranks need as many CUDA devices, {visible} visible: lower --ranks-per-unit")
    return [f"cuda:{rank}" for rank in range(spec.num_ranks)]


def _start() -> tuple[Connection, "subprocess.Popen[bytes]"]:
    """Start a process that waits for its work; multiprocessing refuses this to the local executor's workers."""
    ours, theirs = Pipe()
    code = f"import sys; sys.path[:] = {sys.path!r}; from rayasd.exposure.ranks import _serve; _serve()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={
            "TORCH_CPP_LOG_LEVEL": "ERROR",  # keeps torch from warning that it found no unused parameters
            **os.environ,
            "GLOO_SOCKET_IFNAME": "lo",  # some hosts' names do not resolve
            "NCCL_SOCKET_IFNAME": "lo",
        },
    )
    theirs.close()
    return ours, process


def _supervise(processes: Mapping[Connection, "subprocess.Popen[bytes]"], report: Report) -> None:
    """Pass reports on until every rank has ended its work."""
    running: list[Any] = list(processes)
    while running:
        pipe: Any = wait(running)[0]
        try:
            message = pipe.recv()
        except (EOFError, OSError) as error:
            message = error
        if isinstance(message, Progress):
            answer = bool(report(message))
            with suppress(OSError):  # a rank that has died is noticed by the next recv
                pipe.send(answer)
        elif message is None:
            running.remove(pipe)
        elif isinstance(message, UserError | Stopped):
            raise message
        else:
            time.sleep(1)  # a rank that dies makes the others fail, perhaps before its own end is seen
            for rank, process in enumerate(processes.values()):
                if (code := process.poll()) is not None:
                    raise RuntimeError(f"rank {rank} died ({how_it_ended(code)})") from message
            raise message


def _serve() -> None:
    """Do a rank's work in its own process; the only argument is the descriptor of the pipe to the supervisor."""
    end_with_parent(signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # a batch system may send them to all processes: the supervisor decides
    pipe = Connection(int(sys.argv[1]))
    work, spec, ranks, store = pipe.recv()

    def report(progress: Progress) -> bool:
        pipe.send(progress)
        return bool(pipe.recv())

    ending: Exception | None = None
    try:
        torch.set_num_threads(spec.num_threads)
        on_gpu = spec.device.startswith("cuda")
        if on_gpu:
            torch.cuda.set_device(spec.device)
        torch.distributed.init_process_group(
            "nccl" if on_gpu else "gloo", init_method=store, timeout=_TIMEOUT, world_size=ranks.size, rank=ranks.rank
        )
        with freed_memory_kept():
            work(ranks, spec, report if ranks.first else silent)
    except (UserError, Stopped, OSError) as error:
        ending = error
    except Exception as error:
        ending = RuntimeError(f"rank {ranks.rank}: {type(error).__name__}: {error}")
        ending.add_note(traceback.format_exc())
    pipe.send(ending)
    pipe.recv()  # waits for the supervisor to end all ranks: if this one left, the others would fail
