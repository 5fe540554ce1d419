"""The notation of ``evaluation.ensembles`` and of entries: what an ensemble averages over."""

from typing import NamedTuple

from rayasd.errors import UserError

DIMENSIONS = ("seeds", "checkpoints", "detectors")
GREEDY = "greedy"


class Ensemble(NamedTuple):
    """The dimensions that an ensemble averages over."""

    variants: tuple[str, ...]  # variants that are fused; empty: each variant has an ensemble of its own
    over: tuple[str, ...]  # some of ``DIMENSIONS``


def parse_ensemble(name: str) -> Ensemble:
    """Read ``seeds``, ``seeds+detectors``, ``both&shared-scac`` or ``both&shared-scac+seeds``.

    Raises UserError: it is none of these.
    """
    first, *more = name.split("+")
    variants = tuple(first.split("&")) if "&" in first else ()
    over = tuple(more) if variants else (first, *more)
    if set(over) - set(DIMENSIONS) or len(set(over)) < len(over) or len(set(variants)) < len(variants):
        choices = ", ".join((*DIMENSIONS, GREEDY))
        raise UserError(
            f"evaluation.ensembles: {name!r} is none of {choices}, nor several joined by +, nor variants joined by &"
        )
    return Ensemble(variants, over)


def parse_entry(name: str) -> Ensemble:
    """Read the name of an entry of the leaderboard: its variants, one or several, and what it averages over."""
    first, *over = name.split("+")
    return Ensemble(tuple(first.split("&")), tuple(over))
