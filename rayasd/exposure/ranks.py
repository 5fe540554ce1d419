"""Train one unit on several processes ("ranks") of one host: a GPU each (NCCL), or all on CPUs (Gloo).

Every batch is shared out clip by clip, and every rank computes the loss of the whole batch from all ranks' outputs.
Batch norms take their statistics over all ranks. So ranks differ from one process in the order of sums alone.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_reduce
from torch.overrides import TorchFunctionMode

from rayasd.arrays import Indices
from rayasd.errors import UserError
from rayasd.exposure.network import Output
from rayasd.host import end_with_parent, freed_memory_kept, how_it_ended
from rayasd.unit import Progress, Report, Stopped, UnitSpec, silent


@dataclass(frozen=True)
class Ranks:
    """A process among those that train a unit together; by default it is alone, and nothing is communicated."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that validates, writes and reports."""
        return self.rank == 0

    def rows(self, num_clips: int) -> Indices:
        """Give this rank's clips of a batch.

        Raises:
            UserError: there are fewer clips than ranks.

        """
        if num_clips < self.size:
            raise UserError(f"a batch of {num_clips} clips is too small for {self.size} ranks: ask for fewer")
        return np.arange(self.rank, num_clips, self.size)

    def whole_batch(self, num_clips: int) -> AbstractContextManager[object]:
        """Context of a forward pass of this rank's rows, in which layers act as on the whole batch.

        Batch norms take their statistics over all ranks. Dropout and stochastic depth draw for the whole batch, so that
        a clip has the mask that it has in one process. What other random layers draw does not agree with one process.
        """
        return nullcontext() if self.size == 1 else _WholeBatch(self, num_clips)

    def gather(self, output: Output, num_clips: int) -> Output:
        """Give the whole batch's output, of which only this rank's rows pass gradients on.

        Args:
            output: of this rank's rows.
            num_clips: N, of the whole batch.

        """
        return output if self.size == 1 else Output(*(self._gather(values, num_clips) for values in output))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients of all ranks, in place, after the backward pass."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view(gradient.shape))

    def _gather(self, own: Tensor, num_clips: int) -> Tensor:
        padding = own.new_zeros((-(-num_clips // self.size) - len(own), *own.shape[1:]))
        padded = torch.cat([own, padding])
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded.detach())
        parts[self.rank] = padded
        return torch.stack(parts, dim=1).flatten(0, 1)[:num_clips]


class _WholeBatch(TorchFunctionMode):
    """Replaces functions that couple clips or draw random numbers by ones that see the batch of all ranks."""

    def __init__(self, ranks: Ranks, num_clips: int) -> None:
        super().__init__()
        self.num_clips, self.num_rows = num_clips, len(ranks.rows(num_clips))
        self.rows = slice(ranks.rank, None, ranks.size)
        self.replaced: dict[Callable[..., Any], Callable[..., Any]] = {
            F.batch_norm: _batch_norm,
            F.dropout: self._dropout,
            Tensor.bernoulli_: self._bernoulli,
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.replaced.get(func, func)(*args, **(kwargs or {}))

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or len(input) != self.num_rows:
            return F.dropout(input, p, training, inplace)
        noise = F.dropout(input.new_ones((self.num_clips, *input.shape[1:])), p)
        return input * noise[self.rows]

    def _bernoulli(self, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if noise.dim() == 0 or len(noise) != self.num_rows:
            return noise.bernoulli_(*args, **kwargs)
        whole = noise.new_empty((self.num_clips, *noise.shape[1:])).bernoulli_(*args, **kwargs)
        return noise.copy_(whole[self.rows])


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Do what ``F.batch_norm`` does, on inputs (n, C, …) of which each rank has n clips."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    values = input.to(torch.promote_types(input.dtype, torch.float32))
    over, shape = [0, *range(2, input.dim())], [1, -1, *[1] * (input.dim() - 2)]
    here = values.new_full((1,), values.numel() / values.shape[1])
    sums = all_reduce(torch.cat([values.sum(over), here]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = values - mean.view(shape)
    variance = all_reduce(centred.square().sum(over)) / count
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.detach(), momentum)
        running_var.lerp_(variance.detach() * count / (count - 1), momentum)
    scale = (variance + eps).rsqrt()
    result = centred * (scale if weight is None else scale * weight).view(shape)
    return (result if bias is None else result + bias.view(shape)).to(input.dtype)


Work = Callable[[Ranks, UnitSpec, Report], None]
"""A function of a module that all ranks of a unit run."""

_TIMEOUT = timedelta(hours=1)
"""Of one communication: longer than the first rank validates. A rank that dies is noticed at once all the same."""


@dataclass(frozen=True)
class _Member:
    rank: int
    process: "subprocess.Popen[bytes]"
    pipe: Connection

    def death(self) -> RuntimeError:
        """Wait for the process's end and say how it came."""
        return RuntimeError(f"rank {self.rank} died ({how_it_ended(self.process.wait())})")


def on_ranks(work: Work, spec: UnitSpec, report: Report) -> None:
    """Run ``work`` in ``spec.num_ranks`` new processes, and end them all before returning or raising.

    They share ``spec.num_threads``; with CUDA (``spec.device`` auto or cuda), rank n computes on ``cuda:n``. Reports of
    the first rank go to ``report``, whose answer it gets. The processes die with this one.

    Raises:
        UserError: fewer CUDA devices are visible than there are ranks, or a rank raised it.
        Stopped: a rank raised it.
        RuntimeError: a rank raised something else (its traceback is a note), or died without a word.

    """
    devices = _devices(spec)
    threads = max(1, spec.num_threads // spec.num_ranks)
    members: list[_Member] = []
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    try:
        for rank, device in enumerate(devices):
            members.append(_start(rank))
            own = replace(spec, device=device, num_threads=threads)
            _send(members[-1].pipe, (work, own, Ranks(rank, spec.num_ranks), store.port))
        _supervise(members, report)
    finally:
        for member in members:
            member.process.kill()
        for member in members:
            member.process.wait()
            member.pipe.close()


def _devices(spec: UnitSpec) -> list[str]:
    """Device of each rank."""
    if spec.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device {spec.device!r} with {spec.num_ranks} ranks: choose auto, cpu or cuda")
    if spec.device == "cpu" or (spec.device == "auto" and not torch.cuda.is_available()):
        return [spec.device] * spec.num_ranks
    visible = torch.cuda.device_count()
    if visible < spec.num_ranks:
        raise UserError(f"{spec.num_ranks} ranks need a CUDA device each, of {visible}: lower --ranks-per-unit")
    return [f"cuda:{rank}" for rank in range(spec.num_ranks)]


def _start(rank: int) -> _Member:
    """Start a process that waits for its work.

    Not by multiprocessing, which forbids workers that are daemons to have children, and imports __main__ once more.
    """
    ours, theirs = Pipe()
    code = f"import sys; sys.path[:] = {sys.path!r}; from rayasd.exposure.ranks import _serve; _serve()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(theirs.fileno()), str(os.getpid())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # Gloo talks
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"},  # some hosts' names do not resolve
    )
    theirs.close()
    return _Member(rank, process, ours)


def _supervise(members: list[_Member], report: Report) -> None:
    """Pass reports on until all members have said that they are done."""
    running: dict[Any, _Member] = {member.pipe: member for member in members}
    while running:
        for pipe in wait(list(running)):
            try:
                word = running[pipe].pipe.recv()
            except (EOFError, OSError):
                raise running[pipe].death() from None
            if isinstance(word, Progress):
                _send(running[pipe].pipe, bool(report(word)))
            elif word is None:
                del running[pipe]
            elif isinstance(word, UserError | Stopped):
                raise word
            else:
                time.sleep(1)  # a rank that died makes the others fail, perhaps before its own end is seen
                for member in members:
                    if member.process.poll() is not None:
                        raise member.death() from word
                raise word


def _send(pipe: Connection, value: object) -> None:
    with suppress(OSError):  # whoever is gone is noticed where it is waited for
        pipe.send(value)


def _serve() -> None:
    """Do a rank's work in its own process; the pipe's descriptor and the supervisor's id are the arguments."""
    descriptor, supervisor = map(int, sys.argv[1:])
    end_with_parent(signal.SIGKILL)
    if os.getppid() != supervisor:
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # a batch system may send them to all: the supervisor decides
    pipe = Connection(descriptor)
    work, spec, ranks, port = pipe.recv()

    def report(progress: Progress) -> bool:
        pipe.send(progress)
        return bool(pipe.recv())

    ending: Exception | None = None
    try:
        torch.set_num_threads(spec.num_threads)
        on_gpu = spec.device.startswith("cuda")
        if on_gpu:
            torch.cuda.set_device(spec.device)
        store = dist.TCPStore("127.0.0.1", port, is_master=False)  # type: ignore[attr-defined]
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", timeout=_TIMEOUT, store=store, world_size=ranks.size, rank=ranks.rank
        )
        with freed_memory_kept():
            work(ranks, spec, report if ranks.first else silent)
    except (UserError, Stopped) as error:
        ending = error
    except Exception as error:
        ending = RuntimeError(f"rank {ranks.rank}: {type(error).__name__}: {error}")
        ending.add_note(traceback.format_exc())
    pipe.send(ending)
    with suppress(EOFError):
        pipe.recv()  # stay until the supervisor ends all: the others would fail where they wait for this rank
