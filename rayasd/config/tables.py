"""The tables of settings, one frozen dataclass each; ``rayasd settings`` prints the text below a field."""

from dataclasses import dataclass
from typing import Literal

from rayasd.errors import UserError
from rayasd.nested import bounded
from rayasd.registry import parse_call


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Reading audio files."""

    sample_rate: int = bounded(16000, minimum=1000, maximum=1_000_000)
    """Sample rate of all waveforms in training and scoring, in Hz."""
    resample: bool = False
    """Resample clips of another rate with a polyphase filter; if false, they are refused by name."""
    channel: str = "only"
    """'only': mono files, others are refused by name; 'mean': average of all channels; a channel number from 0; or
    'near-far': channel 0, without what channel 1, far from the machine, hears too (DCASE 2026)."""
    scale: float = bounded(0.0, minimum=0.0)
    """Value of float samples (Pa, g) that counts as full scale; 0: 1 where they go from -1 to 1, else a power of 2 of
    four to eight times the median peak of the machine's training clips, if most of these are floats."""
    signal_rate: int = bounded(0, minimum=0)
    """Sample rate of .npy, .mat and .csv files, in Hz; 0: as the manifest says (rayasd data index --rate)."""
    signal_column: str = ""
    """Column of .csv files, by name or number from 0, or variable of .mat files, by its name or how it ends; empty: the
    only one, or as the manifest says. Of arrays with several channels, data.channel chooses."""
    level: Literal["keep", "clip"] = "keep"
    """Level of a clip: 'keep' keeps it; 'clip' scales every clip to the same RMS value, before anything else."""
    groups: str = ""
    """Clips that belong together (of one session, or one moment on several microphones) are held out and drawn together
    and are no neighbours: a regular expression on clips' paths, whose first group (or whole match) names theirs;
    'attribute:NAME', the value after NAME in their attributes; empty: the manifest's column 'group', if it has one."""
    on_bad_clip: Literal["fail", "skip"] = "fail"
    """For an unreadable clip, 'fail' stops the sweep; 'skip' leaves the clip out and counts it."""


