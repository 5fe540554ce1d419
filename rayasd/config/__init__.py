"""The configuration: all tables of settings together, with named variants of them; checked when it is built."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rayasd.config.tables import (
    DataConfig,
    EmbeddingConfig,
    EvaluationConfig,
    ExposureConfig,
    FrontEndConfig,
    InlierConfig,
    NetworkConfig,
)
from rayasd.ensemble_names import GREEDY, parse_ensemble
from rayasd.errors import UserError, unknown
from rayasd.nested import build, merge, nest

__all__ = [
    "EXTENDS", "WHOLE_RUN", "Config", "DataConfig", "EmbeddingConfig", "EvaluationConfig", "ExposureConfig",
    "FrontEndConfig", "InlierConfig", "NetworkConfig", "from_dict",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run's numbers."""

    data: DataConfig = DataConfig()
    front_end: FrontEndConfig = FrontEndConfig()
    network: NetworkConfig = NetworkConfig()
    exposure: ExposureConfig = ExposureConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    inlier: InlierConfig = InlierConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Named sets of overrides; each table [variants.NAME] is trained and ranked as a system of its own. One with
    'extends = "OTHER"' starts from the overrides of a variant before it."""

    @property
    def window_length(self) -> int:
        """Samples that the network sees at once."""
        return round(self.front_end.window_seconds * self.data.sample_rate)

    @property
    def learns(self) -> bool:
        """Whether the extractor is trained on the clips."""
        return self.network.is_trained and self.exposure.epochs > 0

    @property
    def named(self) -> list[str]:
        """Settings that may name code by import path: encoder and objective, then others."""
        network, exposure, inlier = self.network, self.exposure, self.inlier
        return [network.encoder, exposure.objective, exposure.clusters_by, *inlier.detectors, *inlier.poolings]

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, ready for JSON or TOML."""
        tables = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: dict(v) if k == "variants" else dataclasses.asdict(v) for k, v in tables.items()}

    def variant(self, name: str) -> "Config":
        """Return this configuration with one variant's overrides applied; it is built once.

        Raises UserError: there is no such variant.
        """
        if name not in self._resolved:
            self._resolved[name] = from_dict(merge(self.as_dict(), nest(self.overrides(name))))
        return self._resolved[name]

    @cached_property
    def _resolved(self) -> dict[str, "Config"]:
        return {}

    def overrides(self, name: str) -> dict[str, Any]:
        """Return what a variant changes, settings by their dotted names, with those of the one that it extends.

        Raises UserError: there is no such variant.
        """
        if name not in self.variants:
            raise unknown("variant", name, self.variants)
        own = dict(self.variants[name])
        base = own.pop(EXTENDS, None)
        return own if base is None else {**self.overrides(base), **own}


EXTENDS = "extends"
"""Key of a variant that names the one it starts from."""
WHOLE_RUN = ("data", "evaluation")
"""Tables that variants cannot differ in."""


def from_dict(values: Mapping[str, Any]) -> Config:
    """Build a checked configuration from nested tables.

    Raises UserError: an unknown key, a value of the wrong type or out of range, or values that do not fit together.
    """
    config: Config = build(Config, values)
    data, front_end, exposure = config.data, config.front_end, config.exposure
    _ = config.network.lora  # checks network.train
    if front_end.f_min >= front_end.highest(data.sample_rate):
        raise UserError("front_end.f_min must be below front_end.f_max")
    if front_end.f_max > data.sample_rate / 2:
        raise UserError(f"front_end.f_max = {front_end.f_max:g} is above half of data.sample_rate = {data.sample_rate}")
    if exposure.target_domain_per_batch >= exposure.batch_size // 2:
        raise UserError("exposure.target_domain_per_batch must be smaller than half of exposure.batch_size")
    if exposure.real_anomalies and exposure.real_anomalies_per_batch >= exposure.batch_size // 2:
        raise UserError("exposure.real_anomalies_per_batch must be smaller than half of exposure.batch_size")
    for where in config.evaluation.development:
        if where.isdecimal() and len(where) < 2:
            raise UserError(f"evaluation.development: write section {where} as '{int(where):02}'")
    if exposure.scope == "all" and exposure.waveform_scaling == "target":
        raise UserError('exposure.waveform_scaling = "target" needs exposure.scope = "machine": all have no target')
    _check_variants(config.variants)
    for name in config.evaluation.ensembles:
        for variant in parse_ensemble(name).variants if name != GREEDY else ():
            config.overrides(variant)
    if exposure.held_out_share == 0 and config.inlier.fit_on == "validation":
        raise UserError('exposure.validation_fraction = 0 leaves inlier.fit_on = "validation" nothing to fit to')
    if config.window_length <= front_end.n_fft / 2:
        raise UserError("front_end.window_seconds must be longer than half of front_end.n_fft samples")
    if config.window_length * config.embedding.num_windows > 1 << 31:
        raise UserError("embedding.num_windows windows of front_end.window_seconds are more than 2^31 samples a clip")
    if not (data.channel in ("only", "mean", "near-far") or data.channel.isdecimal()):
        raise UserError(f"data.channel = {data.channel!r}: choose only, mean, near-far or a channel's number from 0")
    try:
        re.compile(data.groups)
    except re.error as error:
        raise UserError(f"data.groups = {data.groups!r} is no regular expression: {error}") from None
    return config


def _check_variants(variants: Mapping[str, Mapping[str, Any]]) -> None:
    for number, (name, overrides) in enumerate(variants.items()):
        if (base := overrides.get(EXTENDS)) is not None and base not in (before := list(variants)[:number]):
            raise unknown(f"variant that variants.{name} extends, among those before it", str(base), before)
        for key in overrides:
            if key.partition(".")[0] in WHOLE_RUN:
                raise UserError(f"variants.{name}.{key}: {', '.join(WHOLE_RUN)} apply to the whole run")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"variant {name!r}: a name is made of letters, digits, '.', '_' and '-'")
