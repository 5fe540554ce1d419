import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rayasd.config import DataConfig
from rayasd.data.audio import read_facts, read_samples, sample_blocks
from rayasd.data.catalog import scan
from rayasd.data.decoding import scaled
from rayasd.data.folders import audio_files
from rayasd.data.samples import scale_of, without_far
from rayasd.errors import BadClipError
from tests.conftest import RATE, write_clip

TIME = np.arange(2 * RATE) / RATE


def level(signal: np.ndarray) -> float:
    """Root mean square in dB."""
    return float(20 * np.log10(np.sqrt(np.square(signal).mean())))


def test_what_both_microphones_hear_is_subtracted_and_the_machine_stays():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(len(TIME))
    tone = 0.5 * np.sin(2 * np.pi * 1000 * TIME)
    assert level(without_far(noise, 0.4 * noise)) < level(noise) - 20
    cleaned = without_far(tone, 0.3 * rng.standard_normal(len(TIME)))
    assert abs(level(cleaned) - level(tone)) < 1
    both = without_far(tone + noise, 0.4 * noise)
    spectrum = np.abs(np.fft.rfft(both))
    assert np.argmax(spectrum) == 1000 * len(TIME) // RATE
    assert level(both - tone) < level(noise) - 15


def test_near_and_far_are_the_first_two_channels(tmp_path: Path):
    noise = 0.1 * np.random.default_rng(1).standard_normal(RATE)
    soundfile.write(tmp_path / "x.wav", np.column_stack([noise, 0.5 * noise]), RATE)
    config = DataConfig(channel="near-far")
    assert np.abs(read_samples(tmp_path / "x.wav", config)).max() < 100
    write_clip(tmp_path / "mono.wav", 300)
    with pytest.raises(BadClipError, match="one channel: data.channel near-far needs"):
        read_samples(tmp_path / "mono.wav", config)


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "NMS_ADPCM_32", "IMA_ADPCM"])
def test_codecs_that_cannot_seek_are_read(tmp_path: Path, subtype: str):
    path = tmp_path / "x.wav"
    soundfile.write(path, 0.2 * np.sin(2 * np.pi * 440 * TIME), RATE, subtype=subtype)
    samples = read_samples(path, DataConfig())
    assert len(samples) == read_facts(path).frames
    assert 0.05 < np.sqrt(np.square(samples / 32768).mean()) < 0.25


@pytest.mark.parametrize("length", [0x7FFFF000, 0x80000000, 0xFFFFFFFF], ids=["sox", "arecord", "ffmpeg"])
def test_the_length_of_a_stream_is_that_of_the_file(tmp_path: Path, length: int):
    path = tmp_path / "x.wav"
    write_clip(path, 300)
    whole = bytearray(path.read_bytes())
    expected = read_samples(path, DataConfig())
    whole[4:8], whole[40:44] = struct.pack("<I", min(length + 36, 0xFFFFFFFF)), struct.pack("<I", length)
    path.write_bytes(whole)
    assert np.array_equal(read_samples(path, DataConfig()), expected)


def test_a_piece_of_a_file_is_a_clip(tmp_path: Path):
    for name in ("x.wav", "x.flac", "x.ogg"):
        write_clip(tmp_path / name, 300)
        whole = read_samples(tmp_path / name, DataConfig())
        piece = read_samples(tmp_path / f"{name}#t=0.25,0.5", DataConfig())
        assert np.abs(piece - whole[4000:8000].astype(int)).max() <= (0 if name != "x.ogg" else 2)
    with pytest.raises(BadClipError, match="no piece of its file, which has 1 s"):
        read_samples(tmp_path / "x.wav#t=0.5,1.5", DataConfig())


@pytest.mark.parametrize(
    ("peaks", "scale"),
    [([0.5, 1.0], 1.0), ([], 1.0), ([0.0], 1.0), ([9.0, 10.0, 4000.0], 64.0), ([0.001], 2.0**-7), ([1.5], 8.0)],
)
def test_floats_of_other_units_have_a_scale(peaks: list[float], scale: float):
    assert scale_of(peaks) == scale
    assert all(scale >= 4 * peak for peak in peaks[:1]) or scale == 1.0


def test_a_machines_floats_are_scaled_alike(tmp_path: Path):
    lines = ["path,machine,section,domain,split,label"]
    for machine, gain in (("fan", 9.0), ("pump", 0.5)):
        for n, split in enumerate(("train", "train", "test")):
            sound = gain * (1.6 if split == "test" else 1.0) * np.sin(2 * np.pi * 300 * TIME)
            soundfile.write(tmp_path / f"{machine}{n}.wav", sound, RATE, subtype="FLOAT")
            lines.append(f"{machine}{n}.wav,{machine},00,source,{split},normal")
    (tmp_path / "clips.csv").write_text("\n".join(lines))
    catalog = scan(tmp_path / "clips.csv")
    fan, pump = (scaled(tmp_path, catalog.of(machine), DataConfig()) for machine in ("fan", "pump"))
    assert (fan.scale, pump.scale) == (64.0, 1.0)
    loud = read_samples(tmp_path / "fan2.wav", fan)
    assert loud.max() == pytest.approx(9 * 1.6 / 64 * 32768, rel=0.01)  # and not clipped
    assert scaled(tmp_path, catalog.of("fan"), replace(fan, scale=20.0)).scale == 20.0


