"""The choice of device and precision, with the reason for each."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from rayasd.errors import NoGPUError, UserError

Module = TypeVar("Module", bound=torch.nn.Module)


@dataclass(frozen=True)
class Compute:
    """Device and arithmetic of a unit."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def autocast(self) -> torch.autocast:
        """Context of a forward pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16)

    def place(self, module: Module) -> Module:
        """Move a network to the device, its convolutions in channels-last layout.

        On a CPU that computes in bfloat16, depthwise convolutions are trained in float32: their backward pass in
        bfloat16 takes four times as long.
        """
        module.to(self.device)
        if self.device.type == "cpu" and self.dtype is torch.bfloat16:
            for part in module.modules():
                if isinstance(part, torch.nn.Conv2d) and part.groups == part.in_channels > 1:
                    part.forward = partial(_in_float32, part.forward)  # type: ignore[method-assign]
        return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _in_float32(forward: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
        return forward(values)
    with torch.autocast("cpu", enabled=False):
        return forward(values.float()).to(torch.bfloat16)


def choose_compute(device: str, precision: str) -> Compute:
    """Resolve ``auto`` for device and precision.

    Raises UserError: an unknown device; ``NoGPUError``: CUDA is asked for where torch sees none.
    """
    if device == "auto":
        chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        why = "a CUDA device is visible" if chosen.type == "cuda" else "no CUDA device is visible"
    else:
        try:
            chosen, why = torch.device(device), "as asked"
        except RuntimeError:
            raise UserError(f"device {device!r}: choose auto, cpu, cuda or cuda:N") from None
        if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
            seen = f"torch sees {torch.cuda.device_count()} CUDA devices on {socket.gethostname()}"
            raise NoGPUError(
                f"device {device!r}, but {seen}: look for the driver, a torch with CUDA, and --nv of a container; "
                "--device cpu computes without GPUs"
            )
    if precision != "auto":
        dtype, what = getattr(torch, precision), f"{precision} as asked"
    elif _has_bfloat16(chosen):
        dtype, what = torch.bfloat16, "bfloat16, which the device supports"
    else:
        dtype, what = torch.float32, "float32, since the device has no bfloat16 instructions"
    return Compute(chosen, dtype, f"{chosen} ({why}), {what}")


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # AVX-512 alone emulates bfloat16 through float32 and is slower than float32 itself
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
