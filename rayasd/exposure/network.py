"""The network: an encoder and a neck that make embeddings, and the objective that trains them; its files."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.encoders import features_of_windows, make_encoder
from rayasd.exposure.objectives import make_objective
from rayasd.files import read_json, replacing, write_json
from rayasd.registry import error_line

WEIGHTS = "model.safetensors"


class Extractor(nn.Module):
    """Waveforms (N, samples) to embeddings (N, dim)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        network = config.network
        self.encoder = make_encoder(config)
        features = getattr(self.encoder, "dim", network.embedding_dim)
        with_neck = network.is_trained and network.neck == "mlp"
        self.neck = _mlp(features, network.embedding_dim, network.dropout) if with_neck else nn.Identity()
        self.dim = network.embedding_dim if with_neck else features
        self.widths = (self.dim,) if with_neck else getattr(self.encoder, "widths", (features,))
        self.scaling: str = getattr(self.encoder, "scaling", "machine")
        if network.train != "full":
            self.encoder.requires_grad_(False)
        self._encoder_learns = network.train == "full"

    def train(self, mode: bool = True) -> "Extractor":
        """Set the mode; an encoder that does not learn stays in evaluation mode."""
        super().train(mode)
        if not self._encoder_learns:
            self.encoder.eval()
        return self

    def forward(self, waveforms: Tensor) -> Tensor:
        """Embed waveforms, scaled as ``scaling`` says."""
        features = features_of_windows(self.encoder, waveforms)
        with torch.autocast(waveforms.device.type, enabled=False):
            embedding: Tensor = self.neck(features)
            return embedding


class Network(nn.Module):
    """An extractor with the objective that trains it."""

    def __init__(self, config: Config, classes: Sequence[str]) -> None:
        super().__init__()
        self.extractor = Extractor(config)
        self.objective = make_objective(config, classes, self.extractor.widths)
        self._trained = config.exposure.epochs > 0

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
    """Write ``model.safetensors`` and the ``config.json`` that rebuilds it."""
    save_weights(folder / WEIGHTS, network)
    tables = {name: asdict(getattr(config, name)) for name in ("data", "front_end", "network")}
    facts = {"classes": network.objective.classes, "epochs": num_epochs}
    write_json(folder / "config.json", {**facts, **tables})


def save_weights(path: Path, network: Network) -> None:
    """Write a network's weights."""
    state = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
    with replacing(path, parents=False) as temporary:
        temporary.write_bytes(save(state))  # save_file hides what the system said, and permissions


def kept_path(folder: Path, epochs: int) -> Path:
    """Where the weights after so many epochs are kept."""
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
    """Read a trained network (on the CPU, in evaluation mode)."""
    return restored(config, class_names(folder), load_file(weights or folder / WEIGHTS))


def restored(config: Config, classes: Sequence[str], state: dict[str, Tensor]) -> Network:
    """Make a network of these weights (on the CPU, in evaluation mode); files of pretrained weights are not read."""
    network = Network(replace(config, network=replace(config.network, pretrained="")), classes)
    network.load_state_dict(state)
    return network.eval()


def num_parameters(config: Config, *, read_files: bool = False) -> int:
    """Make a variant's network once, with two classes; returns the number of its parameters, 0 for a control.

    Raises:
        UserError: it cannot be made, or its loss cannot be computed; with ``read_files``, also because of a file of
            pretrained weights.

    """
    if not read_files:
        config = replace(config, network=replace(config.network, pretrained=""))
    if config.exposure.clusters:
        Control(replace(config, network=replace(config.network, encoder=config.exposure.clusters_by, train="frozen")))
    if not config.network.is_trained:
        Control(config)
        return 0
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
    return sum(parameter.numel() for parameter in network.parameters())


def _mlp(features: int, dim: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(dropout), nn.Linear(features, dim), nn.BatchNorm1d(dim), nn.PReLU(), nn.Linear(dim, dim)
    )


def _facts(folder: Path) -> dict[str, Any]:
    facts = read_json(folder / "config.json")
    if not isinstance(facts, dict) or not {"classes", "epochs"} <= facts.keys():
        raise UserError(f"{folder / 'config.json'} is damaged or of rayasd 0.1: train again")
    return facts
