"""Agree, then write: one small collective in which all ranks of a call find out whether they make the same call.

Each rank checks everything first. Then they exchange whether one of them refuses, and digests of the call, its
arguments, the parameters and how these are placed. Only if all agree does any of them write. One rank that raised by
itself would leave the others waiting in their next collective until the group's timeout, which is half an hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from xweights import errors
from xweights.core.digests import digest_bits, digest_of
from xweights.core.dtypes import Array
from xweights.core.groups import Group
from xweights.core.parameter import Parameter, is_shared
from xweights.core.shards import Shard
from xweights.errors import RankError, WriteError, XweightsError, combine_kinds

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

AGREED, REFUSED, FAILED = range(3)
# What is compared, in the order in which a difference is reported.
COMPARED = ("call", "arguments", "parameters", "placements", "copies")
_KINDS = 64
_MOST_TEXT = 6000


def shard_of(p: Parameter) -> Shard | None:
    """Return this rank's part of a parameter that several ranks hold; None for one of this process alone."""
    if not is_shared(p):
        return None
    shard: Shard = p.storage.shard(p.handle, p.layout)  # type: ignore[attr-defined]
    return shard


def open_shard(p: Parameter) -> Parameter:
    """Return the same parameter with the storage that reads and writes, for calls whose ranks agree."""
    if not is_shared(p):
        return p
    opened = p.storage.opened()  # type: ignore[attr-defined]
    return p if opened is p.storage else p.replace(storage=opened)


def group_of(parameters: Iterable[Parameter]) -> Group | None:
    """Return the ranks that a call on these parameters concerns; None if no other rank holds any of them."""
    found: dict[tuple[int, ...], Group] = {}
    seen: set[int] = set()
    for p in parameters:
        if id(p.storage) not in seen and is_shared(p):
            seen.add(id(p.storage))
            shard = shard_of(p)
            assert shard is not None
            found.setdefault(tuple(shard.group.ranks), shard.group)
    if len(found) > 1:
        shown = "\n".join(f"ranks {', '.join(map(str, ranks))}" for ranks in list(found)[:8])
        raise RankError(
            f"the parameters of this call lie on {len(found)} different groups of ranks\n{shown}\n"
            "Fix: one call for each of the models"
        )
    return next(iter(found.values()), None)


def refuse_shards(parameters: Iterable[Parameter], what: str) -> None:
    """Raise WriteError for parameters of which this rank has a part, in a call that doesn't work on parts."""
    for p in parameters:
        reason = p.refusal(writing=False) if is_shared(p) else None
        if reason is not None:
            raise WriteError(f"{what} of {p.name!r}: {reason}")


