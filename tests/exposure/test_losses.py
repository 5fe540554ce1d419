import math

import numpy as np
import pytest
import torch

from rayasd.exposure.losses import machine_loss, product_loss, product_members
from rayasd.exposure.mixup import Targets, mixup, mixup_probability


def targets(machine: list[float], product: list[list[float]]) -> Targets:
    return Targets(torch.tensor(machine), torch.tensor(product))


def test_machine_loss_by_hand():
    # -log sigmoid(1) and -log(1 - sigmoid(2)), averaged
    by_hand = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    loss = machine_loss(torch.tensor([1.0, 2.0]), targets([1.0, 0.0], [[1.0], [0.0]]))
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_product_loss_by_hand_counts_members_only():
    t = targets([1.0, 0.0], [[1.0, 0.0], [0.0, 0.0]])
    logits = torch.tensor([[2.0, -1.0], [50.0, 50.0]])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    members = product_members(t, mixed=False, rule="target")
    assert product_loss(logits, t, members).item() == pytest.approx(by_hand, rel=1e-6)
    assert product_loss(logits, t, torch.zeros(2, dtype=torch.bool)).item() == 0.0


def test_who_enters_the_product_loss():
    t = targets([1.0, 0.3, 0.0], [[1.0], [0.3], [0.0]])
    assert product_members(t, mixed=False, rule="all").tolist() == [True, True, False]
    assert product_members(t, mixed=True, rule="target").tolist() == [True, True, False]
    assert product_members(t, mixed=True, rule="all").tolist() == [True, True, True]


def test_losses_have_right_gradients():
    t = Targets(torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64))
    members = torch.tensor([True, True, False])
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    scalar = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: product_loss(x, t, members), logits)
    assert torch.autograd.gradcheck(lambda x: machine_loss(x, t), scalar)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("cosine-down", [1.0, math.cos(math.pi / 8), math.sqrt(0.5), 0.0]),
        ("cosine-up", [0.0, 0.5, 1.0, 1.0]),
        ("always", [1.0] * 4),
        ("never", [0.0] * 4),
    ],
)
def test_mixup_probability_at_start_quarter_half_and_end(schedule: str, values: list[float]):
    found = [mixup_probability(schedule, t) for t in (0.0, 0.25, 0.5, 1.0)]
    assert found == pytest.approx(values, abs=1e-12)


def test_mixup_mixes_waveforms_and_both_targets_alike():
    num_clips = 200
    machine = (torch.arange(num_clips) < 100).float()
    product = torch.nn.functional.one_hot(torch.arange(num_clips) % 3, 3).float() * machine[:, None]
    # the waveform carries its own targets, so that equal mixing can be read from it
    waveforms = torch.cat([machine[:, None], product], dim=1)
    mixed, t = mixup(waveforms, Targets(machine, product), 0.2, np.random.default_rng(0))
    torch.testing.assert_close(mixed[:, 0], t.machine)
    torch.testing.assert_close(mixed[:, 1:], t.product)
    torch.testing.assert_close(t.product.sum(dim=1), t.machine)  # pseudo-anomalous parts add no product
    between = (t.machine > 0.01) & (t.machine < 0.99)
    assert between.float().mean() > 0.1  # one weight a clip, not one a batch
    assert t.machine[between].unique().numel() > 20
