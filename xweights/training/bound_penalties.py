"""``BoundPenalty``: a penalty with its parameters, which a compiled step can call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xweights.core.dispatch import ops_for, to_neutral, to_stored
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.edit.guards import enter_guards
from xweights.errors import ArgumentError
from xweights.rules.base import FLOAT64
from xweights.rules.norms import FLOAT32
from xweights.rules.penalties import Penalty


class BoundPenalty:
    """A penalty bound to its parameters: calling it returns the number, so a compiled step can contain it.

    Attributes:
        parameters: The penalised parameters.
        rule: The :class:`Penalty`.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.bind_penalty({"d/kernel": np.ones(2)}, l2=0.1)
        <BoundPenalty Penalty(l2=0.1) on 1 parameter>
    """

    def __init__(self, rule: Penalty, chosen: Sequence[Parameter], wholes: Sequence[Parameter] | None = None) -> None:
        self.rule = rule
        self.parameters = tuple(chosen)
        # Sums are in the order of names, so that twins with another order of parameters get the same bits.
        self._order = tuple(sorted(range(len(chosen)), key=lambda position: chosen[position].name))
        self._dtype = FLOAT64 if any(p.dtype == FLOAT64 for p in chosen) else FLOAT32
        with enter_guards(chosen):
            natives = [p.native(tensor=True) for p in chosen]
            ops_by_name = {ops.name: ops for ops in map(ops_for, natives)}
        if len(ops_by_name) > 1:
            raise ArgumentError(
                f"these parameters are of several frameworks: {', '.join(ops_by_name)}\n"
                "no number has a gradient in all of them\nFix: one penalty for each, converted to numbers"
            )
        self._ops: Ops = next(iter(ops_by_name.values()))
        self._operands = [
            {key: self._ops.constant(number, native) for key, number in rule.operands(p).items()}
            for p, native in zip(chosen if wholes is None else wholes, natives, strict=True)
        ]

    def __call__(self) -> Any:
        """Return the penalty now, as a 0-d tensor that takes part in the framework's differentiation."""
        return self.of([p.storage.tracked(p.handle) for p in self.parameters])

    def of(self, tensors: Sequence[Any]) -> Any:
        """Return the penalty of these native tensors, in stored order, instead of the parameters' own."""
        return self._ops.differentiable(self._value, self._gradient, tensors)

    def _value(self, *tensors: Any) -> Any:
        ops, total = self._ops, None
        for position in self._order:
            p = self.parameters[position]
            part = self.rule.value(to_neutral(ops, tensors[position], p.layout), ops, p, self._operands[position])
            total = part if total is None else ops.add(part, total)
        return ops.cast(total, self._dtype)

    def _gradient(self, upstream: Any, *tensors: Any) -> list[Any]:
        ops = self._ops
        return [
            to_stored(ops, self.rule.gradient(upstream, to_neutral(ops, tensor, p.layout), ops, p, operands), p.layout)
            for tensor, p, operands in zip(tensors, self.parameters, self._operands, strict=True)
        ]

    def __repr__(self) -> str:
        count = len(self.parameters)
        return f"<BoundPenalty {self.rule!r} on {count} parameter{'s' * (count != 1)}>"
