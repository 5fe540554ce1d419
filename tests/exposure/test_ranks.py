import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, DropPath
from torch import nn

from rayasd.config import Config
from rayasd.data.catalog import Catalog
from rayasd.errors import UserError
from rayasd.exposure import ranks, training
from rayasd.exposure.batches import epoch_batches
from rayasd.exposure.clips import load_target_and_others
from rayasd.exposure.network import Output
from rayasd.exposure.ranks import Ranks, on_ranks
from rayasd.exposure.training import train
from rayasd.randomness import generator
from rayasd.unit import Progress, Report, Stopped, UnitSpec, silent
from tests.conftest import SpecOf
from tests.exposure import forked
from tests.exposure.test_training import history, weights, with_exposure

LOSSES = ("loss", "machine_loss", "product_loss")


@pytest.fixture(scope="module")
def forking_process() -> Iterator[None]:
    forked.preload("rayasd.exposure.training", __name__)
    yield
    forked.stop()


@pytest.fixture
def forked_ranks(forking_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this test's ranks start quickly; without it, they start as in a sweep."""
    monkeypatch.setattr(ranks, "_start", forked.start)


def assert_same_curves(spec: UnitSpec, expected: list[dict[str, float]]) -> None:
    found = history(spec)
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert [row[k] for k in LOSSES] == pytest.approx([other[k] for k in LOSSES], abs=1e-4)
        assert row["validation_loss"] == pytest.approx(other["validation_loss"], abs=1e-2)  # divides by running ones
        assert row["learning_rate"] == other["learning_rate"]


def in_double(ranks: Ranks, spec: UnitSpec, report: Report) -> None:
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[assignment]
    training._train(ranks, spec, report)


def train_in_double(spec: UnitSpec, report: Report = silent) -> None:
    """Train on one rank or several; in single precision, batch norms of batches this small make much of a rounding.

    How much depends on the processor: losses differed by up to 0.02 on one, and by less than 0.0001 on another.
    """
    if spec.num_ranks == 1:
        on_ranks(in_double, spec, report)
    else:
        with mock.patch.object(training, "_train", in_double):
            train(spec, report)


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_ranks", "changes"),
    [
        (2, {}),
        (2, {"target_domain_per_batch": 1, "mixup_schedule": "always"}),
        (3, {"batch_size": 14}),  # batches of 12 and 10 clips
    ],
)
def test_ranks_learn_what_one_process_learns(
    spec_of: SpecOf, small_config: Config, num_ranks: int, changes: dict[str, object]
):
    config = with_exposure(small_config, epochs=5, learning_rate=5e-4, **changes)
    reports: list[list[Progress]] = [[], []]
    train_in_double(spec_of(config=config), reports[0].append)
    expected = history(spec_of())
    (spec_of().output / "model.safetensors").unlink()
    train_in_double(spec_of(config=config, num_ranks=num_ranks), reports[1].append)
    assert_same_curves(spec_of(), expected)
    assert weights(spec_of())
    assert f"{num_ranks} ranks" in reports[1][0].note
    first, second = ([(p.done, p.total, p.clips) for p in all_of_them] for all_of_them in reports)
    assert first == second


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
def test_without_rounding_ranks_learn_exactly_what_one_process_learns(spec_of: SpecOf, small_config: Config):
    # of batches this small, single precision makes much of a rounding within a few epochs
    config = with_exposure(small_config, epochs=5, target_domain_per_batch=1, batch_size=10, mixup_schedule="always")
    losses = []
    for num_ranks in (1, 2):
        train_in_double(spec_of(config=config, num_ranks=num_ranks))
        losses.append([row[name] for row in history(spec_of()) for name in (*LOSSES, "validation_loss")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0] != losses[1]  # the last bits tell that there were two ranks


def test_ranks_load_the_clips_crops_and_mixtures_of_one_process(
    catalog: Catalog, spec_of: SpecOf, small_config: Config
):
    target, others = load_target_and_others(catalog, spec_of())
    for schedule in ("never", "always"):
        spec = spec_of(config=with_exposure(small_config, mixup_schedule=schedule))
        alone = training.Training.begin(Ranks(), spec, target, others, 1)
        for batch in epoch_batches(target, others, small_config, seed=0, epoch=0):
            whole, targets, mixed = alone._load(batch, 0.5, generator(1))
            assert mixed == (schedule == "always")
            assert not mixed or len(set(targets.machine.tolist())) > 2
            for rank in range(3):
                own, of_all, _ = replace(alone, ranks=Ranks(rank, 3))._load(batch, 0.5, generator(1))
                assert torch.equal(own, whole[rank::3])
                assert torch.equal(of_all.machine, targets.machine)
                assert torch.equal(of_all.product, targets.product)


@pytest.mark.parametrize("num_clips", [3, 10, 12])
def test_each_clip_is_one_ranks(num_clips: int):
    rows = [Ranks(rank, 3).rows(num_clips) for rank in range(3)]
    assert sorted(np.concatenate(rows)) == list(range(num_clips))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_a_batch_of_fewer_clips_than_ranks_is_refused():
    with pytest.raises(UserError, match="2 clips is too small for 3 ranks"):
        Ranks(0, 3).rows(2)


NUM_CLIPS = 7  # on 3 ranks: 3, 2 and 2


def compare_layers(ranks: Ranks, spec: UnitSpec, report: Report) -> None:
    """Compare layers on all ranks with the same layers on the whole batch, which every rank knows."""
    layers_and_shapes = [
        (lambda: nn.BatchNorm1d(4), (4,)),
        (lambda: nn.BatchNorm1d(4, affine=False, momentum=None), (4, 5)),
        (lambda: nn.BatchNorm2d(4, momentum=0.3), (4, 5, 6)),
        (lambda: BatchNormAct2d(4, act_layer=nn.SiLU), (4, 5, 6)),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.PReLU()), (4,)),
    ]
    for make, shape in layers_and_shapes:
        torch.manual_seed(1)
        alone = make().train()
        together = make().train()
        together.load_state_dict(alone.state_dict())
        for _ in range(2):  # the second update of running statistics differs from the first
            values = 3 + 2 * torch.randn(NUM_CLIPS, *shape)
            whole = values.clone().requires_grad_()
            own = values[ranks.rows(NUM_CLIPS)].requires_grad_()
            importance = torch.randn_like(values)
            expected = alone(whole)
            with ranks.whole_batch(NUM_CLIPS):
                found = together(own)
            (expected * importance).sum().backward()
            (found * importance[ranks.rows(NUM_CLIPS)]).sum().backward()
            assert whole.grad is not None
            torch.testing.assert_close(found, expected[ranks.rows(NUM_CLIPS)], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(own.grad, whole.grad[ranks.rows(NUM_CLIPS)], rtol=1e-4, atol=1e-5)
        if any(True for _ in together.parameters()):
            ranks.sum_gradients(together.parameters())
        for a, b in zip(together.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
        for name, value in together.state_dict().items():
            torch.testing.assert_close(value, alone.state_dict()[name], rtol=1e-5, atol=1e-6, msg=name)
        with ranks.whole_batch(NUM_CLIPS):  # evaluation takes the running statistics
            evaluated = together.eval()(own)
        torch.testing.assert_close(evaluated, alone.eval()(values)[ranks.rows(NUM_CLIPS)], rtol=1e-4, atol=1e-5)
    for layer in (nn.Dropout(0.4), DropPath(0.4)):
        values = torch.randn(NUM_CLIPS, 6)
        torch.manual_seed(5)
        expected = layer.train()(values)
        torch.manual_seed(5)
        with ranks.whole_batch(NUM_CLIPS):
            assert torch.equal(layer(values[ranks.rows(NUM_CLIPS)]), expected[ranks.rows(NUM_CLIPS)])
    compare_gathered(ranks)
    report(Progress(1, 1, note="compared"))


def compare_gathered(ranks: Ranks) -> None:
    for num_clips in (3, 7, 8, 9):
        whole = Output(torch.randn(num_clips, 4), torch.randn(num_clips), torch.randn(num_clips, 2))
        own = Output(*(values[ranks.rows(num_clips)].requires_grad_() for values in whole))
        gathered = ranks.gather(own, num_clips)
        for values, expected, mine in zip(gathered, whole, own, strict=True):
            assert torch.equal(values, expected)
            values.square().sum().backward()
            assert torch.equal(mine.grad, 2 * mine)  # type: ignore[arg-type]


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
def test_layers_and_outputs_are_those_of_the_whole_batch(spec_of: SpecOf):
    notes: list[str] = []
    on_ranks(compare_layers, spec_of(num_ranks=3), lambda progress: notes.append(progress.note))
    assert notes == ["compared"]


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
def test_a_stopped_training_on_ranks_goes_on(spec_of: SpecOf, small_config: Config):
    config = with_exposure(small_config, epochs=4, checkpoint_every=10, learning_rate=5e-4)
    train_in_double(spec_of(config=config))
    expected = history(spec_of())
    (spec_of().output / "model.safetensors").unlink()
    spec = spec_of(config=config, num_ranks=2)
    with pytest.raises(Stopped):
        train_in_double(spec, lambda progress: progress.done == 2)
    state = torch.load(spec.output / training.STATE, weights_only=True)
    assert len(json.loads(state["history"])) == 2
    assert not (spec.output / "model.safetensors").exists()
    reports: list[Progress] = []
    train_in_double(spec, reports.append)
    assert reports[0].done == 2
    assert_same_curves(spec, expected)
    assert not (spec.output / training.STATE).exists()


def tell_pids(ranks: Ranks, report: Report) -> None:
    """Report the ids of all ranks' processes, before any rank goes on."""
    pids = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks.size)]
    dist.all_gather(pids, torch.tensor([os.getpid()]))
    report(Progress(0, 1, note=" ".join(str(int(pid)) for pid in pids)))
    dist.barrier()


