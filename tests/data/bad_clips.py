"""A corpus of bad data: each case writes one thing into a DCASE tree and knows what becomes of it."""

import os
import socket
import struct
import subprocess
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16000
TRAIN = "fan/train/section_00_source_train_normal_0100.wav"
TEST = "fan/source_test/section_00_source_test_normal_0100.wav"
Answer = Literal["refused", "always refused", "used", "ignored"]
"""Refused: stops under fail, left out under skip. Always refused: stops under both. Used, ignored: so under both."""


@dataclass(frozen=True)
class Case:
    """One kind of bad data."""

    name: str
    """Its row in docs/bad-data.md."""
    answer: Answer
    says: str
    """What is said of it; of what is used or ignored, by ``rayasd data check`` alone; empty: nothing."""
    write: Callable[[Path], list[str]]
    """Writes it into a tree; gives the paths that are named (or used) because of it."""
    tolerance: int | None
    """Of what is used: how far int16 samples may be from ``signal()``; None: it is other audio."""
    sets: tuple[str, ...]
    """Settings under which it is so, beside the default ones."""
    after_scan: Callable[[Path], None] | None


CASES: dict[str, Case] = {}


def case(
    name: str, answer: Answer, says: str = "", *, tolerance: int | None = None, sets: tuple[str, ...] = (),
    after_scan: Callable[[Path], None] | None = None,
) -> Callable[[Callable[[Path], list[str] | None]], Callable[[Path], list[str]]]:  # fmt: skip
    """Make a case of a function that writes; one that names no paths wrote ``TRAIN``."""

    def add(write: Callable[[Path], list[str] | None]) -> Callable[[Path], list[str]]:
        def written(root: Path) -> list[str]:
            paths = write(root)
            return [TRAIN] if paths is None else paths

        assert name not in CASES
        CASES[name] = Case(name, answer, says, written, tolerance, sets, after_scan)
        return written

    return add


def signal(seconds: float = 1.0) -> NDArray[np.int16]:
    """Noise that no other clip of the tree holds."""
    return np.round(np.random.default_rng(7).normal(0, 3000, int(seconds * RATE))).astype(np.int16)


def wav(samples: NDArray[np.int16] | None = None, **fields: int) -> bytes:
    """Bytes of a 16-bit mono WAV, with lies: riff, channels, rate, frame, bits and data are header fields."""
    body = (signal() if samples is None else samples).astype("<i2").tobytes()
    true = {"riff": 36 + len(body), "channels": 1, "rate": RATE, "frame": 2, "bits": 16, "data": len(body)}
    f = true | fields
    form = struct.pack("<HHIIHH", 1, f["channels"], f["rate"], f["rate"] * 2 & 0xFFFFFFFF, f["frame"], f["bits"])
    return (
        struct.pack("<4sI8sI", b"RIFF", f["riff"], b"WAVEfmt ", 16)
        + form
        + struct.pack("<4sI", b"data", f["data"])
        + body
    )


def flac() -> bytes:
    """Bytes of a 16-bit mono FLAC."""
    from io import BytesIO

    file = BytesIO()
    soundfile.write(file, signal(), RATE, format="FLAC")
    return file.getvalue()


def put(root: Path, content: bytes, clip: str = TRAIN) -> list[str]:
    """Write a file's bytes."""
    (root / clip).parent.mkdir(parents=True, exist_ok=True)
    (root / clip).write_bytes(content)
    return [clip]


def put_flac(root: Path, content: bytes) -> list[str]:
    """Write a file's bytes under the name of a FLAC."""
    return put(root, content, TRAIN.replace(".wav", ".flac"))


# Files that are cut off, empty, or have headers that lie


@case("truncated wav", "refused", "is cut off: its header promises 22044 bytes more")
def _(root: Path):
    put(root, wav()[:10000])


@case("truncated flac", "refused", "cannot be read as audio")
def _(root: Path):
    return put_flac(root, flac()[:10000])


@case("zero-length file", "refused", "cannot be read as audio")
def _(root: Path):
    put(root, b"")


@case("header without samples", "refused", "holds no samples")
def _(root: Path):
    put(root, wav(np.zeros(0, np.int16)))


@case("half a header", "refused", "cannot be read as audio")
def _(root: Path):
    put(root, wav()[:20])


@case("header counts more bytes than there are", "refused", "is cut off: its header promises 32000 bytes more")
def _(root: Path):
    put(root, wav(data=64000))


