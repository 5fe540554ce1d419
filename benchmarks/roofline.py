"""What the hardware allows a network: its layers' bytes and operations over what the machine was seen to reach.

Each layer reads its input once and writes its output once, and as much again for each gradient. Eager training cannot
move less. (Fused layers can: the floor is this way's, not the mathematics'.)
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import synchronise
from rayasd.exposure.device import Compute


def floor_seconds(
    network: nn.Module, inputs: Tensor, compute: Compute, ceilings: tuple[float, float], *, training: bool
) -> float:
    """Least time of a forward pass, and in training of the backward pass too, on the machine of these ceilings."""
    moved = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved  # backward: the output's gradient and the input are read, the input's gradient is written
        moved += given[0].nbytes * (3 if training else 1) + output.nbytes * (2 if training else 1)

    layers = [m for m in network.modules() if not list(m.children()) and not isinstance(m, nn.Identity)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    network.train(training)
    with FlopCounterMode(display=False) as operations, torch.no_grad(), compute.autocast():
        network(inputs)
    for hook in hooks:
        hook.remove()
    bandwidth, speed = ceilings
    computed = operations.get_total_flops() * (3 if training else 1)
    return max(moved / bandwidth, computed / speed)


def measured_ceilings(compute: Compute, *, small: bool = False) -> tuple[float, float]:
    """Bytes a second of a large copy, operations a second of a large matrix product; ``small``: in a moment."""
    device = compute.device
    source = torch.ones(1 << (22 if small else 27), device=device)
    target = torch.empty_like(source)
    size = 512 if small else 4096 if device.type == "cpu" else 16384
    matrix = torch.randn(size, size, device=device, dtype=compute.dtype)  # ones would draw less power
    return (
        2 * source.nbytes / _best(lambda: target.copy_(source)),
        2 * size**3 / _best(lambda: matrix @ matrix),
    )


def _best(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        synchronise()
        began = time.perf_counter()
        work()
        synchronise()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
