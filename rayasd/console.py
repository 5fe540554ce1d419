"""A console of rich's for text that comes from outside."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from rayasd.printing import printable


class SafeConsole(Console):
    """Prints text, whatever it holds, as text: without markup, and as ``printable``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render into segments of text; those by which rich itself controls the terminal stay as they are."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text, "\n"), style, control)
