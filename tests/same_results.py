"""Check that the present code gives the same results as an earlier revision, bit by bit.

``python -m tests.same_results REVISION`` extracts the package of REVISION with ``git archive`` and copies the package
of the working tree, uncommitted changes included. It runs the same small trained sweeps with each, one after the other,
by the same interpreter on this machine, and compares every weight, loss, embedding and score.

Both sides are computed anew each time. A stored digest would not do: a processor with other instructions gives other
bits (bfloat16 on one, float32 on another).

Exit code 0: identical. 1: something differs. 2: nothing was compared (unknown revision, or a sweep that failed).
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("earlier", "present")

# --- What is compared -------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[str, ...]] = {
    "weights": ("models/**/*.safetensors",),
    "losses": ("models/**/history.jsonl",),
    "embeddings": ("embeddings/**/*.parquet",),
    "scores": ("scores/**/*.parquet",),
    "ensembles": ("ensembles/**/*.parquet",),
    "cells": ("cells.parquet",),
    "leaderboard": ("leaderboard.parquet",),
}
"""Files of a run directory by what they hold. Markers, manifests, configurations and reports are not compared."""

COLUMNS_MAY_DIFFER = frozenset({"losses", "cells", "leaderboard"})
"""Kinds in which a column of one side only is listed, and is a difference with ``--strict`` alone."""

RENAMED: dict[str, str] = {}
"""Beginning of a path in an earlier run directory, and what it is called in the present one."""

RENAMED_TENSORS = {
    "front_end.": "extractor.encoder.front_end.",
    "backbone.": "extractor.encoder.backbone.",
    "neck.": "extractor.neck.",
    "machine_head.": "objective.machine_head.",
    "product_head.": "objective.product_head.",
}
"""Beginning of a tensor's name in an earlier file of weights, and in the present one."""

IGNORED: tuple[str, ...] = ()
"""Beginnings of paths, under their present names, that are not compared."""

# --- What is swept ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """One ``rayasd sweep``."""

    name: str
    preset: str
    """Text of a preset file. It extends one of rayasd's presets, as each side has it."""
    overrides: tuple[str, ...]
    arguments: tuple[str, ...]


SWEEPS = (
    Sweep(
        "eusipco2022",
        'extends = "eusipco2022"\n',
        ('evaluation.ensembles=["seeds", "greedy"]',),
        ("--variants", "both,no-mixup,statistics", "--seeds", "0-1"),
    ),
    # float32, where the first sweep uses what network.precision = "auto" chooses; two anomalies of each section leave
    # the test of every variant, so that all are tested on the same clips
    Sweep(
        "serial-oe",
        """\
extends = "serial-oe"

[variants.checkpoints]
exposure.keep_every = 1

[variants.real-anomalies]
exposure.real_anomalies = 1
exposure.contamination = 1

[variants.target-domain]
exposure.target_domain_per_batch = 2

[variants.cross-entropy]
exposure.product_loss = "cross-entropy"
exposure.weight_decay = 0.01
inlier.features = "both"

[variants.all-detectors]
inlier.detectors = ["lof", "gmm", "knn", "ocsvm", "kde", "ldn", "kmeans", "pca", "mahalanobis", \
"product-logit", "machine-logit", "z-mean(knn-1, mahalanobis)"]
inlier.fit_on = "train"
inlier.poolings = ["min", "mean", "median", "lower-half-mean", "max", "upper-half-mean"]
""",
        (
            "network.precision=float32",
            "exposure.reserved_anomalies=2",
            'evaluation.ensembles=["checkpoints", "detectors", "greedy"]',
        ),
        ("--variants", "both,checkpoints,real-anomalies,target-domain,cross-entropy,all-detectors"),
    ),
)
"""The switches of both presets, and settings that reach other code."""

OVERRIDES = (
    "exposure.epochs=4", "exposure.batch_size=8", "exposure.validation_fraction=0.7", "inlier.grid=[1, 2]",
)  # fmt: skip
"""Of every sweep. So many clips are held out that detectors can be fitted to them, and that any two seeds have several
in common, whose scores an ensemble over seeds needs."""


def sweep_words(sweep: Sweep, preset: Path, data: Path, run: Path, cache: Path) -> list[str]:
    """Words of the command line that do a sweep: the one place to adapt where a later revision has other options.

    All options exist since 0.1.0.
    """
    from tests.command import command_line
    from tests.conftest import SMALL

    settings = [override for override in SMALL if not override.startswith("inlier.detectors")]
    sets = [word for override in (*settings, *OVERRIDES, *sweep.overrides) for word in ("--set", override)]
    return command_line(
        "sweep", "--data", data, "--preset", preset, "--run-dir", run, "--executor", "local", "--device", "cpu",
        "--cache", cache, *sets, *sweep.arguments,
    )  # fmt: skip


