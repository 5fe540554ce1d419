"""Errors that a person can act on, each in one line."""

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_UNITS_FAILED = 1  # exit code of a command that could not do everything

EXIT_USAGE = 2  # exit code of a command that cannot do what it was asked for: usage, configuration, data

EXIT_INTERRUPTED = 75
"""Exit code of a command that was interrupted and can be resumed: batch scripts put it back in the queue."""

EXIT_STOPPED = 77  # exit code of a command that `rayasd stop` ended: it can be resumed, but batch scripts do not


class UserError(Exception):
    """Usage, configuration or data that cannot work: one line that a person can act on."""

    exit_code = EXIT_USAGE


class BadClipError(Exception):
    """A clip that cannot be used; the message is the reason, without the clip's name."""


class StorageError(UserError):
    """Storage is full, read-only or unreachable; not counted as the unit's failure."""


class NoGPUError(UserError):
    """A GPU that was given to a unit, but that torch does not see."""


class StorageLostError(StorageError):
    """Storage failed while units ran: what is done stays done, the same command does the rest."""

    exit_code = EXIT_UNITS_FAILED


class NothingSavedError(UserError):
    """A time limit came before a unit or an epoch was saved: the same time would not get further next time."""

    exit_code = EXIT_UNITS_FAILED


class Interrupted(KeyboardInterrupt):
    """An interruption that can be resumed, with its reason in one line; ends a command as Ctrl-C does."""


class RunStopped(Interrupted):
    """Somebody asked the run to stop (exit code 77)."""


def one_line(error: object, most: int = 200) -> str:
    """Return an error or a text as one line of at most ``most`` characters."""
    return " ".join(str(error).split())[:most]


def unknown(kind: str, name: str, valid: Iterable[str], where: str = "") -> UserError:
    """Build the error for a name that is not among the valid ones.

    It names the nearest (of dotted names by the last part first) and all of them, or ``where`` a person can see them.
    """
    choices = sorted(valid)
    last = get_close_matches(name.rpartition(".")[2], {choice.rpartition(".")[2] for choice in choices}, n=1)
    nearest = get_close_matches(name, [each for each in choices if each.rpartition(".")[2] in last], n=1, cutoff=0)
    all_of_them = f"there are: {', '.join(choices) or 'none'}"
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return UserError(f"unknown {kind} {name!r}: {hint}{where or all_of_them}")
