"""Run the parts of the GPU script, correctness first; write gpu.json and gpu.md.

benchmarks/gpu.sh                       # all parts, 8 minutes at most, on a CUDA device
benchmarks/gpu.sh --tiny                # tiny sizes, without a GPU too: half a minute on two cores
benchmarks/gpu.sh resume losses         # some parts
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

NEEDED = ("numpy", "scipy", "torch", "torchaudio", "timm", "sklearn", "pyarrow", "safetensors", "xxhash",
          "threadpoolctl", "rich", "soundfile")  # fmt: skip
"""Modules; rayasd's part that trains and embeds imports no others from outside the standard library."""
LEAST_SECONDS = 5.0
"""A part is not begun with less time than this."""


@dataclass(frozen=True)
class Part:
    """One of the parts."""

    name: str
    function: tuple[str, str]
    seconds: float
    """Most that it may take; the budget may leave less."""
    correctness: bool = False


PARTS = (
    Part("facts", ("material", "facts"), 60, correctness=True),
    Part("data", ("material", "data"), 90, correctness=True),
    Part("embeddings", ("checks", "embeddings"), 60, correctness=True),
    Part("losses", ("checks", "losses"), 60, correctness=True),
    Part("bfloat16", ("checks", "bfloat16"), 60, correctness=True),
    Part("resume", ("checks", "resume"), 90, correctness=True),
    Part("training", ("speeds", "training"), 120),
    Part("shared", ("speeds", "shared"), 90),
    Part("embedding", ("speeds", "embedding"), 90),
    Part("packing", ("speeds", "packing"), 150),
)


def main(words: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code: 1 if a correctness part failed, 2 if nothing could be run."""
    began, names = time.monotonic(), [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        "gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*names, []], metavar="PART", help=", ".join(names))
    parser.add_argument("--seconds", type=float, default=465, help="budget of all parts together (465)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on a CPU too")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT") or "."), help="folder of both files ($OUT, or here)"
    )
    options = parser.parse_args(words)
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # the other way to look for a GPU would spoil it for forks
    if missing := missing_packages():
        return refuse(missing)
    try:
        from benchmarks.gpu.results import MARKDOWN, Outcome, Row, write
        from benchmarks.gpu.running import Work, run_part

        modules = {name: import_module(f"benchmarks.gpu.{name}") for name in {part.function[0] for part in PARTS}}
    except ImportError as error:  # of a package that a package needs
        return refuse([error.name or str(error)])
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="rayasd-gpu-") as folder:
        work = Work(Path(folder), options.tiny)
        for part in PARTS:
            left = options.seconds - (time.monotonic() - began)
            if why := _why_not(part, options.parts, left, outcomes):
                outcome = Outcome(part.name, "skipped", why)
            else:
                module, name = part.function
                outcome = run_part(part.name, getattr(modules[module], name), work, min(part.seconds, left))
            outcomes.append(outcome)
            write(options.out, outcomes, {"tiny": options.tiny, "seconds": options.seconds})
            print(f"{outcome.status:8}{part.name:12}{outcome.seconds:6.1f} s  {outcome.reason}", flush=True)
            if part.name == "facts" and not options.tiny and Row("GPU", "none") in outcome.rows:
                print("no CUDA device is visible: --tiny runs on a CPU", file=sys.stderr)
                return 2
    print(options.out / MARKDOWN)
    return exit_code(outcomes)


def missing_packages() -> list[str]:
    """Look for what is needed, without the seconds that importing it all takes; returns what is not there."""
    missing = []
    for name in NEEDED:
        try:
            if find_spec(name) is None:
                missing.append(name)
            elif name == "soundfile":
                import_module(name)  # it needs cffi
        except ImportError as error:
            missing.append(error.name or name)
    return missing


def refuse(missing: Sequence[str]) -> int:
    """Print in one line what is missing and how to carry it; returns the exit code."""
    how = "carry their wheels in .whl/, as the head of benchmarks/gpu.sh says"
    print(f"not installed: {', '.join(missing)}; {how}", file=sys.stderr)
    return 2


def _why_not(part: Part, chosen: Sequence[str], left: float, outcomes: Sequence) -> str:
    """Say why a part is skipped; empty if it is run."""
    needed = {"facts", "data"}
    if chosen and part.name not in needed | set(chosen):
        return "not among the parts asked for"
    if broken := [outcome.name for outcome in outcomes if outcome.name in needed and outcome.status != "ok"]:
        return f"{broken[0]} did not end well"
    if left < LEAST_SECONDS:
        return "the budget is used up"
    return ""


def exit_code(outcomes: Sequence) -> int:
    """Return 1 if a correctness part failed, else 0."""
    checked = {part.name for part in PARTS if part.correctness}
    return int(any(outcome.status == "failed" and outcome.name in checked for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