@case("header counts fewer bytes than there are", "refused", "holds 30000 bytes more than its header counts")
def _(root: Path):
    put(root, wav(data=2000, riff=2036))


@case("recorder stopped before it wrote the length", "refused", "holds no samples")
def _(root: Path):
    put(root, wav(data=0, riff=0))


@case("streamed wav of unknown length", "used", tolerance=0)
def _(root: Path):
    put(root, wav(data=0xFFFFFFFF, riff=0xFFFFFFFF))


@case("tags or padding after the samples", "used", tolerance=0)
def _(root: Path):
    list_chunk = b"LIST\x0c\x00\x00\x00INFOIART\x00\x00\x00\x00"
    tails = (b"TAG" + b"x" * 125, bytes(4096), list_chunk, b"ID3\x04" + bytes(range(100)))
    return [put(root, wav() + tail, TRAIN.replace("100", f"10{n}"))[0] for n, tail in enumerate(tails)]


@case("length of the whole file, not of what follows", "used", tolerance=0)
def _(root: Path):
    put(root, wav(riff=36 + 2 * RATE + 8))


@case("wrong block align", "refused", "header that contradicts itself: 4 bytes a frame of 1 x 16 bits")
def _(root: Path):
    put(root, wav(frame=4))


@case("wrong bits a sample", "refused", "header that contradicts itself: 2 bytes a frame of 1 x 8 bits")
def _(root: Path):
    put(root, wav(bits=8))


@case("absurd sample rate", "refused", "has 2147483647 Hz by its header", sets=("resample",))
def _(root: Path):
    put(root, wav(rate=2**31 - 1))


@case("sample rate 1 Hz", "refused", "has 1 Hz by its header", sets=("resample",))
def _(root: Path):
    put(root, wav(rate=1))


@case("sample rate 0", "refused", "cannot be read as audio")
def _(root: Path):
    put(root, wav(rate=0))


@case("no channels", "refused", "cannot be read as audio: Channel count is zero")
def _(root: Path):
    put(root, wav(channels=0, frame=0))


@case("flac of unknown length", "refused", "does not say how long it is, or lies")
def _(root: Path):
    content = bytearray(flac())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return put_flac(root, bytes(content))


@case("flac that claims days", "refused", "does not say how long it is, or lies: 68719476735 frames")
def _(root: Path):
    content = bytearray(flac())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    return put_flac(root, bytes(content))


@case("flac that claims ten days", "refused", "does not say how long it is, or lies: 13824000000 frames")
def _(root: Path):
    content = bytearray(flac())
    frames = 10 * 86400 * RATE
    content[21] = content[21] & 0xF0 | frames >> 32
    content[22:26] = struct.pack(">I", frames & 0xFFFFFFFF)
    return put_flac(root, bytes(content))


@case("flac that counts fewer samples than it holds", "refused", "its samples are not those that were encoded")
def _(root: Path):
    content = bytearray(flac())
    content[22:26] = struct.pack(">I", 8000)
    return put_flac(root, bytes(content))


# Samples that are no sound


def _floats(root: Path, samples: NDArray[np.float64], subtype: str = "FLOAT") -> None:
    soundfile.write(root / TRAIN, samples, RATE, subtype=subtype)


@case("NaN", "refused", "holds NaN or infinite samples")
def _(root: Path):
    _floats(root, np.where(np.arange(RATE) == 5, np.nan, 0.1))


@case("infinity", "refused", "holds NaN or infinite samples")
def _(root: Path):
    _floats(root, np.where(np.arange(RATE) == 5, -np.inf, 0.1), "DOUBLE")


@case("floats that were never scaled to ±1", "refused", "floats go from -1 to 1")
def _(root: Path):
    _floats(root, signal().astype(float))


@case("silence", "used", "silent or constant")
def _(root: Path):
    put(root, wav(np.zeros(RATE, np.int16)))


@case("constant signal", "used", "silent or constant")
def _(root: Path):
    put(root, wav(np.full(RATE, 1234, np.int16)))


@case("clipped signal", "used", "clipped: more than 1 % of its samples at full scale")
def _(root: Path):
    put(root, wav(np.where(np.arange(RATE) % 100 < 50, 32767, -32768).astype(np.int16)))


# Formats


