from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchaudio
from safetensors.torch import save_file

from rayasd import presets
from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.device import choose_compute
from rayasd.exposure.encoders import make_encoder
from rayasd.exposure.encoders.controls import Level, MaxStatistics, Statistics
from rayasd.exposure.encoders.mel import MelSpectrogram, MelTimm, has_fixed_size
from rayasd.exposure.network import Control, Extractor, Network, load_network, num_parameters, save_network


def test_the_front_end_is_the_papers():
    config = presets.load("eusipco2022")
    waveforms = torch.randn(2, 32000)
    spectrograms = MelSpectrogram(config.front_end, 16000)(waveforms)
    assert spectrograms.shape == (2, 1, 224, 126)
    stft = torch.stft(
        waveforms, 2048, 256, window=torch.hann_window(2048), center=True, pad_mode="reflect", return_complex=True
    )
    amplitude = stft.abs() / torch.hann_window(2048).square().sum().sqrt()
    bank = torchaudio.functional.melscale_fbanks(1025, 50.0, 7800.0, 224, 16000)
    torch.testing.assert_close(spectrograms[:, 0], (amplitude.mT @ bank).mT, rtol=1e-4, atol=1e-5)


def test_heads_are_a_norm_criterion_and_a_linear_map_without_bias(small_config: Config):
    network = Network(small_config, ["00", "01", "02"]).eval()
    output, objective = network(torch.randn(4, 8000)), network.objective
    assert output["embedding"].shape == (4, 128)
    weight, bias = objective.machine_head.weight.item(), objective.machine_head.bias.item()
    expected = weight * output["embedding"].square().sum(dim=1) / 128 + bias
    torch.testing.assert_close(output["machine_logit"], expected)
    torch.testing.assert_close(output["product_logits"], output["embedding"] @ objective.product_head.weight.T)
    assert objective.product_head.bias is None


def test_a_saved_network_gives_the_same(small_config: Config, tmp_path: Path):
    network = Network(small_config, ["00", "03"]).eval()
    save_network(tmp_path, network, small_config, 7)
    loaded = load_network(tmp_path, small_config)
    waveforms = torch.randn(3, 8000)
    assert loaded.objective.classes == ("00", "03")
    found, expected = loaded(waveforms), network(waveforms)
    assert set(found) == set(expected) == {"embedding", "machine_logit", "product_logits"}
    assert all(torch.equal(found[name], expected[name]) for name in found)


def with_network(config: Config, **changes: object) -> Config:
    return replace(config, network=replace(config.network, **changes))  # type: ignore[arg-type]


def test_a_frozen_encoder_gives_its_features_and_a_head_trains_on_them(small_config: Config):
    features = make_encoder(small_config).dim
    assert Control(with_network(small_config, train="frozen")).extractor.dim == features != 128
    assert num_parameters(with_network(small_config, train="frozen")) == 0
    network = Network(with_network(small_config, train="head"), ["00"]).train()
    assert network.extractor.dim == 128
    assert not network.extractor.encoder.training  # its batch statistics stay
    learned = [name for name, value in network.named_parameters() if value.requires_grad]
    assert learned
    assert not any(name.startswith("extractor.encoder.") for name in learned)


def test_branches_stand_side_by_side(small_config: Config):
    config = with_network(small_config, neck="none", encoder="branches(encoders=['max-statistics(bands=16)', 'level'])")
    extractor = Extractor(config)
    waveforms = torch.randn(3, 8000)
    assert (extractor.dim, extractor.widths, extractor.scaling) == (17, (16, 1), "none")
    both = torch.cat([MaxStatistics(config, bands=16)(waveforms), Level(config)(waveforms)], dim=1)
    torch.testing.assert_close(extractor(waveforms), both)


class Grid(torch.nn.Module):
    """Somebody's own encoder: a grid of features."""

    dim = 2

    def __init__(self, config: Config) -> None:
        super().__init__()

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        return waveforms[:, :24].reshape(len(waveforms), 3, 4, 2)


class HighRate(Grid):
    sample_rate = 48000


