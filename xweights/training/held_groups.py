"""All rules that are held on parameters which are stepped together, in a few calls of their storage.

One parameter after the other, a mask costs 19 microseconds for each of 1,000 small arrays, most of it in Python.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from xweights.core.backend import HeldChain
from xweights.core.plan import group_key
from xweights.core.protocols import GroupStorage
from xweights.core.registry import native_of
from xweights.core.repeated_groups import repeat_edit
from xweights.edit.grouped import edit_of, keep_views
from xweights.rules.base import is_foreign
from xweights.training.held_rules import HeldRule, HeldRules, count_changes


class _HeldGroup:
    """One rule on parameters of one group, with its operands in stored order."""

    def __init__(self, storage: GroupStorage) -> None:
        self.storage = storage
        self.members: list[tuple[HeldRules, HeldRule]] = []

    def prepare(self) -> None:
        """Look everything up, when all members are known."""
        first, held_rule = self.members[0]
        # The arrays themselves: an optimizer steps them, whether or not a module still has them.
        self.handles = [native_of(chain.parameter) for chain, _ in self.members]
        self.operands: Sequence[Any] = held_rule.operands
        if not held_rule.rule.by_dtype:
            each = [
                [p.layout.to_stored(value) if value.shape else value for value in held.operands]
                for p, held in ((chain.parameter, held) for chain, held in self.members)
            ]
            self.operands = [list(values) for values in zip(*each, strict=True)]
        self.state = self.storage.group_state(self.handles)
        self.views = keep_views(self.storage, self.handles)
        self.edit = repeat_edit(edit_of(held_rule.rule, first.parameter), self.views)


class HeldGroups:
    """The rules held on some parameters, applied together: group by group, and one by one where that has to be."""

    def __init__(self, chains: Sequence[HeldChain]) -> None:
        self.chains = chains
        self._changes = -1
        self._groups: list[_HeldGroup] = []
        self._singles: list[HeldChain] = []

    def apply(self) -> None:
        """Make every rule true now, in eager code."""
        if self._changes != count_changes():
            self._arrange()
        elif any(group.storage.group_state(group.handles) != group.state for group in self._groups):
            self._arrange()  # other memory, or another dtype
        for chain in self._singles:
            chain.apply()
        with np.errstate(all="ignore"):
            for group in self._groups:
                group.storage.apply_group(group.edit, group.handles, group.operands, group.views)

    def _arrange(self) -> None:
        """Put each rule into its group: the first rules of all parameters, then the second ones, and so on."""
        self._changes = count_changes()
        groups: dict[tuple[int, Hashable], _HeldGroup] = {}
        self._singles = []
        for chain in self.chains:
            key = None if not isinstance(chain, HeldRules) or chain.tie is not None else group_key(chain.parameter)
            if key is None or not isinstance(chain, HeldRules) or not all(_fits(chain, held) for held in chain.rules):
                self._singles.append(chain)
                continue
            storage, kind = key
            for level, held_rule in enumerate(chain.rules):
                of_rule = (level, (id(held_rule.rule), id(storage), kind))
                groups.setdefault(of_rule, _HeldGroup(storage)).members.append((chain, held_rule))
        self._groups = [groups[of_rule] for of_rule in sorted(groups, key=lambda of_rule: of_rule[0])]
        for group in self._groups:
            group.prepare()


def _fits(chain: HeldRules, held_rule: HeldRule) -> bool:
    """Return whether a rule can be applied to a parameter together with others."""
    rule, p = held_rule.rule, chain.parameter
    array = p.read()
    return (
        rule.elementwise
        and not is_foreign(rule)
        # The model may have another dtype by now than when the hold began.
        and array.dtype == p.dtype
        and array.shape == p.layout.stored
        and all(not value.shape or value.shape == p.layout.shape for value in held_rule.operands)
    )
