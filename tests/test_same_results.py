"""The comparison with an earlier revision finds every kind of difference, and only differences."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from tests import same_results
from tests.same_results import KINDS, ROOT, Comparison, compare_runs, main, print_report

NAN = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
"""Two NaNs of different bits."""
WEIGHTS = "models/both/fan/seed=0/model.safetensors"
KEPT = "models/both/fan/seed=0/model-epoch-1.safetensors"
HISTORY = "models/both/fan/seed=0/history.jsonl"
EMBEDDINGS = "embeddings/variant=both/machine=fan/seed=0/part-0.parquet"
SCORES = "scores/variant=both/machine=fan/seed=0/part-0.parquet"
ENSEMBLE = "ensembles/variant=both+seeds/machine=fan/seed=all/part-0.parquet"


def flip(values: np.ndarray, position: int = 3) -> np.ndarray:
    """Flip the lowest bit of one value."""
    bits = values.copy().view(f"u{values.itemsize}")
    bits.reshape(-1)[position] ^= 1
    return bits.view(values.dtype)


def write_run(run: Path) -> None:
    rng = np.random.default_rng(0)
    for name in (WEIGHTS, EMBEDDINGS, SCORES, ENSEMBLE):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
    weights = rng.standard_normal((3, 4)).astype(np.float32)
    weights[2, 1] = NAN[0]
    for name in (WEIGHTS, KEPT):
        tensors = {"extractor.neck.weight": weights, "steps": np.array(7), "half": weights.astype(np.float16)}
        save_file(tensors, run / name)
    rows = [{"epoch": n, "loss": 1 / (n + 3), "validation_loss": None} for n in range(3)]
    (run / HISTORY).write_text("".join(json.dumps(row) + "\n" for row in rows))
    logits = pa.array([[0.5, 1.5], None, [2.5]], pa.list_(pa.float32()))
    pq.write_table(
        pa.table({
            "clip": ["a", "b", "c"],
            "window": pa.array([0, 1, 2], pa.int16()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(12).astype(np.float32)), 4),
            "product_logits": logits,
        }),
        run / EMBEDDINGS,
    )  # fmt: skip
    scores = pa.table({
        "detector": pa.array(["knn-1"] * 4).dictionary_encode(),
        "score": pa.array([0.1, None, float("nan"), 0.4], pa.float64()),
        "reason": pa.array([None, "too few", None, None]).dictionary_encode(),
    })  # fmt: skip
    pq.write_table(scores, run / SCORES)
    pq.write_table(scores, run / ENSEMBLE)
    pq.write_table(pa.table({"auc": [0.5, None], "selected": [True, False]}), run / "cells.parquet")
    pq.write_table(pa.table({"rank": [1, None], "evaluation": [0.25, 0.125]}), run / "leaderboard.parquet")


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Return two folders that each hold the same run."""
    earlier, present = tmp_path / "earlier", tmp_path / "present"
    write_run(earlier / "first")
    shutil.copytree(earlier, present)
    return earlier, present


def differing(report: dict[str, Comparison]) -> dict[str, int]:
    return {kind: comparison.count for kind, comparison in report.items() if comparison.differences}


def change_weights(path: Path, change: Callable[[np.ndarray], np.ndarray], name: str = "extractor.neck.weight") -> None:
    tensors = load_file(path)
    save_file(tensors | {name: change(tensors[name])}, path)


def change_column(path: Path, name: str, change: Callable[[pa.Array], pa.Array]) -> None:
    table = pq.read_table(path, partitioning=None)
    changed = change(table[name].combine_chunks())
    pq.write_table(table.set_column(table.column_names.index(name), name, changed), path)


def flipped_list(array: pa.Array, position: int) -> pa.Array:
    values = flip(array.flatten().to_numpy(), position)
    if pa.types.is_fixed_size_list(array.type):
        return pa.FixedSizeListArray.from_arrays(pa.array(values), array.type.list_size)
    parts = iter(values)
    return pa.array([row and [next(parts) for _ in row] for row in array.to_pylist()], array.type)


def flipped(array: pa.Array, position: int) -> pa.Array:
    values = flip(array.to_numpy(zero_copy_only=False), position)
    return pa.array(values, array.type, mask=array.is_null().to_numpy(zero_copy_only=False), from_pandas=False)


