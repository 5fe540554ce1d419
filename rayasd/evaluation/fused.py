"""Scores fused from others': of ensembles in a report, and of the same ensembles' new clips."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rayasd.evaluation.scores import HONEST_FIRST, Fusion, Leaf, SectionScores, Tree
from rayasd.inlier.fusion import FUSIONS
from rayasd.inlier.scores_file import CROSS_FIT, TRAINED_ON


def fused(members: Sequence[SectionScores], method: str) -> SectionScores:
    """Fuse scores of the same test clips, each scaled by its own training scores; normal clips, by the others'.

    A normal clip's fused score is of the members that have not seen it: of seeds that hold out different clips, each
    clip is judged by those that held it out (out-of-fold scores). They are fewer than judge a test clip, so
    these scores spread more, and thresholds are rather too high. Members of different variants judge a clip together
    or not at all, and so do those whose lowest or highest score counts, which depends on how many they are. A clip that
    members have seen is scored by all of them, and marked so.
    """
    first, tree = members[0], Fusion(method, tuple(member.tree for member in members if member.tree is not None))
    variants = {frozenset(leaf.variant for leaf in leaves(member)) for member in tree.members}
    fewest = len(members) if len(variants) > 1 or not method.endswith("mean") else 1
    normalise, by_others, combine = FUSIONS[method]
    reason = next((member.reason for member in members if member.failed), None)
    scores, of_clip = [], dict[str, list[tuple[float, str]]]()
    facts: dict[str, Any] = {}
    try:
        for member in members:
            if not np.isfinite(member.training).all():
                raise ValueError("no training scores: a fold of the normal clips could not be fitted")
            scores.append(normalise(member.scores, member.training))
            own = by_others(member.training).tolist()
            facts |= zip(member.training_clips, member.training_groups, strict=True)
            for clip, score, how in zip(member.training_clips, own, member.calibration, strict=True):
                of_clip.setdefault(clip, []).append((score, how))
    except ValueError as error:
        reason = reason or str(error)
    if reason is not None:
        nothing, none = np.full(len(first.clips), np.nan), np.empty(0, object)
        normal = none, np.empty(0), none, none
        return SectionScores(first.clips, first.domains, nothing, reason, first.groups, *normal, tree)
    judged = {}
    for clip, of in sorted(of_clip.items()):
        fresh = [(score, how) for score, how in of if how != TRAINED_ON]
        if len(fresh) >= fewest:
            judged[clip] = fresh
        elif len(of) == len(members):
            judged[clip] = of
    kinds = [_kind({how for _, how in of}) if len(of) == len(members) else CROSS_FIT for of in judged.values()]
    return SectionScores(
        first.clips, first.domains, combine(np.stack(scores)), None, first.groups, np.array([*judged], dtype=object),
        np.array([combine(np.array([[score] for score, _ in of]))[0] for of in judged.values()], np.float64),
        np.array([facts[clip] for clip in judged], dtype=object), np.array(kinds, dtype=object), tree,
    )  # fmt: skip


def _kind(of_members: set[str]) -> str:
    return TRAINED_ON if TRAINED_ON in of_members else next(kind for kind in HONEST_FIRST if kind in of_members)


def evaluated(tree: Tree, scores: Mapping[Leaf, SectionScores]) -> SectionScores:
    """Fuse the scores of a tree's leaves."""
    if isinstance(tree, Leaf):
        return scores[tree]
    return fused([evaluated(member, scores) for member in tree.members], tree.method)


def leaves(tree: Tree) -> list[Leaf]:
    """List the leaves of a tree, each once."""
    if isinstance(tree, Leaf):
        return [tree]
    return list(dict.fromkeys(leaf for member in tree.members for leaf in leaves(member)))
