import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor

from rayasd.config import Config
from rayasd.data.catalog import Catalog, read_catalog
from rayasd.errors import UserError
from rayasd.exposure import ranks as ranks_module
from rayasd.exposure import training
from rayasd.exposure.batches import balanced_batches
from rayasd.exposure.clips import load_training_machines
from rayasd.exposure.network import Extractor
from rayasd.exposure.objectives.two_bce import TwoBCE
from rayasd.exposure.ranks import Ranks, on_ranks
from rayasd.exposure.training import train
from rayasd.stages import ALL_MACHINES
from rayasd.unit import Progress, Report, Stopped, UnitSpec, silent
from tests.conftest import SHARED, SpecOf
from tests.exposure import forked
from tests.exposure.test_training import history, weights, with_exposure


@pytest.fixture(scope="module")
def forking_process() -> Iterator[None]:
    forked.preload("rayasd.exposure.training", __name__)
    yield
    forked.stop()


@pytest.fixture
def forked_ranks(forking_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this test's ranks start quickly; without it, they start as in a sweep."""
    monkeypatch.setattr(ranks_module, "_start", forked.start)


class Spread(TwoBCE):
    """Couples all clips of the batch and ignores the machine head."""

    def losses(self, embedding: Tensor, targets: Tensor, *, mixed: bool) -> Mapping[str, Tensor]:
        losses = super().losses(embedding, targets, mixed=mixed)
        spread = (embedding * (1 + targets[:, :1])).std(dim=0).mean()
        return {**losses, "loss": spread + losses["product_loss"], "machine_loss": spread}


def in_double(ranks: Ranks, spec: UnitSpec, report: Report) -> None:
    """Do a few steps by each loss, in float64 and without what differs between ranks: batch statistics and dropout."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[assignment]
    machines = load_training_machines(read_catalog(spec.run.catalog, spec.data_root), spec)
    results = {}
    for loss in ("two-bce", f"{__name__}.Spread", "sub-cluster-adacos(subclusters=2)"):
        config = with_exposure(spec.config, objective=loss)
        learner = training.Training(ranks, replace(spec, config=config), machines, 100)
        learner.network.eval()
        batches = islice(balanced_batches(machines, config, 0, 0), 3)
        results[loss] = torch.stack([learner.step(batch, (0, machines[0].name, 0), 0.5)["loss"] for batch in batches])
        results |= {f"{loss} {name}": value.detach() for name, value in learner.network.named_parameters()}
    torch.save(results, spec.output / f"{ranks.size}-{ranks.rank}")


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
def test_ranks_learn_in_float64_what_one_process_learns(spec_of: SpecOf, small_config: Config):
    config = with_exposure(small_config, batch_size=14, mixup_schedule="always", weight_decay=0.0)
    for size in (1, 3):  # batches of 12 and 10 clips: 4, 3 and 3 rows
        on_ranks(in_double, spec_of(config=config, num_ranks=size), silent)
    alone, *ranks = (torch.load(spec_of().output / name) for name in ("1-0", "3-0", "3-1", "3-2"))
    for name, value in alone.items():
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-10, atol=1e-10)
        assert all(torch.equal(other[name], ranks[0][name]) for other in ranks[1:])
    assert any(not torch.equal(ranks[0][name], value) for name, value in alone.items())  # there were several ranks


def train_and_keep(ranks: Ranks, spec: UnitSpec, report: Report) -> None:
    """Train, and write every rank's parameters."""
    learners: list[training.Training] = []
    made = training.Training
    training.Training = lambda *of: learners.append(made(*of)) or learners[0]  # type: ignore[assignment,misc]
    training._train(ranks, spec, report)
    torch.save(dict(learners[0].network.named_parameters()), spec.output / f"rank-{ranks.rank}")


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
@pytest.mark.parametrize(("machine", "scope"), [("fan", {}), (ALL_MACHINES, SHARED)], ids=["machine", "all"])
def test_a_training_on_ranks_learns_and_goes_on_to_the_same_bits(
    spec_of: SpecOf, small_config: Config, machine: str, scope: dict[str, str]
):
    config = with_exposure(small_config, epochs=5, checkpoint_every=10, **scope)
    spec, reports = spec_of(machine=machine, config=config, num_ranks=3), list[Progress]()
    on_ranks(train_and_keep, spec, reports.append)
    expected, curve = weights(spec), [row["loss"] for row in history(spec)]
    assert curve[-1] < curve[0]
    assert "3 ranks" in reports[0].note
    assert [p.done for p in reports if p.loss is not None] == [1, 2, 3, 4, 5]
    first, *others = (torch.load(spec.output / f"rank-{rank}") for rank in range(3))
    assert all(torch.equal(other[name], value) for other in others for name, value in first.items())
    (spec.output / "model.safetensors").unlink()
    with pytest.raises(Stopped):
        train(spec, lambda progress: progress.done == 2)
    assert not (spec.output / "model.safetensors").exists()
    reports.clear()
    train(spec, reports.append)
    assert reports[0].done == 2
    assert weights(spec) == expected
    assert [row["loss"] for row in history(spec)] == curve


def test_batch_norms_for_gpus_keep_weights_and_activations(small_config: Config):
    extractor = Extractor(small_config).eval()
    waveforms, names = torch.randn(2, small_config.window_length), list(extractor.state_dict())
    with torch.inference_mode():
        expected = extractor(waveforms)
        assert convert_sync_batchnorm(extractor) is extractor
        found = extractor(waveforms)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in extractor.encoder.modules())
    assert torch.equal(found, expected)
    assert list(extractor.state_dict()) == names


