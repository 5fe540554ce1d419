"""Sound models of seven machine types: products, faults, domains, and the room around them.

A machine is a periodic source (harmonics of a shaft, blade-pass or gear-mesh frequency) or a source of strokes that
ring, plus its own noise floor. What tells its products apart is what faults change: the balance of harmonics or ringing
modes, modulation, and the pattern of strokes. What changes from clip to clip without meaning is the same for all
machines: gain, and the level, colour and bumps of the room's noise.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from rayasd.randomness import generator

Signal = NDArray[np.float32]
Rng = np.random.Generator

_TABLE = 8192
"""Samples of one period of a harmonic source; a power of two, so that a bit mask wraps it."""

_GRID_ZERO_HZ = 500.0
_GRID = np.linspace(-4.1, 4.1, 165)
"""Octaves above 500 Hz on which colours and responses are drawn."""


@dataclass(frozen=True)
class Model:
    """What all products of a machine type share."""

    period_hz: float
    """Rate of the fundamental, or of strokes."""
    num_harmonics: int = 0
    """0: an impulsive machine without a tonal part."""
    modulation_order: float = 0.0
    """Amplitude modulation, as a fraction of the fundamental (a shaft of seven blades: 1/7)."""
    wander: float = 0.002
    """Relative deviation of the speed within a clip."""
    strokes: tuple[float, ...] = ()
    """Where in a period strokes fall, as fractions."""
    modes_hz: tuple[float, ...] = ()
    """Ringing frequencies of the strokes."""
    noise_hz: tuple[float, float] = (300.0, 3000.0)
    """Band of the machine's own noise."""
    noise_level: float = 0.3
    faults: tuple[str, ...] = ()


_TONAL_FAULTS = ("missing harmonic", "extra harmonic", "imbalance", "bearing")
_STROKE_FAULTS = ("missed strokes", "late strokes", "worn seat", "friction")

MODELS: dict[str, Model] = {
    "fan": Model(168.0, 22, 1 / 7, faults=_TONAL_FAULTS, noise_hz=(200, 2500), noise_level=0.5),
    "gearbox": Model(310.0, 14, 1 / 23, faults=_TONAL_FAULTS, noise_hz=(500, 4000)),
    "pump": Model(121.0, 30, 1 / 5, faults=(*_TONAL_FAULTS[:3], "friction"), noise_hz=(150, 1800), noise_level=0.4),
    "slider": Model(1.7, strokes=(0.1, 0.6), modes_hz=(420, 700, 1150, 1900, 3100), faults=_STROKE_FAULTS,
                    noise_hz=(800, 5000), noise_level=0.25),
    "valve": Model(3.1, strokes=(0.1, 0.35), modes_hz=(900, 1500, 2400, 3700, 5600), faults=_STROKE_FAULTS,
                   noise_hz=(1000, 6000), noise_level=0.12),
    "ToyCar": Model(236.0, 18, 1 / 9, wander=0.012, faults=_TONAL_FAULTS, noise_hz=(600, 5000), noise_level=0.35),
    "ToyTrain": Model(205.0, 12, 1 / 6, wander=0.006, strokes=(0.0, 0.02), modes_hz=(600, 1300, 2700),
                      faults=("missing harmonic", "extra harmonic", "imbalance", "friction"), noise_level=0.3),
}  # fmt: skip
_RAIL_JOINTS_HZ = 2.3


@dataclass(frozen=True)
class Product:
    """One section of a machine type, in a state of health."""

    model: Model
    speed: float
    """Factor on the model's rates."""
    harmonics_db: NDArray[np.float64]
    """Level of each harmonic."""
    modes_db: NDArray[np.float64]
    """Level of each ringing mode."""
    modulation: float
    """Depth of the amplitude modulation, 0 to 1."""
    strokes: tuple[float, ...]
    decay_seconds: float
    missed: float = 0.0
    """Probability that a stroke is left out."""
    bearing: float = 0.0
    """Level of an impulse train through a resonance."""
    friction: float = 0.0
    """Level of noise that swells once a cycle."""


