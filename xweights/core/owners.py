"""Who counts an entry that several ranks hold: the lowest rank with the same global index ranges.

Placements alone can't tell. With FSDP and tensor parallelism a parameter may be split over one dimension of the mesh by
its placements, and be there once more for each index of the other one, which its placements don't mention.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from xweights.core.agreement import shard_of
from xweights.core.digests import digest_of
from xweights.core.groups import Group
from xweights.core.parameter import Parameter
from xweights.errors import RankError

_MOST_KEPT = 64
_settled: OrderedDict[tuple[Group, bytes], list[bool]] = OrderedDict()


def knows_owners(group: Group, parameters: Sequence[Parameter]) -> bool:
    """Return whether :func:`settle_owners` has the answer on this rank already."""
    return (group, _digest(parameters)) in _settled


def settle_owners(group: Group, parameters: Sequence[Parameter], *, known: bool) -> list[bool]:
    """Return for each parameter whether this rank counts its block; one collective, and none if it is ``known``.

    ``known`` must be True only if all ranks know: they compare ``Vote.flags``. Raises RankError if the blocks of the
    ranks don't make up the parameters.
    """
    key = (group, _digest(parameters))
    if not known or key not in _settled:
        own = np.zeros((len(parameters), 2), np.int64)
        for position, p in enumerate(parameters):
            shard = shard_of(p)
            ranges = tuple((0, length) for length in p.layout.stored) if shard is None else shard.stored
            size = p.size if shard is None else shard.size
            own[position] = np.frombuffer(digest_of(p.name, ranges), np.int64)[0], size
        everybody = np.stack(group.all_gather(own))
        owners = _first_with_each(everybody)
        counted = (everybody[..., 1] * owners).sum(axis=0)
        for p, count in zip(parameters, counted, strict=True):
            if int(count) != p.size:
                raise RankError(
                    f"the blocks of the ranks don't make up {p.name!r}\ngot:      {int(count)} entries\n"
                    f"expected: {p.size}\nFix: shard it with distribute_tensor, fully_shard or parallelize_module"
                )
        _settled[key] = [bool(owns) for owns in owners[group.rank]]
        while len(_settled) > _MOST_KEPT:
            _settled.popitem(last=False)
    return _settled[key]


def _first_with_each(
    everybody: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return, for each rank and parameter, whether no lower rank has the same block."""
    owners = np.ones(everybody.shape[:2], np.bool_)
    for column in range(everybody.shape[1]):
        seen: set[int] = set()
        for rank, digest in enumerate(everybody[:, column, 0].tolist()):
            owners[rank, column] = digest not in seen
            seen.add(digest)
    return owners


def _digest(parameters: Sequence[Parameter]) -> bytes:
    shards = [shard_of(p) for p in parameters]
    return digest_of(
        [(p.name, p.shape, None if s is None else s.stored) for p, s in zip(parameters, shards, strict=True)]
    )