def _format(root: Path, subtype: str) -> None:
    soundfile.write(root / TRAIN, signal() / 32768, RATE, subtype=subtype)


for _subtype, _name, _tolerance in (
    ("PCM_U8", "8-bit integers", 256), ("PCM_24", "24-bit integers", 1), ("PCM_32", "32-bit integers", 1),
    ("FLOAT", "32-bit floats", 0), ("DOUBLE", "64-bit floats", 0),
):  # fmt: skip
    case(_name, "used", tolerance=_tolerance)(lambda root, subtype=_subtype: _format(root, subtype))


def _channels(root: Path, number: int) -> None:
    soundfile.write(root / TRAIN, np.repeat(signal()[:, None], number, axis=1), RATE)


case("stereo", "refused", "has 2 channels: --set data.channel=0")(lambda root: _channels(root, 2))
case("8 channels", "refused", "has 8 channels: --set data.channel=0")(lambda root: _channels(root, 8))
case("8 channels, data.channel=mean", "used", tolerance=1, sets=("mean",))(lambda root: _channels(root, 8))

for _rate in (8000, 44100, 48000):
    case(f"{_rate} Hz", "refused", f"has {_rate} Hz among 16000 Hz: --set data.resample=true")(
        lambda root, rate=_rate: put(root, wav(rate=rate))
    )


@case("44100 Hz, data.resample=true", "used", sets=("resample",))
def _(root: Path):
    put(root, wav(signal(2.8), rate=44100))


@case("two hours", "used", "silent or constant")
def _(root: Path):
    length = 2 * 7200 * RATE
    put(root, wav(np.zeros(0, np.int16), data=length, riff=36 + length))
    os.truncate(root / TRAIN, 44 + length)  # a hole: no disk is used


@case("0.1 s", "used", "shorter than a window of 0.5 s: repeats itself")
def _(root: Path):
    put(root, wav(signal(0.1)))


@case("text named .wav", "refused", "cannot be read as audio: Format not recognised")
def _(root: Path):
    put(root, b"this is not audio\n" * 500)


@case("mp3 named .wav", "used", "MP3 inside, whatever its name says")
def _(root: Path):
    soundfile.write(root / TRAIN, signal() / 32768, RATE, format="MP3")


@case("flac named .wav", "used", "FLAC inside, whatever its name says", tolerance=0)
def _(root: Path):
    put(root, flac())


@case("wav named .flac", "used", "WAV inside, whatever its name says", tolerance=0)
def _(root: Path):
    return put_flac(root, wav())


# Things that are no readable files


@case("no permission", "refused", "Permission denied")
def _(root: Path):
    put(root, wav())
    (root / TRAIN).chmod(0)


def _grow(root: Path) -> None:
    with (root / TRAIN).open("ab") as file:
        file.write(bytes(1000))


@case("grows between listing and decoding", "refused", "is it still being written?", after_scan=_grow)
def _(root: Path):
    put(root, wav())


@case(
    "vanishes between listing and decoding", "refused", "No such file", after_scan=lambda root: (root / TRAIN).unlink()
)
def _(root: Path):
    put(root, wav())


@case("folder named like a clip", "refused", "is a folder, not a file")
def _(root: Path):
    (root / TRAIN).mkdir()


@case("dangling link", "refused", "cannot be opened: No such file or directory")
def _(root: Path):
    (root / TRAIN).symlink_to(root / "nowhere.wav")


@case("link to itself", "refused", "cannot be opened: Too many levels of symbolic links")
def _(root: Path):
    (root / TRAIN).symlink_to(root / TRAIN)


@case("pipe", "refused", "is a pipe, not a file")
def _(root: Path):
    os.mkfifo(root / TRAIN)


@case("socket", "refused", "is a socket, not a file")
def _(root: Path):
    here = Path.cwd()
    os.chdir((root / TRAIN).parent)  # a socket's path may be 108 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(Path(TRAIN).name)
    finally:
        os.chdir(here)


@case("device", "refused", "is a device, not a file")
def _(root: Path):
    (root / TRAIN).symlink_to("/dev/zero")


# Content that should not be there twice


def _copy(root: Path, *clips: str) -> list[str]:
    return [put(root, wav(), clip)[0] for clip in clips]


@case("same audio in training and test", "used", "test clips hold the same audio as training clips", tolerance=0)
def _(root: Path):
    return _copy(root, TRAIN, TEST)


