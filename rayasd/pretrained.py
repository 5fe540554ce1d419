"""Files of pretrained weights that a configuration names: which, what is in them, and where. Does without torch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.files import digest, file_digest
from rayasd.registry import parse_call

PARAMETERS = ("file", "folder")  # parameters of an encoder that name weights, whoever wrote the encoder


def weight_paths(config: Config) -> list[str]:
    """List the files and folders of weights that a variant's units may read."""
    exposure = config.exposure
    clusters_by = _named(exposure.clusters_by) if exposure.clusters else ()
    return list(dict.fromkeys(filter(None, [config.network.pretrained, *_named(config.network.encoder), *clusters_by])))


def base_paths(config: Config) -> list[str]:
    """List what a trained network needs beside its own weights: nothing of ``network.pretrained`` if all is trained."""
    network = without_replaced(config).network
    return list(dict.fromkeys(filter(None, [network.pretrained, *_named(network.encoder)])))


def without_replaced(config: Config) -> Config:
    """Leave out ``network.pretrained`` where training has changed all that came from it."""
    full = config.network.train == "full"
    return replace(config, network=replace(config.network, pretrained="")) if full else config


def files_of(path: str) -> dict[str, Path]:
    """Return the files of weights by name: the file alone, or those directly in the folder.

    Raises UserError: there is neither.
    """
    place = Path(path)
    if place.is_file():
        return {place.name: place}
    inside = sorted(place.iterdir()) if place.is_dir() else []
    if not (found := {each.name: each for each in inside if each.is_file() and not each.name.startswith(".")}):
        raise UserError(f"pretrained weights: no such file: {path}")
    return found


def fingerprint(path: str) -> str:
    """Return the sha256 of a file of weights, or one of all files of a folder and their names.

    Raises UserError: it is missing, or cannot be read.
    """
    try:
        digests = {name: file_digest(each) for name, each in files_of(path).items()}
    except OSError as error:
        raise UserError(f"pretrained weights: cannot read {path}: {error.strerror or error}") from None
    return digests[Path(path).name] if Path(path).is_file() else digest(digests)


def check_unchanged(expected: Mapping[str, str]) -> None:
    """Make sure that files of weights are those whose fingerprints, by path, are given.

    Raises UserError: one is missing or has changed.
    """
    for path, known in expected.items():
        if fingerprint(path) != known:
            raise UserError(f"{path} has changed since it was used for training or scoring: restore it")


def relocated(config: Config, places: Mapping[str, str]) -> Config:
    """Name weights by other paths, in the network alone."""
    network, pretrained = config.network, places.get(config.network.pretrained, config.network.pretrained)
    return replace(config, network=replace(network, pretrained=pretrained, encoder=_relocated(network.encoder, places)))


@contextmanager
def unpacked(config: Config, files: Mapping[str, bytes]) -> Iterator[Config]:
    """Write files, by relative path, to a folder that lasts for the block, and name them there."""
    if not files:
        yield config
        return
    with TemporaryDirectory(prefix="rayasd-weights-") as folder:
        for name, content in files.items():
            path = Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        yield relocated(config, {path: str(Path(folder) / path) for path in base_paths(config)})


def encoder_names(text: str) -> list[str]:
    """Name an encoder and those of its branches."""
    return [name for name, _ in _calls(text)]


def _named(text: str) -> list[str]:
    return [str(value) for _, given in _calls(text) for name, value in given.items() if name in PARAMETERS]


def _calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    name, parameters = parse_call("network.encoder", text)
    return [(name, parameters), *(call for part in _parts(parameters) for call in _calls(part))]


def _parts(parameters: Mapping[str, Any]) -> list[str]:
    """List the encoders of ``branches(encoders=[...])``."""
    parts = parameters.get("encoders", ())
    return [str(each) for each in parts] if isinstance(parts, list | tuple) else []


def _relocated(text: str, places: Mapping[str, str]) -> str:
    name, parameters = parse_call("network.encoder", text)
    if not _named(text):
        return text
    changed = {
        key: places.get(str(value), value) if key in PARAMETERS
        else [_relocated(each, places) for each in _parts(parameters)] if key == "encoders"
        else value
        for key, value in parameters.items()
    }  # fmt: skip
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in changed.items())})"
