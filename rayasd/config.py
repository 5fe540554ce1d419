"""The configuration: one frozen dataclass per table of settings; ``rayasd settings`` prints the text below a field."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from rayasd.errors import UserError, unknown
from rayasd.nested import bounded, build, merge, nest


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Reading audio files."""

    sample_rate: int = bounded(16000, minimum=1000)
    """Sample rate of all waveforms in training and scoring, in Hz."""
    resample: bool = False
    """Resample clips of another rate with a polyphase filter; if false, they are refused by name."""
    channel: str = "only"
    """'only': mono files, others are refused by name; 'mean': average of all channels; or a channel number from 0."""
    on_bad_clip: Literal["fail", "skip"] = "fail"
    """For an unreadable clip, 'fail' stops the sweep; 'skip' leaves the clip out and counts it."""


@dataclass(frozen=True, kw_only=True)
class FrontEndConfig:
    """Mel spectrogram of one window, computed on the training device."""

    window_seconds: float = bounded(2.0, minimum=0.05, maximum=600.0)
    """Length of one input window of the network."""
    n_fft: int = bounded(2048, minimum=16)
    """Samples per short-time Fourier transform."""
    hop_length: int = bounded(256, minimum=1)
    """Samples between the starts of consecutive transforms."""
    n_mels: int = bounded(224, minimum=1)
    """Number of mel bands."""
    f_min: float = bounded(50.0, minimum=0.0)
    """Lowest frequency, in Hz."""
    f_max: float = bounded(7800.0, minimum=1.0)
    """Highest frequency, in Hz; at most half of data.sample_rate."""
    power: float = bounded(1.0, minimum=0.1)
    """Exponent of the magnitude: 1 is amplitude, 2 is power."""
    normalized: bool = True
    """Divide the transform by the root of the window function's energy ('normalized' in torchaudio)."""
    log: bool = False
    """Use log(mel + 1e-6) instead of mel."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The extractor: a network that turns a window into an embedding."""

    extractor: str = "network"
    """'network' is trained. Untrained controls: 'statistics' (mean, deviation of each log-mel band), an import path."""
    backbone: str = "tf_efficientnet_b0.ns_jft_in1k"
    """Name of a timm model."""
    pretrained: str = ""
    """Local file of backbone weights (safetensors or torch); empty: random weights."""
    embedding_dim: int = bounded(128, minimum=2)
    """Length of an embedding (D); even for the extractor 'statistics'."""
    dropout: float = bounded(0.3, minimum=0.0, maximum=0.99)
    """Dropout probability between backbone and neck."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; 'auto' is bfloat16 where the device has instructions for it."""

    @property
    def is_trained(self) -> bool:
        """Whether the extractor goes through training; a control does not."""
        return self.extractor == "network"


