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
from rayasd.exposure.network import (
    Extractor,
    MelSpectrogram,
    Statistics,
    check_backbone,
    load_extractor,
    save_extractor,
)


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
    extractor = Extractor(small_config, 3).eval()
    output = extractor(torch.randn(4, 8000))
    assert output.embedding.shape == (4, 128)
    weight, bias = extractor.machine_head.weight.item(), extractor.machine_head.bias.item()
    torch.testing.assert_close(output.machine_logit, weight * output.embedding.square().sum(dim=1) / 128 + bias)
    torch.testing.assert_close(output.product_logits, output.embedding @ extractor.product_head.weight.T)
    assert extractor.product_head.bias is None


def test_a_saved_extractor_says_the_same(small_config: Config, tmp_path: Path):
    extractor = Extractor(small_config, 2).eval()
    save_extractor(tmp_path, extractor, small_config, ["00", "03"])
    loaded, sections = load_extractor(tmp_path, small_config)
    waveforms = torch.randn(3, 8000)
    assert sections == ["00", "03"]
    for a, b in zip(extractor(waveforms), loaded(waveforms), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_pretrained_weights_come_from_a_local_file(small_config: Config, tmp_path: Path, suffix: str):
    donor = timm.create_model("test_efficientnet", in_chans=3)  # as published weights are: three channels, a classifier
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(donor.state_dict(), path)
    else:
        save_file(donor.state_dict(), path)
    config = replace(small_config, network=replace(small_config.network, pretrained=str(path)))
    extractor = Extractor(config, 2)
    torch.testing.assert_close(extractor.backbone.blocks[0][0].conv.weight, donor.blocks[0][0].conv.weight)
    summed = donor.conv_stem.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(extractor.backbone.conv_stem.weight, summed)


def test_unusable_pretrained_weights_are_named(small_config: Config, tmp_path: Path):
    def build(path: Path) -> None:
        Extractor(replace(small_config, network=replace(small_config.network, pretrained=str(path))), 2)

    with pytest.raises(UserError, match="no such file"):
        build(tmp_path / "gone.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(UserError, match="cannot load"):
        build(tmp_path / "text.pth")
    torch.save({"wrong": torch.zeros(1)}, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="cannot load"):
        build(tmp_path / "wrong.pth")


def test_unknown_backbone_names_the_nearest():
    with pytest.raises(UserError, match="efficientnet_b0"):
        check_backbone("eficientnet_b0")


def test_statistics_are_means_and_deviations(small_config: Config):
    statistics = Statistics(small_config)
    waveforms = torch.randn(2, 8000)
    bands = statistics.mel(waveforms)[:, 0]
    described = statistics(waveforms)
    assert described.shape == (2, 128)
    torch.testing.assert_close(described[:, :64], bands.mean(dim=2))
    torch.testing.assert_close(described[:, 64:], bands.std(dim=2))


def test_device_and_precision_are_chosen_with_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    compute = choose_compute("auto", "auto")
    assert compute.device.type == "cpu"
    assert "no CUDA device is visible" in compute.reason
    assert choose_compute("cpu", "bfloat16").dtype is torch.bfloat16
    with pytest.raises(UserError, match="0 CUDA devices are visible"):
        choose_compute("cuda", "auto")
    with pytest.raises(UserError, match="choose auto, cpu, cuda"):
        choose_compute("gpu", "auto")
