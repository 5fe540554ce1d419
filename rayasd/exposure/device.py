"""The choice of device and precision, with the reason for each."""

import socket
from dataclasses import dataclass
from typing import TypeVar

import torch

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
        """Move a network to the device, its convolutions in channels-last layout."""
        module.to(self.device)
        return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


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
    elif chosen.type == "cuda" and torch.cuda.get_device_capability(chosen) >= (8, 0):
        dtype, what = torch.bfloat16, "bfloat16, which the device supports"
    elif chosen.type == "cuda":
        dtype, what = torch.float32, "float32, since the device has no bfloat16 instructions"
    else:  # in bfloat16, torch 2.11 computes some convolutions of narrow inputs wrongly on CPUs (docs/performance.md)
        dtype, what = torch.float32, "float32"
    return Compute(chosen, dtype, f"{chosen} ({why}), {what}")
