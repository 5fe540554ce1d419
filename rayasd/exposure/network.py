"""The network: an encoder and a neck that make embeddings, and the objective that trains them; its files."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.encoders import features_of_windows, make_encoder
from rayasd.exposure.encoders.weights import base_names
from rayasd.exposure.lora import NAMES as LORA
from rayasd.exposure.lora import add_lora
from rayasd.exposure.objectives import make_objective
from rayasd.files import read_json, replacing, write_json
from rayasd.pretrained import base_paths, check_unchanged, fingerprint, without_replaced
from rayasd.registry import error_line

WEIGHTS = "model.safetensors"


class AttentiveStatistics(nn.Module):
    """Attentive statistics pooling (Okabe et al., Interspeech 2018), then a linear layer.

    A grid (N, T, F, features) becomes its weighted mean and deviation over T and F, and these embeddings (N, dim). The
    weights are ``softmax(v tanh(W h + b))`` of each place's features h.
    """

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(features, dim), nn.Tanh(), nn.Linear(dim, 1))
        self.linear = nn.Linear(2 * features, dim)

    def forward(self, grid: Tensor) -> Tensor:
        """Embed grids."""
        places = grid.flatten(1, 2)
        weights = self.attention(places).softmax(dim=1)
        mean = (weights * places).sum(dim=1)
        variance = (weights * (places - mean.unsqueeze(1)).square()).sum(dim=1)
        return self.linear(torch.cat([mean, (variance + 1e-6).sqrt()], dim=1))


class Extractor(nn.Module):
    """Waveforms (N, samples) to embeddings (N, dim)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        network = config.network
        self.encoder = make_encoder(config)
        features = getattr(self.encoder, "dim", network.embedding_dim)
        with_neck = network.is_trained and network.neck != "none"
        self.neck: nn.Module = nn.Identity()
        if with_neck and network.neck == "mlp":
            dim = network.embedding_dim
            self.neck = nn.Sequential(
                nn.Dropout(network.dropout),
                nn.Linear(features, dim),
                nn.BatchNorm1d(dim),
                nn.PReLU(),
                nn.Linear(dim, dim),
            )
        elif with_neck:
            if not getattr(self.encoder, "gives_grid", False):
                raise UserError(f"network.neck = attentive needs an encoder of grids, which {network.encoder} is not")
            self.neck = AttentiveStatistics(features, network.embedding_dim)
        self.dim = network.embedding_dim if with_neck else features
        self.widths = (self.dim,) if with_neck else getattr(self.encoder, "widths", (features,))
        self.scaling: str = getattr(self.encoder, "scaling", "machine")
        if network.train != "full":
            self.encoder.requires_grad_(False)
        if network.lora is not None:
            add_lora(self.encoder, network.lora)
        self.encoder_learns = network.train == "full"
        self._in_float32 = not with_neck and not getattr(self.encoder, "ends_in_float32", False)

    def train(self, mode: bool = True) -> "Extractor":
        """Set the mode; an encoder that does not learn, or learns low-rank updates alone, stays in evaluation mode."""
        super().train(mode)
        if not self.encoder_learns:
            self.encoder.eval()
        return self

    def forward(self, waveforms: Tensor) -> Tensor:
        """Embed waveforms that are scaled by ``scaling``."""
        in_float32 = torch.autocast(waveforms.device.type, enabled=False)
        with in_float32 if self._in_float32 else nullcontext():  # bfloat16 has 8 bits: distances would tie
            of_grids = isinstance(self.neck, AttentiveStatistics)
            features = self.encoder(waveforms).float() if of_grids else features_of_windows(self.encoder, waveforms)
        with in_float32:
            embedding: Tensor = self.neck(features)
            return embedding


class Network(nn.Module):
    """An extractor with the objective that trains it."""

    def __init__(self, config: Config, classes: Sequence[str]) -> None:
        super().__init__()
        self.extractor = Extractor(config)
        self.objective = make_objective(config, classes, self.extractor.widths)
        self._trained = config.exposure.epochs > 0

    def saved_state(self) -> dict[str, Tensor]:
        """Return what files of this network hold: all that files of pretrained weights do not hold already."""
        base = self._base()
        return {name: value for name, value in self.state_dict().items() if name not in base}

    def load_saved_state(self, state: Mapping[str, Tensor]) -> None:
        """Take in what ``saved_state`` returned. Raises UserError: it is of another network."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        if other := sorted(set(missing) ^ self._base()) + list(unexpected):
            raise UserError(f"these weights are of another network: {other[0]} and {len(other) - 1} others differ")

    def _base(self) -> set[str]:
        """Name the parameters and buffers that come from files of pretrained weights and are not trained."""
        names = set() if self.extractor.encoder_learns else base_names(self)
        return {name for name in names if name.rpartition(".")[2] not in LORA}

    def forward(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Return ``embedding`` (N, dim) and, after training, what the objective has for detectors, by name."""
        embedding = self.extractor(waveforms)
        with torch.autocast(waveforms.device.type, enabled=False):
            return {"embedding": embedding, **(self.objective.outputs(embedding) if self._trained else {})}


