"""Code and commands in the documentation do what it says."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from rayasd.cli.main import cli
from rayasd.presets import load
from tests.command import Rayasd
from tests.conftest import small_sweep

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "console") for line in block.splitlines()]
    found = [line.removeprefix("$ ").partition("#")[0].strip() for line in lines if line.startswith("$ ")]
    return sorted({line[line.index("rayasd ") :] for line in found if "rayasd " in line and "pip install" not in line})


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_docs_has_options_that_exist(command: str):
    """Parse the command line as far as click goes; paths in it need not be there."""
    words = shlex.split(command)[1:]
    if "--" in words:  # what stands after it is a command too
        at = words.index("--")
        assert CliRunner().invoke(cli, [*words[at + 1 :], "--help"]).exit_code == 0
        words = words[:at]
    result = CliRunner().invoke(cli, [*words, "--help"])
    assert result.exit_code == 0, result.output
    group = cli
    while words and words[0] in getattr(group, "commands", {}):
        group = group.commands[words.pop(0)]  # type: ignore[attr-defined]
    rest = ["report"] if group.name == "launch" else []
    group.make_context("docs", [*words, *rest], resilient_parsing=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_the_docs_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def leaf_commands(group: click.Group, path: tuple[str, ...] = ("rayasd",)) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaf_commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


@pytest.mark.parametrize(
    ("words", "command"), leaf_commands(cli), ids=lambda each: each if isinstance(each, str) else ""
)
def test_every_help_has_an_example_whose_options_exist(words: str, command: click.Command):
    lines = (command.help or "").replace("\\\n", " ").splitlines()
    examples = [re.split(r" [#|] ", line[line.index(words) :])[0] for line in lines if words in line]
    assert examples
    for example in examples:
        arguments = shlex.split(example)[len(words.split()) :]
        command.make_context("help", arguments, resilient_parsing=False)


def test_every_message_of_the_troubleshooting_page_is_one_of_ours():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "rayasd").rglob("*.py")]
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    lines = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").splitlines()
    symptoms = [line.split("|")[1] for line in lines if line.startswith("| ")]
    quoted = [words for symptom in symptoms for words in re.findall(r"`([^`]+ [^`]+)`", symptom)]
    assert len(quoted) > 15
    assert not [words for words in quoted if not any(words in text for text in texts if isinstance(text, str))]


def test_the_shell_completes_commands():
    words = {"_RAYASD_COMPLETE": "bash_complete", "COMP_WORDS": "rayasd sw", "COMP_CWORD": "1"}
    script = Path(sys.executable).with_name("rayasd")
    done = subprocess.run([script], env={**os.environ, **words}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["plain,sweep"]


@pytest.mark.slow
def test_the_queries_of_the_docs_find_something(finished: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(finished, tmp_path / "runs/first")
    monkeypatch.chdir(tmp_path)
    found = [duckdb.sql(query).fetchall() for query in blocks(ROOT / "docs/files.md", "sql")]
    assert all(found[:-1])
    assert not found[-1]  # nothing failed
    for block in blocks(ROOT / "docs/files.md", "python"):
        values: dict[str, Any] = {}
        exec(block, values)
        assert values.get("scores", values.get("table")).shape[0] > 0


def write_examples(folder: Path) -> None:
    """Write the examples of docs/extending.md, each to the file that its first line names."""
    for language in ("python", "toml"):
        for block in blocks(ROOT / "docs/extending.md", language):
            (folder / block.splitlines()[0].removeprefix("# ")).write_text(block)


def test_the_variant_of_the_docs_is_a_preset(tmp_path: Path):
    write_examples(tmp_path)
    assert load(str(tmp_path / "mine.toml")).variant("long-windows").front_end.window_seconds == 4.0


@pytest.mark.slow
def test_the_extensions_of_the_docs_get_their_rows(tree: Path, tmp_path: Path, rayasd: Rayasd):
    write_examples(tmp_path)
    detector, pooling = "my_detectors.ZDistance(floor=0.01)", "my_poolings.second_largest"
    settings = 'extends = "demo"\n' + (tmp_path / "filters.toml").read_text().partition("\n\n")[2]
    (tmp_path / "filters.toml").write_text(settings)  # on the demo's windows: clips are short here
    variants = ("statistics", "filters", "frozen-filters")
    done = rayasd(
        *small_sweep(tree, tmp_path / "run"), "--preset", tmp_path / "filters.toml", "--variants", ",".join(variants),
        "--detectors", f"knn-1,{detector}", "--set", f'inlier.poolings=["mean", "{pooling}"]', PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    board = pq.read_table(tmp_path / "run/leaderboard.parquet").to_pylist()
    assert {(row["variant"], row["detector"], row["pooling"]) for row in board} == {
        (v, d, p) for v in variants for d in ("knn-1", detector) for p in ("mean", pooling)
    }
    assert all(row["cells_ok"] == row["cells_expected"] > 0 for row in board)
    assert sorted(path.name for path in (tmp_path / "run/models").iterdir()) == ["filters"]


@pytest.mark.slow
def test_the_objective_of_the_docs_is_what_is_learned(tree: Path, tmp_path: Path, rayasd: Rayasd):
    write_examples(tmp_path)
    command = [*small_sweep(tree, tmp_path / "run"), "--preset", tmp_path / "smoothed.toml", "--variants", "smoothed"]
    done = rayasd(*command, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (model,) = (tmp_path / "run/models/smoothed").iterdir()
    weights = load_file(model / "seed=0/model.safetensors")
    assert weights["objective.head.linear.weight"].shape == (6, 128)
    refused = rayasd(*small_sweep(tree, tmp_path / "no"), "--set", "exposure.objective=my_objectives.Smoothed(beta=1)",
                     PYTHONPATH=str(tmp_path))  # fmt: skip
    assert refused.returncode == 2
    assert "unexpected keyword argument 'beta'" in refused.stderr