def write_data(root: Path) -> Path:
    """Write three machines with source and target domain, attributes in the names, and clips of two lengths."""
    from tests.conftest import write_clip, write_tree

    write_tree(root)
    for path in sorted(root.rglob("section_*.wav")):
        stem = path.stem.removesuffix("_x")
        number = int(stem[-4:])
        path.rename(path.with_name(f"{stem}_vel_{6 + number % 2}_loc_{'AB'[number % 3 == 0]}.wav"))
    for machine in sorted(root.iterdir()):
        write_clip(machine / "train/section_00_source_train_normal_0099_vel_8_loc_A.wav", 350.0, seconds=1.37, seed=99)
    return root


# --- Both sides -------------------------------------------------------------------------------------------------------


class NothingCompared(Exception):
    """There are no two results to compare; the message tells why."""


def extract(revision: str, folder: Path) -> str:
    """Extract the package of a revision into a folder; returns the commit.

    Raises:
        NothingCompared: git knows no such revision here.

    """
    git = ("git", "-C", str(ROOT))
    try:
        found = subprocess.run(
            [*git, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise NothingCompared("git is not installed") from None
    if found.returncode:
        raise NothingCompared(f"unknown revision {revision!r}")
    commit = found.stdout.strip()
    archive = subprocess.run([*git, "archive", "--format=tar", commit, "rayasd"], capture_output=True, check=False)
    if archive.returncode:
        raise NothingCompared(f"git archive {commit}: {archive.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return commit


def copy_present(folder: Path) -> None:
    """Copy the package of the working tree, so that edits during the sweeps do not reach them."""
    shutil.copytree(ROOT / "rayasd", folder / "rayasd", ignore=shutil.ignore_patterns("__pycache__"))


def sweep_all(side: Path, trees: Sequence[Path]) -> None:
    """Do every sweep on every data tree with the package in the folder ``side``; results go to ``side/runs``.

    Raises:
        NothingCompared: a sweep failed, or another package than this side's would be imported.

    """
    from tests.command import environment

    cache = side / "cache"
    packages = os.pathsep.join(filter(None, (str(side), os.environ.get("PYTHONPATH"))))
    variables = environment(cache, PYTHONPATH=packages)
    asked = [sys.executable, "-c", "import rayasd; print(rayasd.__file__)"]
    imported = subprocess.run(asked, cwd=side, env=variables, capture_output=True, text=True, check=True).stdout.strip()
    if Path(imported).resolve() != (side / "rayasd/__init__.py").resolve():
        raise NothingCompared(f"{side.name}: imports {imported}, not the package in {side}")
    print(f"{side.name}: imports {imported}", flush=True)
    for sweep in SWEEPS:
        preset = side / f"{sweep.name}-small.toml"
        preset.write_text(sweep.preset, encoding="utf-8")
        for number, tree in enumerate(trees):
            run = side / "runs" / f"{sweep.name}-{number}"
            began = time.monotonic()
            done = subprocess.run(
                sweep_words(sweep, preset, tree, run, cache), cwd=side, env=variables, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            # exit code 1 without a failed unit: cells whose detector could not be fitted, which are results like others
            if done.returncode not in (0, 1) or not (run / "leaderboard.parquet").exists() or [*run.rglob("*FAILED")]:
                last = "\n".join(done.stdout.splitlines()[-20:])
                raise NothingCompared(f"{side.name}: sweep {sweep.name} failed (exit {done.returncode}):\n{last}")
            print(f"{side.name}: sweep {run.name}, {time.monotonic() - began:.0f} s", flush=True)


# --- Comparison -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of a table or a tensor, flattened to single values in a form in which equal means equal bits."""

    type: str
    shape: NDArray[np.int64]
    """Of a table's column, a number for each row: -1 null, length of a list, 1 otherwise. Of a tensor, its shape."""
    bits: NDArray[Any]
    """All values that are not null; numbers as unsigned integers of the same width."""
    values: NDArray[Any]
    """The same values to be shown."""
    is_tensor: bool = False


@dataclass(frozen=True)
class Difference:
    """The first place of a file, or of one of its columns, where the two sides differ."""

    file: str
    column: str
    place: str
    """Row or element."""
    earlier: str
    present: str
    count: int = 1
    """Values that differ in this column."""

    def __str__(self) -> str:
        where = ", ".join(filter(None, (self.file, self.column, self.place)))
        return f"{where}: earlier {self.earlier}, present {self.present}"


@dataclass
class Comparison:
    """What is known of one kind of files."""

    files: int = 0
    values: int = 0
    differences: list[Difference] = field(default_factory=list)
    one_sided: Counter[str] = field(default_factory=Counter)
    """Columns that one side alone has, and in how many files."""

    @property
    def count(self) -> int:
        """Values, columns and files that differ."""
        return sum(difference.count for difference in self.differences)


def compare_runs(
    earlier: Path, present: Path, *, strict: bool = False,
    renamed: Mapping[str, str] = RENAMED, ignored: Sequence[str] = IGNORED,
) -> dict[str, Comparison]:  # fmt: skip
    """Compare all results in and below two folders of run directories, kind by kind."""
    report = {}
    for kind, patterns in KINDS.items():
        comparison = report[kind] = Comparison()
        ours = _files(earlier, patterns, renamed, ignored)
        theirs = _files(present, patterns, {}, ignored)
        for name in sorted(ours.keys() | theirs.keys()):
            comparison.files += 1
            if name in ours and name in theirs:
                _compare_files(name, ours[name], theirs[name], comparison, strict or kind not in COLUMNS_MAY_DIFFER)
            else:
                exists = ["exists" if name in side else "does not exist" for side in (ours, theirs)]
                comparison.differences.append(Difference(name, "", "", *exists))
        if not comparison.files:
            comparison.differences.append(Difference(f"{kind} ({', '.join(patterns)})", "", "", "no file", "no file"))
    return report


def _files(root: Path, patterns: Sequence[str], renamed: Mapping[str, str], ignored: Sequence[str]) -> dict[str, Path]:
    """List the files of a kind by their names: run, then path in the run under its present name."""
    found = {}
    for run in sorted(path for path in root.iterdir() if path.is_dir()):
        for path in (path for pattern in patterns for path in run.glob(pattern) if path.is_file()):
            name = path.relative_to(run).as_posix()
            for old, new in renamed.items():
                if name.startswith(old):
                    name = new + name.removeprefix(old)
                    break
            if not name.startswith(tuple(ignored)):
                found[f"{run.name}/{name}"] = path
    return found


def _compare_files(name: str, earlier: Path, present: Path, comparison: Comparison, all_columns: bool) -> None:
    ours, theirs = _columns(earlier), _columns(present)
    for column in dict.fromkeys((*ours, *theirs)):
        if column in ours and column in theirs:
            comparison.values += max(len(ours[column].bits), len(theirs[column].bits))
            if difference := _compare_columns(name, column, ours[column], theirs[column]):
                comparison.differences.append(difference)
        elif all_columns and not _is_empty((ours if column in ours else theirs)[column]):
            exists = ["exists" if column in side else "does not exist" for side in (ours, theirs)]
            comparison.differences.append(Difference(name, column, "", *exists))
        else:
            comparison.one_sided[f"{column} ({SIDES[column in theirs]} only)"] += 1


def _compare_columns(file: str, name: str, earlier: Column, present: Column) -> Difference | None:
    sides = (earlier, present)
    if earlier.type != present.type:
        return Difference(file, name, "type", earlier.type, present.type)
    if earlier.is_tensor and not np.array_equal(earlier.shape, present.shape):
        return Difference(file, name, "shape", *(str(tuple(side.shape.tolist())) for side in sides))
    if len(earlier.shape) != len(present.shape):
        return Difference(file, name, "number of rows", *(str(len(side.shape)) for side in sides))
    if rows := np.flatnonzero(earlier.shape != present.shape).tolist():
        return Difference(file, name, f"row {rows[0]}", *(_shown_row(side, rows[0]) for side in sides), len(rows))
    differ = np.flatnonzero(earlier.bits != present.bits)
    if not len(differ):
        return None
    first = int(differ[0])
    return Difference(file, name, _place(earlier, first), *(_shown(side, first) for side in sides), len(differ))


def _is_empty(column: Column) -> bool:
    """Whether a column has no value in any row."""
    return not column.is_tensor and bool((column.shape < 0).all())


def _columns(path: Path) -> dict[str, Column]:
    """Read all that a file holds, tensors under their present names."""
    if path.suffix == ".safetensors":
        tensors = {name: _tensor(**tensor) for name, tensor in safetensors.deserialize(path.read_bytes())}
        new = {name: next((to for old, to in RENAMED_TENSORS.items() if name.startswith(old)), "") for name in tensors}
        old = {name: next((old for old in RENAMED_TENSORS if name.startswith(old)), "") for name in tensors}
        return {new[name] + name.removeprefix(old[name]): tensor for name, tensor in tensors.items()}
    if path.suffix == ".parquet":
        table = pq.read_table(path, partitioning=None)
        return {name: _column(table[name]) for name in table.column_names}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _column(pa.chunked_array([pa.array([row.get(name) for row in rows])])) for name in names}


_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_WIDTH = {"64": 8, "32": 4, "16": 2}


def _tensor(dtype: str, shape: Sequence[int], data: bytes) -> Column:
    bits = np.frombuffer(data, f"<u{next((w for end, w in _WIDTH.items() if dtype.endswith(end)), 1)}")
    values = bits.view(_NUMPY[dtype]) if dtype in _NUMPY else bits
    return Column(dtype, np.array(shape, np.int64), bits, values, is_tensor=True)


def _column(column: pa.ChunkedArray) -> Column:
    """Flatten a column of numbers, words or lists of them; words in a dictionary are like words written out."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    array = column.combine_chunks()
    shape = np.where(array.is_null().to_numpy(zero_copy_only=False), -1, 1)
    array = array.drop_null()
    kind = str(column.type)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        shape[shape == 1] = pc.list_value_length(array).to_numpy(zero_copy_only=False)
        array = array.flatten()
        if array.null_count:
            raise NotImplementedError("nulls in a list")
    values = array.to_numpy(zero_copy_only=False)
    bits = values.view(f"u{values.itemsize}") if values.dtype.kind == "f" else values
    return Column(kind, shape.astype(np.int64), bits, values)


def _place(column: Column, position: int) -> str:
    """Name the row, and the element of its list, or the element of a tensor."""
    if column.is_tensor:
        return f"element {[int(i) for i in np.unravel_index(position, tuple(column.shape))]}"
    ends = np.cumsum(np.maximum(column.shape, 0))
    row = int(np.searchsorted(ends, position, side="right"))
    element = position - (int(ends[row - 1]) if row else 0)
    return f"row {row}" + (f" element {element}" if "list<" in column.type or "list[" in column.type else "")


def _shown_row(column: Column, row: int) -> str:
    length = int(column.shape[row])
    if length < 0:
        return "null"
    if "list" in column.type:
        return f"{length} values"
    return _shown(column, int(np.count_nonzero(column.shape[:row] > 0)))


def _shown(column: Column, position: int) -> str:
    value, bits = column.values[position], column.bits[position]
    if column.values.dtype.kind == "f":
        return f"{value.item()!r} (bits {int(bits):#0{2 + 2 * bits.itemsize}x})"
    return repr(value.item() if isinstance(value, np.generic) else value)


# --- Command line -----------------------------------------------------------------------------------------------------


def print_report(report: Mapping[str, Comparison]) -> bool:
    """Print what was compared and the first difference of every kind; returns whether all is identical."""
    print("\n".join(_table(report)))
    for kind, comparison in report.items():
        for column, count in sorted(comparison.one_sided.items()):
            print(f"{kind}: column {column}, {count} files")
    different = {kind: comparison.differences for kind, comparison in report.items() if comparison.differences}
    for kind, differences in different.items():
        files = len({difference.file for difference in differences})
        print(f"{kind}: {files} files differ, first {differences[0]}")
    print("DIFFERENT" if different else "identical")
    return not different


def _table(report: Mapping[str, Comparison]) -> Iterator[str]:
    yield f"{'kind':<12} {'files':>7} {'values compared':>16} {'differences':>12}"
    for kind, comparison in report.items():
        yield f"{kind:<12} {comparison.files:>7,} {comparison.values:>16,} {comparison.count:>12,}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the working tree with a revision."""
    parser = argparse.ArgumentParser(prog="python -m tests.same_results", description=__doc__.partition("\n")[0])
    parser.add_argument("revision", help="commit, tag or branch")
    parser.add_argument("--tree", type=Path, nargs="+", metavar="FOLDER", help="data instead of synthetic clips")
    parser.add_argument("--strict", action="store_true", help="a column that one side alone has is a difference")
    parser.add_argument("--keep", action="store_true", help="keep the packages and run directories of both sides")
    options = parser.parse_args(arguments)
    for tree in options.tree or ():
        if not tree.is_dir():
            parser.error(f"no folder {tree}")
    folder = Path(tempfile.mkdtemp(prefix="same-results-"))
    began = time.monotonic()
    try:
        earlier, present = (folder / side for side in SIDES)
        print(f"earlier: commit {extract(options.revision, earlier)}", flush=True)
        copy_present(present)
        trees = [tree.absolute() for tree in options.tree or ()] or [write_data(folder / "data")]
        for side in (earlier, present):
            sweep_all(side, trees)
        identical = print_report(compare_runs(earlier / "runs", present / "runs", strict=options.strict))
        print(f"{time.monotonic() - began:.0f} s" + (f", all files in {folder}" if options.keep else ""))
        return 0 if identical else 1
    except NothingCompared as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # for ``python tests/same_results.py``, which has the folder of this file instead
    raise SystemExit(main())
