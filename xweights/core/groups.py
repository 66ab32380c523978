"""The protocol of ranks that act together: `Group`.

A backend implements it with its framework's own collectives; nothing here moves bytes between machines. Every rank of
a group must make the same calls in the same order, with arrays of the same shapes and dtypes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, Protocol, TypeVar

from xweights.core.dtypes import Array

How = Literal["sum", "min", "max"]
Item = TypeVar("Item")


class Group(Hashable, Protocol):
    """Ranks that act together, and their collectives on host arrays. Raise RankError where a collective fails."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    @property
    def rank(self) -> int:
        """This rank's position among them."""

    @property
    def ranks(self) -> Sequence[int]:
        """The framework's own numbers of the ranks, for messages."""

    def all_gather(self, array: Array) -> list[Array]:
        """Return the arrays of all ranks, in their order; equal shapes and dtypes on every rank."""

    def all_reduce(self, array: Array, how: How = "sum") -> Array:
        """Return the entrywise sum, minimum or maximum over all ranks: int64 or float64."""

    def gather(self, array: Array, root: int) -> list[Array] | None:
        """Return the arrays of all ranks on rank ``root``, None on the others."""

    def scatter(self, arrays: Sequence[Array] | None, like: Array, root: int) -> Array:
        """Return this rank's array of those that rank ``root`` has; all of the shape and dtype of ``like``."""


class SingleGroup:
    """The group of one rank, which needs no collective."""

    size = 1
    rank = 0
    ranks: Sequence[int] = (0,)

    def all_gather(self, array: Array) -> list[Array]:
        return [array]

    def all_reduce(self, array: Array, how: How = "sum") -> Array:
        return array

    def gather(self, array: Array, root: int) -> list[Array] | None:
        return [array]

    def scatter(self, arrays: Sequence[Array] | None, like: Array, root: int) -> Array:
        assert arrays is not None
        return arrays[0]


SINGLE = SingleGroup()


def split_rank(rank: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the coordinates of a rank in a grid of these sizes, the last axis counting fastest."""
    coordinates: list[int] = []
    for size in reversed(sizes):
        rank, coordinate = divmod(rank, size)
        coordinates.append(coordinate)
    return tuple(reversed(coordinates))


def join_rank(coordinates: Sequence[int], sizes: Sequence[int]) -> int:
    """Return the rank at these coordinates of a grid."""
    rank = 0
    for coordinate, size in zip(coordinates, sizes, strict=True):
        rank = rank * size + coordinate
    return rank
