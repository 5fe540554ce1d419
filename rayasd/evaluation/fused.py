"""Scores fused from others': of ensembles in a report, and of the same ensembles' new clips."""

from collections.abc import Mapping, Sequence

import numpy as np

from rayasd.evaluation.scores import Fusion, Leaf, SectionScores, Tree
from rayasd.inlier.fusion import FUSIONS


def fused(members: Sequence[SectionScores], method: str) -> SectionScores:
    """Fuse scores of the same test clips, each scaled by its own training scores.

    The fused training scores are those of the normal clips that every member has scored. Seeds that hold out different
    clips may have none in common; scores of some of the members would not be spread as the test clips' are.
    """
    first = members[0]
    normalise, combine = FUSIONS[method]
    known: set[str] = set().union(*(member.training_clips[~member.held_out] for member in members))
    clips = np.array(sorted(set.intersection(*(set(member.training_clips) for member in members))), dtype=object)
    tree = Fusion(method, tuple(member.tree for member in members if member.tree is not None))
    scores, training = [], []
    reason = next((member.reason for member in members if member.failed), None)
    try:
        for member in members:
            if not np.isfinite(member.training).all():
                raise ValueError("no training scores: a fold of the normal clips could not be fitted")
            common = np.isin(member.training_clips, clips)
            order = np.argsort(member.training_clips[common])
            scores.append(normalise(member.scores, member.training))
            training.append(normalise(member.training[common][order], member.training))
    except ValueError as error:
        reason = reason or str(error)
    if reason is not None:
        nothing = np.full(len(first.clips), np.nan)
        none = clips[:0], np.empty(0), np.empty(0, bool)
        return SectionScores(first.clips, first.domains, nothing, reason, *none, tree)
    held_out = np.array([clip not in known for clip in clips], dtype=bool)
    of_test, of_training = combine(np.stack(scores)), combine(np.stack(training))
    return SectionScores(first.clips, first.domains, of_test, None, clips, of_training, held_out, tree)


def evaluated(tree: Tree, scores: Mapping[Leaf, SectionScores]) -> SectionScores:
    """Fuse scores as a tree says; those of its leaves are given."""
    if isinstance(tree, Leaf):
        return scores[tree]
    return fused([evaluated(member, scores) for member in tree.members], tree.method)


def leaves(tree: Tree) -> list[Leaf]:
    """List the leaves of a tree, each once."""
    if isinstance(tree, Leaf):
        return [tree]
    return list(dict.fromkeys(leaf for member in tree.members for leaf in leaves(member)))