class Vote:
    """The context in which a call checks everything: at its end all ranks raise, or all go on.

    Without other ranks it does nothing. ``agree`` says what must be the same on all of them.
    """

    def __init__(self, everything: Iterable[Parameter], call: str, *, writing: bool) -> None:
        group = group_of(everything)
        if group is not None and not writing and not any(is_cut(p) for p in everything):
            group = None  # every rank has all of it, and may look at it by itself
        self.group, self.call = group, call
        self.flag = False
        self.flags: list[bool] = []
        self._digests = [bytes(8)] * len(COMPARED)
        self._shown = [""] * len(COMPARED)
        self._copies: list[tuple[str, int]] = []

    def open_all(self, everything: Sequence[Parameter]) -> list[Parameter]:
        """Return all parameters with the storage that reads and writes, to select from."""
        return [open_shard(p) for p in everything]

    def open(self, chosen: Sequence[Parameter], *, copies: bool = False) -> list[Parameter]:
        """Return the parameters with the storage that reads and writes; the ranks will compare them.

        ``copies``: also by their values, those that every rank has on its host and trains: an edit of one rank alone
        would never be found. Statistics may differ.
        """
        if self.group is None:
            return [open_shard(p) for p in chosen] if any(map(is_shared, chosen)) else list(chosen)
        shards = [shard_of(p) for p in chosen]
        labels = ["" if shard is None else shard.label for shard in shards]
        self._digests[2] = digest_of(
            repr([(p.name, p.dtype.str, p.shape, p.layout.stored, p.trainable) for p in chosen])
        )
        self._digests[3] = digest_of(repr(labels))
        self._shown[2] = f"{len(chosen)} parameters: {', '.join(f'{p.name} {p.shape}' for p in chosen)}"
        self._shown[3] = ", ".join(f"{p.name}: {label}" for p, label in zip(chosen, labels, strict=True) if label)
        opened = [open_shard(p) for p in chosen]
        if copies:
            alike = [
                p
                for p, shard in zip(opened, shards, strict=True)
                if shard is not None and shard.is_whole and p.trainable and not p.storage.fallible
            ]
            self._copies = [(p.name, digest_bits(p.read())) for p in alike if p.refusal(writing=False) is None]
            self._digests[4] = digest_of(repr(self._copies))
        return opened

    def agree(self, shown: str, *arguments: Any) -> None:
        """Let the ranks compare these arguments."""
        if self.group is not None:
            self._digests[1], self._shown[1] = digest_of(*arguments), shown

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.group is None or isinstance(error, RankError):
            return
        if error is not None:
            mark_voted(error)
        self._digests[0], self._shown[0] = digest_of(self.call), self.call
        status = AGREED if error is None else REFUSED if isinstance(error, XweightsError) else FAILED
        ballots = self.group.all_gather(_write_ballot(status, self.flag, self._digests, error))
        self.flags = [bool(ballot[1]) for ballot in ballots]
        states = [int(ballot[0]) for ballot in ballots]
        if any(states):
            self._raise_refusal(states, [_kinds_of(ballot) for ballot in ballots], error)
        for position in range(len(COMPARED)):
            digests = [ballot[2 + 8 * position : 10 + 8 * position].tobytes() for ballot in ballots]
            if len(set(digests)) > 1:
                self._raise_difference(position) if COMPARED[position] != "copies" else self._raise_copies()

    def _raise_refusal(
        self, states: Sequence[int], kinds: Sequence[Sequence[type[XweightsError]]], error: BaseException | None
    ) -> None:
        """Raise what the ranks that can't do the call have found, on all of them."""
        assert self.group is not None
        own = "" if error is None else str(error) if isinstance(error, XweightsError) else _show_failure(error)
        texts = exchange_texts(self.group, own)
        alike = len(set(texts)) == 1
        if error is not None and (alike or states[self.group.rank] == FAILED):
            return  # the error goes on, as it is
        found: dict[str, list[int]] = {}
        for rank, state, text in zip(self.group.ranks, states, texts, strict=True):
            if state != AGREED:
                found.setdefault(text, []).append(rank)
        shown = "\n".join(f"on {_name_ranks(ranks)}: {text}" for text, ranks in found.items())
        refused = [kind for of_rank, state in zip(kinds, states, strict=True) if state == REFUSED for kind in of_rank]
        if FAILED in states:
            refused.append(RankError)
        merged = combine_kinds(tuple(dict.fromkeys(refused)) or (RankError,))(shown)
        mark_voted(merged)
        raise merged from error

    def _raise_difference(self, position: int) -> NoReturn:
        assert self.group is not None
        what = f"{COMPARED[position]} of {self.call}" if position else "call that they make"
        texts = exchange_texts(self.group, self._shown[position])
        found: dict[str, list[int]] = {}
        for rank, text in zip(self.group.ranks, texts, strict=True):
            found.setdefault(text, []).append(rank)
        lines = [f"{_name_ranks(ranks)}: {text[:500]}" for text, ranks in list(found.items())[:8]]
        if len(found) == 1:
            lines = [f"every rank: {lines[0].partition(': ')[2]}, with other values"]
        raise RankError(
            f"the ranks disagree about the {what}, and nothing was changed\n"
            + "\n".join(lines)
            + "\nFix: make the same call, with the same arguments, on every rank"
        )

    def _raise_copies(self) -> NoReturn:
        """Raise which parameters have other values on some rank."""
        assert self.group is not None
        every = np.stack(self.group.all_gather(np.array([bits for _, bits in self._copies], np.uint64)))
        differ = [
            name for (name, _), column in zip(self._copies, every.T, strict=True) if len(set(column.tolist())) > 1
        ]
        shown = ", ".join(map(repr, differ[:8])) + (", ..." if len(differ) > 8 else "")
        raise RankError(
            f"the ranks have different values of parameters of which each has a copy, and nothing was "
            f"changed: {shown}\n"
            "Fix: take those of one rank: values = xweights.get_params(model) if rank == 0 else None; "
            "xweights.set_params(model, values, on_rank=0)"
        )


def mark_voted(error: BaseException) -> None:
    """Note that all ranks know of an error."""
    vars(error)["__xweights_voted__"] = True


def is_voted(error: BaseException) -> bool:
    """Return whether all ranks know of an error, or can't be told any more."""
    return isinstance(error, RankError) or "__xweights_voted__" in vars(error)


class Outcome(Vote):
    """A vote, after writes that may fail, on whether one of the ranks did: then all raise, and undo theirs."""

    def __init__(self, group: Group | None) -> None:
        super().__init__((), "the writes of this call", writing=True)
        self.group = group

    def settle(self, error: BaseException | None) -> None:
        """Vote on what was found elsewhere; raise what all ranks raise, if this one found nothing or others more."""
        self.__exit__(None if error is None else type(error), error, None)


def is_cut(p: Parameter) -> bool:
    """Return whether this rank has only a part of a parameter, so that to read it is a collective."""
    shard = shard_of(p)
    return shard is not None and not shard.is_whole


def _write_ballot(status: int, flag: bool, digests: Sequence[bytes], error: BaseException | None) -> Array:
    names = "" if not isinstance(error, XweightsError) else " ".join(_names_of(type(error)))
    text = names.encode()[:_KINDS].ljust(_KINDS, b" ")
    return np.frombuffer(bytes([status, flag]) + b"".join(digests) + text, np.uint8)


def _names_of(kind: type[BaseException]) -> list[str]:
    """Return the names of the kinds that an error combines."""
    if kind.__module__ == errors.__name__ and kind.__name__ in vars(errors):
        return [kind.__name__]
    return [name for base in kind.__bases__ if issubclass(base, XweightsError) for name in _names_of(base)]


def _kinds_of(ballot: Array) -> list[type[XweightsError]]:
    names = ballot[-_KINDS:].tobytes().decode(errors="replace").split()
    kinds = [vars(errors).get(name) for name in names]
    known = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, XweightsError)]
    return known or [XweightsError]


def _show_failure(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _name_ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f", ... ({len(ranks)} in all)" if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"


def exchange_texts(group: Group, text: str) -> list[str]:
    """Return the texts of all ranks."""
    raw = text.encode()[:_MOST_TEXT]
    lengths = group.all_gather(np.array([len(raw)], np.int64))
    most = max(int(length[0]) for length in lengths)
    if not most:
        return [""] * group.size
    padded = np.frombuffer(raw.ljust(most, b"\0"), np.uint8)
    texts = group.all_gather(padded)
    return [
        part[: int(length[0])].tobytes().decode(errors="replace") for part, length in zip(texts, lengths, strict=True)
    ]
