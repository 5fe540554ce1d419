"""The configuration: one frozen dataclass a stage, built from nested tables that are checked key by key."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rayasd.errors import UserError, unknown
from rayasd.nested import bounded, build, merge, nest


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How clips on disk become arrays."""

    sample_rate: int = bounded(16000, minimum=1000)
    """Samples per second of every waveform that is trained on or scored."""
    resample: bool = False
    """Convert clips of another rate (polyphase filter); false: refuse them by name."""
    channel: str = "only"
    """'only': mono files, others are refused by name; 'mean' of all channels; or a channel's number from 0."""
    on_bad_clip: Literal["fail", "skip"] = "fail"
    """A clip that cannot be read stops the sweep, or is left out and counted."""


@dataclass(frozen=True, kw_only=True)
class FrontEndConfig:
    """Mel spectrogram of one window, made on the training device."""

    window_seconds: float = bounded(2.0, minimum=0.05, maximum=600.0)
    """Length of the waveform that the network sees at once."""
    n_fft: int = bounded(2048, minimum=16)
    """Samples of one short-time Fourier transform."""
    hop_length: int = bounded(256, minimum=1)
    """Samples between two transforms."""
    n_mels: int = bounded(224, minimum=1)
    """Mel bands."""
    f_min: float = bounded(50.0, minimum=0.0)
    """Lowest frequency, Hz."""
    f_max: float = bounded(7800.0, minimum=1.0)
    """Highest frequency, Hz; at most half the sample rate."""
    power: float = bounded(1.0, minimum=0.1)
    """Exponent of the magnitude: 1 is amplitude, 2 is power."""
    normalized: bool = True
    """Divide the transform by the window's energy (torchaudio's ``normalized``)."""
    log: bool = False
    """Take log(mel + 1e-6)."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The feature extractor."""

    extractor: str = "network"
    """'network' is trained; 'statistics' (mean and deviation of each log-mel band) or an import path is a control."""
    backbone: str = "tf_efficientnet_b0.ns_jft_in1k"
    """Any timm model name."""
    pretrained: str = ""
    """Local file of backbone weights (safetensors or torch); empty: random weights."""
    embedding_dim: int = bounded(128, minimum=2)
    """D, the length of an embedding."""
    dropout: float = bounded(0.3, minimum=0.0, maximum=0.99)
    """Dropout between backbone and neck."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; auto: bfloat16 where the device has instructions for it."""

    @property
    def is_trained(self) -> bool:
        """Whether the extractor goes through training; a control does not."""
        return self.extractor == "network"