class Control(nn.Module):
    """An extractor without objective: nothing of it is trained. Weights that no file gives are the same everywhere."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        with torch.random.fork_rng([]):  # made on the CPU
            torch.manual_seed(0)
            self.extractor = Extractor(config)

    def forward(self, waveforms: Tensor) -> dict[str, Tensor]:
        """Return ``embedding`` (N, dim)."""
        return {"embedding": self.extractor(waveforms)}


def save_network(folder: Path, network: Network, config: Config, num_epochs: int) -> None:
    """Write ``model.safetensors``, and the ``config.json`` that rebuilds it and names the files that it builds on."""
    save_weights(folder / WEIGHTS, network)
    tables = {name: asdict(getattr(config, name)) for name in ("data", "front_end", "network")}
    files = {path: fingerprint(path) for path in base_paths(config)}
    facts = {"classes": network.objective.classes, "epochs": num_epochs, **({"files": files} if files else {})}
    write_json(folder / "config.json", {**facts, **tables})


def save_weights(path: Path, network: Network) -> None:
    """Write a network's weights: those that files of pretrained weights do not hold."""
    # clone: layers may share a tensor, which safetensors refuses
    state = {name: value.detach().cpu().contiguous().clone() for name, value in network.saved_state().items()}
    with replacing(path, parents=False) as temporary:
        temporary.write_bytes(save(state))  # save_file hides what the system said, and permissions


def kept_path(folder: Path, epochs: int) -> Path:
    """Path of the weights after so many epochs."""
    return folder / f"model-epoch-{epochs}.safetensors"


def weights_by_epochs(folder: Path) -> dict[int, Path]:
    """Find the weights of a finished training, by the number of epochs; the last ones come last."""
    return {**kept_weights(folder), int(_facts(folder)["epochs"]): folder / WEIGHTS}


def kept_weights(folder: Path) -> dict[int, Path]:
    """Find the weights that were kept before the end of training, by number of epochs."""
    kept = {int(path.stem.rpartition("-")[2]): path for path in folder.glob("model-epoch-*.safetensors")}
    return dict(sorted(kept.items()))


def class_names(folder: Path) -> list[str]:
    """Return the classes that a trained network tells apart."""
    names: list[str] = _facts(folder)["classes"]
    return names


def load_network(folder: Path, config: Config, weights: Path | None = None) -> Network:
    """Read a trained network (on the CPU, in evaluation mode).

    Raises UserError: a file of pretrained weights that it builds on is missing or has changed.
    """
    check_unchanged(_facts(folder).get("files", {}))
    return restored(config, class_names(folder), load_file(weights or folder / WEIGHTS))


def restored(config: Config, classes: Sequence[str], state: dict[str, Tensor]) -> Network:
    """Make a network of these weights and of the files that it builds on (on the CPU, in evaluation mode)."""
    network = Network(without_replaced(config), classes)
    network.load_saved_state(state)
    return network.eval()


def num_parameters(config: Config) -> int:
    """Make a variant's network once; returns the number of its parameters, 0 for a control.

    Raises UserError: it cannot be made, or its loss cannot be computed.
    """
    network = _tried(replace(config, network=replace(config.network, pretrained="")))
    return 0 if network is None else sum(parameter.numel() for parameter in network.parameters())


def num_saved_parameters(config: Config) -> int:
    """Count what a file of a variant's weights holds, 0 for a control; files of pretrained weights are read.

    Raises UserError: the network cannot be made, or its loss cannot be computed.
    """
    network = _tried(config)
    return 0 if network is None else sum(value.numel() for value in network.saved_state().values())


def _tried(config: Config) -> Network | None:
    """Make a variant's network with two classes, and try its loss; None for a control, which is made too."""
    if config.exposure.clusters:
        Control(replace(config, network=replace(config.network, encoder=config.exposure.clusters_by, train="frozen")))
    if not config.network.is_trained:
        Control(config)
        return None
    network = Network(config, ["0", "1"]).eval()
    objective = network.objective
    embedding, classes = torch.randn(4, network.extractor.dim), torch.arange(4) % 2
    try:
        loss = objective.losses(embedding, objective.targets(classes, classes == 0), mixed=False)["loss"]
    except Exception as error:  # whatever somebody's own objective raises
        raise UserError(f"exposure.objective {config.exposure.objective}: {error_line(error)}") from None
    if not torch.isfinite(loss):
        raise UserError(
            f"exposure.objective {config.exposure.objective}: its loss is {loss.item()} before any training"
        )
    return network


def _facts(folder: Path) -> dict[str, Any]:
    facts = read_json(folder / "config.json")
    if not isinstance(facts, dict) or not {"classes", "epochs"} <= facts.keys():
        raise UserError(f"{folder / 'config.json'} is damaged or of rayasd 0.1: train again")
    return facts