@dataclass(frozen=True, kw_only=True)
class FrontEndConfig:
    """The window, and its mel spectrogram, computed on the training device."""

    window_seconds: float = bounded(2.0, minimum=0.05, maximum=600.0)
    """Length of one input window of the encoder; a shorter clip is repeated until it fills the window."""
    n_fft: int = bounded(2048, minimum=16, maximum=1 << 20)
    """Samples per short-time Fourier transform."""
    hop_length: int = bounded(256, minimum=1, maximum=1 << 20)
    """Samples between the starts of consecutive transforms."""
    n_mels: int = bounded(224, minimum=1, maximum=8192)
    """Number of mel bands."""
    f_min: float = bounded(50.0, minimum=0.0)
    """Lowest frequency, in Hz."""
    f_max: float = bounded(0.0, minimum=0.0)
    """Highest frequency, in Hz, at most half of data.sample_rate; 0: 97.5 % of that half, 7800 Hz at 16 kHz."""
    power: float = bounded(1.0, minimum=0.1, maximum=10.0)
    """Exponent of the magnitude: 1 is amplitude, 2 is power."""
    normalized: bool = True
    """Divide the transform by the root of the window function's energy ('normalized' in torchaudio)."""
    log: bool = False
    """Use log(mel + 1e-6) instead of mel."""

    def highest(self, sample_rate: int) -> float:
        """Return ``f_max`` at a sample rate."""
        return self.f_max or 0.975 * sample_rate / 2


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of an encoder's linear layers (Hu et al., ICLR 2022): alpha / rank times B A for each."""

    rank: int = 64
    alpha: float = 8.0
    targets: tuple[str, ...] = ("q", "v")
    """Names of layers, as they end; 'q' is also 'q_proj'."""

    def __post_init__(self) -> None:
        right = type(self.rank) is int and self.rank >= 1 and type(self.alpha) in (int, float) and self.alpha > 0
        if not (right and isinstance(self.targets, tuple | list) and self.targets and all(map(_is_name, self.targets))):
            raise UserError("network.train lora: rank is at least 1, alpha above 0, targets a list of names")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The extractor, which turns a window into an embedding: an encoder, then a neck."""

    encoder: str = "mel-timm"
    """What turns a window into features: 'mel-timm' (mel spectrogram, timm model), 'stft-resnet', 'fft', 'branches'
    (several, side by side), a pretrained one ('beats', 'ast', 'wav2vec2', 'audiomae', 'dasheng', see
    docs/encoders.md), a control without weights ('statistics', 'max-statistics', 'level'), or an import path.
    Parameters go in parentheses: 'stft-resnet(n_fft=4096, hop_length=2048)'."""
    train: str = "full"
    """What training changes: 'full', everything; 'head', all but the encoder; 'lora', that and low-rank updates of
    layers of the encoder, 'lora(rank=64, alpha=8, targets=["q", "v"])'; 'frozen', nothing (features are embeddings)."""
    neck: Literal["mlp", "attentive", "none"] = "mlp"
    """Between features and embedding: dropout and two linear layers, as in the paper; attentive statistics pooling of a
    grid and a linear layer; or nothing."""
    backbone: str = "tf_efficientnet_b0.ns_jft_in1k"
    """Name of the timm model of the encoder 'mel-timm'."""
    pretrained: str = ""
    """Local file of weights of network.backbone (safetensors or torch); empty: random weights."""
    embedding_dim: int = bounded(128, minimum=2, maximum=65536)
    """Length of an embedding (D) where the neck makes it; even for the encoder 'statistics'."""
    dropout: float = bounded(0.3, minimum=0.0, maximum=0.99)
    """Dropout probability before the neck's linear layers."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; 'auto' is bfloat16 on GPUs that have it if the encoder is trained, if by low-rank
    updates: distances between features of one that is not trained need more than 8 bits. CPUs compute some convolutions
    wrongly in bfloat16."""

    @property
    def is_trained(self) -> bool:
        """Whether there is anything to train."""
        return self.train != "frozen"

    @property
    def lora(self) -> Lora | None:
        """Low-rank updates that are trained; None with another ``train``.

        Raises UserError: ``train`` is none of those that there are.
        """
        name, parameters = parse_call("network.train", self.train)
        if name == "lora":
            try:
                return Lora(**parameters)
            except TypeError as error:
                raise UserError(f"network.train {self.train}: {str(error).removeprefix('Lora.__init__() ')}") from None
        if self.train not in ("full", "head", "frozen"):
            raise UserError(f"network.train = {self.train!r}: choose one of full, head, lora, frozen")
        return None

    @property
    def arithmetic(self) -> str:
        """Precision as ``choose_compute`` takes it."""
        return "float32" if self.precision == "auto" and self.train in ("head", "frozen") else self.precision


@dataclass(frozen=True, kw_only=True)
class ExposureConfig:
    """Training the extractor to tell apart clips that are all normal, of several machines, sections and conditions."""

    objective: str = "two-bce"
    """What the network learns to tell apart: 'two-bce' (the paper's machine and product losses); classes, by
    'cross-entropy', 'adacos', 'sub-cluster-adacos', 'adaproj', 'arcface', 'feature-exchange' or 'subspace'; or an
    import path. Parameters go in parentheses: 'sub-cluster-adacos(subclusters=16)'."""
    classes: tuple[Literal["machine", "section", "attributes", "domain"], ...] = (
        "machine", "section", "attributes", "domain",
    )  # fmt: skip
    """Columns of the catalog that make up a clip's class, for all objectives but 'two-bce'."""
    clusters: int = bounded(0, minimum=0)
    """Clusters of each section's training clips that serve as attributes ("pseudo-attributes") where a machine has
    none; with 'two-bce', each is a product of its own. 0: none."""
    clusters_by: str = "statistics"
    """Encoder whose features are clustered; it is not trained."""
    clusters_method: Literal["ward", "k-means"] = "ward"
    """Agglomerative clustering by Ward's criterion, or k-means."""
    scope: Literal["machine", "all"] = "machine"
    """A network for each machine type, trained against the clips of all others; or one network for all of them."""
    epochs: int = bounded(300, minimum=0)
    """Passes over the training clips, with scope 'machine' the target machine's; 0 leaves the network untrained."""
    min_steps: int = bounded(0, minimum=0)
    """Fewest optimiser steps, about: epochs are added, as many for all seeds, where exposure.epochs has fewer."""
    batch_size: int = bounded(128, minimum=2)
    """Clips per step; with scope 'machine', half normal clips of the target machine, half pseudo-anomalous clips."""
    target_domain_per_batch: int = bounded(0, minimum=0)
    """Target-domain clips in the normal half of each batch; 0: they are drawn like all other clips."""
    learning_rate: float = bounded(1e-3, minimum=0.0)
    """Learning rate, of the one-cycle schedule its peak."""
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    """Course of the learning rate."""
    weight_decay: float = bounded(0.0, minimum=0.0)
    """Decoupled weight decay of AdamW."""
    lambda_machine: float = bounded(1.0, minimum=0.0)
    """Weight of the machine loss, which separates the target machine from all other machines."""
    lambda_product: float = bounded(10.0, minimum=0.0)
    """Weight of the product loss, which separates the sections of the target machine."""
    product_loss: Literal["bce", "cross-entropy"] = "bce"
    """Product loss of the objective 'two-bce': a multi-label binary cross-entropy, or a softmax cross-entropy."""
    waveform_scaling: Literal["own", "target"] = "own"
    """Standardise a clip with the training mean and deviation of its own machine or of the target machine. An encoder
    may declare that it wants waveforms as they are."""
    mixup_schedule: Literal["cosine-down", "cosine-up", "always", "never", "half"] = "cosine-down"
    """Probability of a mixup step during training: falls from 1 to 0, rises from 0 to 1 by half-way, is 1, or is 0.
    'half' mixes in every step, each clip with probability 0.5."""
    mixup_alpha: float = bounded(0.2, minimum=1e-3)
    """Mixup weights are drawn from Beta(alpha, alpha), one per clip."""
    mixup_product_loss: Literal["target", "all"] = "target"
    """Clips in the product loss of a mixup step: those with a mixed machine target above 0, or all clips."""
    hold_out: Literal["fraction", "cross-fit"] = "fraction"
    """Training clips that are held out of training: exposure.validation_fraction of them; or, for seed s, fold s modulo
    exposure.folds, so that an ensemble over so many seeds has an honest score of every clip."""
    validation_fraction: float = bounded(1 / 6, minimum=0.0, maximum=0.9)
    """Fraction of each section's training clips that is held out of training, in each domain."""
    folds: int = bounded(5, minimum=2)
    """Folds of exposure.hold_out = "cross-fit"."""
    pseudo_anomalies: Literal["auto", "machines", "transforms"] = "auto"
    """What scope 'machine' learns against: clips of all other machines, or the machine's own, transformed (another
    pitch, a filter, backwards); 'auto' takes its own where there is no other machine. With scope 'all', transformed
    clips are classes of their own: with 'transforms', or by 'auto' where all clips are of one class."""
    supplemental_noise: float = bounded(0.0, minimum=0.0, maximum=1.0)
    """Probability that a training clip gets a clip of noise alone (DCASE 2025's supplemental ones, of any machine)
    mixed in, at a signal-to-noise ratio between 0 and 20 dB."""
    supplemental_anomalies: tuple[Literal["noise", "clean"], ...] = ()
    """Kinds of the machine's supplemental clips that training takes as pseudo-anomalous: noise alone, or the machine
    without noise. With scope 'all', they are classes of their own."""
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
    keep_every: int = bounded(0, minimum=0)
    """Epochs between weights that are kept and embedded, to choose a checkpoint from; 0 keeps only the last."""
    checkpoint_every: int = bounded(10, minimum=1)
    """Epochs between checkpoints from which an interrupted training resumes."""

    @property
    def held_out_share(self) -> float:
        """About the share of training clips that is held out."""
        return 1 / self.folds if self.hold_out == "cross-fit" else self.validation_fraction

    @property
    def anomalies_aside(self) -> int:
        """Anomalous clips per section that are removed from the test."""
        return max(self.real_anomalies + self.contamination, self.reserved_anomalies)


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Embedding the windows of each clip."""

    num_windows: int = bounded(10, minimum=1, maximum=100_000)
    """Evenly spaced windows per clip; the last one ends with the clip. Where they would see less than a quarter of a
    machine's usual clip (long recordings), its clips get as many as lie end to end."""
    windows_per_second: float = bounded(0.0, minimum=0.0, maximum=10_000.0)
    """Windows for each second of a machine's usual clip, instead of embedding.num_windows; 0: that many per clip."""
    batch_size: int = bounded(256, minimum=1, maximum=65536)
    """Windows per forward pass."""


@dataclass(frozen=True, kw_only=True)
class InlierConfig:
    """Inlier models: detectors, fitted to normal clips of a section or machine."""

    detectors: tuple[str, ...] = ("lof", "gmm", "knn")
    """Families (with each h of inlier.grid), grid points ('knn-4') or calls such as 'package.Class(parameter=3)'."""
    grid: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Values of h (knn, lof, ldn, varmin: neighbours; gmm, pca: components; kmeans: clusters; ocsvm: nu = 1/(2h); kde:
    bandwidth)."""
    gmm_covariance: Literal["full", "tied", "diag", "spherical"] = "full"
    """Covariance type of the Gaussian mixtures."""
    fit_on: Literal["validation", "train", "source"] = "validation"
    """Clips to fit detectors to: held-out training clips, all training clips, or all source-domain training clips."""
    per: Literal["section", "machine"] = "section"
    """Detectors are fitted for each section to its own clips, or once to the clips of all sections of the machine."""
    features: Literal["embedding", "logits", "both"] = "embedding"
    """Input of the detectors: the embedding, the product logits, or both concatenated."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Distance between embeddings; 'cosine' scales each embedding to unit length first."""
    poolings: tuple[str, ...] = ("min", "mean", "median", "lower-half-mean")
    """How windows become a clip. The anomaly scores of a clip's windows: mean, median, max, min, upper-half-mean,
    lower-half-mean, gwrp-0.5 (weighted ranks), or an import path. Or their features, before the detector, which then
    compares clips: clip-mean, clip-mean-std, clip-gem-3 (generalised mean), clip-rdp-4 (relative deviation)."""
    calibration_folds: int = bounded(5, minimum=0, maximum=1000)
    """Cross-validation folds used to score normal training clips, for thresholds, fusions and ensembles; 0 disables.
    Detectors by neighbours leave out one clip (or group) at a time where there are at most 60."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Choosing, ranking and combining systems."""

    year: Literal["auto", 2020, 2021, 2022, 2023, 2024, 2025, 2026] = "auto"
    """DCASE Task 2 challenge whose score and division into development and evaluation apply; 'auto' finds it by the
    clips' names, machines and folders, and takes 2021 where these fit no year alone."""
    development: tuple[str, ...] = ()
    """Development sections: a section '00', a machine 'fan', or 'fan/00'; all others are evaluation sections.
    Empty: the division of evaluation.year."""
    selection: Literal["development", "leave-one-section-out"] = "development"
    """Choose systems on development sections and rank them on the others; or choose for each section on all others."""
    criterion: Literal["official", "auc"] = "official"
    """Choose systems by the official score, or by the mean AUC, which is steadier where cells have few clips."""
    ensembles: tuple[str, ...] = ("seeds",)
    """Ensembles that average over seeds, checkpoints, detectors, or several ('seeds+detectors'); over variants
    ('both&shared-scac', 'both&shared-scac+seeds'), detector by detector; 'greedy' adds systems one by one while the
    score on the sections used for choosing rises."""
    fusion: Literal["z-mean", "z-min", "z-max", "rank-mean"] = "z-mean"
    """How ensembles combine scores, after scaling each by the training scores of its section."""
    threshold: Literal["conformal", "gamma", "percentile"] = "conformal"
    """Score above which a clip is called anomalous, from scores of normal clips: one of them, so chosen that
    evaluation.false_alarm_rate is kept; the quantile of a gamma distribution fitted to them, as in the official
    baseline; or their plain quantile."""
    false_alarm_rate: float = bounded(0.1, minimum=0.0, maximum=1.0)
    """Share of normal clips that may be called anomalous."""
    threshold_per: Literal["section", "machine"] = "section"
    """Normal clips that set a threshold: the section's own, or those of all sections of the machine. The rate
    then holds over the machine's sections together, not in each."""

    @property
    def rule_year(self) -> int:
        """The year; 2021 where nothing has told it."""
        return 2021 if self.year == "auto" else self.year


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)