def test_equal_runs_are_identical(sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    report = compare_runs(*sides)
    assert differing(report) == {}
    assert {kind: comparison.files for kind, comparison in report.items()} == {
        "weights": 2, "losses": 1, "embeddings": 1, "scores": 1, "ensembles": 1, "cells": 1, "leaderboard": 1,
    }  # fmt: skip
    assert report["weights"].values == 2 * (12 + 1 + 12)
    assert report["embeddings"].values == 3 + 3 + 12 + 3
    assert print_report(report)
    assert capsys.readouterr().out.endswith("identical\n")


@pytest.mark.parametrize("file", [WEIGHTS, KEPT])
@pytest.mark.parametrize("name", ["extractor.neck.weight", "half", "steps"])
def test_one_flipped_bit_of_a_weight_is_found(sides: tuple[Path, Path], file: str, name: str):
    position = 0 if name == "steps" else 6
    change_weights(sides[1] / "first" / file, lambda values: flip(values, position), name)
    report = compare_runs(*sides)
    assert differing(report) == {"weights": 1}
    (difference,) = report["weights"].differences
    assert (difference.file, difference.column) == (f"first/{file}", name)
    assert difference.place == ("element []" if name == "steps" else "element [1, 2]")


@pytest.mark.parametrize(
    ("file", "column", "change", "place"),
    [
        (EMBEDDINGS, "embedding", lambda array: flipped_list(array, 6), "row 1 element 2"),
        (EMBEDDINGS, "product_logits", lambda array: flipped_list(array, 2), "row 2 element 0"),
        (SCORES, "score", lambda array: flipped(array, 3), "row 3"),
        (SCORES, "score", lambda array: flipped(array, 2), "row 2"),  # a NaN of other bits
        (ENSEMBLE, "score", lambda array: flipped(array, 0), "row 0"),
        ("cells.parquet", "auc", lambda array: flipped(array, 0), "row 0"),
        ("cells.parquet", "selected", lambda array: pa.array([True, True]), "row 1"),
        ("leaderboard.parquet", "evaluation", lambda array: flipped(array, 1), "row 1"),
        (SCORES, "detector", lambda array: pa.array([*["knn-1"] * 3, "knn-2"]), "row 3"),
        (SCORES, "reason", lambda array: pa.array([None, "too few", "late", None]), "row 2"),
    ],
)
def test_one_other_value_of_a_table_is_found(
    sides: tuple[Path, Path], file: str, column: str, change: Callable[[pa.Array], pa.Array], place: str
):
    change_column(sides[1] / "first" / file, column, change)
    report = compare_runs(*sides)
    (kind,) = differing(report)
    assert kind == ("ensembles" if file == ENSEMBLE else kind)
    (difference,) = report[kind].differences
    assert (difference.file, difference.column, difference.place) == (f"first/{file}", column, place)
    assert difference.count == 1
    assert difference.earlier != difference.present


def test_a_zero_of_another_sign_and_a_null_are_found(sides: tuple[Path, Path]):
    paths = [side / "first" / SCORES for side in sides]
    change_column(paths[0], "score", lambda _: pa.array([0.0, 1.0, 2.0, 3.0]))
    change_column(paths[1], "score", lambda _: pa.array([-0.0, 1.0, 2.0, 3.0]))
    (difference,) = compare_runs(*sides)["scores"].differences
    assert difference.present == "-0.0 (bits 0x8000000000000000)"
    change_column(paths[1], "score", lambda _: pa.array([0.0, 1.0, None, 3.0]))
    (difference,) = compare_runs(*sides)["scores"].differences
    assert (difference.place, difference.present) == ("row 2", "null")
    assert difference.earlier.startswith("2.0")


def test_words_in_a_dictionary_are_like_words_written_out(sides: tuple[Path, Path]):
    change_column(sides[1] / "first" / SCORES, "detector", lambda array: array.cast(pa.string()))
    assert differing(compare_runs(*sides)) == {}


def test_a_nan_equals_a_nan_of_the_same_bits_alone(sides: tuple[Path, Path]):
    assert np.isnan(load_file(sides[0] / "first" / WEIGHTS)["extractor.neck.weight"]).sum() == 1

    def other_nan(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[np.isnan(values)] = NAN[1]
        return values

    change_weights(sides[1] / "first" / WEIGHTS, other_nan)
    (difference,) = compare_runs(*sides)["weights"].differences
    assert (difference.earlier, difference.present) == ("nan (bits 0x7fc00000)", "nan (bits 0x7fc00001)")


def test_another_type_or_shape_is_found(sides: tuple[Path, Path]):
    change_weights(sides[1] / "first" / WEIGHTS, lambda values: values.astype(np.float64))
    change_weights(sides[1] / "first" / KEPT, lambda values: values.reshape(4, 3))
    change_column(sides[1] / "first" / EMBEDDINGS, "window", lambda array: array.cast(pa.int32()))
    report = compare_runs(*sides)
    assert [d.place for d in report["weights"].differences] == ["shape", "type"]
    (difference,) = report["embeddings"].differences
    assert (difference.place, difference.earlier, difference.present) == ("type", "int16", "int32")


def test_fewer_rows_a_loss_and_a_member_are_found(sides: tuple[Path, Path]):
    run = sides[1] / "first"
    pq.write_table(pq.read_table(run / EMBEDDINGS, partitioning=None).slice(0, 2), run / EMBEDDINGS)
    (run / HISTORY).write_text((run / HISTORY).read_text().replace("0.25", "0.2500000000000001"))
    report = compare_runs(*sides)
    assert {d.place for d in report["embeddings"].differences} == {"number of rows"}
    assert [(d.column, d.place) for d in report["losses"].differences] == [("loss", "row 1")]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("file", [WEIGHTS, KEPT, HISTORY, EMBEDDINGS, SCORES, ENSEMBLE, "cells.parquet"])
def test_a_file_of_one_side_only_is_a_difference(sides: tuple[Path, Path], side: int, file: str):
    (sides[side] / "first" / file).unlink()
    ((kind, count),) = differing(compare_runs(*sides)).items()
    assert count == 1
    assert Path(file).match(KINDS[kind][0].rpartition("/")[2])


def test_a_kind_that_neither_side_has_is_a_difference(sides: tuple[Path, Path]):
    for side in sides:
        (side / "first" / SCORES).unlink()
    assert differing(compare_runs(*sides)) == {"scores": 1}


def test_a_column_of_one_side_only_is_listed_where_it_may_be(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    for file in ("cells.parquet", "leaderboard.parquet"):
        path = sides[1] / "first" / file
        pq.write_table(pq.read_table(path).append_column("new", pa.array([1, 2])), path)
    assert print_report(compare_runs(*sides))
    assert "cells: column new (present only), 1 files" in capsys.readouterr().out
    assert differing(compare_runs(*sides, strict=True)) == {"cells": 1, "leaderboard": 1}
    path = sides[0] / "first" / SCORES
    pq.write_table(pq.read_table(path, partitioning=None).append_column("old", pa.array([1, 2, 3, 4])), path)
    assert differing(compare_runs(*sides)) == {"scores": 1}


def test_a_renamed_folder_is_compared_under_its_new_name(sides: tuple[Path, Path]):
    (sides[1] / "first/scores").rename(sides[1] / "first/clip-scores")
    assert differing(compare_runs(*sides)) == {"scores": 1}
    (sides[1] / "first/clip-scores").rename(sides[1] / "first/scores")
    (sides[0] / "first/scores/variant=both").rename(sides[0] / "first/scores/variant=plain")
    assert differing(compare_runs(*sides)) == {"scores": 2}
    renamed = {"scores/variant=plain/": "scores/variant=both/"}
    assert differing(compare_runs(*sides, renamed=renamed)) == {}
    (sides[1] / "first" / KEPT).unlink()
    assert differing(compare_runs(*sides, renamed=renamed, ignored=[KEPT])) == {}


def test_a_table_names_the_first_difference(sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    change_weights(sides[1] / "first" / WEIGHTS, lambda values: values + 1)
    assert not print_report(compare_runs(*sides))
    shown = capsys.readouterr().out
    assert f"weights: 1 files differ, first first/{WEIGHTS}, extractor.neck.weight, element [0, 0]: earlier " in shown
    assert ["weights", "2", "50", "11"] in [line.split() for line in shown.splitlines()]  # NaN + 1 is the same NaN
    assert shown.endswith("DIFFERENT\n")


def git_history() -> bool:
    found = subprocess.run(["git", "-C", ROOT, "rev-parse", "--verify", "HEAD"], capture_output=True, check=False)
    return found.returncode == 0


needs_history = pytest.mark.skipif(
    shutil.which("git") is None or not git_history(), reason="this is no checkout with a git history"
)


@needs_history
def test_an_unknown_revision_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["no-such-revision"]) == 2
    assert capsys.readouterr().err == "error: unknown revision 'no-such-revision'\n"


@pytest.mark.slow
@needs_history
def test_a_sweep_that_fails_is_no_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    refused = same_results.Sweep("refused", 'extends = "no-such-preset"\n', (), ())
    monkeypatch.setattr(same_results, "SWEEPS", (refused,))
    assert main(["HEAD"]) == 2
    assert "error: earlier: sweep refused failed (exit 2)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)  # 155 s of CPU time; the limit allows for a busy machine
@needs_history
def test_the_working_tree_gives_the_results_of_its_commit(capfd: pytest.CaptureFixture[str]):
    assert main(["HEAD"]) == 0, capfd.readouterr().out
