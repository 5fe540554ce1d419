"""The device computes what the CPU computes, a resumed training what an undisturbed one does, bfloat16 nearly so."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.gpu.material import material
from benchmarks.gpu.results import Row, at_least, at_most
from benchmarks.gpu.running import Work
from benchmarks.measure import apart
from benchmarks.recordings import RATE
from rayasd.config import Config
from rayasd.data.catalog import read_catalog
from rayasd.exposure.batches import balanced_batches
from rayasd.exposure.clips import load_training_machines
from rayasd.exposure.device import Compute, choose_compute
from rayasd.exposure.embedding import embed_windows
from rayasd.exposure.network import WEIGHTS, Network
from rayasd.exposure.ranks import Ranks
from rayasd.exposure.training import Training, train
from rayasd.unit import Stopped, UnitSpec

EMBEDDING_BOUND = 1e-3
"""Largest distance of a window's float32 embeddings, over their length."""
FIRST_LOSS_BOUND, LATER_LOSS_BOUND = 1e-4, 1e-2
"""Largest relative difference of float32 losses: before the first update of the weights, and in the steps after it."""
AGREEMENT_BOUND, BFLOAT16_LOSS_BOUND = 0.99, 0.02
"""Of bfloat16 with float32: what detectors see, and relative losses."""
STEPS, CHECKED_BATCH = 4, 32
WINDOWS = 64
SCALE = (0.0, 0.1)
"""Mean and deviation of the checked waveforms, full scale 1."""


def resume(work: Work) -> Iterator[Row]:
    """Compare the weights of an interrupted and resumed training with those of an undisturbed one, bit by bit."""
    spec = with_exposure(material(work).spec, epochs=2 if work.tiny else 3)
    again, resumed, total = apart(differing_weights, spec)
    yield at_most("weights that differ after a training repeated", again, 0, f"of {total}")
    yield at_most("weights that differ after a training resumed", resumed, 0, f"of {total}")
    if again or resumed:  # then it is good to know what would help
        again, resumed, total = apart(deterministically, spec)
        yield Row("… repeated, with deterministic algorithms", again, f"of {total}")
        yield Row("… resumed, with deterministic algorithms", resumed, f"of {total}")


def differing_weights(spec: UnitSpec) -> tuple[int, int, int]:
    """Weights that differ from an undisturbed training's: in a second one, in a resumed one; and how many there are."""
    torch.set_num_threads(spec.num_threads)
    train(spec)
    undisturbed = load_file(spec.output / WEIGHTS)
    train(spec)
    again = load_file(spec.output / WEIGHTS)
    with suppress(Stopped):
        train(spec, lambda progress: True)  # stops at the end of the first epoch
    torch.manual_seed(12345)  # whatever else the process does must not matter
    train(spec)
    resumed = load_file(spec.output / WEIGHTS)
    total = sum(value.numel() for value in undisturbed.values())
    return differing(undisturbed, again), differing(undisturbed, resumed), total


def deterministically(spec: UnitSpec) -> tuple[int, int, int]:
    """Do the same with torch's deterministic algorithms."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    return differing_weights(spec)


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> int:
    """Count the values whose bits are not the same."""
    return sum(int((_bits(value) != _bits(other[name])).sum()) for name, value in one.items())


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.int32) if values.dtype is torch.float32 else values


def embeddings(work: Work) -> Iterator[Row]:
    """Compare float32 embeddings of the device with the CPU's, of the same weights."""
    spec = material(work).spec
    samples, compute = checked_windows(work, spec.config), choose_compute(spec.device, "float32")
    with as_reference(compute.device):
        reference = embedded(spec.config, choose_compute("cpu", "float32"), samples)
    use_tf32(False)
    yield at_most("distance of embeddings", distance(reference, embedded(spec.config, compute, samples)),
                  EMBEDDING_BOUND, "of their length", against_cpu(compute.device))  # fmt: skip
    if compute.device.type == "cuda":
        use_tf32(True)
        by_tf32 = distance(reference, embedded(spec.config, compute, samples))
        yield Row("distance of embeddings, TF32 convolutions", by_tf32, "of their length", note="as torch sets it")


def losses(work: Work) -> Iterator[Row]:
    """Compare the float32 losses of the first steps on the device with the CPU's."""
    spec = material(work).spec
    device = choose_compute(spec.device, "float32").device
    with as_reference(device):
        reference = first_losses(spec, "cpu", "float32")
    use_tf32(False)
    difference = np.abs(first_losses(spec, spec.device, "float32") / reference - 1)
    yield at_most("difference of the first loss", difference[0], FIRST_LOSS_BOUND, "of it", against_cpu(device))
    yield at_most(f"difference of losses 2 to {STEPS}", difference[1:].max(), LATER_LOSS_BOUND, "of them",
                  against_cpu(device))  # fmt: skip


