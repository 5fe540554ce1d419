import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rayasd.errors import UserError
from rayasd.exposure.objectives.margins import (
    AdaCos,
    AdaProj,
    ArcFace,
    ClassLoss,
    CrossEntropy,
    FeatureExchange,
    SubClusterAdaCos,
    Subspace,
)

DIM, C = 6, 4
Array = NDArray[np.float64]
MAKERS: dict[str, Callable[[], ClassLoss]] = {
    "cross-entropy": lambda: CrossEntropy(C, [DIM]),
    "adacos": lambda: AdaCos(C, [DIM]),
    "sub-cluster": lambda: SubClusterAdaCos(C, [DIM], subclusters=3),
    "fixed centres": lambda: SubClusterAdaCos(C, [DIM], subclusters=3, trainable=False),
    "adaproj": lambda: AdaProj(C, [DIM], subspace=3),
    "arcface": lambda: ArcFace(C, [DIM], margin=0.4, scale=8.0),
    "exchange": lambda: FeatureExchange(C, (2, 4), subclusters=3),
    "subspace": lambda: Subspace(C, (2, 4), subclusters=3),
}
EVERY = pytest.mark.parametrize("name", MAKERS)


def make(name: str, seed: int = 0) -> ClassLoss:
    torch.manual_seed(seed)
    return MAKERS[name]().double()


