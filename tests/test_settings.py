"""The reference of settings: what a person reads is what the configuration does."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rayasd.cli.main import cli
from rayasd.config import Config, from_dict
from rayasd.errors import UserError
from rayasd.nested import flatten, nest
from rayasd.settings import all_settings, find_settings


def printed(*arguments: str, columns: int = 80) -> str:
    done = CliRunner(env={"COLUMNS": str(columns)}).invoke(cli, ["settings", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_the_page_of_the_docs_is_what_the_command_prints():
    page = Path(__file__).parents[1] / "docs/settings.md"
    assert printed("--format", "md") == page.read_text(encoding="utf-8"), "if this is meant: make docs-settings"


def test_every_setting_is_there_with_its_default_and_a_sentence():
    assert {each.name: each.default for each in all_settings()} == {**flatten(Config().as_dict()), "variants": {}}
    assert not [each.name for each in all_settings() if not each.meaning.endswith(".")]


@pytest.mark.parametrize(
    ("name", "allowed", "wrong", "error"),
    [
        ("exposure.epochs", "whole number, at least 0", -1, "must be at least 0"),
        ("network.dropout", "number, between 0 and 0.99", 1.0, "must be between 0 and 0.99"),
        ("inlier.fit_on", "one of validation, train, source", "test", "choose one of validation, train, source"),
        ("data.resample", "true/false", 1, "a value of type true/false is needed"),
        ("inlier.grid", "list of whole numbers", [0.5], "a value of type whole number is needed"),
        ("network.backbone", "text", True, "a value of type text is needed"),
    ],
)
def test_allowed_values_are_described_as_in_errors(name: str, allowed: str, wrong: object, error: str):
    assert find_settings(name)[0].allowed == allowed
    with pytest.raises(UserError, match=error):
        from_dict(nest({name: wrong}))


def test_a_setting_is_found_by_table_by_name_and_by_its_last_part():
    assert {each.table for each in find_settings("exposure")} == {"exposure"}
    assert [each.name for each in find_settings("exposure.epochs")] == ["exposure.epochs"]
    assert [each.name for each in find_settings("batch_size")] == ["exposure.batch_size", "embedding.batch_size"]


@pytest.mark.parametrize(
    ("key", "nearest"), [("exposure.epoch", "exposure.epochs"), ("exposur", "exposure"), ("dropuot", "network.dropout")]
)
def test_an_unknown_setting_is_answered_with_the_nearest_in_one_line(key: str, nearest: str):
    with pytest.raises(UserError) as caught:
        find_settings(key)
    assert str(caught.value) == f"unknown setting '{key}': did you mean '{nearest}'? 'rayasd settings' prints all"


def test_the_command_fits_its_terminal_and_loses_nothing():
    for columns in (80, 120):
        text = printed(columns=columns)
        assert max(map(len, text.splitlines())) <= columns
        assert all(f"\n{each.name} = " in text for each in all_settings())
        assert all(each.meaning in " ".join(text.split()) for each in all_settings())


def test_values_of_presets_are_printed_where_they_differ(tmp_path: Path):
    assert printed("exposure.epochs") == (
        "exposure  Training the extractor to tell apart clips that are all normal, of \n"
        "several machines, sections and conditions.\n"
        "exposure.epochs = 300\n"
        "    Passes over the training clips, with scope 'machine' the target machine's; 0\n"
        "    leaves the network untrained. (whole number, at least 0)\n"
        "    demo: 30\n"
        "    recommended: 16\n"
        "    serial-oe, small: 100\n"
    )
    own = tmp_path / "own.toml"
    own.write_text('extends = "demo"\n[inlier]\ngrid = [3]\n')
    of_all = json.loads(printed("--preset", str(own), "--format", "json"))
    changed = {each["name"]: each["presets"][str(own)] for each in of_all if each["presets"]}
    assert changed["inlier.grid"] == [3]
    assert changed["exposure.epochs"] == 30
    assert "exposure.weight_decay" not in changed