def bfloat16(work: Work) -> Iterator[Row]:
    """Compare bfloat16 with float32 on the device."""
    spec = material(work).spec
    samples = checked_windows(work, spec.config)
    exact, rounded = (
        embedded(spec.config, choose_compute(spec.device, precision), samples) for precision in ("float32", "bfloat16")
    )
    exact, rounded = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (exact, rounded))
    yield Row(
        "smallest cosine of embeddings", float((exact * rounded).sum(axis=1).min()), note="bfloat16 against float32"
    )
    pairs = np.triu_indices(len(exact), 1)
    agreement = float(np.corrcoef((exact @ exact.T)[pairs], (rounded @ rounded.T)[pairs])[0, 1])
    yield at_least("correlation of the cosines between windows", agreement, AGREEMENT_BOUND)
    whole, half = (first_losses(spec, spec.device, precision) for precision in ("float32", "bfloat16"))
    difference = np.abs(half / whole - 1)
    yield at_most("difference of the first loss", difference[0], BFLOAT16_LOSS_BOUND, "of it")
    yield at_most(f"difference of losses 2 to {STEPS}", difference[1:].max(), BFLOAT16_LOSS_BOUND, "of them")


def with_exposure(spec: UnitSpec, **settings: object) -> UnitSpec:
    """Change settings of the training."""
    exposure = replace(spec.config.exposure, **settings)  # type: ignore[arg-type]
    return replace(spec, config=replace(spec.config, exposure=exposure))


@contextmanager
def as_reference(device: torch.device) -> Iterator[None]:
    """Let the CPU compute without oneDNN if it is the device that is checked: else there is nothing to compare."""
    if device.type != "cpu":
        yield
        return
    with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):
        yield


def against_cpu(device: torch.device) -> str:
    """Name what is compared."""
    return f"{device.type} against " + ("the CPU" if device.type != "cpu" else "itself without oneDNN")


def checked_windows(work: Work, config: Config) -> NDArray[np.int16]:
    """Make the windows whose embeddings are compared."""
    return tones(8 if work.tiny else WINDOWS, config.window_length)


def tones(number: int, length: int) -> NDArray[np.int16]:
    """Windows (number, length) of tones in noise, each of another frequency."""
    rng, time = np.random.default_rng(1), np.arange(length) / RATE
    sounds = np.sin(2 * np.pi * np.geomspace(100, 7000, number)[:, None] * time)
    return (6000 * sounds + rng.normal(0, 1500, (number, length))).astype(np.int16)


def embedded(config: Config, compute: Compute, samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """Embed windows by random weights, with the batch norms' statistics of such windows.

    Of white noise, random weights make nearly constant features: batch norm divides by deviations near zero and turns
    differences of 1e-6 in the weights into 0.2 in the embeddings.
    """
    torch.manual_seed(0)
    network = Network(config, ["00", "01", "02"])
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.from_numpy(tones(WINDOWS, config.window_length)) / (32768 * SCALE[1]))
    table = embed_windows(compute.place(network).eval(), compute, samples, SCALE, config)
    return table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(samples), -1)


def distance(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Largest distance of a row from the reference's, over that one's length."""
    return float((np.linalg.norm(reference - other, axis=1) / np.linalg.norm(reference, axis=1)).max())


def first_losses(spec: UnitSpec, device: str, precision: str) -> NDArray[np.float64]:
    """Total losses of the first steps of a training without dropout, whose random numbers each device draws itself."""
    network = replace(spec.config.network, dropout=0.0, precision=precision)
    size = min(CHECKED_BATCH, spec.config.exposure.batch_size)
    spec = replace(with_exposure(spec, batch_size=size), device=device)
    spec = replace(spec, config=replace(spec.config, network=network))
    machines = load_training_machines(read_catalog(spec.run.catalog, spec.data_root), spec)
    training, key = Training(Ranks(), spec, machines, 100), (spec.unit.seed, spec.unit.machine, 0)
    batches = islice(balanced_batches(machines, spec.config, spec.unit.seed, 0), STEPS)
    return np.array([training.step(batch, key, batch.step / 100)["loss"].item() for batch in batches])


def use_tf32(used: bool) -> None:
    """Let convolutions and matrix products of float32 round their inputs to TF32, or not."""
    torch.backends.cudnn.allow_tf32 = used
    torch.backends.cuda.matmul.allow_tf32 = False
