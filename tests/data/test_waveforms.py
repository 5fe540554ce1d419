import errno
import os
import shutil
import signal
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import soundfile
from xxhash import xxh3_128_hexdigest

from rayasd.config import DataConfig
from rayasd.data import decoding, waveforms
from rayasd.data.audio import read_samples
from rayasd.data.catalog import scan
from rayasd.data.waveforms import data_fingerprint, decode, open_waveforms, scaling
from rayasd.errors import BadClipError, Interrupted, StorageError, UserError
from tests.conftest import RATE, write_clip, write_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", ("fan", "pump"))


def read(path: Path, **rules: object) -> np.ndarray:
    return read_samples(path, DataConfig(**rules))  # type: ignore[arg-type]


def test_the_cache_holds_the_files_samples_bit_for_bit(root: Path, tmp_path: Path):
    catalog = decode(scan(root), DataConfig(), tmp_path / "cache")
    clips = catalog.table.filter(pc.field("machine") == "pump")
    mapped = open_waveforms(catalog, "pump", DataConfig(), tmp_path / "cache")
    for row, clip in enumerate(clips["clip"].to_pylist()):
        expected, _ = soundfile.read(root / clip, dtype="int16")
        window = np.empty(RATE, np.int16)
        mapped.window(row, 0, RATE, window)
        np.testing.assert_array_equal(window, expected)