def batch(seed: int, num: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of any length, and labels: the first two clips hard, the others of two classes."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((num, C))
    for i in range(num):
        a, b = rng.permutation(C)[:2]
        share = 1.0 if i < 2 else rng.uniform()
        labels[i, a], labels[i, b] = share, 1 - share
    embedding = rng.standard_normal((num, DIM)) * rng.uniform(0.1, 9, (num, 1))
    return torch.from_numpy(embedding), torch.from_numpy(labels)


def cos(x: Array, w: Array) -> float:
    return float(x @ w / math.sqrt((x @ x) * (w @ w)))


def log_probabilities(logits: Array) -> Array:
    shifted = logits - logits.max()
    return shifted - math.log(sum(math.exp(v) for v in shifted))


def by_hand(name: str, module: ClassLoss, embedding: Array, labels: Array) -> float:
    """The definition of each loss, clip by clip and column by column."""
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    if name == "subspace":
        parts = [module.joint, *module.parts]
        pieces = [embedding, embedding[:, :2], embedding[:, 2:]]
        return sum(by_hand("sub-cluster", m, e, labels) for m, e in zip(parts, pieces, strict=True))
    total = 0.0
    for x, y in zip(embedding, labels, strict=True):
        if name == "cross-entropy":
            total -= y @ log_probabilities(state["linear.weight"] @ x + state["linear.bias"])
        elif name == "adacos":
            total -= y @ log_probabilities(np.array([state["scale"] * cos(x, w) for w in state["vectors"]]))
        elif name in ("sub-cluster", "fixed centres"):
            columns = log_probabilities(np.array([state["scale"] * cos(x, w) for w in state["vectors"]]))
            size = len(columns) // len(y)
            total -= sum(y[c] * math.log(sum(np.exp(columns[c * size : (c + 1) * size]))) for c in range(len(y)))
        elif name == "adaproj":
            logits = []
            for c in range(C):
                units = [w / math.sqrt(w @ w) for w in state["vectors"][3 * c : 3 * c + 3]]
                logits.append(state["scale"] * cos(x, sum(x @ w * w for w in units)))
            total -= y @ log_probabilities(np.array(logits))
        elif name == "arcface":
            for own in range(C):  # as if it were the class, times its share
                angles = [math.acos(cos(x, w)) + 0.4 * (c == own) for c, w in enumerate(state["vectors"])]
                total -= y[own] * log_probabilities(8.0 * np.cos(angles))[own]
    return total / len(embedding)


@EVERY
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_losses_are_their_definitions(name: str, seed: int):
    module, (embedding, labels) = make(name, seed), batch(seed)
    if name == "exchange":
        module.eval()  # exchanges nothing
        plain = by_hand("sub-cluster", module.plain, embedding.numpy(), labels.numpy())
        unchanged = np.concatenate([labels.numpy(), np.zeros((len(labels), 2 * C))], axis=1)
        expected = plain + by_hand("sub-cluster", module.exchanged, embedding.numpy(), unchanged)
    else:
        expected = by_hand(name, module, embedding.numpy(), labels.numpy())
    assert module(embedding, labels).item() == pytest.approx(expected, rel=1e-9)


@EVERY
def test_gradients_are_right(name: str):
    module, (embedding, labels) = make(name), batch(3, num=4)
    parameters = [p for p in module.parameters() if p.requires_grad]

    def loss(embedding: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)  # the same exchange each time
        return module(embedding, labels)

    assert torch.autograd.gradcheck(loss, (embedding.requires_grad_(), *parameters))


@pytest.mark.parametrize("name", sorted(MAKERS.keys() - {"exchange", "subspace"}))
def test_logits_rate_the_classes(name: str):
    module, (embedding, labels) = make(name), batch(1)
    logits = module.logits(embedding)
    assert logits.shape == (len(labels), C)
    if name != "arcface":  # which has a margin
        assert torch.allclose(-(labels * logits.log_softmax(1)).sum(1).mean(), module(embedding, labels))


@EVERY
def test_length_of_embeddings_counts_for_cross_entropy_only(name: str):
    module, (embedding, labels) = make(name).eval(), batch(2)
    same = torch.allclose(module(embedding, labels), module(7 * embedding, labels))
    assert same == (name != "cross-entropy")


@EVERY
def test_zero_extreme_and_half_precision_embeddings_give_finite_gradients(name: str):
    torch.manual_seed(0)
    module = MAKERS[name]()
    labels = torch.eye(C)
    for embedding in (torch.zeros(C, DIM), 1e4 * torch.ones(C, DIM), torch.randn(C, DIM).bfloat16()):
        embedding.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(embedding, labels)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert embedding.grad is not None
        assert embedding.grad.isfinite().all()


def test_the_log_probability_of_a_class_far_away_is_finite():
    module = SubClusterAdaCos(2, [2], subclusters=2).double()
    module.vectors.data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    module.scale.fill_(1e4)  # exp(-2e4) is 0
    loss = module(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    assert loss.item() == pytest.approx(2e4)


def test_scales_begin_as_published():
    assert AdaCos(33, [DIM]).scale.item() == pytest.approx(math.sqrt(2) * math.log(32))
    assert AdaProj(33, [DIM]).scale.item() == pytest.approx(math.sqrt(2) * math.log(32))
    assert SubClusterAdaCos(33, [DIM]).scale.item() == pytest.approx(math.sqrt(2) * math.log(16 * 33 - 1))
    assert ArcFace(33, [DIM]).scale.item() == 64
    assert AdaCos(2, [DIM]).scale.item() == AdaCos(3, [DIM]).scale.item() > 0  # the formula gives 0 for two classes


def adapted(scale: float, cosines: Array, labels: Array, per_class: int) -> float:
    """One update of the scale, column by column."""
    terms, own = [], []
    for row, y in zip(cosines, labels, strict=True):
        shared = [c for c in range(C) if y[c] > 0]
        columns = [j for j in range(len(row)) if per_class > 1 or j not in shared]
        terms.append(sum(math.exp(scale * row[j]) for j in columns))
        angle = sum(y[c] * math.acos(row[c * per_class + k]) for c in shared for k in range(per_class))
        own.append(angle * len(shared))
    median = sorted(own)[(len(own) - 1) // 2]
    found = math.log(sum(terms) / len(terms)) / math.cos(min(math.pi / 4, median))
    return max(found, math.sqrt(2) * math.log(2))


@pytest.mark.parametrize("name", ["adacos", "sub-cluster", "adaproj"])
@pytest.mark.parametrize("near", [False, True])
def test_an_adaptive_scale_follows_its_formula_step_by_step(name: str, near: bool):
    module = make(name)
    module.adaptive = True
    per_class = {"sub-cluster": 3}.get(name, 1)
    scale = module.scale.item()
    for seed in range(5):
        embedding, labels = batch(seed)
        if near:  # embeddings at the centres of their classes, so that the angle counts
            labels = torch.eye(C, dtype=torch.float64)
            centres = module.vectors.data.unflatten(0, (C, -1))
            centres[:] = centres[:, :1] + 0.05 * torch.randn_like(centres)
            embedding = centres.mean(dim=1) + 0.01 * torch.from_numpy(np.random.default_rng(seed).random((C, DIM)))
        scale = adapted(scale, module.cosines(embedding).detach().numpy(), labels.numpy(), per_class)
        loss = module(embedding, labels)
        assert module.scale.item() == pytest.approx(scale, rel=1e-9)
        assert loss.item() == pytest.approx(by_hand(name, module, embedding.numpy(), labels.numpy()))
    module.eval()(embedding, labels)
    assert module.scale.item() == pytest.approx(scale, rel=1e-9)


def test_own_angles_are_those_of_the_own_class_not_of_tiled_labels():
    module = SubClusterAdaCos(3, [3], subclusters=3, adaptive=True).double()
    module.vectors.data = torch.eye(3, dtype=torch.float64).repeat_interleave(3, dim=0)  # class by class
    before = module.scale.item()
    module(torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    # own angles are 0: the cosine is 1. Labels tiled over the columns would find a right angle, and √2 times the scale.
    assert module.scale.item() == pytest.approx(math.log(3 * math.exp(before) + 6))


def test_a_batch_without_other_classes_leaves_the_scale():
    module = AdaCos(2, [DIM], adaptive=True)
    before = module.scale.item()
    module(torch.randn(3, DIM), torch.full((3, 2), 0.5))
    assert module.scale.item() == before


def test_an_adaptive_scale_is_not_part_of_the_graph_and_allows_two_steps_before_one_gradient():
    module = AdaCos(C, [DIM], adaptive=True).double()
    (a, b), (c, d) = batch(0), batch(1)
    (module(a, b) + module(c, d)).backward()
    assert not module.scale.requires_grad


@EVERY
def test_state_is_restored_with_scale_and_centres(name: str):
    one, other = make(name, 0), make(name, 1)
    embedding, labels = batch(0)
    for module in one.modules():
        if hasattr(module, "adaptive"):
            module.adaptive = name != "arcface"
    one(embedding, labels)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(one.eval()(embedding, labels), other.eval()(embedding, labels), rtol=0, atol=0)


def test_what_is_fixed_does_not_learn():
    assert not list(AdaProj(C, [DIM]).parameters())
    assert not list(SubClusterAdaCos(C, [DIM], trainable=False).parameters())
    assert [name for name, _ in Subspace(C, (2, 4)).named_parameters()] == ["parts.0.vectors", "parts.1.vectors"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), widths=st.lists(st.integers(1, 3), min_size=2, max_size=4))
def test_exchanged_branches_bring_their_labels(seed: int, widths: list[int]):
    torch.manual_seed(seed)
    module, num = FeatureExchange(5, widths, subclusters=1), 5
    clips = torch.arange(5.0)  # each entry of an embedding names its clip, whose class has the same number
    embedding, labels = module.exchange(clips[:, None].expand(num, sum(widths)), torch.eye(5))
    assert labels.shape == (num, 5 * (len(widths) + 1))
    for i in range(num):
        origins = [int(branch[0]) for branch in embedding[i].split(widths)]
        assert origins[0] == i
        expected = torch.zeros(len(widths) + 1, 5)
        if labels[i, :5].any():
            assert set(origins) == {i}
            expected[0, i] = 1
        else:
            for m, origin in enumerate(origins):
                expected[m + 1, origin] = 1 / len(widths)
        assert torch.equal(labels[i], expected.flatten())


def test_exchange_happens_with_its_probability_in_training_only():
    module = FeatureExchange(2, (1, 1), probability=0.3)
    embedding, labels = torch.randn(4000, 2), torch.eye(2)[torch.randint(2, (4000,))]
    exchanged = module.exchange(embedding, labels)[1][:, :2].sum(dim=1) == 0
    assert exchanged.float().mean().item() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(module.eval().exchange(embedding, labels)[0], embedding)


def test_draws_come_from_the_default_generator():
    module, (embedding, labels) = make("exchange"), batch(0)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(module(embedding, labels).item())
    assert losses[0] == losses[1] != losses[2]


def test_one_class_or_one_branch_is_refused():
    for loss in (CrossEntropy, AdaCos, SubClusterAdaCos, AdaProj, ArcFace):
        with pytest.raises(UserError, match=f"^{loss.__name__} needs at least two classes, not 1$"):
            loss(1, [DIM])
    for pair in (FeatureExchange, Subspace):
        with pytest.raises(UserError, match=f"^{pair.__name__} needs at least two classes, not 1$"):
            pair(1, (2, 4))
        with pytest.raises(UserError, match=f"^{pair.__name__} needs an embedding of at least two branches, not 1$"):
            pair(C, (6,))
