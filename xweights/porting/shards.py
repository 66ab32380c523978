"""Port and verify where a model lies on several ranks: on a plain copy of it, whose values are then written as blocks.

The copy has whole arrays, so it takes the memory that the other model takes anyway; its forward is that of one process.
Every rank that has the other model makes the port by itself, and all compare what they would write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from xweights.core import hold_registry
from xweights.core.agreement import Outcome, Vote, shard_of
from xweights.core.backend import CopiesPlainly
from xweights.core.dtypes import Array
from xweights.core.groups import Group
from xweights.core.parameter import Parameter, is_shared
from xweights.core.registry import backend_for
from xweights.core.targets import is_path, open_target
from xweights.edit.read import get_params
from xweights.edit.shards import local_parameter
from xweights.edit.write import set_params
from xweights.errors import ArgumentError, PortError, Problems, XweightsError, got_expected
from xweights.porting.reports import PortReport, VerifyReport

Report = TypeVar("Report", PortReport, VerifyReport)


def find_sharded(*models: Any) -> list[Any]:
    """Return the models of which other ranks have parts."""
    return [model for model in models if _is_sharded(model)]


def _is_sharded(model: Any) -> bool:
    if model is None or is_path(model) or isinstance(model, Mapping):
        return False
    try:
        shards = map(shard_of, open_target(model))
    except XweightsError:
        return False  # whoever wants its layers says what it is
    return any(shard is not None and not shard.is_whole for shard in shards)


def refuse_uncopied(model: Any, what: str) -> None:
    """Raise PortError for a model of which other ranks have parts, and whose backend can't copy it as a plain one."""
    if _is_sharded(model) and not isinstance(backend_for(model), CopiesPlainly):
        raise PortError(
            f"{what} runs the model, and of this one other ranks have parts\n"
            "Fix: a model that isn't distributed, with its weights: "
            "xweights.set_params(plain, xweights.get_params(model))"
        )


def port_on_ranks(
    source: Any,
    target: Any,
    sharded: Sequence[Any],
    on_rank: Any,
    call: Callable[[Any, Any], PortReport],
    attributes: str,
    *agreed: Any,
) -> PortReport:
    """Port with a copy of each model that lies on several ranks, then write the copy's values into the target.

    ``agreed`` are arguments that every rank has to pass alike.
    """
    work = WorkOnCopies("port", sharded, on_rank, (attributes, *agreed))
    is_target = any(model is target for model in sharded)
    with work.vote:
        work.open()
        if attributes == "fix" and is_target:
            raise PortError(
                'attributes="fix" sets them on the target, and this one lies on several ranks\n'
                "Fix: set them before the model is sharded"
            )
        if is_target:
            _refuse_holds(target)
    report = work.run(source, target, call, PortReport(entries=(), ok=True, max_error=None))
    if is_target:
        twin = work.twin_of(target)
        left = {*report.remains, *report.ignored} if twin is not None else set()
        values = None if twin is None else {n: w for n, w in get_params(twin, copy=False).items() if n not in left}
        set_params(target, values, strict=False, allow_nonfinite=True, on_rank=on_rank)
    return report


def verify_on_ranks(
    source: Any,
    target: Any,
    sharded: Sequence[Any],
    on_rank: Any,
    call: Callable[[Any, Any], VerifyReport],
    *agreed: Any,
) -> VerifyReport:
    """Compare with a copy of each model that lies on several ranks."""
    work = WorkOnCopies("verify", sharded, on_rank, agreed)
    with work.vote:
        work.open()
    return work.run(source, target, call, VerifyReport(entries=(), ok=True, max_error=0.0))


def _refuse_holds(target: Any) -> None:
    problems = Problems("this port can't be made, and nothing was changed")
    for p in open_target(target):
        if hold_registry.find(p) is not None:
            problems.add(PortError, f"{p.name!r} is held, and lies on several ranks", fix="release it first")
    problems.check()


def _copy(model: Any, values: Mapping[Parameter, Array]) -> Any:
    return _copies_plainly(model).plain_twin(model, values)


