"""What could stop a sweep on this node, looked at before hours go into it; each check says what it found."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "bad"]
Said = tuple[State, str]
"""What a check found and, unless it is ok, what to do."""


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    what: str
    state: State
    said: str
