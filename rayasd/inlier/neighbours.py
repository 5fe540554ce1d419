"""Nearest normal windows, searched once per section and shared by every detector and grid point that asks."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rayasd.arrays import Features, Indices, Scores

if TYPE_CHECKING:  # scikit-learn and what it imports take a second, which a single clip's nearest windows do without
    from scipy.sparse import csr_matrix
    from sklearn.neighbors import NearestNeighbors

_FEW = 200_000  # distances: ten windows to the 20,000 of a section
_BLOCK = 20_000_000  # distances, 160 MB
_CACHED = 100_000  # distances

Found = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Euclidean distances and positions in the bank, (windows, k) each, nearest first."""


class NeighbourSearch:
    """Exact search in a bank of normal windows (n, D) that remembers what it found.

    Each array of windows is searched once, for ``most`` neighbours; who asks for fewer gets the nearest of them.
    ``groups`` (n,), numbered from 0, names what belongs together: the windows of a clip. Without it, each is alone.
    """

    def __init__(self, bank: Features, most: int, groups: Indices | None = None) -> None:
        self.bank = bank
        self.groups: Indices = np.arange(len(bank)) if groups is None else groups
        self._most = most
        self._largest = int(np.bincount(self.groups).max(initial=1))
        self._found: dict[int, tuple[Features, Found]] = {}  # the array is kept, so that its id stays its own
        self._squared: dict[int, tuple[Features, NDArray[np.float64]]] = {}
        self._within: Found | None = None
        self._others: Found | None = None
        self._parts: dict[bytes, NeighbourSearch] = {}

    @cached_property
    def _index(self) -> "NearestNeighbors":
        from sklearn.neighbors import NearestNeighbors

        return NearestNeighbors(algorithm="brute").fit(self.bank)

    def nearest(self, X: Features, k: int) -> Found:
        """Find the k nearest bank windows of each window of X (m, D)."""
        known = self._found.get(id(X))
        if known is None or known[1][0].shape[1] < k:
            known = (X, self._search(X, self._count(k, len(self.bank))))
            self._found[id(X)] = known
        distances, positions = known[1]
        return distances[:, :k], positions[:, :k]

    def _search(self, X: Features, k: int) -> Found:
        if len(X) * len(self.bank) > _FEW:
            return self._index.kneighbors(X, k)
        from scipy.spatial.distance import cdist

        distances = cdist(X, self.bank)
        positions = np.argsort(distances, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(distances, positions, axis=1), positions

    def within(self, k: int) -> Found:
        """Find the k nearest other bank windows of each bank window."""
        if self._within is None or self._within[0].shape[1] < k:
            self._within = self._index.kneighbors(None, self._count(k, len(self.bank) - 1))
        distances, positions = self._within
        return distances[:, :k], positions[:, :k]

    @property
    def num_others(self) -> int:
        """Bank windows of other groups that every bank window has at least."""
        return len(self.bank) - self._largest

    def others(self, k: int) -> Found:
        """Find the k nearest bank windows of other groups, for each bank window. Raises ValueError: there are fewer."""
        if k > self.num_others:
            raise ValueError(f"needs {k} normal windows or clips besides each one's own, there are {self.num_others}")
        if self._largest == 1:
            return self.within(k)
        if self._others is None or self._others[0].shape[1] < k:
            wanted = min(max(k, self._most), self.num_others)
            distances, positions = self._index.kneighbors(None, wanted + self._largest - 1)
            together = self.groups[positions] == self.groups[:, None]
            apart = np.argsort(together, axis=1, kind="stable")[:, :wanted]  # the nearest first, as they were
            self._others = np.take_along_axis(distances, apart, 1), np.take_along_axis(positions, apart, 1)
        distances, positions = self._others
        return distances[:, :k], positions[:, :k]

    def squared_distances(self, X: Features) -> Iterator[NDArray[np.float64]]:
        """Give squared distances (m, n) of the windows of X to all of the bank in blocks of rows.

        They are remembered where one block holds them all.
        """
        if id(X) in self._squared:
            yield self._squared[id(X)][1]
            return
        bank, rows = self.bank.astype(np.float64), max(1, _BLOCK // len(self.bank))
        for begin in range(0, len(X), rows):
            part = X[begin : begin + rows].astype(np.float64)
            block = (part**2).sum(axis=1)[:, None] + (bank**2).sum(axis=1) - 2.0 * (part @ bank.T)
            np.maximum(block, 0.0, out=block)
            if len(X) <= rows:
                self._squared[id(X)] = (X, block)
            yield block

    def forget(self) -> None:
        """Drop what was found for windows outside the bank, which may be many over time."""
        self._found.clear()
        self._squared.clear()
        for part in self._parts.values():
            part.forget()

    def part(self, rows: NDArray[np.bool_]) -> "NeighbourSearch":
        """Search among these rows of the bank alone; asking again gives the same search."""
        key = rows.tobytes()
        if key not in self._parts:
            self._parts[key] = NeighbourSearch(self.bank[rows], self._most, self.groups[rows])
        return self._parts[key]

    def graph(self, X: Features, k: int) -> "csr_matrix":
        """Return distances of the windows of X to their k nearest as a sparse matrix (m, n)."""
        return _sparse(*self.nearest(X, k), len(self.bank))

    def graph_within(self, k: int, *, other_groups: bool = False) -> "csr_matrix":
        """Return distances of bank windows to themselves and their k nearest others as a sparse matrix (n, n)."""
        distances, positions = self.others(k) if other_groups else self.within(k)
        own = np.arange(len(self.bank))[:, None]
        return _sparse(np.hstack([np.zeros(own.shape), distances]), np.hstack([own, positions]), len(self.bank))

    def _count(self, k: int, available: int) -> int:
        return min(max(k, self._most), available)


def few_rows(blocks: Iterable[Scores]) -> Iterator[Scores]:
    """Cut blocks of distances so that what is worked on stays in a processor's cache."""
    for block in blocks:
        rows = max(1, _CACHED // block.shape[1])
        for begin in range(0, len(block), rows):
            yield block[begin : begin + rows]


def _sparse(distances: NDArray[np.float64], positions: NDArray[np.int64], width: int) -> "csr_matrix":
    from scipy.sparse import csr_matrix

    rows, k = distances.shape
    return csr_matrix((distances.ravel(), positions.ravel(), np.arange(0, rows * k + 1, k)), shape=(rows, width))
