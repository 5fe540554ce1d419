"""Clips that belong together, such as recordings of one moment by several microphones: they go one way or the other."""

import re
from collections.abc import Iterable

from rayasd.data.catalog import Catalog, with_columns
from rayasd.errors import UserError

_OF_ATTRIBUTE = "attribute:"
_CHANNEL = re.compile(
    r"[_-]?(?<![a-z])(?:mic|microphone|ch|channel|seg|segment|chunk|slice)[_-]?\d+(?!\d)", re.IGNORECASE
)


def moments(clips: Iterable[str]) -> dict[str, list[str]]:
    """Find clips whose paths differ in the number of a microphone, channel or segment alone, by the rest of their path.

    These are most likely one recording.
    """
    found: dict[str, list[str]] = {}
    for clip in clips:
        found.setdefault(_CHANNEL.sub("", clip), []).append(clip)
    return {rest: alike for rest, alike in found.items() if len(alike) > 1}


def with_groups(catalog: Catalog, rule: str) -> Catalog:
    """Name each clip's group by ``data.groups``; an empty rule leaves those that a manifest gives.

    Clips of a machine with the same words are one group, whatever their section. A clip without a match is alone.

    Raises UserError: the rule matches no clip.
    """
    if not rule:
        return catalog
    names = catalog.table["attributes" if rule.startswith(_OF_ATTRIBUTE) else "clip"].to_pylist()
    attribute = re.escape(rule.removeprefix(_OF_ATTRIBUTE))
    expression = re.compile(rf"(?:^|_)({attribute}[_=][^_]+)" if rule.startswith(_OF_ATTRIBUTE) else rule)
    found = [expression.search(name) for name in names]
    groups = [match and ((match[1] if expression.groups else match[0]) or None) for match in found]
    if not any(groups):
        raise UserError(f"data.groups = {rule!r} matches no clip of {catalog.root}, {names[0]!r} first")
    return with_columns(catalog, {"group": groups})
