import math

import numpy as np
import pytest
import torch

from rayasd.config import Config, ExposureConfig
from rayasd.errors import UserError
from rayasd.exposure.mixing import draw_mix, mixup, mixup_probability
from rayasd.exposure.objectives import ClassObjective, find_objective, make_objective
from rayasd.exposure.objectives.margins import AdaCos, SubClusterAdaCos
from rayasd.exposure.objectives.two_bce import TwoBCE, product_loss, product_members


def with_objective(text: str) -> Config:
    return Config(exposure=ExposureConfig(objective=text))


def test_machine_loss_by_hand():
    objective = TwoBCE(Config(), ["00"], [4])
    embedding = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 0.0, 0.0, -2.0]])
    with torch.no_grad():
        objective.machine_head.weight.fill_(1.0)
        objective.machine_head.bias.fill_(0.0)  # logits: the mean squares, 1 and 2
    found = objective.losses(embedding, torch.tensor([[1.0, 1.0], [0.0, 0.0]]), mixed=False)["machine_loss"]
    # -log sigmoid(1) and -log(1 - sigmoid(2)), averaged
    assert found.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2, rel=1e-6)


def test_product_loss_by_hand_counts_members_only():
    machine, product = torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    logits = torch.tensor([[2.0, -1.0], [50.0, 50.0]])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    members = product_members(machine, mixed=False, rule="target")
    assert product_loss(logits, product, members, "bce").item() == pytest.approx(by_hand, rel=1e-6)
    assert product_loss(logits, product, torch.zeros(2, dtype=torch.bool), "bce").item() == 0.0


def test_who_enters_the_product_loss():
    machine = torch.tensor([1.0, 0.3, 0.0])
    assert product_members(machine, mixed=False, rule="all").tolist() == [True, True, False]
    assert product_members(machine, mixed=True, rule="target").tolist() == [True, True, False]
    assert product_members(machine, mixed=True, rule="all").tolist() == [True, True, True]


def test_losses_have_right_gradients():
    targets, members = torch.rand(3, 4, dtype=torch.float64), torch.tensor([True, True, False])
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for kind in ("bce", "cross-entropy"):
        assert torch.autograd.gradcheck(lambda x, kind=kind: product_loss(x, targets, members, kind), logits)
    objective = TwoBCE(Config(), ["00", "01", "02"], [5]).double()
    embedding = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: objective.losses(e, targets, mixed=True)["loss"], embedding)


def test_softmax_cross_entropy_by_hand_weighs_by_the_mixed_target():
    product = torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
    logits = torch.tensor([[2.0, -1.0], [0.0, 0.0], [9.0, 9.0]])
    by_hand = (math.log(1 + math.exp(-3)) + 0.5 * math.log(2)) / 2
    members = product_members(torch.tensor([1.0, 0.5, 0.0]), mixed=True, rule="target")
    assert product_loss(logits, product, members, "cross-entropy").item() == pytest.approx(by_hand, rel=1e-6)


def test_outputs_whose_losses_have_no_weight_are_not_given_to_detectors():
    embedding = torch.randn(2, 4)
    for changes, names in (
        ({}, {"machine_logit", "product_logits"}),
        ({"lambda_machine": 0.0}, {"product_logits"}),
        ({"lambda_product": 0.0}, {"machine_logit"}),
    ):
        objective = TwoBCE(Config(exposure=ExposureConfig(**changes)), ["00", "01"], [4])
        assert set(objective.outputs(embedding)) == names


def test_objectives_are_found_by_name_or_import_path():
    assert find_objective(Config())[0] is TwoBCE
    assert find_objective(with_objective("rayasd.exposure.objectives.two_bce.TwoBCE"))[0] is TwoBCE
    assert find_objective(with_objective("adacos"))[0] is ClassObjective
    made = make_objective(with_objective("sub-cluster-adacos(subclusters=3)"), ["a", "b"], [4, 4])
    assert isinstance(made.head, SubClusterAdaCos)
    assert made.head.vectors.shape == (6, 8)
    assert isinstance(make_objective(with_objective("adacos"), ["a", "b"], [4]).head, AdaCos)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("adacoss", "unknown exposure.objective 'adacoss': did you mean 'adacos'"),
        ("no.such.Objective", "exposure.objective no.such.Objective: No module named 'no'"),
        ("os.path.join", "exposure.objective os.path.join: must be a subclass of Objective or ClassLoss"),
        ("adacos(centres=3)", "exposure.objective adacos.*centres"),
        ("feature-exchange", "exposure.objective feature-exchange: FeatureExchange needs .* two branches, not 1"),
    ],
)
def test_objectives_that_cannot_be_made_are_refused_in_one_line(text: str, reason: str):
    with pytest.raises(UserError, match=reason) as error:
        make_objective(with_objective(text), ["a", "b"], [4])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("exposure", "reason"),
    [
        ({"scope": "all"}, "exposure.objective two-bce needs exposure.scope = machine"),
        ({"objective": "adacos", "classes": ()}, "exposure.classes names no column: exposure.objective adacos"),
        ({"objective": "adacos", "real_anomalies": 1}, "exposure.objective adacos cannot learn from exposure.real_ano"),
    ],
)
def test_objectives_that_are_not_for_these_settings_are_refused(exposure: dict[str, object], reason: str):
    with pytest.raises(UserError, match=reason):
        find_objective(Config(exposure=ExposureConfig(**exposure)))  # type: ignore[arg-type]


def test_one_class_is_nothing_to_tell_apart():
    with pytest.raises(UserError, match="exposure.objective adacos: AdaCos needs at least two classes, not 1"):
        make_objective(with_objective("adacos"), ["fan/00"], [4])


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


def test_mixup_mixes_waveforms_and_targets_alike():
    num_clips = 200
    machine = (torch.arange(num_clips) < 100).float()
    product = torch.nn.functional.one_hot(torch.arange(num_clips) % 3, 3).float() * machine[:, None]
    # the waveform carries its own targets, so that equal mixing can be read from it
    waveforms = torch.cat([machine[:, None], product], dim=1)
    mix, everyone = draw_mix(num_clips, 0.2, np.random.default_rng(0)), np.arange(num_clips)
    mixed, targets = (mixup(values, everyone, mix, everyone) for values in (waveforms, waveforms.clone()))
    torch.testing.assert_close(mixed, targets)
    machine, product = targets[:, 0], targets[:, 1:]
    torch.testing.assert_close(product.sum(dim=1), machine)  # pseudo-anomalous parts add no product
    between = (machine > 0.01) & (machine < 0.99)
    assert between.float().mean() > 0.1  # one weight for each clip, not one for a batch
    assert machine[between].unique().numel() > 20


def test_half_of_the_clips_are_mixed_if_asked_and_weights_are_uniform():
    mix = draw_mix(4000, 1.0, np.random.default_rng(0), share=0.5)
    mixed = mix.weight[mix.weight < 1]
    assert len(mixed) == pytest.approx(2000, abs=150)
    assert np.histogram(mixed, 4, (0, 1))[0] == pytest.approx([500] * 4, abs=100)
    assert mixup_probability("half", 0.3) == 1.0
