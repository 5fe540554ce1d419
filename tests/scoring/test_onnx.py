from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from rayasd import presets
from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.network import Extractor, MelSpectrogram
from rayasd.scoring.model import Parts
from rayasd.scoring.onnx import OUTPUTS, ConvolvedMelSpectrogram, export_onnx
from tests.command import Rayasd

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnx and onnxruntime: pip install 'rayasd[onnx]'")
pytest.importorskip("onnx", reason="needs onnx and onnxruntime: pip install 'rayasd[onnx]'")


def parts_with(extractor: Extractor, config: Config) -> Parts:
    nothing = pa.table({})
    return Parts(
        "fan", config, ("00", "01", "02"), {3: extractor.state_dict()}, (0.01, 0.2), 10.0, {}, nothing, nothing, {}
    )


def trained_a_little(config: Config) -> Extractor:
    """Make an extractor whose batch norms have seen something."""
    torch.manual_seed(0)
    extractor = Extractor(config, 3)
    length = round(config.front_end.window_seconds * config.data.sample_rate)
    with torch.no_grad():
        extractor(torch.randn(8, length))
    return extractor.eval()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["eusipco2022", "demo"])
@pytest.mark.parametrize("given", ["waveform", "mel"])
def test_an_exported_extractor_says_what_torch_says(preset: str, given: str, tmp_path: Path):
    config = presets.load(preset, [])
    extractor = trained_a_little(config)
    export_onnx(tmp_path / "fan.onnx", parts_with(extractor, config), given)  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(tmp_path / "fan.onnx", providers=["CPUExecutionProvider"])
    length = round(config.front_end.window_seconds * config.data.sample_rate)
    for windows in (1, 5):  # not the number that it was exported with
        waveforms = torch.randn(windows, length)
        with torch.no_grad():
            expected = extractor(waveforms)
            fed = waveforms if given == "waveform" else extractor.front_end(waveforms)
        found = session.run(list(OUTPUTS), {given: fed.numpy()})
        for of_torch, of_onnx in zip(expected, found, strict=True):
            largest = of_torch.abs().max().item()
            np.testing.assert_allclose(of_onnx, of_torch, atol=1e-4 * max(1.0, largest))
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["machine"], facts["sections"], facts["deviation"]) == ("fan", "00,01,02", "0.2")


@pytest.mark.parametrize(("power", "normalized", "log"), [(1.0, True, False), (2.0, False, True)])
def test_convolved_spectrograms_are_the_front_ends(power: float, normalized: bool, log: bool):
    base = presets.load("eusipco2022", []).front_end
    front_end = MelSpectrogram(replace(base, power=power, normalized=normalized, log=log), 16000)
    waveforms = torch.randn(2, 32000)
    expected = front_end(waveforms)
    torch.testing.assert_close(
        ConvolvedMelSpectrogram(front_end)(waveforms), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
    )


@pytest.mark.slow
def test_the_command_exports_a_run_and_refuses_a_control(finished: Path, tmp_path: Path, rayasd: Rayasd):
    exported = rayasd("export", "onnx", finished, "--machine", "fan", "--variant", "both", "-o", tmp_path / "fan.onnx")
    assert exported.returncode == 0, exported.stderr
    onnxruntime.InferenceSession(tmp_path / "fan.onnx", providers=["CPUExecutionProvider"])
    refused = rayasd("export", "onnx", finished, "--machine", "fan", "--variant", "statistics")
    assert (refused.returncode, "is a control" in refused.stderr) == (2, True)


def test_a_control_cannot_be_exported(tmp_path: Path):
    config = presets.load("demo", ["network.extractor=statistics"])
    with pytest.raises(UserError, match="control"):
        export_onnx(tmp_path / "x", replace(parts_with(Extractor(config, 3), config), weights={}), "mel")