def end_badly(ranks: Ranks, spec: UnitSpec, report: Report) -> None:
    """Rank 1 comes to the end that the seed says; the others wait for it."""
    tell_pids(ranks, report)
    if ranks.rank == 1:
        if spec.unit.seed == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if spec.unit.seed == 1:
            os._exit(3)
        if spec.unit.seed == 2:
            raise UserError("lower the learning rate")
        raise ValueError("a rank's own trouble")
    dist.all_reduce(torch.zeros(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "kind", "said"),
    [
        (0, RuntimeError, r"^rank 1 died \(SIGKILL\)$"),
        (1, RuntimeError, r"^rank 1 died \(exit code 3\)$"),
        (2, UserError, "^lower the learning rate$"),
        (3, RuntimeError, "^rank 1: ValueError: a rank's own trouble"),
    ],
)
def test_a_rank_that_fails_is_named_and_none_is_left(
    spec_of: SpecOf, request: pytest.FixtureRequest, seed: int, kind: type[Exception], said: str
):
    if seed:
        request.getfixturevalue("forked_ranks")
    pids: list[int] = []
    with pytest.raises(kind, match=said) as error:
        on_ranks(end_badly, spec_of(seed=seed, num_ranks=2), lambda p: pids.extend(map(int, p.note.split())))
    assert len(pids) == 2
    assert not any(map(is_alive, pids))
    if seed == 3:
        assert "in end_badly" in error.value.__notes__[0]  # the rank's own traceback


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
def test_a_report_that_fails_leaves_no_rank(spec_of: SpecOf):
    pids: list[int] = []

    def report(progress: Progress) -> None:
        pids.extend(map(int, progress.note.split()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_ranks(end_badly, spec_of(seed=2, num_ranks=2), report)
    assert len(pids) == 2
    assert not any(map(is_alive, pids))


def wait_long(ranks: Ranks, spec: UnitSpec, report: Report) -> None:
    tell_pids(ranks, report)
    time.sleep(600)


def supervise(spec: UnitSpec, pids: Path) -> None:
    def report(progress: Progress) -> None:
        pids.write_text(progress.note)

    on_ranks(wait_long, spec, report)


@pytest.mark.slow
def test_ranks_die_with_a_killed_supervisor(spec_of: SpecOf, tmp_path: Path):
    told = tmp_path / "pids"
    # a daemon, as the local executor's workers are: multiprocessing would let it have no children
    supervisor = multiprocessing.get_context("spawn").Process(
        target=supervise, args=(spec_of(num_ranks=2), told), daemon=True
    )
    supervisor.start()
    pids = []
    try:
        assert within(300, lambda: told.exists() and len(told.read_text().split()) == 2)
        pids = [int(word) for word in told.read_text().split()]
        assert all(map(is_alive, pids))
    finally:
        supervisor.kill()
        supervisor.join()
    assert within(60, lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_ranks_than_cuda_devices_are_refused(spec_of: SpecOf, monkeypatch: pytest.MonkeyPatch, device: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="2 ranks need a CUDA device each, of 1"):
        on_ranks(wait_long, spec_of(num_ranks=2, device=device), silent)


def test_ranks_on_one_named_device_are_refused(spec_of: SpecOf):
    with pytest.raises(UserError, match="device 'cuda:0' with 2 ranks: choose auto, cpu or cuda"):
        on_ranks(wait_long, spec_of(num_ranks=2, device="cuda:0"), silent)


def is_alive(pid: int) -> bool:
    """Whether a process runs; an orphan that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def within(seconds: float, condition) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
