"""Notes about the data that a person should read before a sweep."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pyarrow.compute as pc

from rayasd.config import Config
from rayasd.data.catalog import ONE_MACHINE, ONE_SECTION, SCALED, Catalog
from rayasd.data.oddities import odd_contents
from rayasd.nested import flatten
from rayasd.wording import counted

_SHOWN_PROBLEMS = 5


def kept_by_variants(config: Config, variants: Iterable[str], asked: Iterable[str]) -> Iterator[str]:
    """Tell which variants keep a value of their own, where a setting was asked for by its dotted name."""
    whole = flatten(config.as_dict())
    of_variants = {variant: flatten(config.variant(variant).as_dict()) for variant in variants}
    for name in asked:
        own = {variant: of[name] for variant, of in of_variants.items() if of.get(name) != whole.get(name)}
        if own:
            kept = ", ".join(f"{variant} keeps its own {value}" for variant, value in own.items())
            yield f"note     {name}: {kept}; --set variants.{next(iter(own))}.{name}=VALUE changes that"


def skipped_anomalies(scanned: Catalog, catalog: Catalog) -> Iterator[str]:
    """Tell where the anomalous clips are those that were left out, as when the level goes with the label."""
    known = (c.table.filter((pc.field("split") == "test") & pc.field("label").is_valid()) for c in (scanned, catalog))
    before, after = (Counter(table["label"].to_pylist()) for table in known)
    lost = before - after
    if lost[1]:
        yield f"skipped  {lost[1]} of {before[1]} anomalous test clips, and {lost[0]} of {before[0]} normal ones"


def emptied(scanned: Catalog, catalog: Catalog) -> list[str]:
    """List machines' sections of which no training clip, or no test clip, could be decoded."""
    before, after = (
        {tuple(row.values()) for row in c.table.select(["machine", "section", "split"]).to_pylist()}
        for c in (scanned, catalog)
    )
    return [" ".join(group) for group in sorted(before - after)]


def oddities(catalog: Catalog, machines: Sequence[str]) -> Iterator[str]:
    """List notes about the data that a person should read before a sweep."""
    if len(catalog.trained) == 1:
        yield f"note     {ONE_MACHINE}"
    for machine in machines:
        if (scale := pc.max(catalog.of(machine)["scale"]).as_py()) not in (None, 1.0):
            yield f"note     {machine}: {SCALED.format(scale)}"
        if len(pc.unique(catalog.of(machine).filter(catalog.is_train)["section"])) == 1:
            yield f"note     {machine}: {ONE_SECTION}"
    outside = [f"{odd.path}: {odd.problem}" for odd in catalog.oddities if "audio files outside" in odd.problem]
    if outside:
        yield f"note     {outside[0]}{f', and {len(outside) - 1} more folders' if len(outside) > 1 else ''}"
    for found in odd_contents(catalog.table):
        yield f"note     {found}"
    skipped = Counter(odd.problem for odd in catalog.oddities if odd.unusable)
    for problem, count in (often := skipped.most_common(_SHOWN_PROBLEMS)):
        yield f"skipped  {counted(count, 'clip')}: {problem}"
    if rest := skipped.total() - sum(count for _, count in often):
        yield f"skipped  {counted(rest, 'clip')} for other reasons: manifest.json has all"
