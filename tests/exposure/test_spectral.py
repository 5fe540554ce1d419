import io
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rayasd.config import Config, DataConfig, FrontEndConfig
from rayasd.errors import UserError
from rayasd.exposure.encoders.spectral import LONG, SHORT, FftNetwork, StftResNet, _shortest

RATE = 16000
BOTH = pytest.mark.parametrize("network", [StftResNet, FftNetwork])


def of_length(samples: int) -> Config:
    return Config(front_end=FrontEndConfig(window_seconds=samples / RATE))


def num_parameters(*networks: nn.Module) -> float:
    return sum(p.numel() for network in networks for p in network.parameters()) / 1e6


def test_parameter_counts_are_the_published_ones():
    stft = StftResNet(of_length(10 * RATE))
    others = [StftResNet(of_length(10 * RATE), n_fft=n, hop_length=n // 2) for n in (256, 4096)]
    assert num_parameters(stft) == pytest.approx(0.97, abs=0.005)
    for seconds, fft, pair, multiple in ((10, 1.53, 2.50, 5.00), (12, 1.56, 2.53, 5.03), (18, 1.66, 2.63, 5.13)):
        network = FftNetwork(of_length(seconds * RATE))
        counts = num_parameters(network), num_parameters(network, stft), num_parameters(network, stft, *others)
        assert counts == pytest.approx((fft, pair, multiple), abs=0.005)


def test_layers_have_the_published_sizes():
    stft = StftResNet(of_length(10 * RATE))
    seen: list[tuple[int, ...]] = []
    stft.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    stft.eval()(torch.randn(1, 10 * RATE))
    assert seen == [(1, 1, 500, 313)]
    assert not any("bias" in name for name, _ in stft.named_parameters())
    assert not any(m.affine for m in stft.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d))
    long, short = (FftNetwork(of_length(n * RATE)) for n in (10, 2))
    for network, expected in ((long, LONG), (short, SHORT)):
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv1d)]
        assert tuple((m.kernel_size[0], m.stride[0]) for m in convolutions) == expected


def test_strides_follow_the_length():
    def second(length: int) -> tuple[int, int]:
        convolutions = [m for m in FftNetwork(of_length(length)).modules() if isinstance(m, nn.Conv1d)]
        return convolutions[1].kernel_size[0], convolutions[1].stride[0]

    assert (second(70_013), second(70_014)) == (SHORT[1], LONG[1])
    own = FftNetwork(of_length(1000), strides=[(64, 8), (16, 4)])
    assert own(torch.randn(2, 1000)).shape == (2, 128)


@BOTH
@pytest.mark.parametrize("dim", [128, 32])
def test_embeddings_have_the_width_asked_for(network: type[StftResNet | FftNetwork], dim: int):
    made = network(of_length(RATE), dim=dim)
    assert made(torch.randn(3, RATE)).shape == (3, dim)
    assert (made.dim, network.scaling) == (dim, "none")


@settings(max_examples=10, deadline=None)
@given(length=st.integers(1024, 6000), hop_length=st.integers(200, 1024), rate=st.sampled_from([8000, 16000, 44100]))
def test_any_length_of_a_frame_and_more_fits_the_spectrogram(length: int, hop_length: int, rate: int):
    config = Config(data=DataConfig(sample_rate=rate), front_end=FrontEndConfig(window_seconds=length / rate))
    made = StftResNet(config, hop_length=hop_length, dim=8)
    assert made(torch.randn(2, length)).shape == (2, 8)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=3), st.integers(1, 300))
def test_the_shortest_length_leaves_one_value(strides: list[tuple[int, int]], length: int):
    size = length // 2 + 1
    for kernel, stride in strides:
        size = (size - kernel) // stride + 1 if size >= kernel else 0
    assert (size >= 1) == (length >= _shortest(strides))


def test_too_short_a_window_is_refused_with_the_shortest_length():
    shortest = _shortest(SHORT)
    assert FftNetwork(of_length(shortest))(torch.randn(2, shortest)).shape == (2, 128)
    with pytest.raises(UserError, match=rf"{shortest} samples \(0\.984 s at 16000 Hz\) at least, not of 8000$"):
        FftNetwork(of_length(8000))
    with pytest.raises(UserError, match="n_fft 4096 needs windows of 4096 samples .* not of 4095$"):
        StftResNet(of_length(4095), n_fft=4096)
    with pytest.raises(UserError, match="no frequency bin of n_fft 1024"):
        StftResNet(of_length(RATE), f_min=8001.0, f_max=9000.0)


def test_the_spectrogram_is_the_magnitude_between_the_frequencies():
    made = StftResNet(of_length(4000)).eval()
    waveforms = torch.randn(2, 4000)
    window = torch.hann_window(1024)
    stft = torch.stft(waveforms, 1024, 512, window=window, center=True, pad_mode="constant", return_complex=True)
    expected = stft.abs()[:, 13:513] / window.square().sum().sqrt()
    seen: list[torch.Tensor] = []
    made.normalise.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made(waveforms)
    torch.testing.assert_close(seen[-1], expected, rtol=1e-4, atol=1e-5)
    made.subtract_mean = True
    made(waveforms)
    torch.testing.assert_close(seen[-1], expected - expected.mean(dim=2, keepdim=True), rtol=1e-4, atol=1e-5)


@BOTH
def test_silence_gives_finite_embeddings_and_gradients(network: type[StftResNet | FftNetwork]):
    made = network(of_length(RATE))
    waveforms = torch.zeros(2, RATE, requires_grad=True)
    embedding = made(waveforms)
    embedding.sum().backward()
    assert embedding.isfinite().all()
    assert waveforms.grad is not None
    assert waveforms.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


@BOTH
def test_embeddings_are_float32_under_autocast_and_equal_from_run_to_run(network: type[StftResNet | FftNetwork]):
    made = network(of_length(2 * RATE)).eval()  # no narrow inputs, which CPUs compute wrongly in bfloat16
    waveforms = 0.1 * torch.randn(2, 2 * RATE)
    plain, again = made(waveforms), made(waveforms)
    with torch.autocast("cpu", torch.bfloat16):
        cast = made(waveforms)
    assert torch.equal(plain, again)
    assert cast.dtype == torch.float32
    assert nn.functional.cosine_similarity(plain, cast).min() > 0.98


@BOTH
def test_weights_are_equal_from_seed_to_seed_and_survive_a_file(network: type[StftResNet | FftNetwork]):
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return network(of_length(RATE))

    one, same, other = make(0), make(0), make(1)
    waveforms = torch.randn(2, RATE)
    one(waveforms)  # moves the running statistics
    same(waveforms)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    embeddings = [made.eval()(waveforms) for made in (one, same, other)]
    assert all(torch.equal(a, b) for a, b in pairwise(embeddings))


def test_encoders_that_need_no_timm_do_not_import_it():
    code = (
        "import sys, rayasd.exposure.encoders.controls, rayasd.exposure.encoders.spectral; print('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