def test_many_processes_decode_what_one_does(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clip = root / "fan/train/section_00_source_train_normal_0000_x.wav"
    clip.write_bytes(clip.read_bytes()[:1000])
    config = DataConfig(on_bad_clip="skip")
    alone = decode(scan(root), config, tmp_path / "alone", num_processes=1)
    monkeypatch.setattr(decoding, "_FEW", 5)
    monkeypatch.setattr(decoding, "_CHUNK", 4)
    together = decode(scan(root), config, tmp_path / "together", num_processes=2)
    assert together.table.equals(alone.table)
    assert together.oddities == alone.oddities
    for machine in ("fan", "pump"):
        one, two = (open_waveforms(alone, machine, config, tmp_path / name).samples for name in ("alone", "together"))
        np.testing.assert_array_equal(one, two)
    assert not [path for path in (tmp_path / "together").iterdir() if path.suffix == ".part"]


def test_a_second_opening_decodes_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = decode(scan(root), DataConfig(), tmp_path)
    monkeypatch.setattr(decoding, "sample_blocks", lambda *_: pytest.fail("decoded again"))
    assert decode(scan(root), DataConfig(), tmp_path).table.equals(first.table)


def test_a_changed_file_is_decoded_again(root: Path, tmp_path: Path):
    before = data_fingerprint(decode(scan(root), DataConfig(), tmp_path))
    clip = next((root / "fan/train").iterdir())
    write_clip(clip, 777)
    after = data_fingerprint(decode(scan(root), DataConfig(), tmp_path))
    assert before["fan"] != after["fan"]
    assert before["pump"] == after["pump"]


def test_the_fingerprint_is_of_content_not_of_place_or_time(root: Path, tmp_path: Path):
    before = data_fingerprint(decode(scan(root), DataConfig(), tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    os.utime(next((copy / "fan/train").iterdir()), (1, 1))
    assert data_fingerprint(decode(scan(copy), DataConfig(), tmp_path)) == before


def test_a_cache_that_is_not_on_this_host_is_made_again(root: Path, tmp_path: Path):
    clip = root / "fan/train/section_00_source_train_normal_0000_x.wav"
    clip.write_bytes(clip.read_bytes()[:1000])
    config = DataConfig(on_bad_clip="skip")
    catalog = decode(scan(root), config, tmp_path / "one")
    there = open_waveforms(catalog, "fan", config, tmp_path / "one")
    here = open_waveforms(catalog, "fan", config, tmp_path / "other")
    assert len(here.frames) == len(there.frames)
    for row in range(len(here.frames)):
        a, b = np.empty(RATE, np.int16), np.empty(RATE, np.int16)
        here.window(row, 0, RATE, a)
        there.window(row, 0, RATE, b)
        np.testing.assert_array_equal(a, b)


def test_a_map_is_read_whole_once_per_host_and_change(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache, sums = tmp_path / "cache", []

    def checksum(samples: memoryview) -> str:
        sums.append(len(samples))
        return xxh3_128_hexdigest(samples)

    catalog = decode(scan(root), DataConfig(), cache)
    monkeypatch.setattr(waveforms, "xxh3_128_hexdigest", checksum)
    samples = np.array(open_waveforms(catalog, "fan", DataConfig(), cache).samples)
    clips = len(sums)
    assert clips == catalog.of("fan").num_rows
    for _ in range(2):
        open_waveforms(catalog, "fan", DataConfig(), cache)
    assert len(sums) == clips
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    open_waveforms(catalog, "fan", DataConfig(), cache)
    assert len(sums) == 2 * clips
    path = next(cache.glob("fan-*.i16"))
    facts, content = path.stat(), bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # the time of the last change of its data is forged
    np.testing.assert_array_equal(open_waveforms(catalog, "fan", DataConfig(), cache).samples, samples)
    assert len(sums) > 2 * clips
    for note in cache.glob("fan-*.checked"):
        note.write_text("[1, 2")  # damaged: the map is read again
    before = len(sums)
    open_waveforms(catalog, "fan", DataConfig(), cache)
    assert len(sums) == before + clips


def test_clips_that_changed_behind_a_runs_back_are_refused(root: Path, tmp_path: Path):
    catalog = decode(scan(root), DataConfig(), tmp_path / "one")
    clip = root / "fan/train/section_00_source_train_normal_0000_x.wav"
    clip.write_bytes(clip.read_bytes()[:1000])
    with pytest.raises(UserError, match="the clips of fan .* have changed since the sweep was set up"):
        open_waveforms(catalog, "fan", DataConfig(), tmp_path / "other")


def test_scaling_is_mean_and_deviation_of_all_samples(root: Path, tmp_path: Path):
    catalog = decode(scan(root), DataConfig(), tmp_path)
    train = catalog.table.filter(catalog.is_train)
    samples = np.concatenate([soundfile.read(root / c, dtype="float64")[0] for c in train["clip"].to_pylist()])
    np.testing.assert_allclose(scaling(train), (samples.mean(), samples.std()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("value", [0, 1234, -32768])
def test_scaling_of_what_never_changes_only_centres(value: int):
    frames = [160000, 7]
    columns = {"frames": frames, "sum": [n * value for n in frames], "sum_squares": [n * value**2 for n in frames]}
    assert scaling(pa.table(columns)) == (value / 32768, 1.0)


def test_scaling_adds_up_beyond_64_bits():
    frames = 1 << 32
    columns = {"frames": [frames] * 3, "sum": [0] * 3, "sum_squares": [frames * 32767**2] * 3}
    assert scaling(pa.table(columns)) == (0.0, pytest.approx(32767 / 32768))


def test_a_short_clip_repeats_itself(root: Path, tmp_path: Path):
    mapped = open_waveforms(decode(scan(root), DataConfig(), tmp_path), "fan", DataConfig(), tmp_path)
    window = np.empty(2 * RATE + 5, np.int16)
    mapped.window(0, 0, len(window), window)
    np.testing.assert_array_equal(window[:RATE], window[RATE : 2 * RATE])
    np.testing.assert_array_equal(window[2 * RATE :], window[:5])


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE", "PCM_24", "PCM_32"])
def test_other_sample_formats_keep_full_scale(tmp_path: Path, subtype: str):
    write_clip(tmp_path / "a.wav", 440, subtype=subtype)
    write_clip(tmp_path / "b.wav", 440, subtype="PCM_16")
    difference = read(tmp_path / "a.wav").astype(int) - read(tmp_path / "b.wav")
    assert np.abs(difference).max() <= 1


def test_other_rates_and_channels_are_refused_or_converted(tmp_path: Path):
    write_clip(tmp_path / "slow.wav", 440, rate=8000)
    write_clip(tmp_path / "stereo.wav", 440, channels=2)
    with pytest.raises(BadClipError, match="8000 Hz among 16000 Hz: --set data.resample=true"):
        read(tmp_path / "slow.wav")
    converted = read(tmp_path / "slow.wav", resample=True)
    assert len(converted) == RATE
    assert np.abs(np.fft.rfft(converted)).argmax() == pytest.approx(440, abs=1)  # 1 s: bins are Hz
    with pytest.raises(BadClipError, match="has 2 channels: --set data.channel=0"):
        read(tmp_path / "stereo.wav")
    with pytest.raises(BadClipError, match="no channel 2"):
        read(tmp_path / "stereo.wav", channel="2")
    both, _ = soundfile.read(tmp_path / "stereo.wav", dtype="int16")
    np.testing.assert_array_equal(read(tmp_path / "stereo.wav", channel="1"), both[:, 1])
    np.testing.assert_allclose(read(tmp_path / "stereo.wav", channel="mean"), both.mean(axis=1), atol=1)


def bad_clips(folder: Path) -> dict[str, str]:
    """Write one clip of each kind that cannot be used -> what is said of it."""
    write_clip(folder / "cut.wav", 440)
    whole = (folder / "cut.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "text.wav").write_text("this is not audio")
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "no_samples.wav", np.zeros(0), RATE)
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    return {
        "cut.wav": "is cut off: its header promises 16022 bytes more",
        "text.wav": "cannot be read as audio",
        "empty.wav": "cannot be read as audio",
        "no_samples.wav": "holds no samples",
        "nan.wav": "holds NaN or infinite samples",
    }


def test_every_unusable_clip_says_why(tmp_path: Path):
    for name, said in bad_clips(tmp_path).items():
        with pytest.raises(BadClipError, match=said):
            read(tmp_path / name)


def test_unusable_clips_stop_or_are_skipped_and_named(root: Path, tmp_path: Path):
    for number, name in enumerate(bad_clips(tmp_path / "bad")):
        shutil.copy(tmp_path / "bad" / name, root / f"fan/train/section_00_source_train_normal_01{number:02}.wav")
    with pytest.raises(UserError, match=r"fan/train/section_00_source_train_normal_01.*and 4 more: rayasd data check"):
        decode(scan(root), DataConfig(), tmp_path / "cache")
    catalog = decode(scan(root), DataConfig(on_bad_clip="skip"), tmp_path / "cache")
    assert len([odd for odd in catalog.oddities if odd.unusable]) == 5
    assert catalog.table.num_rows == scan(root).table.num_rows - 5
    again = decode(scan(root), DataConfig(on_bad_clip="skip"), tmp_path / "cache")
    assert again.oddities == catalog.oddities


def test_too_little_space_is_said_before_anything_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"needs [\d.]+ MB in .*, 1 kB are free: .* --cache DIR"):
        decode(scan(root), DataConfig(), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_the_rules_are_part_of_the_key(root: Path, tmp_path: Path):
    write_clip(root / "fan/train/section_00_source_train_normal_0100.wav", 440, channels=2)
    config = DataConfig(channel="0")
    first = decode(scan(root), config, tmp_path)
    second = decode(scan(root), replace(config, channel="mean"), tmp_path)
    assert data_fingerprint(first)["fan"] != data_fingerprint(second)["fan"]


def test_another_split_decodes_again_since_training_clips_decide_the_scale(tmp_path: Path):
    for n, gain in enumerate((9.0, 0.5)):
        soundfile.write(tmp_path / f"{n}.wav", gain * np.ones(RATE), RATE, subtype="FLOAT")
    scales = []
    for splits in (("train", "test"), ("test", "train")):
        lines = [f"{n}.wav,fan,00,source,{split},normal" for n, split in enumerate(splits)]
        (tmp_path / "clips.csv").write_text("\n".join(["path,machine,section,domain,split,label", *lines]))
        catalog = decode(scan(tmp_path / "clips.csv"), DataConfig(on_bad_clip="skip"), tmp_path / "cache")
        scales += set(catalog.table["scale"].to_pylist())
    assert scales == [64.0, 1.0]


@pytest.mark.slow
def test_a_killed_process_of_the_decoding_is_an_interruption():
    with pytest.raises(Interrupted, match="decoded clips was killed"), decoding.processes(3000, 2) as over:
        list(over(_end_the_process, [1, 2]))


def _end_the_process(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_disk_or_host_that_fails_leaves_no_clip_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    catalog = scan(write_tree(tmp_path / "data", ("fan",)))
    opened = os.open

    def fail(path, flags, *more, **named):
        if "_0003_" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, *more, **named)

    monkeypatch.setattr("rayasd.data.audio.os.open", fail)
    with pytest.raises(StorageError, match=r"_0003_.*cannot be read as audio: .*look at its disk"):
        decode(catalog, DataConfig(on_bad_clip="skip"), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.parquet"))


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_clips_may_be_scaled_to_one_level(tmp_path: Path, subtype: str):
    levels, shapes = [], []
    for number, gain in enumerate((1.0, 0.01)):
        path = tmp_path / f"{number}.wav"
        tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
        soundfile.write(path, 0.5 * gain * tone, RATE, subtype=subtype)
        samples = read(path, level="clip") / 32768
        levels.append(np.sqrt(np.mean(samples**2)))
        shapes.append(samples)
        assert np.array_equal(read(path), read(path, level="keep"))
    np.testing.assert_allclose(levels, 2.0**-6, rtol=1e-3)
    np.testing.assert_allclose(shapes[0], shapes[1], atol=2e-3 * 2.0**-6 * 50)
    soundfile.write(tmp_path / "silent.wav", np.zeros(100), RATE, subtype=subtype)
    assert not read(tmp_path / "silent.wav", level="clip").any()
    impulse = np.zeros(RATE)
    impulse[5] = 1.0  # a crest beyond what fits is clipped, not wrapped
    soundfile.write(tmp_path / "impulse.wav", impulse, RATE, subtype=subtype)
    assert read(tmp_path / "impulse.wav", level="clip")[5] == 32767
