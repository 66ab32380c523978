"""The shared state of all attempts to pair the units of two models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xweights.core.dtypes import Array
from xweights.porting.matching.candidates import Prefer
from xweights.porting.matching.folding import Folding
from xweights.porting.matching.forms import Form, Forms
from xweights.porting.matching.outputs import OutputMap
from xweights.porting.matching.packing import Packing
from xweights.porting.matching.similarity import Grid
from xweights.porting.matching.sizes import InputSizes
from xweights.porting.matching.trace import TracedModel, UnitCall
from xweights.porting.matching.transfer import Writer
from xweights.porting.protocol import LayerRecord
from xweights.porting.units import LayerUnit, can_pair


def allow_all(source: LayerUnit, target: LayerUnit) -> bool:
    """Allow every pair."""
    return True


@dataclass(eq=False)
class Matching:
    """The shared state of all attempts.

    ``assign`` writes the weights of a source unit to a target unit (None: compare only). ``allowed`` returns whether a
    target unit may be paired with a source unit, ``skipped`` are the target units that aren't part of the port.
    """

    source: TracedModel
    target: TracedModel
    calls: Sequence[UnitCall]
    grids: set[Grid]
    expected: Mapping[str, Array]
    sample: Any
    outputs: OutputMap = None
    assign: Writer | None = None
    allowed: Callable[[LayerUnit, LayerUnit], bool] = allow_all
    prefer: Prefer = lambda source, target: 0
    same: Callable[[LayerUnit, LayerUnit], bool] = lambda one, other: one is other
    skipped: frozenset[int] = frozenset()
    whole: bool = True
    columns: dict[int, Array] = field(default_factory=dict)
    events: Sequence[LayerRecord] = ()  # every layer of the source in call order
    target_events: Sequence[LayerRecord] = ()
    unseen: dict[int, LayerUnit] = field(
        default_factory=dict
    )  # source units for units of the target that are never called
    # Likewise, by their places in stacks of which others were called.
    idle: list[tuple[LayerUnit, LayerUnit]] = field(default_factory=list)
    # Rows of the source that are added to the rows of a table of the target, by its identity.
    absorbed: dict[int, tuple[LayerUnit, ...]] = field(default_factory=dict)
    packings: dict[tuple[Any, ...], Packing] = field(default_factory=dict)  # those of the layers before, by widths
    folding: Folding | None = None

    def __post_init__(self) -> None:
        self.forms = Forms()
        self.sizes = InputSizes(self.forms, self.calls)
        self._fitting: dict[int, list[UnitCall]] = {}
        self._by_form: dict[Form, list[UnitCall]] = {}
        self._by_width: dict[int, list[UnitCall]] = {}
        self._called = {id(call.unit) for call in self.calls}
        self.channels_differ = self.source.porting.channels_first != self.target.porting.channels_first
        # A patch that a convolution looks at may be flattened in either order.
        for unit in (*self.source.units, *self.target.units):
            if unit.kind == "conv":
                *space, channels, _ = unit.slices["kernel"].shape
                self.grids |= {(math.prod(space), channels)} if math.prod(space) > 1 else set()
        for call in self.calls:
            for form in self.forms.of(call.unit):
                self._by_form.setdefault(form, []).append(call)
            if call.unit.kind == "dense":
                self._by_width.setdefault(call.unit.form[1][0], []).append(call)

    def is_called(self, unit: LayerUnit) -> bool:
        """Return True if a unit of the source was called."""
        return id(unit) in self._called

    def list_fitting(self, unit: LayerUnit) -> list[UnitCall]:
        """Return the calls of source units that a target unit could be the twin of, by their forms."""
        if id(unit) not in self._fitting:
            found = {call.number: call for form in self.forms.of(unit) for call in self._by_form.get(form, ())}
            # A class that no table knows may stand for any: equal sizes are the only evidence.
            for call in self.calls:
                if "other" in (unit.kind, call.unit.kind) and can_pair(call.unit, unit):
                    found[call.number] = call
            self._fitting[id(unit)] = [found[number] for number in sorted(found)]
        fitting = self._fitting[id(unit)]
        # Of 1,000 equal layers each fits each: a million questions.
        return fitting if self.allowed is allow_all else [call for call in fitting if self.allowed(call.unit, unit)]

    def list_origins(self, unit: LayerUnit) -> tuple[LayerUnit, ...]:
        """Return the layers of the source that a unit stands for: more than one if something was folded."""
        return (unit,) if self.folding is None else self.folding.list_origins(unit)

    def list_dense(self, unit: LayerUnit) -> list[UnitCall]:
        """Return the calls of dense source units with as many inputs, which may be parts of a fused one."""
        return [call for call in self._by_width.get(unit.form[1][0], ()) if self.allowed(call.unit, unit)]

    def list_heads(self, width: int) -> list[int]:
        """Return the numbers of heads that the shapes of the two models' kernels show, if they divide a width."""
        heads: dict[int, None] = {}
        for traced in (self.source, self.target):
            for record in traced.records:
                if record.attributes.get("heads"):
                    heads[int(record.attributes["heads"])] = None
                for p in record.parameters.values():
                    if record.kind == "einsum" and len(p.shape) == 3:
                        heads.update(dict.fromkeys(p.shape[:2]))
        known = [count for count in heads if count > 1 and width % count == 0]
        others = [count for count in range(2, math.isqrt(width) + 1) if width % count == 0]
        return list(dict.fromkeys([*known, *others, *(width // count for count in others)]))
