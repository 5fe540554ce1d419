"""Sound models of seven machine types: a tonal model and a model of strokes, each with faults, in a noisy room.

Products of a machine type differ in what faults change: the levels of harmonics or ringing modes, modulation, and the
pattern of strokes. Clips of a product differ in what means nothing: speed, gain, and the level and colour of the noise.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from rayasd.randomness import generator

Signal = NDArray[np.float64]

_TABLE = 8192  # samples of one period of a tonal machine; a power of two, so that a bit mask wraps it


@dataclass(frozen=True)
class SoundModel:
    """Properties of all products of a machine type."""

    rate_hz: float  # fundamental frequency, or cycles of two strokes per second
    noise_hz: tuple[float, float]  # band of the machine's own noise
    num_harmonics: int = 0  # 0: a machine of strokes
    modulation_order: float = 0.0
    """Amplitude modulation, as a fraction of the fundamental (a shaft of seven blades: 1/7)."""
    modes_hz: tuple[float, ...] = ()  # ringing frequencies of the strokes

    @property
    def faults(self) -> tuple[str, ...]:
        """Kinds of faults that products can have."""
        if self.num_harmonics:
            return "missing harmonic", "extra harmonic", "imbalance"
        return "missed strokes", "late strokes", "worn seat"


MODELS = {
    "fan": SoundModel(168.0, (200, 2500), 22, 1 / 7),
    "gearbox": SoundModel(310.0, (500, 4000), 14, 1 / 23),
    "pump": SoundModel(121.0, (150, 1800), 30, 1 / 5),
    "slider": SoundModel(1.7, (800, 5000), modes_hz=(420, 700, 1150, 1900, 3100)),
    "valve": SoundModel(3.1, (1000, 6000), modes_hz=(900, 1500, 2400, 3700, 5600)),
    "ToyCar": SoundModel(236.0, (600, 5000), 18, 1 / 9),
    "ToyTrain": SoundModel(205.0, (300, 3000), 12, 1 / 6),
}


def model_of(machine: str) -> SoundModel:
    """Return the model of a machine type; one that has none of its own sounds like one of these."""
    own = machine.removesuffix("Emu")
    return MODELS.get(own) or list(MODELS.values())[sum(own.encode()) % len(MODELS)]


@dataclass(frozen=True)
class Product:
    """One section of a machine type, in a state of health."""

    model: SoundModel
    speed: float  # factor on the model's rate
    levels_db: Signal  # level of each harmonic or mode
    modulation: float  # depth of the amplitude modulation, 0 to 1
    strokes: tuple[float, float]  # times of the strokes, as fractions of a cycle
    decay_seconds: float
    missed: float = 0.0  # probability that a stroke is left out


def product_of(machine: str, section: int, seed: int) -> Product:
    """Build a healthy product; it depends on these three alone."""
    model, rng = model_of(machine), generator(seed, "product", machine, section)
    levels = rng.normal(0.0, 7.0, model.num_harmonics or len(model.modes_hz))
    if model.num_harmonics:
        levels -= 2.0 * np.log2(np.arange(1, model.num_harmonics + 1))
    return Product(
        model=model,
        speed=float(np.exp(rng.uniform(-0.1, 0.1))),
        levels_db=levels,
        modulation=float(rng.uniform(0.05, 0.5)),
        strokes=(float(rng.uniform(0.06, 0.14)), float(rng.uniform(0.4, 0.55))),
        decay_seconds=float(rng.uniform(0.012, 0.03)),
    )


def with_fault(product: Product, kind: str, strength: float, rng: np.random.Generator) -> Product:
    """Give a product one fault; ``strength`` 1 is clear but not loud."""
    levels = product.levels_db.copy()
    if kind == "missing harmonic":
        first = int(rng.integers(0, 3))
        levels[np.argsort(-levels)[first : first + 4]] -= 13.0 * strength
    elif kind == "extra harmonic":
        weakest = np.argsort(levels)[: len(levels) // 2]
        levels[rng.choice(weakest, 4, replace=False)] += 14.0 * strength
    elif kind == "imbalance":
        levels[: max(2, len(levels) // 6)] += 8.0 * strength
        product = replace(product, modulation=min(0.95, product.modulation + 0.5 * strength))
    elif kind == "worn seat":
        levels += 6.0 * strength * rng.permutation(np.resize([-1.0, 1.0], len(levels)))
        product = replace(product, decay_seconds=product.decay_seconds * (1 + 0.4 * strength))
    elif kind == "late strokes":
        product = replace(product, strokes=(product.strokes[0], product.strokes[1] + 0.2 * strength))
    else:
        product = replace(product, missed=min(0.9, 0.45 * strength))
    return replace(product, levels_db=levels)


def clip_of(
    product: Product, domain: str, num_samples: int, sample_rate: int, rng: np.random.Generator, *, part: str = ""
) -> Signal:
    """Render one clip in a room, (num_samples,), full scale 1.

    The target domain has another speed, more noise and another gain. The part "clean" is the machine without the room,
    and "noise" the room without the machine.
    """
    model, target = product.model, domain == "target"
    hz = model.rate_hz * product.speed * (1.06 if target else 1.0) * float(np.exp(rng.uniform(-0.06, 0.06)))
    levels_db = product.levels_db + rng.normal(0.0, 1.5, len(product.levels_db))
    low, high = model.noise_hz
    machine = 0.3 * _noise(np.array([low / 4, low, high, high * 4]), np.array([-40, 0, 0, -40]), num_samples,
                           sample_rate, rng)  # fmt: skip
    render = _tones if model.num_harmonics else _strokes
    machine += render(product, hz, levels_db, num_samples, sample_rate, rng)
    machine /= np.sqrt(np.mean(machine**2)) + 1e-9
    room_hz = np.geomspace(30.0, 9000.0, 16)
    room_db = rng.uniform(-7.0, -1.0) * np.log2(room_hz / 500.0) + rng.normal(0.0, 5.0, len(room_hz))
    noise_db = rng.uniform(-14.0, -3.0) + (2.0 if target else 0.0)
    gain_db = rng.uniform(-40.0, -28.0) - (3.0 if target else 0.0)
    room = _noise(room_hz, room_db, num_samples, sample_rate, rng)
    room *= 10 ** (noise_db / 20)
    return {"clean": machine, "noise": room}.get(part, machine + room) * 10 ** (gain_db / 20)


def two_microphones(near: Signal, sample_rate: int, rng: np.random.Generator) -> Signal:
    """Add a noise to a sound (n,) that a microphone far from the machine hears, too; (n, 2), near and far."""
    hz, level_db = np.geomspace(30.0, 9000.0, 16), rng.normal(0.0, 5.0, 16)
    noise = _noise(hz, level_db, len(near), sample_rate, rng) * np.sqrt(np.mean(near**2))
    return np.stack([near + noise, 0.1 * near + np.roll(noise, 20)], axis=1)


def _tones(p: Product, hz: float, levels_db: Signal, n: int, rate: int, rng: np.random.Generator) -> Signal:
    """Harmonics of a fundamental whose frequency wanders by some thousandths, modulated by a shaft."""
    spectrum = np.zeros(_TABLE // 2 + 1, np.complex128)
    spectrum[1 : len(levels_db) + 1] = 10 ** (levels_db / 20) * np.exp(2j * np.pi * rng.random(len(levels_db)))
    table = np.fft.irfft(spectrum)
    table /= np.sqrt(np.mean(table**2))
    wander = np.interp(np.linspace(0, 1, n), np.linspace(0, 1, n // 2000 + 3), rng.normal(0, 0.003, n // 2000 + 3))
    phase = np.cumsum(hz / rate * (1.0 + wander)) + rng.random()
    shaft = np.cos(2 * np.pi * p.model.modulation_order * phase)
    return table[(phase * _TABLE).astype(np.int64) & (_TABLE - 1)] * (1.0 + p.modulation * shaft)


def _strokes(p: Product, hz: float, levels_db: Signal, n: int, rate: int, rng: np.random.Generator) -> Signal:
    """Two strokes per cycle, each a decaying sum of modes."""
    sound, t = np.zeros(n), np.arange(int(6 * p.decay_seconds * rate)) / rate
    amplitudes = 10 ** (levels_db / 20)
    phases = rng.uniform(0, 2 * np.pi, len(levels_db))
    modes = np.sin(2 * np.pi * np.outer(p.model.modes_hz, t) + phases[:, None])
    burst = np.exp(-t / p.decay_seconds) * (amplitudes @ modes) / np.sqrt(np.sum(amplitudes**2))
    starts = np.arange(rng.uniform(-1.0, 0.0), n / rate * hz, 1.0)
    for stroke, level in zip(p.strokes, (4.0, 3.0), strict=True):
        for start in (starts + stroke + rng.normal(0.0, 0.004, len(starts))) / hz * rate:
            if rng.random() >= p.missed and 0 <= start < n:
                part = sound[int(start) : int(start) + len(burst)]
                part += level * float(np.exp(rng.normal(0.0, 0.1))) * burst[: len(part)]
    return sound


def _noise(hz: Signal, level_db: Signal, n: int, rate: int, rng: np.random.Generator) -> Signal:
    """Gaussian noise of unit power whose colour is given at some frequencies."""
    octaves = np.log2(np.maximum(np.fft.rfftfreq(n, 1 / rate), 1.0))
    amplitude = np.exp((np.interp(octaves, np.log2(hz), level_db) * (np.log(10) / 20)).astype(np.float32))
    parts = rng.standard_normal((2, len(amplitude)), dtype=np.float32)
    sound: Signal = fft.irfft(amplitude * (parts[0] + np.complex64(1j) * parts[1]), n)
    return sound / np.sqrt(np.mean(sound**2))
