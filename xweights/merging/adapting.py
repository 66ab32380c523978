"""Bring the parameters of the other targets to the first one's shapes, where ``adapt=`` says how."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from xweights.core.layout import Layout, LayoutName, plain_layout
from xweights.core.parameter import Parameter
from xweights.edit.adapting import (
    Adapting,
    adapted_parameter,
    adapted_value,
    check_gates,
    layout_of_shape,
    read_adapters,
)
from xweights.edit.load_report import Adapted
from xweights.errors import ArgumentError, LayoutError, Problems, got_expected
from xweights.merging.alignment import has_native_name
from xweights.merging.groups import Member
from xweights.merging.inputs import MergeInput


class MergeAdapters:
    """The adapters of one call of `merge`: for each target but the first, and for the base.

    ``done`` lists what was adapted, by label of the target and by name.
    """

    def __init__(self, adapt: Any, inputs: Sequence[MergeInput], chosen: Sequence[Parameter], problems: Problems):
        self.done: dict[str, dict[str, Adapted]] = {}
        self._of: dict[str, dict[Hashable, Adapting]] = {}
        others = [merge_input for merge_input in inputs[1:] if merge_input.label != "into"]
        if not isinstance(adapt, (list, tuple)):
            found = read_adapters(adapt, chosen, problems)
            self._of = {merge_input.label: found for merge_input in others}
            return
        if len(adapt) != len(others):
            raise ArgumentError(
                "a list of adapt= has a mapping (or None) for each target but the first, then for the base\n"
                + got_expected(len(adapt), len(others))
            )
        for merge_input, adapters in zip(others, adapt, strict=True):
            self._of[merge_input.label] = read_adapters(adapters, chosen, problems)

    def leaves(self, merge_input: MergeInput, first: Parameter) -> bool:
        """Return whether a target's parameter isn't used: the first one's stands for it."""
        adapting = self._of.get(merge_input.label, {}).get(first.identity())
        return adapting is not None and adapting.leaves

    def member(
        self, merge_input: MergeInput, first: Parameter, match: Parameter, layout: Layout, asked: LayoutName | None
    ) -> Member:
        """Return the member of a group that a parameter is, adapted if ``adapt=`` says so."""
        adapting = self._of.get(merge_input.label, {}).get(first.identity())
        if adapting is None:
            return Member(match, layout)
        check_gates(match.gates, first)
        own = _known_layout(match, layout, first, asked)
        adapted = adapted_value(match.read, own, match.dtype, first, adapting.steps)
        self.done.setdefault(merge_input.label, {})[first.name] = Adapted(adapted.how, adapted.before, adapted.shape)
        result = plain_layout(adapted.shape, adapted.wanted.axes)
        return Member(adapted_parameter(match, adapted, result), result)


def _known_layout(match: Parameter, layout: Layout, first: Parameter, asked: LayoutName | None) -> Layout:
    """Return the layout of a target's array; raise LayoutError where nothing tells the order of its axes."""
    if layout.axes is not None or first.layout.is_identity or asked == "neutral":
        return layout
    if asked == "native" or has_native_name(match, [first]):
        return layout_of_shape(first, layout.stored)
    raise LayoutError(
        f"{match.name!r} has no axis names, and {first.name!r} isn't stored in neutral order\n"
        'Fix: layout="native" if it is stored as target 0 stores its own, layout="neutral" for Keras\' order'
    )