def product_of(machine: str, section: int, seed: int) -> Product:
    """Build a healthy product; it depends on these three alone."""
    model, rng = MODELS[machine], generator(seed, "product", machine, section)
    tilt = -4.0 * np.log2(np.arange(1, model.num_harmonics + 1))
    return Product(
        model=model,
        speed=float(np.exp(rng.uniform(-0.1, 0.1))),
        harmonics_db=tilt * 0.5 + _smooth_pattern(rng, model.num_harmonics, 7.0),
        modes_db=rng.normal(0.0, 7.0, len(model.modes_hz)),
        modulation=float(rng.uniform(0.05, 0.5)),
        strokes=tuple(float(s + rng.uniform(-0.04, 0.04)) for s in model.strokes),
        decay_seconds=float(rng.uniform(0.012, 0.03)),
    )


def with_fault(product: Product, kind: str, strength: float, rng: Rng) -> Product:
    """Give a product one fault; ``strength`` 1 is a clear but not a loud one."""
    return _FAULTS[kind](product, strength, rng)


def clip_of(product: Product, domain: str, num_samples: int, sample_rate: int, rng: Rng) -> Signal:
    """Render one clip in a room, (num_samples,), full scale 1.

    The target domain runs at another speed, in more noise, at another gain.
    """
    target = domain == "target"
    speed = product.speed * (1.06 if target else 1.0) * float(np.exp(rng.uniform(-0.06, 0.06)))
    varied = replace(
        product,
        harmonics_db=product.harmonics_db + rng.normal(0.0, 1.5, len(product.harmonics_db)),
        modes_db=product.modes_db + rng.normal(0.0, 1.5, len(product.modes_db)),
    )
    sound = _machine(varied, speed, num_samples, sample_rate, rng)
    sound /= np.sqrt(np.mean(sound**2)) + 1e-9
    _passing_event(sound, sample_rate, rng)
    noise_db = rng.uniform(-14.0, -3.0) + (2.0 if target else 0.0)
    gain_db = rng.uniform(-36.0, -22.0) - (3.0 if target else 0.0)
    spectrum = fft.rfft(sound) + _noise_spectrum(_room_db(rng), num_samples, sample_rate, rng, noise_db)
    place_db = np.interp(_GRID, np.linspace(_GRID[0], _GRID[-1], 9), rng.normal(0.0, 2.5, 9)) + gain_db
    return fft.irfft(spectrum * _response(place_db, num_samples, sample_rate), num_samples)


