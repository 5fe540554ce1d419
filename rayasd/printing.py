"""Printing to the terminal, always this way: control characters in names, files and messages of others are escaped."""

import json
import re
import sys

CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the direction of text
    "\u2028\u2029\ud800-\udfff]"  # ends of lines; half characters
)


def printable(text: str, kept: str = "") -> str:
    """Write control characters as JSON does (``\\u001b``), but those to be kept."""
    return CONTROL.sub(lambda found: found[0] if found[0] in kept else json.dumps(found[0])[1:-1], text)


def tell(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print lines of text."""
    print(printable(str(text), "\n\t"), file=sys.stderr if err else sys.stdout, end="\n" if nl else "", flush=True)