@dataclass(frozen=True, kw_only=True)
class ExposureConfig:
    """Outlier exposure: how the extractor is trained."""

    epochs: int = bounded(300, minimum=0)
    """Passes over the target machine's training clips; 0 leaves the network untrained."""
    batch_size: int = bounded(128, minimum=2)
    """Clips a step, half of them normal clips of the target machine, half pseudo-anomalous."""
    target_domain_per_batch: int = bounded(0, minimum=0)
    """Target-domain clips in each batch's normal half; 0: they take part like any other clip."""
    learning_rate: float = bounded(1e-3, minimum=0.0)
    """Peak learning rate of the one-cycle schedule."""
    weight_decay: float = bounded(0.0, minimum=0.0)
    """AdamW's decoupled weight decay."""
    lambda_machine: float = bounded(1.0, minimum=0.0)
    """Weight of the machine loss (is it the target machine at all?)."""
    lambda_product: float = bounded(10.0, minimum=0.0)
    """Weight of the product loss (which section of the target machine?)."""
    machine_loss: str = "bce"
    """'bce', or an import path."""
    product_loss: str = "bce"
    """'bce', 'cross-entropy', or an import path."""
    waveform_scaling: Literal["own", "target"] = "own"
    """Z-score a clip with its own machine's training mean and deviation, or with the target machine's."""
    mixup_schedule: Literal["cosine-down", "cosine-up", "always", "never"] = "cosine-down"
    """Probability of a mixup step over training: 1 to 0, 0 to 1 by half-way, 1, or 0."""
    mixup_alpha: float = bounded(0.2, minimum=1e-3)
    """Mixup weights are drawn from Beta(alpha, alpha), one a clip."""
    mixup_product_loss: Literal["target", "all"] = "target"
    """Who enters the product loss in a mixup step: clips with a mixed machine target > 0, or all."""
    validation_fraction: float = bounded(1 / 6, minimum=0.0, maximum=0.9)
    """Share of each section's source-domain training clips held out of training."""
    real_anomalies: int = bounded(0, minimum=0)
    """Known anomalous clips a section, drawn from its test clips and trained on as pseudo-anomalous ones."""
    real_anomalies_per_batch: int = bounded(1, minimum=1)
    """How many of them are in each batch's pseudo-anomalous half."""
    contamination: int = bounded(0, minimum=0)
    """Anomalous clips a section, drawn likewise, that are hidden among the normal training clips."""
    reserved_anomalies: int = bounded(0, minimum=0)
    """Anomalous clips a section that leave the test at least, so that variants are tested on the same clips."""
    anomaly_seed: int = bounded(0, minimum=0)
    """Which clips these draws take; the same for all training seeds, so that all are tested on the same clips."""
    compile: bool = False
    """Fuse the backbone's operations (torch.compile): minutes to compile, other rounding, needs a C++ compiler."""
    keep_every: int = bounded(0, minimum=0)
    """Epochs between two weights that are kept and embedded, to choose a checkpoint; 0: only the last."""
    checkpoint_every: int = bounded(10, minimum=1)
    """Epochs between two resumable checkpoints."""

    @property
    def anomalies_aside(self) -> int:
        """Anomalous clips of each section that leave the test."""
        return max(self.real_anomalies + self.contamination, self.reserved_anomalies)

    @property
    def num_checkpoints(self) -> int:
        """Weights that a training leaves to choose from."""
        return max(1, -(-self.epochs // self.keep_every)) if self.keep_every else 1


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Windows of a clip to embeddings."""

    num_windows: int = bounded(10, minimum=1)
    """Evenly spaced windows a clip, the last flush with its end."""
    batch_size: int = bounded(256, minimum=1)
    """Windows a forward pass."""


@dataclass(frozen=True, kw_only=True)
class InlierConfig:
    """Inlier models: one per section and detector."""

    detectors: tuple[str, ...] = ("lof", "gmm", "knn")
    """Families (over the grid), grid points such as 'knn-4', or calls such as 'package.Class(parameter=3)'."""
    grid: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """h: neighbours, components, inverse of 2 nu, bandwidth, by family."""
    gmm_covariance: Literal["full", "tied", "diag", "spherical"] = "full"
    """Shape of the mixture's covariances."""
    fit_on: Literal["validation", "train", "source"] = "validation"
    """Fit on the held-out training clips, on all training clips, or on all source-domain training clips."""
    features: Literal["embedding", "logits", "both"] = "embedding"
    """What the detectors see: the embedding, the product logits, or both side by side."""
    poolings: tuple[str, ...] = ("min", "mean", "median", "lower-half-mean")
    """Window scores to a clip's score; on normality, these are max, mean, median and mean of the upper half."""
    calibration_folds: int = bounded(5, minimum=0)
    """Parts of a section's normal clips, each scored by a model of the others: training scores for thresholds, fusions
    and ensembles; 0: none."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Which sections choose and which report, by whose rules."""

    year: Literal[2020, 2021, 2022, 2023, 2024, 2025] = 2021
    """DCASE Task 2 challenge whose score and division into development and evaluation hold."""
    development: tuple[str, ...] = ()
    """Sections that choose: '00', a machine 'fan', or 'fan/00'; all others are evaluation. Empty: the year's own."""
    selection: Literal["development", "leave-one-section-out"] = "development"
    """Choose on the development sections and rank on the others; or choose for each section on all other sections."""
    criterion: Literal["official", "auc"] = "official"
    """What chooses: the official score; or the mean AUC, steadier where cells have few clips and one can be 0."""
    ensembles: tuple[str, ...] = ("seeds",)
    """Entries that average scores over seeds, checkpoints, detectors, or several ('seeds+detectors'); and 'greedy',
    which picks members among all systems on the sections that choose."""
    fusion: Literal["z-mean", "z-min", "z-max", "rank-mean"] = "z-mean"
    """How ensembles combine scores, each scaled by its section's training scores."""
    threshold_percentile: float = bounded(90.0, minimum=0.0, maximum=100.0)
    """Percentile of the gamma distribution of a section's training scores above which a clip is called anomalous."""


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
    """Named sets of overrides; each is trained and ranked as a system of its own."""

    @property
    def window_length(self) -> int:
        """Samples that the network sees at once."""
        return round(self.front_end.window_seconds * self.data.sample_rate)

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, ready for JSON or TOML."""
        tables = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: dict(v) if k == "variants" else dataclasses.asdict(v) for k, v in tables.items()}

    def variant(self, name: str) -> "Config":
        """Return this configuration with one variant's overrides applied.

        Raises:
            UserError: there is no such variant.

        """
        return from_dict(merge(self.as_dict(), nest(self.overrides(name))))

    def overrides(self, name: str) -> Mapping[str, Any]:
        """Return what a variant changes: settings by their dotted names.

        Raises:
            UserError: there is no such variant.

        """
        if name not in self.variants:
            raise unknown("variant", name, self.variants)
        return self.variants[name]


_SHARED = ("data", "evaluation")


def varied(config: Config, variants: Sequence[str], key: str, values: Sequence[Any]) -> tuple[Config, tuple[str, ...]]:
    """Make a variant of each of these for each value of a setting, named ``<variant>-<setting>-<value>``.

    Where the setting takes anomalies out of the test, all variants leave out as many as the largest value does.

    Returns:
        The configuration with the new variants, and their names.

    Raises:
        UserError: no such variant or setting, a value that it cannot have, or a setting that all variants share.

    """
    if key.partition(".")[0] in _SHARED:
        raise UserError(f"--vary {key}: {', '.join(_SHARED)} are of the whole run, variants cannot differ in them")
    made: dict[str, dict[str, Any]] = {}
    for variant in variants:
        for value in values:
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{variant}-{key.rpartition('.')[2]}-{value}").strip("-")
            made[name] = {**config.overrides(variant), key: value}
    result = from_dict(merge(config.as_dict(), {"variants": made}))
    resolved = [result.variant(name).exposure for name in made]
    aside = {exposure.anomalies_aside for exposure in resolved}
    if len(aside) > 1:
        made = {name: {**overrides, "exposure.reserved_anomalies": max(aside)} for name, overrides in made.items()}
        result = from_dict(merge(config.as_dict(), {"variants": made}))
    return result, tuple(made)


def from_dict(values: Mapping[str, Any]) -> Config:
    """Build a checked configuration from nested tables.

    Raises:
        UserError: an unknown key, a value of the wrong type or out of range, or values that do not fit together.

    """
    config: Config = build(Config, values)
    if config.front_end.f_min >= config.front_end.f_max:
        raise UserError("front_end.f_min must be below front_end.f_max")
    if config.front_end.f_max > config.data.sample_rate / 2:
        f_max, rate = config.front_end.f_max, config.data.sample_rate
        raise UserError(f"front_end.f_max = {f_max:g} Hz is above half of data.sample_rate = {rate}")
    if config.exposure.target_domain_per_batch >= config.exposure.batch_size // 2:
        raise UserError("exposure.target_domain_per_batch must be smaller than half of exposure.batch_size")
    if config.exposure.real_anomalies and config.exposure.real_anomalies_per_batch >= config.exposure.batch_size // 2:
        raise UserError("exposure.real_anomalies_per_batch must be smaller than half of exposure.batch_size")
    for where in config.evaluation.development:
        if where.isdecimal() and len(where) < 2:
            raise UserError(f"evaluation.development: write section {where} as '{int(where):02}'")
    _check_ensembles(config.evaluation.ensembles)
    _check_variants(config.variants)
    if config.exposure.validation_fraction == 0 and config.inlier.fit_on == "validation":
        raise UserError('exposure.validation_fraction = 0 leaves inlier.fit_on = "validation" nothing to fit to')
    if config.window_length <= config.front_end.n_fft / 2:
        raise UserError("front_end.window_seconds must be longer than half of front_end.n_fft samples")
    if config.network.extractor == "statistics" and config.network.embedding_dim % 2:
        raise UserError(
            "network.embedding_dim must be even for the statistics extractor: a mean and a deviation a band"
        )
    if not (config.data.channel in ("only", "mean") or config.data.channel.isdecimal()):
        raise UserError(f"data.channel = {config.data.channel!r}: choose only, mean or a channel's number from 0")
    return config


ENSEMBLE_DIMENSIONS = ("seeds", "checkpoints", "detectors")
GREEDY = "greedy"


def _check_ensembles(names: tuple[str, ...]) -> None:
    for name in names:
        dimensions = name.split("+")
        if name != GREEDY and (set(dimensions) - set(ENSEMBLE_DIMENSIONS) or len(set(dimensions)) < len(dimensions)):
            choices = ", ".join((*ENSEMBLE_DIMENSIONS, GREEDY))
            raise UserError(f"evaluation.ensembles: {name!r} is none of {choices}, nor several joined by +")


def _check_variants(variants: Mapping[str, Mapping[str, Any]]) -> None:
    for name, overrides in variants.items():
        for key in overrides:
            if key.partition(".")[0] in _SHARED:
                raise UserError(f"variants.{name}.{key}: {', '.join(_SHARED)} are of the whole run")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"variant {name!r}: a name is made of letters, digits, '.', '_' and '-'")
