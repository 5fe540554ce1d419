"""Colours of an AUC, the same in a terminal and in a browser."""

import numpy as np

_LOW, _MIDDLE, _HIGH = np.array([178, 76, 0]), np.array([245, 243, 238]), np.array([0, 84, 147])


def heat_colours(auc: float) -> tuple[str, str]:
    """Colour of an AUC, orange below chance and blue above it, and of the digits on it."""
    share = float(np.clip((auc - 0.5) / 0.5, -0.6, 1))
    end, amount = (_HIGH, share) if share > 0 else (_LOW, -share / 0.6)
    colour = _MIDDLE + (end - _MIDDLE) * amount
    bright = colour @ [0.299, 0.587, 0.114] > 140
    return "#" + "".join(f"{round(c):02x}" for c in colour), "#111111" if bright else "#ffffff"
