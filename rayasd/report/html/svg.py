"""Charts as SVG text: elements whose text and attributes are escaped, and the plane that they are drawn on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike, NDArray

from rayasd.files import write_text

Ticks = Sequence[tuple[float, str]]  # places on an axis and what is written there


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """Write an element; all that is no markup yet is escaped. ``class_`` is class, ``stroke_width`` is stroke-width."""
    given = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None]
    words = "".join(f' {key}="{escape(short(value))}"' for key, value in given)
    inner = "".join(map(escape, children))
    return Markup(f"<{name}{words}>{inner}</{name}>")  # name and keys are ours, all else is escaped


def short(value: object) -> object:
    """Round a number to a tenth of a pixel; all else stays as it is."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float | np.floating) else value


def drawing(width: float, height: float, title: str, *children: object) -> Markup:
    """Put shapes on a canvas that shrinks with the page; its title is for screen readers and pointers."""
    return tag("svg", tag("title", title), *children, class_="chart", role="img", aria_label=title,
               viewBox=f"0 0 {short(float(width))} {short(float(height))}", width=width, height=height)  # fmt: skip


def write_drawing(path: Path, drawn: Markup) -> None:
    """Write a drawing as a file of its own, with its style."""
    style = (resources.files(__package__) / "chart.css").read_text(encoding="utf-8")
    opened = str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    at = opened.index(">") + 1
    write_text(path, f"{opened[:at]}<style>{style}svg {{ background: var(--surface); }}</style>{opened[at:]}")


def text(x: float, y: float, words: str, anchor: str = "start", class_: str | None = None) -> Markup:
    """Write words at a place; ``anchor`` is start, middle or end."""
    return tag("text", words, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


@dataclass(frozen=True)
class PlotArea:
    """A rectangle of pixels and the range of data that it shows."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    log_y: bool = False

    def points(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        """Map data to pixels, (n, 2); what lies beyond the range goes to its edge."""
        scale = np.log10 if self.log_y else np.asarray
        low, high = (float(scale(value)) for value in self.y)
        across = (np.asarray(x, np.float64) - self.x[0]) / (self.x[1] - self.x[0])
        with np.errstate(divide="ignore", invalid="ignore"):
            up = (scale(np.asarray(y, np.float64)) - low) / (high - low)
        across, up = np.clip(across, 0, 1), np.clip(up, 0, 1)
        return np.column_stack([self.left + self.width * across, self.top + self.height * (1 - up)])

    def path(self, x: ArrayLike, y: ArrayLike, class_: str, title: str | None = None) -> Markup:
        """Draw a line; it is broken where y is NaN."""
        words, pen = [], "M"
        for px, py in self.points(x, y):
            if np.isfinite(py):
                words.append(f"{pen}{short(float(px))} {short(float(py))}")
            pen = "L" if np.isfinite(py) else "M"
        return tag("path", *([tag("title", title)] if title else []), d="".join(words), class_=class_)

    def steps(self, edges: NDArray[np.float64], heights: NDArray[np.float64], class_: str) -> Markup:
        """Draw bars as one outline: edges (n + 1,), heights (n,)."""
        x = np.repeat(edges, 2)
        y = np.concatenate([[self.y[0]], np.repeat(heights, 2), [self.y[0]]])
        return self.path(x, y, class_)

    def upright(self, x: float, class_: str, title: str) -> Markup:
        """Draw a line across the whole height."""
        return self.path([x, x], self.y, class_, title)

    def band(self, x: tuple[float, float], class_: str, title: str) -> Markup:
        """Shade a range of x over the whole height."""
        (left, _), (right, _) = self.points(x, [self.y[0]] * 2)
        return tag("rect", tag("title", title), x=left, y=self.top, width=right - left, height=self.height,
                   class_=class_)  # fmt: skip

    def axes(self, x_ticks: Ticks, y_ticks: Ticks, x_label: str = "", y_label: str = "") -> Markup:
        """Draw grid lines, tick labels and the names of the axes."""
        bottom, right = self.top + self.height, self.left + self.width
        shapes = []
        for value, words in x_ticks:
            (px, _) = self.points([value], [self.y[0]])[0]
            shapes += [tag("path", d=f"M{short(float(px))} {short(self.top)}V{short(bottom)}", class_="grid"),
                       text(px, bottom + 13, words, "middle")]  # fmt: skip
        for value, words in y_ticks:
            (_, py) = self.points([self.x[0]], [value])[0]
            shapes += [tag("path", d=f"M{short(self.left)} {short(float(py))}H{short(right)}", class_="grid"),
                       text(self.left - 5, py + 4, words, "end")]  # fmt: skip
        if x_label:
            shapes.append(text(self.left + self.width / 2, bottom + 28, x_label, "middle", "label"))
        if y_label:
            shapes.append(text(self.left, self.top - 6, y_label, "start", "label"))
        return tag("g", *shapes)


def ticks(low: float, high: float, number: int = 5) -> list[tuple[float, str]]:
    """Choose about ``number`` round values within a range."""
    rough = (high - low) / number
    if not (math.isfinite(rough) and rough > 0):
        return [(low, f"{low:g}")] if math.isfinite(low) else []
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    values = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
    return [(float(value), f"{value:.6g}") for value in values]


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Choose values 1, 2 and 5 times powers of ten within a positive range; powers alone where it is wide."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    values = [factor * 10.0**power for power in powers for factor in factors]
    found = [(value, f"{value:g}") for value in values if low <= value <= high]
    return found if len(found) > 2 else ticks(low, high, 4)
