import math

import numpy as np
import pytest
import torch

from rayasd.config import ExposureConfig
from rayasd.errors import UserError
from rayasd.exposure.losses import find_losses, machine_bce, product_bce, product_cross_entropy, product_members
from rayasd.exposure.mixup import Targets, draw_mix, mixup, mixup_probability
from rayasd.exposure.network import Output


def targets(machine: list[float], product: list[list[float]]) -> Targets:
    return Targets(torch.tensor(machine), torch.tensor(product))


def output(machine_logit: torch.Tensor | None = None, product_logits: torch.Tensor | None = None) -> Output:
    unused = torch.empty(0)
    return Output(
        unused,
        unused if machine_logit is None else machine_logit,
        unused if product_logits is None else product_logits,
    )


def test_machine_loss_by_hand():
    # -log sigmoid(1) and -log(1 - sigmoid(2)), averaged
    by_hand = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    loss = machine_bce(output(torch.tensor([1.0, 2.0])), targets([1.0, 0.0], [[1.0], [0.0]]))
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_product_loss_by_hand_counts_members_only():
    t = targets([1.0, 0.0], [[1.0, 0.0], [0.0, 0.0]])
    logits = torch.tensor([[2.0, -1.0], [50.0, 50.0]])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    members = product_members(t, mixed=False, rule="target")
    assert product_bce(output(product_logits=logits), t, members).item() == pytest.approx(by_hand, rel=1e-6)
    assert product_bce(output(product_logits=logits), t, torch.zeros(2, dtype=torch.bool)).item() == 0.0


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
    for loss in (product_bce, product_cross_entropy):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(output(product_logits=x), t, members), logits)
    assert torch.autograd.gradcheck(lambda x: machine_bce(output(x), t), scalar)


def test_softmax_cross_entropy_by_hand_weighs_by_the_mixed_target():
    t = targets([1.0, 0.5, 0.0], [[1.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
    logits = torch.tensor([[2.0, -1.0], [0.0, 0.0], [9.0, 9.0]])
    by_hand = (math.log(1 + math.exp(-3)) + 0.5 * math.log(2)) / 2
    members = product_members(t, mixed=True, rule="target")
    assert product_cross_entropy(output(product_logits=logits), t, members).item() == pytest.approx(by_hand, rel=1e-6)


def test_losses_are_found_by_name_or_import_path():
    assert find_losses(ExposureConfig()) == (machine_bce, product_bce)
    mine = ExposureConfig(machine_loss="rayasd.exposure.losses.machine_bce", product_loss="cross-entropy")
    assert find_losses(mine) == (machine_bce, product_cross_entropy)
    for wrong, said in (("bse", "unknown exposure.machine_loss 'bse': did you mean 'bce'"), ("no.such.loss", "No mod")):
        with pytest.raises(UserError, match=said):
            find_losses(ExposureConfig(machine_loss=wrong))


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
    mix, everyone = draw_mix(num_clips, 0.2, np.random.default_rng(0)), np.arange(num_clips)
    mixed, *both = (mixup(values, everyone, mix, everyone) for values in (waveforms, machine, product))
    t = Targets(*both)
    torch.testing.assert_close(mixed[:, 0], t.machine)
    torch.testing.assert_close(mixed[:, 1:], t.product)
    torch.testing.assert_close(t.product.sum(dim=1), t.machine)  # pseudo-anomalous parts add no product
    between = (t.machine > 0.01) & (t.machine < 0.99)
    assert between.float().mean() > 0.1  # one weight a clip, not one a batch
    assert t.machine[between].unique().numel() > 20