@dataclass(frozen=True, kw_only=True)
class ExposureConfig:
    """Training the extractor by outlier exposure."""

    epochs: int = bounded(300, minimum=0)
    """Passes over the target machine's training clips; 0 leaves the network untrained."""
    batch_size: int = bounded(128, minimum=2)
    """Clips per step: half normal clips of the target machine, half pseudo-anomalous clips."""
    target_domain_per_batch: int = bounded(0, minimum=0)
    """Target-domain clips in the normal half of each batch; 0: they are drawn like all other clips."""
    learning_rate: float = bounded(1e-3, minimum=0.0)
    """Peak learning rate of the one-cycle schedule."""
    weight_decay: float = bounded(0.0, minimum=0.0)
    """Decoupled weight decay of AdamW."""
    lambda_machine: float = bounded(1.0, minimum=0.0)
    """Weight of the machine loss, which separates the target machine from all other machines."""
    lambda_product: float = bounded(10.0, minimum=0.0)
    """Weight of the product loss, which separates the sections of the target machine."""
    machine_loss: str = "bce"
    """'bce', or the import path of a loss."""
    product_loss: str = "bce"
    """'bce', 'cross-entropy', or the import path of a loss."""
    waveform_scaling: Literal["own", "target"] = "own"
    """Standardise a clip with the training mean and deviation of its own machine or of the target machine."""
    mixup_schedule: Literal["cosine-down", "cosine-up", "always", "never"] = "cosine-down"
    """Probability of a mixup step during training: falls from 1 to 0, rises from 0 to 1 by half-way, is 1, or is 0."""
    mixup_alpha: float = bounded(0.2, minimum=1e-3)
    """Mixup weights are drawn from Beta(alpha, alpha), one per clip."""
    mixup_product_loss: Literal["target", "all"] = "target"
    """Clips in the product loss of a mixup step: those with a mixed machine target above 0, or all clips."""
    validation_fraction: float = bounded(1 / 6, minimum=0.0, maximum=0.9)
    """Fraction of each section's source-domain training clips that is held out of training."""
    real_anomalies: int = bounded(0, minimum=0)
    """Anomalous test clips per section that become pseudo-anomalous training clips."""
    real_anomalies_per_batch: int = bounded(1, minimum=1)
    """Real anomalies in the pseudo-anomalous half of each batch, if there are any."""
    contamination: int = bounded(0, minimum=0)
    """Anomalous test clips per section that are hidden among the normal training clips."""
    reserved_anomalies: int = bounded(0, minimum=0)
    """Minimum of anomalous clips per section that leave the test, so that variants use the same test clips."""
    anomaly_seed: int = bounded(0, minimum=0)
    """Seed of the choice of anomalous clips; not the training seed, so that all seeds use the same test clips."""
    compile: bool = False
    """Compile the backbone with torch.compile: takes minutes, changes rounding, needs a C++ compiler."""
    keep_every: int = bounded(0, minimum=0)
    """Epochs between weights that are kept and embedded, to choose a checkpoint from; 0 keeps only the last."""
    checkpoint_every: int = bounded(10, minimum=1)
    """Epochs between checkpoints from which an interrupted training resumes."""

    @property
    def anomalies_aside(self) -> int:
        """Anomalous clips per section that are removed from the test."""
        return max(self.real_anomalies + self.contamination, self.reserved_anomalies)

    @property
    def num_checkpoints(self) -> int:
        """Number of weights that a training keeps to choose from."""
        return max(1, -(-self.epochs // self.keep_every)) if self.keep_every else 1


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Embedding the windows of each clip."""

    num_windows: int = bounded(10, minimum=1)
    """Evenly spaced windows per clip; the last one ends with the clip."""
    batch_size: int = bounded(256, minimum=1)
    """Windows per forward pass."""


@dataclass(frozen=True, kw_only=True)
class InlierConfig:
    """Inlier models: detectors, fitted per section to normal clips."""

    detectors: tuple[str, ...] = ("lof", "gmm", "knn")
    """Families (with each h of inlier.grid), grid points ('knn-4') or calls such as 'package.Class(parameter=3)'."""
    grid: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Values of h (knn, lof, banks, ldn: neighbours; gmm, pca: components; kmeans: clusters; ocsvm: nu = 1/(2h); kde:
    bandwidth)."""
    gmm_covariance: Literal["full", "tied", "diag", "spherical"] = "full"
    """Covariance type of the Gaussian mixtures."""
    fit_on: Literal["validation", "train", "source"] = "validation"
    """Clips to fit detectors to: held-out training clips, all training clips, or all source-domain training clips."""
    features: Literal["embedding", "logits", "both"] = "embedding"
    """Input of the detectors: the embedding, the product logits, or both concatenated."""
    poolings: tuple[str, ...] = ("min", "mean", "median", "lower-half-mean")
    """How the anomaly scores of a clip's windows become the clip's score: mean, median, max, min, upper-half-mean,
    lower-half-mean, gwrp-0.5 (weighted ranks), or an import path."""
    calibration_folds: int = bounded(5, minimum=0)
    """Cross-validation folds used to score normal training clips, for thresholds, fusions and ensembles; 0 disables."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Choosing, ranking and combining systems."""

    year: Literal[2020, 2021, 2022, 2023, 2024, 2025] = 2021
    """DCASE Task 2 challenge whose score and division into development and evaluation apply."""
    development: tuple[str, ...] = ()
    """Development sections: a section '00', a machine 'fan', or 'fan/00'; all others are evaluation sections.
    Empty: the division of evaluation.year."""
    selection: Literal["development", "leave-one-section-out"] = "development"
    """Choose systems on development sections and rank them on the others; or choose for each section on all others."""
    criterion: Literal["official", "auc"] = "official"
    """Choose systems by the official score, or by the mean AUC, which is steadier where cells have few clips."""
    ensembles: tuple[str, ...] = ("seeds",)
    """Ensembles that average over seeds, checkpoints, detectors, or several ('seeds+detectors'); 'greedy' adds systems
    one by one while the score on the sections used for choosing rises."""
    fusion: Literal["z-mean", "z-min", "z-max", "rank-mean"] = "z-mean"
    """How ensembles combine scores, after scaling each by the training scores of its section."""
    threshold_percentile: float = bounded(90.0, minimum=0.0, maximum=100.0)
    """Clips above this percentile of a gamma distribution fitted to their section's training scores are anomalous."""


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
    """Named sets of overrides; each table [variants.NAME] is trained and ranked as a system of its own."""

    @property
    def window_length(self) -> int:
        """Samples that the network sees at once."""
        return round(self.front_end.window_seconds * self.data.sample_rate)

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, ready for JSON or TOML."""
        tables = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: dict(v) if k == "variants" else dataclasses.asdict(v) for k, v in tables.items()}

    def variant(self, name: str) -> "Config":
        """Return this configuration with one variant's overrides applied; it is built once.

        Raises:
            UserError: there is no such variant.

        """
        if name not in self._resolved:
            self._resolved[name] = from_dict(merge(self.as_dict(), nest(self.overrides(name))))
        return self._resolved[name]

    @cached_property
    def _resolved(self) -> dict[str, "Config"]:
        return {}

    def overrides(self, name: str) -> Mapping[str, Any]:
        """Return what a variant changes: settings by their dotted names.

        Raises:
            UserError: there is no such variant.

        """
        if name not in self.variants:
            raise unknown("variant", name, self.variants)
        return self.variants[name]


ENSEMBLE_DIMENSIONS = ("seeds", "checkpoints", "detectors")
GREEDY = "greedy"
_SHARED = ("data", "evaluation")


def varied(config: Config, variants: Sequence[str], key: str, values: Sequence[Any]) -> tuple[Config, tuple[str, ...]]:
    """Add a variant per given variant and value of a setting, named ``<variant>-<setting>-<value>``.

    Where the setting removes anomalies from the test, all variants remove as many as the largest value does.

    Returns:
        The configuration with the new variants, and their names.

    Raises:
        UserError: no such variant or setting, an invalid value, or a setting that all variants share.

    """
    if key.partition(".")[0] in _SHARED:
        raise UserError(f"--vary {key}: {', '.join(_SHARED)} apply to the whole run, variants cannot differ in them")
    made: dict[str, dict[str, Any]] = {}
    for variant in variants:
        for value in values:
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{variant}-{key.rpartition('.')[2]}-{value}").strip("-")
            made[name] = {**config.overrides(variant), key: value}
    result = from_dict(merge(config.as_dict(), {"variants": made}))
    aside = {result.variant(name).exposure.anomalies_aside for name in made}
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
    data, front_end, network, exposure = config.data, config.front_end, config.network, config.exposure
    if front_end.f_min >= front_end.f_max:
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
    _check_ensembles(config.evaluation.ensembles)
    _check_variants(config.variants)
    if exposure.validation_fraction == 0 and config.inlier.fit_on == "validation":
        raise UserError('exposure.validation_fraction = 0 leaves inlier.fit_on = "validation" nothing to fit to')
    if config.window_length <= front_end.n_fft / 2:
        raise UserError("front_end.window_seconds must be longer than half of front_end.n_fft samples")
    if network.extractor == "statistics" and network.embedding_dim % 2:
        raise UserError("network.embedding_dim must be even for network.extractor = statistics")
    if not (data.channel in ("only", "mean") or data.channel.isdecimal()):
        raise UserError(f"data.channel = {data.channel!r}: choose only, mean or a channel's number from 0")
    return config


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
                raise UserError(f"variants.{name}.{key}: {', '.join(_SHARED)} apply to the whole run")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"variant {name!r}: a name is made of letters, digits, '.', '_' and '-'")
