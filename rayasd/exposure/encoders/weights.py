"""Pretrained weights: read from local files without running code, and put into a model completely or not at all."""

import importlib
import os
import pickle
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rayasd.errors import UserError, one_line

TROUBLES = (
    OSError, RuntimeError, ValueError, KeyError, AttributeError, TypeError, EOFError, AssertionError, IndexError,
    pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Errors from reading a damaged file or one of another kind."""


def offline_import(module: str, extra: str) -> Any:
    """Import a library of an extra, with the Hugging Face hub, which it may know, switched off.

    Raises UserError: it is not installed, or cannot be imported.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported; files are local anyhow
    package = module.partition(".")[0]
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        reason = f"needs {package}: pip install 'rayasd[{extra}]'"
        raise UserError(reason if error.name == package else f"cannot import {module}: {one_line(error)}") from None
    for name, other in list(sys.modules.items()):
        # speechbrain leaves stand-ins for modules that raise ImportError when inspect looks at all modules
        if type(other).__module__ == "speechbrain.utils.importutils":
            del sys.modules[name]
    return found


def read_weights(path: str, *needed: str) -> dict[str, Any]:
    """Read a file of weights on the CPU: ``.safetensors``, or what ``torch.save`` wrote, of which no code is run.

    Raises UserError: it is missing, damaged, holds more than plain values and tensors, or has no such keys.
    """
    try:
        content = load_file(path) if path.endswith(".safetensors") else read_torch(path)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except pickle.UnpicklingError:  # its text is long and advises to trust the file
        raise cannot_load(path, "it is damaged, or holds other things than weights, which could run code") from None
    except TROUBLES as error:
        raise cannot_load(path, error) from None
    if not isinstance(content, dict) or not set(needed) <= content.keys():
        raise cannot_load(path, f"it holds no {' and '.join(needed) or 'weights by name'}")
    return content


def read_torch(path: str | Path, device: str | torch.device = "cpu") -> Any:
    """Read what ``torch.save`` wrote onto a device; no code in it is run.

    Raises Exception: one of ``TROUBLES``: it is missing, damaged, or holds more than plain values and tensors.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:  # torch writes checksums and does not look at them
                raise ValueError(f"it is damaged: {bad}")
    return torch.load(path, weights_only=True, map_location=device)


def cannot_load(path: str | Path, error: object) -> UserError:
    """Build the error for a file with unexpected content."""
    return UserError(f"cannot load {path}: {one_line(error) or type(error).__name__}")


def fill(module: nn.Module, state: Mapping[str, Any], path: str) -> None:
    """Put weights into a model; the file may hold more, such as a classifier.

    Raises UserError: parameters or buffers are missing, or have other shapes.
    """
    try:
        missing = module.load_state_dict(state, strict=False).missing_keys
    except TROUBLES as error:
        raise cannot_load(path, error) from None
    refuse_missing(missing, len(module.state_dict()), path)
    mark_as_base(module)


def refuse_missing(missing: list[str], wanted: int, path: str) -> None:
    """Refuse a file that lacks weights of a model: these would stay random."""
    if missing:
        raise cannot_load(path, f"it lacks {len(missing)} of {wanted} weights, {missing[0]} first")


def mark_as_base(module: nn.Module) -> None:
    """Note that all of a module comes from files: where it is not trained, it is not saved again."""
    module.is_base = True  # type: ignore[assignment]


def base_names(module: nn.Module) -> set[str]:
    """Name the parameters and buffers that come from files."""
    marked = {name: part for name, part in module.named_modules() if getattr(part, "is_base", False)}
    return {key for name, part in marked.items() for key in part.state_dict(prefix=f"{name}." if name else "")}