def test_ranks_load_the_clips_crops_and_mixtures_of_one_process(
    catalog: Catalog, spec_of: SpecOf, small_config: Config
):
    machines = load_training_machines(catalog, spec_of())
    for schedule in ("never", "half", "always"):
        spec = spec_of(config=with_exposure(small_config, mixup_schedule=schedule))
        alone = training.Training(Ranks(), spec, machines, 1)
        for batch in balanced_batches(machines, small_config, seed=0, epoch=0):
            whole, targets, mixed = alone._load(batch, 0.5, (1, "fan", 0))
            assert mixed == (schedule != "never")
            assert not mixed or len(set(targets[:, 0].tolist())) > 2
            for rank in range(3):
                one = copy(alone)
                one.ranks = Ranks(rank, 3)
                own, of_all, _ = one._load(batch, 0.5, (1, "fan", 0))
                assert torch.equal(own, whole[rank::3])
                assert torch.equal(of_all, targets)


@pytest.mark.parametrize("num_clips", [6, 10, 12])
def test_each_clip_is_one_ranks(num_clips: int):
    rows = [Ranks(rank, 3).rows(num_clips) for rank in range(3)]
    assert sorted(np.concatenate(rows)) == list(range(num_clips))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_a_batch_that_leaves_a_rank_a_single_clip_is_refused():
    with pytest.raises(UserError, match="5 clips is too small for 3 ranks"):
        Ranks(0, 3).rows(5)  # of which a batch norm has no statistics
    assert Ranks().rows(1).tolist() == [0]


def end_badly(ranks: Ranks, spec: UnitSpec, report: Report) -> None:
    """Report the ids of all ranks; then rank 1 comes to the end that the seed chooses, and the others wait for it."""
    pids = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks.size)]
    dist.all_gather(pids, torch.tensor([os.getpid()]))
    report(Progress(0, 1, note=" ".join(str(int(pid)) for pid in pids)))
    dist.barrier()
    if ranks.rank == 1:
        if spec.unit.seed == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if spec.unit.seed == 1:
            os._exit(3)
        if spec.unit.seed == 2:
            raise UserError("lower the learning rate")
        if spec.unit.seed == 3:
            raise OSError(errno.ENOSPC, "full")
        if spec.unit.seed == 4:
            raise ValueError("a rank's own trouble")
        time.sleep(600)
    dist.all_reduce(torch.zeros(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "kind", "said"),
    [
        (0, RuntimeError, r"^rank 1 died \(SIGKILL\)$"),
        (1, RuntimeError, r"^rank 1 died \(exit code 3\)$"),
        (2, UserError, "^lower the learning rate$"),
        (3, OSError, "full"),
        (4, RuntimeError, "^rank 1: ValueError: a rank's own trouble"),
        (5, KeyboardInterrupt, "raised by the report"),
    ],
)
def test_a_rank_that_fails_is_named_and_none_is_left(
    spec_of: SpecOf, seed: int, kind: type[Exception], said: str, request: pytest.FixtureRequest
):
    if seed:  # one case starts its ranks as a sweep does
        request.getfixturevalue("forked_ranks")
    pids: list[int] = []

    def report(progress: Progress) -> None:
        pids.extend(map(int, progress.note.split()))
        if seed == 5:
            raise KeyboardInterrupt("raised by the report")

    with pytest.raises(kind, match=said) as error:
        on_ranks(end_badly, spec_of(seed=seed, num_ranks=2), report)
    assert len(pids) == 2
    assert not any(map(is_alive, pids))
    if seed == 4:
        assert "in end_badly" in error.value.__notes__[0]  # the rank's own traceback


def supervise(spec: UnitSpec, pipe: Connection) -> None:
    on_ranks(end_badly, spec, lambda progress: pipe.send(progress.note))


@pytest.mark.slow
def test_ranks_die_with_a_killed_supervisor(spec_of: SpecOf):
    ours, theirs = multiprocessing.Pipe()
    # a daemon, as the local executor's workers are: multiprocessing forbids them to have children
    supervisor = multiprocessing.get_context("spawn").Process(
        target=supervise, args=(spec_of(seed=5, num_ranks=2), theirs), daemon=True
    )
    supervisor.start()
    assert ours.poll(120)
    pids = [int(word) for word in ours.recv().split()]
    assert all(map(is_alive, pids))
    supervisor.kill()
    supervisor.join()
    until = time.monotonic() + 10
    while any(map(is_alive, pids)):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("auto", "2 ranks need as many CUDA devices, 1 visible: lower --ranks-per-unit"),
        ("cuda", "2 ranks need as many CUDA devices, 1 visible: lower --ranks-per-unit"),
        ("cuda:0", "device 'cuda:0' with 2 ranks: choose auto, cpu or cuda"),
    ],
)
def test_devices_that_ranks_cannot_have_are_refused(spec_of: SpecOf, monkeypatch, device: str, said: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=said):
        on_ranks(end_badly, spec_of(num_ranks=2, device=device), silent)


def is_alive(pid: int) -> bool:
    """Whether a process runs; an orphan that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