def _machine(p: Product, speed: float, n: int, rate: int, rng: Rng) -> Signal:
    model, hz = p.model, p.model.period_hz * speed
    knots = np.cumsum(rng.normal(0.0, 1.0, n // 2000 + 3))
    knots = model.wander * (knots - knots.mean()) / (knots.std() + 1e-9)
    drift = np.interp(np.arange(n), np.linspace(0, n, len(knots)), knots)
    phase = np.cumsum(hz / rate * (1.0 + drift)) + rng.random()
    sound = model.noise_level * _band_noise(n, rate, model.noise_hz, rng)
    if model.num_harmonics:
        sound += _harmonic_table(p.harmonics_db, rng).take((phase * _TABLE).astype(np.int64) & (_TABLE - 1))
    turns = (model.modulation_order or 1.0) * phase
    turns -= np.floor(turns)  # single precision does for a share of one turn, not for thousands of turns
    shaft = np.cos(np.float32(2 * np.pi) * turns.astype(np.float32))
    if model.num_harmonics:
        sound *= 1.0 + np.float32(p.modulation) * shaft
    if p.friction:
        sound += np.float32(p.friction) * _band_noise(n, rate, (1500.0, 6000.0), rng) * np.maximum(shaft, 0.0)
    if p.bearing:
        resonance = ((float(rng.uniform(2200, 3600)),), np.zeros(1))
        times = np.arange(rng.random(), n / rate * 31.0, 1.0) / 31.0
        _ring(sound, times, np.full(len(times), p.bearing), *resonance, 0.004, rate, rng)
    if p.strokes:
        cycle = 1.0 / (_RAIL_JOINTS_HZ * speed if model.num_harmonics else hz)
        starts = np.arange(rng.uniform(-cycle, 0.0), n / rate, cycle)
        for i, stroke in enumerate(p.strokes):
            times = starts + stroke * cycle + rng.normal(0.0, 0.004 * cycle, len(starts))
            levels = (4.0 if i == 0 else 3.0) * np.exp(rng.normal(0.0, 0.1, len(times)))
            levels *= rng.random(len(times)) >= p.missed
            _ring(sound, times, levels, model.modes_hz, p.modes_db, p.decay_seconds, rate, rng)
    return sound


def _harmonic_table(levels_db: NDArray[np.float64], rng: Rng) -> Signal:
    spectrum = np.zeros(_TABLE // 2 + 1, np.complex64)
    count = len(levels_db)
    spectrum[1 : count + 1] = 10 ** (levels_db / 20) * np.exp(2j * np.pi * rng.random(count))
    table = np.fft.irfft(spectrum).astype(np.float32)
    return table / (np.sqrt(np.mean(table**2)) + 1e-9)


def _ring(
    sound: Signal,
    times: NDArray[np.float64],
    levels: NDArray[np.float64],
    modes_hz: tuple[float, ...],
    modes_db: NDArray[np.float64],
    decay: float,
    rate: int,
    rng: Rng,
) -> None:
    """Add a decaying sum of modes at each time."""
    length = int(6 * decay * rate)
    t = np.arange(length) / rate
    amplitudes = 10 ** (modes_db / 20)
    amplitudes /= np.sqrt(np.sum(amplitudes**2))
    phases = rng.uniform(0, 2 * np.pi, len(modes_hz))
    tone = sum(a * np.sin(2 * np.pi * f * t + p) for a, f, p in zip(amplitudes, modes_hz, phases, strict=True))
    burst = (np.exp(-t / decay) * tone).astype(np.float32)
    for start, level in zip((times * rate).astype(int), levels, strict=True):
        if 0 <= start < len(sound) and level:
            part = sound[start : start + length]
            part += np.float32(level) * burst[: len(part)]


def _passing_event(sound: Signal, rate: int, rng: Rng) -> None:
    """Sometimes add a short noise of something that passes by."""
    if rng.random() < 0.3:
        length = min(len(sound), int(rng.uniform(0.1, 0.8) * rate))
        start = int(rng.integers(0, len(sound) - length + 1))
        burst = rng.standard_normal(length, dtype=np.float32) * np.hanning(length).astype(np.float32)
        sound[start : start + length] += np.float32(rng.uniform(0.1, 0.6)) * burst


def _room_db(rng: Rng) -> NDArray[np.float64]:
    """Colour of a room's noise on the grid: a random tilt and some random bumps."""
    level = rng.uniform(-7.0, -1.0) * _GRID
    for _ in range(rng.integers(2, 8)):
        centre, width = rng.uniform(-2.0, 3.5), rng.uniform(0.08, 0.4)
        level += rng.uniform(4.0, 15.0) * np.exp(-0.5 * ((_GRID - centre) / width) ** 2)
    return level


def _band_noise(n: int, rate: int, band: tuple[float, float], rng: Rng) -> Signal:
    """Gaussian noise of unit power around a band."""
    centre, octaves = np.log2(np.sqrt(band[0] * band[1]) / _GRID_ZERO_HZ), np.log2(band[1] / band[0])
    level = -0.5 * ((_GRID - centre) / (0.5 * octaves)) ** 2 * (20 / np.log(10))
    return fft.irfft(_noise_spectrum(level, n, rate, rng, 0.0), n)


def _noise_spectrum(
    level_db: NDArray[np.float64], n: int, rate: int, rng: Rng, power_db: float
) -> NDArray[np.complex64]:
    """Spectrum of Gaussian noise with this colour and power (full scale 1 is 0 dB)."""
    amplitude = _response(level_db, n, rate)
    amplitude *= np.float32(n / 2 / np.sqrt(np.dot(amplitude, amplitude)) * 10 ** (power_db / 20))
    # Uniform parts are quicker to draw; the transform sums thousands of them, so the samples are Gaussian all the same.
    parts = rng.random((len(amplitude), 2), dtype=np.float32)
    parts -= np.float32(0.5)
    parts *= (amplitude * np.float32(np.sqrt(12.0)))[:, None]  # a uniform number's variance is 1/12
    return parts.view(np.complex64)[:, 0]


def _response(level_db: NDArray[np.float64], n: int, rate: int) -> Signal:
    """Amplitudes of the n // 2 + 1 frequencies of a transform from decibels on the grid of octaves."""
    left, share = _places_on_grid(n, rate)
    nepers = (level_db * (np.log(10.0) / 20.0)).astype(np.float32)
    response: Signal = np.exp(nepers.take(left) + share * np.diff(nepers).take(left))
    return response


@lru_cache(maxsize=4)
def _places_on_grid(n: int, rate: int) -> tuple[NDArray[np.int32], Signal]:
    """Where a transform's frequencies lie: the grid point on their left, and the share of the way to the next."""
    octaves = np.log2(np.maximum(np.arange(n // 2 + 1) * (rate / n), 30.0) / _GRID_ZERO_HZ)
    place = np.clip((octaves - _GRID[0]) / (_GRID[1] - _GRID[0]), 0.0, len(_GRID) - 1.0)
    left = np.minimum(place.astype(np.int32), len(_GRID) - 2)
    return left, (place - left).astype(np.float32)


def _smooth_pattern(rng: Rng, count: int, deviation_db: float) -> NDArray[np.float64]:
    """Random levels that vary every few harmonics, as resonances of a housing do."""
    if count == 0:
        return np.zeros(0)
    knots = rng.normal(0.0, deviation_db, max(3, count // 3))
    return np.interp(np.linspace(0, len(knots) - 1, count), np.arange(len(knots)), knots)


def _missing_harmonic(p: Product, strength: float, rng: Rng) -> Product:
    levels = p.harmonics_db.copy()
    first = int(rng.integers(0, 3))
    levels[np.argsort(-levels)[first : first + 4]] -= 13.0 * strength
    return replace(p, harmonics_db=levels)


def _extra_harmonic(p: Product, strength: float, rng: Rng) -> Product:
    levels = p.harmonics_db.copy()
    weakest = np.argsort(levels)[: len(levels) // 2]
    levels[rng.choice(weakest, 4, replace=False)] += 14.0 * strength
    return replace(p, harmonics_db=levels)


def _imbalance(p: Product, strength: float, rng: Rng) -> Product:
    levels = p.harmonics_db.copy()
    levels[: max(2, len(levels) // 6)] += 8.0 * strength
    return replace(p, modulation=min(0.95, p.modulation + 0.5 * strength), harmonics_db=levels)


def _worn_seat(p: Product, strength: float, rng: Rng) -> Product:
    change = rng.permutation(np.resize([-1.0, 1.0], len(p.modes_db)))
    return replace(
        p, modes_db=p.modes_db + 6.0 * strength * change, decay_seconds=p.decay_seconds * (1 + 0.4 * strength)
    )


def _late_strokes(p: Product, strength: float, rng: Rng) -> Product:
    return replace(p, strokes=(*p.strokes[:-1], p.strokes[-1] + 0.2 * strength))


_FAULTS: dict[str, Callable[[Product, float, Rng], Product]] = {
    "missing harmonic": _missing_harmonic,
    "extra harmonic": _extra_harmonic,
    "imbalance": _imbalance,
    "bearing": lambda p, strength, rng: replace(p, bearing=3.0 * strength),
    "friction": lambda p, strength, rng: replace(p, friction=0.6 * strength),
    "missed strokes": lambda p, strength, rng: replace(p, missed=min(0.9, 0.45 * strength)),
    "late strokes": _late_strokes,
    "worn seat": _worn_seat,
}