def test_an_encoder_of_ones_own_may_give_a_grid(small_config: Config):
    control = Control(with_network(small_config, encoder=f"{__name__}.Grid", train="frozen"))
    waveforms = torch.randn(5, 8000)
    expected = waveforms[:, :24].reshape(5, 12, 2).mean(dim=1)
    torch.testing.assert_close(control(waveforms)["embedding"], expected)


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        ("mel-tim", "unknown network.encoder 'mel-tim': did you mean 'mel-timm'"),
        ("branches", "network.encoder branches: .*encoders"),
        ("branches(encoders=['level', 'statistics'])", "want waveforms scaled differently"),
        ("branches(encoders=['level', 'nothing'])", "unknown network.encoder 'nothing'"),
        ("stft-resnet(n_fft=16384)", "needs windows of 16384 samples"),
        ("stft-resnet(n_ftt=512)", "n_ftt"),
        ("fft(strides=((9000, 1),))", "needs windows of"),
        (f"{__name__}.HighRate", "needs data.sample_rate = 48000, not 16000"),
    ],
)
def test_encoders_that_cannot_be_made_are_refused_in_one_line(small_config: Config, encoder: str, reason: str):
    with pytest.raises(UserError, match=reason) as error:
        make_encoder(with_network(small_config, encoder=encoder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_pretrained_weights_come_from_a_local_file(small_config: Config, tmp_path: Path, suffix: str):
    donor = timm.create_model("test_efficientnet", in_chans=3)  # as published weights are: three channels, a classifier
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(donor.state_dict(), path)
    else:
        save_file(donor.state_dict(), path)
    config = replace(small_config, network=replace(small_config.network, pretrained=str(path)))
    encoder = MelTimm(config)
    torch.testing.assert_close(encoder.backbone.blocks[0][0].conv.weight, donor.blocks[0][0].conv.weight)
    summed = donor.conv_stem.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(encoder.backbone.conv_stem.weight, summed)


def test_weights_in_a_checkpoint_are_read_once(small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    donor, read = timm.create_model("test_efficientnet"), []
    state = {f"module.{name}": value for name, value in donor.state_dict().items()}
    torch.save({"epoch": 3, "model": {}, "state_dict_ema": state}, tmp_path / "weights.pth")

    def load(*words: object, **options: object) -> object:
        read.append(words)
        return plain(*words, **options)

    plain = torch.load
    monkeypatch.setattr(torch, "load", load)
    network = {"pretrained": str(tmp_path / "weights.pth")}
    encoder = MelTimm(replace(small_config, network=replace(small_config.network, **network)))
    torch.testing.assert_close(encoder.backbone.blocks[0][0].conv.weight, donor.blocks[0][0].conv.weight)
    assert len(read) == 1
    assert "state_dict" not in encoder.backbone.pretrained_cfg  # no second copy stays in memory


def test_unusable_pretrained_weights_are_named(small_config: Config, tmp_path: Path):
    def build(path: Path) -> None:
        MelTimm(replace(small_config, network=replace(small_config.network, pretrained=str(path))))

    with pytest.raises(UserError, match="no such file"):
        build(tmp_path / "gone.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(UserError, match="cannot load"):
        build(tmp_path / "text.pth")
    torch.save(torch.zeros(1), tmp_path / "tensor.pth")
    with pytest.raises(UserError, match="holds no weights by name"):
        build(tmp_path / "tensor.pth")
    torch.save({"wrong": torch.zeros(1)}, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="cannot load"):
        build(tmp_path / "wrong.pth")


def test_unknown_backbone_names_the_nearest():
    with pytest.raises(UserError, match="efficientnet_b0"):
        has_fixed_size("eficientnet_b0")


def test_statistics_are_means_and_deviations(small_config: Config):
    statistics = Statistics(small_config)
    waveforms = torch.randn(2, 8000)
    bands = statistics.mel(waveforms)[:, 0]
    described = statistics(waveforms)
    assert described.shape == (2, 128)
    torch.testing.assert_close(described[:, :64], bands.mean(dim=2))
    torch.testing.assert_close(described[:, 64:], bands.std(dim=2))


def test_a_network_without_neck_whose_encoder_computes_in_float32_does_so_on_a_cpu_with_bfloat16(small_config: Config):
    config = replace(small_config, network=replace(small_config.network, neck="none"))
    waveforms = torch.randn(2, config.window_length)
    compute = choose_compute("cpu", "bfloat16")
    network = Network(config, ["00", "01"]).eval()
    with torch.inference_mode():
        expected = network(waveforms)["embedding"]
        with compute.autocast():
            found = compute.place(network)(waveforms)["embedding"]
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_device_and_precision_are_chosen_with_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    compute = choose_compute("auto", "auto")
    assert compute.device.type == "cpu"
    assert compute.dtype is torch.float32  # also on a CPU that has bfloat16
    assert "no CUDA device is visible" in compute.reason
    assert choose_compute("cpu", "bfloat16").dtype is torch.bfloat16
    with pytest.raises(UserError, match="torch sees 0 CUDA devices"):
        choose_compute("cuda", "auto")
    with pytest.raises(UserError, match="choose auto, cpu, cuda"):
        choose_compute("gpu", "auto")


def test_weights_of_a_frozen_encoder_are_the_same_wherever_it_is_made(small_config: Config):
    config = with_network(small_config, train="frozen")
    waveforms, before = torch.randn(3, 8000), torch.random.get_rng_state()
    first, second = (Control(config).eval()(waveforms)["embedding"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert config.network.arithmetic == "float32"


@pytest.mark.parametrize(
    ("exposure", "reason"),
    [
        ({"objective": "sub-cluster-adacos(subclusters=0)"}, "subclusters = 0: give at least 1"),
        ({"objective": "adaproj(subspace=0)"}, "subspace = 0: give at least 1"),
        ({"objective": "arcface(margin='x')"}, "exposure.objective arcface"),
        ({"clusters": 2, "clusters_by": "statstics"}, "did you mean 'statistics'"),
    ],
)
def test_what_cannot_be_trained_is_found_before_the_first_step(
    small_config: Config, exposure: dict[str, object], reason: str
):
    config = replace(small_config, exposure=replace(small_config.exposure, **exposure))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=reason) as error:
        num_parameters(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "encoder", ["mel-timm", "stft-resnet(n_fft=512)", "branches(encoders=['stft-resnet(n_fft=512)'])"]
)
def test_embeddings_without_a_neck_have_more_than_8_bits(small_config: Config, encoder: str):
    extractor = Extractor(with_network(small_config, neck="none", encoder=encoder)).eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = extractor(torch.randn(8, 8000))
    assert not torch.equal(embedding, embedding.bfloat16().float())