def _copies_plainly(model: Any) -> CopiesPlainly:
    """Return the backend of a model that lies on several ranks; raise PortError if it can't copy it as a plain one."""
    backend = backend_for(model)
    if not isinstance(backend, CopiesPlainly):
        raise PortError(
            "this model lies on several ranks, and its backend can't copy it as a plain one\n"
            "Fix: make the call on a model that isn't distributed, with its weights before "
            "(xweights.set_params(plain, xweights.get_params(model)))\n"
            "or after it (xweights.set_params(model, xweights.get_params(plain))); "
            "get_optimizer and set_optimizer take the optimizer's state along"
        )
    return backend


class WorkOnCopies:
    """One call, in which all ranks take part."""

    def __init__(self, call: str, sharded: Sequence[Any], on_rank: Any, agreed: tuple[Any, ...]) -> None:
        self.sharded, self.on_rank, self.agreed = sharded, on_rank, agreed
        self.parameters = [[p for p in open_target(model) if is_shared(p)] for model in sharded]
        self.vote = Vote([p for found in self.parameters for p in found], call, writing=True)
        self.twins: list[Any] = [None] * len(sharded)

    def open(self) -> None:
        """Check and compare the arguments, inside of the vote."""
        group = self.vote.group
        if group is None:
            raise ArgumentError("on_rank= is for a model that several ranks hold\ngot: models of this process alone")
        if self.on_rank != "all" and (isinstance(self.on_rank, bool) or self.on_rank not in group.ranks):
            expected = f'"all", or one of the ranks that hold the model: {", ".join(map(str, group.ranks[:16]))}'
            raise ArgumentError(f"on_rank= is no rank of this model\n{got_expected(self.on_rank, expected)}")
        for model in self.sharded:
            _copies_plainly(model)
        self.vote.agree(f"on_rank={self.on_rank}", self.on_rank, len(self.sharded), *self.agreed)
        flat = self.vote.open([p for found in self.parameters for p in found])
        ends = np.cumsum([len(found) for found in self.parameters]).tolist()
        self.parameters = [flat[end - len(found) : end] for found, end in zip(self.parameters, ends, strict=True)]

    def run(self, source: Any, target: Any, call: Callable[[Any, Any], Report], empty: Report) -> Report:
        """Return the report of a call on copies; ``empty`` on ranks that have nothing to compare."""
        group = self.vote.group
        assert group is not None
        arrays = [{p: whole for p in found if (whole := self._read(p, group)) is not None} for found in self.parameters]
        report = empty
        with Outcome(group) as outcome:
            outcome.call = self.vote.call
            if self.is_here:
                self.twins = [_copy(model, values) for model, values in zip(self.sharded, arrays, strict=True)]
                arrays.clear()
                sides = [model if (twin := self.twin_of(model)) is None else twin for model in (source, target)]
                report = call(*sides)
            if self.on_rank == "all":
                twin = self.twin_of(target)
                outcome.agree("the values that it makes", None if twin is None else get_params(twin, copy=False))
        return report

    @property
    def is_here(self) -> bool:
        """True on a rank that has both models."""
        group = self.vote.group
        return self.on_rank == "all" or (group is not None and group.ranks[group.rank] == self.on_rank)

    def twin_of(self, model: Any) -> Any:
        """Return the copy of a model that lies on several ranks, if this rank has one."""
        return next((twin for one, twin in zip(self.sharded, self.twins, strict=True) if one is model), None)

    def _read(self, p: Parameter, group: Group) -> Array | None:
        """Return the whole array where it is wanted; a collective of those whose blocks it needs."""
        shard = shard_of(p)
        if self.on_rank == "all" or shard is None:
            return p.read()
        if shard.is_whole:
            return local_parameter(p, shard).read() if self.is_here else None
        holders = list(shard.holders.ranks)
        if self.on_rank not in holders:
            return None
        return shard.gather_to(local_parameter(p, shard).read(), holders.index(self.on_rank))
