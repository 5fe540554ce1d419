"""The plain way, as the field's recipes do it: correct, readable, not slowed down, and not hurried either."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import timm
import torch
import torchaudio
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, LocalOutlierFactor, NearestNeighbors
from sklearn.svm import OneClassSVM
from torch import Tensor, nn
from torch.utils.data import Dataset

from rayasd.config import Config


class Clips(Dataset[tuple[Tensor, float, int]]):
    """Reads a whole file for each item, and cuts a random window."""

    def __init__(self, files: Sequence[tuple[Path, float, int]], config: Config, mean: float, deviation: float) -> None:
        self.files, self.mean, self.deviation = files, mean, deviation
        self.length = round(config.front_end.window_seconds * config.data.sample_rate)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, float, int]:
        path, machine, product = self.files[index]
        samples, _ = soundfile.read(path, dtype="float32")
        start = np.random.randint(0, max(1, len(samples) - self.length))
        window = torch.from_numpy(samples[start : start + self.length])
        return (window - self.mean) / self.deviation, machine, product


class ClipWindows(Dataset[Tensor]):
    """Reads a whole file for each item, and cuts evenly spaced windows (windows, samples)."""

    def __init__(self, files: Sequence[Path], config: Config, mean: float, deviation: float) -> None:
        self.files, self.mean, self.deviation = files, mean, deviation
        self.length = round(config.front_end.window_seconds * config.data.sample_rate)
        self.num_windows = config.embedding.num_windows

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        samples, _ = soundfile.read(self.files[index], dtype="float32")
        starts = np.linspace(0, len(samples) - self.length, self.num_windows).round().astype(int)
        windows = np.stack([samples[start : start + self.length] for start in starts])
        return (torch.from_numpy(windows) - self.mean) / self.deviation


class Network(nn.Module):
    """The same network as ours: contiguous tensors, float32, torchaudio's mel spectrogram as it comes."""

    def __init__(self, config: Config, num_products: int) -> None:
        super().__init__()
        front, network = config.front_end, config.network
        self.mel = torchaudio.transforms.MelSpectrogram(
            config.data.sample_rate, n_fft=front.n_fft, hop_length=front.hop_length, f_min=front.f_min,
            f_max=front.highest(config.data.sample_rate), n_mels=front.n_mels, power=front.power,
            normalized=front.normalized,
        )  # fmt: skip
        self.log = front.log
        self.backbone = timm.create_model(network.backbone, in_chans=1, num_classes=0, global_pool="avg")
        dim = network.embedding_dim
        self.neck = nn.Sequential(
            nn.Dropout(network.dropout), nn.Linear(self.backbone.num_features, dim), nn.BatchNorm1d(dim), nn.PReLU(),
            nn.Linear(dim, dim),
        )  # fmt: skip
        self.machine_head, self.product_head = nn.Linear(1, 1), nn.Linear(dim, num_products, bias=False)

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mel = self.mel(waveforms).unsqueeze(1)
        embedding = self.neck(self.backbone((mel + 1e-6).log() if self.log else mel))
        machine = self.machine_head(embedding.square().mean(dim=1, keepdim=True)).squeeze(1)
        return embedding, machine, self.product_head(embedding)


def train_batch(
    network: Network, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor, Tensor], num_products: int
) -> float:
    """One step with mixup and the two binary cross-entropies."""
    device = next(network.parameters()).device
    waveforms, machine, product = (part.to(device) for part in batch)
    targets = nn.functional.one_hot(product, num_products).float() * machine[:, None].float()
    partner = torch.randperm(len(waveforms), device=device)
    weight = torch.distributions.Beta(0.5, 0.5).sample((len(waveforms), 1)).to(device)
    waveforms = weight * waveforms + (1 - weight) * waveforms[partner]
    machine = weight[:, 0] * machine.float() + (1 - weight[:, 0]) * machine.float()[partner]
    targets = weight * targets + (1 - weight) * targets[partner]
    _, machine_logit, product_logits = network(waveforms)
    loss = nn.functional.binary_cross_entropy_with_logits(machine_logit, machine)
    loss = loss + nn.functional.binary_cross_entropy_with_logits(product_logits, targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def embed_batch(network: Network, windows: Tensor) -> np.ndarray:
    """Embeddings (clips x windows, D) of the windows of some clips (clips, windows, samples)."""
    embedding, _, _ = network(windows.flatten(0, 1).to(next(network.parameters()).device))
    return embedding.cpu().numpy()


def detector_scores(family: str, h: int, bank: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Anomaly scores of one grid point, fitted from nothing."""
    if family == "knn":
        return NearestNeighbors(n_neighbors=h).fit(bank).kneighbors(test)[0].mean(axis=1)
    detector = {
        "lof": lambda: LocalOutlierFactor(n_neighbors=h, novelty=True),
        "gmm": lambda: GaussianMixture(h, random_state=0),
        "ocsvm": lambda: OneClassSVM(nu=1 / (2 * h)),
        "kde": lambda: KernelDensity(bandwidth=float(h)),
    }[family]()
    if family == "gmm":  # as ours: in single precision, full covariances of many components fail
        bank, test = bank.astype(float), test.astype(float)
    scores = -detector.fit(bank).score_samples(test)
    return scores / detector.dual_coef_.sum() if family == "ocsvm" else scores  # as ours: mean, not sum


def metrics(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """AUC and pAUC of each row of scores."""
    return np.array([[roc_auc_score(labels, row), roc_auc_score(labels, row, max_fpr=0.1)] for row in scores])