def test_one_list_says_what_audio_is(tmp_path: Path):
    names = ["a.WAV", "b.aif", "c.opus", "d.oga", "e.mp3", "f.m4a"]
    for name in [*names, "g.txt", "._a.wav"]:
        (tmp_path / name).touch()
    assert [path.name for path in audio_files(tmp_path)] == names
    tree = tmp_path / "tree"
    for number, (suffix, form) in enumerate({"wav": "WAV", "aif": "AIFF", "ogg": "OGG"}.items()):
        write_clip(tree / f"fan/train/section_00_source_train_normal_{number:04}.{suffix}", 300, format=form)
    (tree / "fan/train/section_00_source_train_normal_0009.m4a").touch()
    catalog = scan(tree)
    assert catalog.table.num_rows == 4
    assert not catalog.oddities


@pytest.mark.parametrize(("rate", "config"), [
    (16000, DataConfig()), (44100, DataConfig(resample=True)), (8000, DataConfig(resample=True, channel="mean")),
    (48000, DataConfig(resample=True, channel="1")), (16000, DataConfig(level="clip")),
    (44100, DataConfig(resample=True, level="clip")), (11025, DataConfig(resample=True, channel="near-far")),
])  # fmt: skip
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_long_clip_is_read_in_blocks_to_the_same_samples(
    rate: int, config: DataConfig, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / f"x.{suffix}"
    write_clip(path, 440.0, seconds=2.3, rate=rate, channels=1 if config.channel == "only" else 2)
    whole = read_samples(path, config).astype(int)
    off = int(config.level == "clip")  # the RMS value adds up in another order
    for block in (1000, 1471, 30011):
        monkeypatch.setattr("rayasd.data.audio._BLOCK", block)
        blocks = list(sample_blocks(path, config))
        assert len(blocks) > 1 or config.channel == "near-far"
        for found in (np.concatenate(blocks), read_samples(path, config)):
            assert found.shape == whole.shape
            assert np.abs(found - whole).max() <= off


@pytest.mark.parametrize("suffix", ["wav", "mp3"])
def test_a_piece_is_read_in_blocks_to_the_same_samples(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_clip(tmp_path / f"x.{suffix}", 440.0, seconds=2.0)
    piece = tmp_path / f"x.{suffix}#t=0.5,1.75"
    whole = read_samples(piece, DataConfig())
    monkeypatch.setattr("rayasd.data.audio._BLOCK", 1000)
    blocks = list(sample_blocks(piece, DataConfig()))
    assert len(blocks) == 20
    assert np.array_equal(np.concatenate(blocks), whole)


def test_damage_shows_at_the_end_of_a_long_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.flac"
    write_clip(path, 440.0)
    content = bytearray(path.read_bytes())
    content[26] ^= 1  # of the MD5
    path.write_bytes(content)
    monkeypatch.setattr("rayasd.data.audio._BLOCK", 1000)
    found = []
    with pytest.raises(BadClipError, match="not those that were encoded"):
        found.extend(sample_blocks(path, DataConfig()))
    assert len(found) == 16


MEASURE = """
import resource, sys
from pathlib import Path
from rayasd import presets
from rayasd.config import DataConfig
from rayasd.data.audio import sample_blocks
from rayasd.data.catalog import scan
from rayasd.data.inspection import inspect_clips
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for config in (DataConfig(), DataConfig(sample_rate=8000, resample=True)):
    blocks = sample_blocks(Path(sys.argv[1]), config)
    next(blocks)
    before, length = peak(), sum(len(block) for block in blocks)
    print(length, peak() - before)
catalog, config, before = scan(Path(sys.argv[1]).parents[2]), presets.load("demo", ()), peak()
facts, odd = inspect_clips(catalog, config, print)
assert "silent" in str(odd)
print(*(fact.frames for fact in facts.values()), peak() - before)
"""


@pytest.mark.slow
def test_a_recording_of_hours_takes_no_more_memory_than_one_of_minutes(tmp_path: Path):
    hours, path = 2, tmp_path / "fan/train/section_00_source_train_normal_0000.flac"
    path.parent.mkdir(parents=True)
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for _ in range(hours * 60):
            file.write(np.zeros(60 * RATE, np.int16))
    measured = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True).stdout
    for text in measured.replace("1 1\n", "").splitlines():
        length, megabytes = map(int, text.split())
        assert length > hours * 3600 * 8000 - 2**22
        assert megabytes < 150