@case("same test audio, contradicting labels", "used", "the same audio as test clips of the other label", tolerance=0)
def _(root: Path):
    return _copy(root, TEST, TEST.replace("normal", "anomaly"))


# Names


@case("SECTION_00 in capitals", "refused", "its name follows no DCASE scheme")
def _(root: Path):
    return _copy(root, TRAIN.replace("section", "SECTION"))


@case("suffix in capitals", "used", tolerance=0)
def _(root: Path):
    return _copy(root, TRAIN.replace(".wav", ".WAV"))


@case("machines that differ in case alone", "always refused", "machines 'Fan' and 'fan' differ in case")
def _(root: Path):
    return _copy(root, TRAIN.replace("fan", "Fan"))


@case("machines that differ in how accents are encoded", "always refused", "differ in case or accents' encoding alone")
def _(root: Path):
    return _copy(root, *(TRAIN.replace("fan", unicodedata.normalize(form, "gerät")) for form in ("NFC", "NFD")))


@case("spaces, quotes and emoji in names", "used", tolerance=0)
def _(root: Path):
    machine = 'it\'s a "fan", 🌀 no. 1'
    return _copy(root, TRAIN.replace("fan", machine).replace(".wav", "_é 'x' \"y\" 🌀.wav"))


@case("newline in a file's name", "refused", "has a control character in its name")
def _(root: Path):
    _copy(root, TRAIN.replace(".wav", "_a\nb.wav"))
    return [TRAIN.replace(".wav", "_a\\nb.wav")]


@case("newline in a folder's name", "refused", "has a control character in its name")
def _(root: Path):
    _copy(root, TRAIN.replace("fan", "fan\nerror: all is lost"))
    return [TRAIN.replace("fan", "fan\\nerror: all is lost")]


@case("file name that is not UTF-8", "refused", "has a name that is not UTF-8")
def _(root: Path):
    _copy(root, os.fsdecode(TRAIN.encode().replace(b".wav", b"_caf\xe9.wav")))
    return [TRAIN.replace(".wav", "_caf\\xe9.wav")]


@case("folder name that is not UTF-8", "refused", "has a name that is not UTF-8")
def _(root: Path):
    _copy(root, os.fsdecode(TRAIN.encode().replace(b"fan", b"fan\xff")))
    return [TRAIN.replace("fan", "fan\\xff")]


@case("file name of 255 bytes", "used", tolerance=0)
def _(root: Path):
    name = Path(TRAIN).stem
    return _copy(root, f"fan/train/{name}_{'x' * (250 - len(name))}.wav")


@case("machine name of 255 bytes", "always refused", "a machine's name takes 255 bytes, 150 at most")
def _(root: Path):
    return [path[:20] for path in _copy(root, TRAIN.replace("fan", "f" * 255))]


@case("hidden files, as macOS leaves them", "ignored")
def _(root: Path):
    return put(root, b"resource fork", "fan/train/._section_00_source_train_normal_0000_x.wav")


@case("other files among the clips", "ignored", "not an audio file: ignored")
def _(root: Path):
    return put(root, b"hello", "fan/train/notes.txt")


@case("audio outside train and test", "ignored", "1 audio files outside a folder named train")
def _(root: Path):
    put(root, wav(), "fan/more/x.wav")
    return ["fan/more"]


# Trees


@case("links in circles", "ignored")
def _(root: Path):
    (root / "fan/circle").symlink_to(root)
    (root / "fan/train/circle").symlink_to(root / "fan/train")
    (root / "self").symlink_to(root / "self")
    return []


@case("thousands of empty folders", "ignored")
def _(root: Path):
    for n in range(3000):
        (root / f"empty/{n % 30}/{n}").mkdir(parents=True)
    return []


@case("tree deeper than Python's stack", "used", tolerance=0)
def _(root: Path):
    for depth in range(1, 1501):
        os.mkdir(f"{root}/" + "d/" * depth)  # noqa: PTH102 - a pathlib path of that depth costs as much again
    return _copy(root, "d/" * 1500 + TRAIN.replace("fan", "deep"))


@case("tree deeper than a path may be long", "refused", "cannot be opened: File name too long")
def _(root: Path):
    here = os.open(root, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    return ["d" * 100]


def remove(root: Path) -> None:
    """Remove a tree of any depth, which Python 3.11 cannot."""
    subprocess.run(["rm", "-rf", root], check=True)
