"""A unit's identity: what changes it, and what must not."""

from dataclasses import asdict, field, make_dataclass, replace
from typing import Any

import pytest

from rayasd.config import Config, InlierConfig
from rayasd.nested import differing
from rayasd.stages import STAGES
from tests.conftest import SpecOf

GROWN = make_dataclass(
    "GrownInlierConfig", [("new_setting", int, field(default=3))], bases=(InlierConfig,), frozen=True, kw_only=True
)
"""The settings of inlier models in a later version, which has one more."""


def grown(config: Config, **changes: Any) -> Config:
    return replace(config, inlier=GROWN(**asdict(config.inlier), **changes))


def test_a_new_setting_with_its_default_leaves_units_done(spec_of: SpecOf, small_config: Config):
    before = spec_of("detect")
    assert spec_of("detect", config=grown(small_config)).identity == before.identity
    changed = spec_of("detect", config=grown(small_config, new_setting=4))
    assert changed.identity != before.identity
    assert changed.settings == before.settings | {"inlier.new_setting": 4}
    assert spec_of("train", config=grown(small_config, new_setting=4)).identity == spec_of("train").identity


def test_every_setting_that_decides_a_result_is_part_of_the_identity(spec_of: SpecOf, small_config: Config):
    exposure = replace(small_config.exposure, weight_decay=0.5)
    changed = replace(small_config, exposure=exposure)
    for stage in ("train", "embed", "detect"):
        assert spec_of(stage, config=changed).identity != spec_of(stage).identity
    without_effect = replace(small_config, exposure=replace(small_config.exposure, checkpoint_every=7))
    assert spec_of(config=without_effect).identity == spec_of().identity


def test_a_stage_s_version_is_part_of_the_identity(spec_of: SpecOf, monkeypatch: pytest.MonkeyPatch):
    spec = spec_of("embed")
    before = spec.identity
    monkeypatch.setitem(STAGES, "embed", replace(STAGES["embed"], version=STAGES["embed"].version + 1))
    assert spec.identity != before


def test_only_what_differs_from_the_defaults_is_told():
    assert differing(InlierConfig()) == {}
    assert differing(InlierConfig(fit_on="train", poolings=("mean",))) == {"fit_on": "train", "poolings": ("mean",)}
