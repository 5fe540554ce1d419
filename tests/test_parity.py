"""What is fast here gives what the plain way gives (benchmarks/plain.py), from the same inputs."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks import plain
from rayasd.config import Config, InlierConfig
from rayasd.evaluation.metrics import auc, partial_auc
from rayasd.exposure.device import choose_compute
from rayasd.exposure.network import Network
from rayasd.host import freed_memory_kept
from rayasd.inlier.detectors import anomaly_scores, fit_detector, most_neighbours, parse_detectors
from rayasd.inlier.neighbours import NeighbourSearch


def test_training_steps_are_those_of_the_plain_network(small_config: Config):
    config = replace(small_config, network=replace(small_config.network, dropout=0.0))
    torch.manual_seed(0)
    ours = choose_compute("cpu", "float32").place(Network(config, ["00", "03"])).train()
    theirs = plain.Network(config, 2).train()
    state = {
        re.sub(r"^(extractor\.(encoder\.)?|objective\.)", "", name): value for name, value in ours.state_dict().items()
    }
    copied = theirs.load_state_dict(state, strict=False)
    assert all(key.startswith("mel.") for key in copied.missing_keys)
    assert all(key.startswith("front_end.") for key in copied.unexpected_keys)
    optimizers = [torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0) for network in (ours, theirs)]
    machine, product = torch.tensor([1.0] * 8 + [0.0] * 8), torch.zeros(16, 2)
    product[:4, 0] = product[4:8, 1] = 1.0
    targets, curves = torch.cat([machine.unsqueeze(1), product], dim=1), []

    def loss_of_ours(waveforms: torch.Tensor) -> torch.Tensor:
        losses = ours.objective.losses(ours.extractor(waveforms), targets, mixed=False)
        return losses["machine_loss"] + losses["product_loss"]

    def loss_of_theirs(waveforms: torch.Tensor) -> torch.Tensor:
        _, machine_logit, product_logits = theirs(waveforms)
        of_product = binary_cross_entropy_with_logits(product_logits[:8], product[:8])
        return binary_cross_entropy_with_logits(machine_logit, machine) + of_product

    for _ in range(4):
        waveforms, losses = torch.randn(16, 8000), []
        for loss_of, optimizer in zip((loss_of_ours, loss_of_theirs), optimizers, strict=True):
            with freed_memory_kept():
                loss = loss_of(waveforms)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    by_us, by_them = np.array(curves).T
    np.testing.assert_allclose(by_us, by_them, rtol=2e-3)
    assert by_us[0] != by_us[-1]


@pytest.mark.parametrize("family", ["lof", "gmm", "knn", "ocsvm", "kde"])
def test_detectors_that_share_their_work_score_as_scikit_learn_does_alone(family: str):
    rng = np.random.default_rng(0)
    bank, test = rng.standard_normal((150, 16)).astype(np.float32), 3 * rng.standard_normal((60, 16)).astype(np.float32)
    grid = (1, 2, 4, 8)
    specs = parse_detectors([family], InlierConfig(grid=grid))
    search = NeighbourSearch(bank, most_neighbours(specs))
    with threadpool_limits(1):  # another number of threads adds up in another order
        for h, spec in zip(grid, specs, strict=True):
            detector = spec.build()
            fit_detector(detector, bank, neighbours=search)
            np.testing.assert_allclose(anomaly_scores(detector, test), _alone(family, h, bank, test), rtol=1e-6)


def _alone(family: str, h: int, bank: np.ndarray, test: np.ndarray) -> np.ndarray:
    if family != "kde":
        return plain.detector_scores(family, h, bank, test)
    squared = np.square(test[:, None].astype(np.float64) - bank.astype(np.float64)).sum(axis=2)
    log_sum = logsumexp(-squared / (2 * h**2), axis=1)  # scikit-learn's own loses what is far from all windows
    return -(log_sum - np.log(len(bank)) - 16 * np.log(h) - 8 * np.log(2 * np.pi))


def test_metrics_of_many_systems_are_scikit_learns_one_by_one():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = rng.standard_normal((50, 200)).round(1)  # with ties
    ours = np.stack([auc(labels, scores), partial_auc(labels, scores)], axis=1)
    np.testing.assert_allclose(ours, plain.metrics(labels, scores), rtol=0, atol=1e-12)
