"""Run a model whose operations are watched, and put their outputs in place of what it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from xweights.core.dtypes import Array
from xweights.porting.protocol import LayerRecord, Watcher
from xweights_torch.porting.layers import host, to_tensor
from xweights_torch.porting.observed import Operation
from xweights_torch.porting.uses import Arrangement, Use, rows_use
from xweights_torch.porting.views import Derived, Root, remake
from xweights_torch.porting.watching import OperationWatch, Pending


class Runner(OperationWatch):
    """A watch that tells a watcher of the operations among the records."""

    remakes = True

    def __init__(self, roots: Sequence[Root], records: Sequence[LayerRecord], watcher: Watcher) -> None:
        super().__init__(roots)
        self.watcher = watcher
        self._records: dict[Any, list[LayerRecord]] = {}
        self._rows: dict[int, list[LayerRecord]] = {}
        self._open: list[list[LayerRecord]] = []
        by_identity = {root.parameter.identity(): root for root in roots if root.parameter is not None}
        for record in records:
            if isinstance(record.layer, Operation):
                self._records.setdefault(record.layer.key, []).append(record)
                if record.kind == "rows":
                    root = by_identity.get(record.parameters["rows"].identity())
                    self._rows.setdefault(id(root), []).append(record)

    def compute(self, uses: Sequence[Use], call: Callable[[], Any]) -> Any:
        entered = [(use, records) for use in uses if (records := self._find(use))]
        for use, records in entered:
            self._enter(use, records)
        result = call()
        for use, records in entered:
            if records[0].layer.waits:
                self._open.append(records)
                self.expect_addition(result, use, records)
            else:
                result = self._leave(records, use, result)
        return result

    def add(self, pending: Pending, beta: Derived, addend: Derived, call: Callable[[], Any]) -> Any:
        records = pending.token
        role = "beta" if pending.use.kind == "multiply" else "bias"
        if not any(records is one for one in self._open) or role not in records[0].parameters:
            return self.compute([rows_use(addend)], call)
        self._open = [one for one in self._open if one is not records]
        return self._leave(records, pending.use, call())

    def give(self, args: Any, named: Any) -> tuple[Any, Any] | None:
        """Tell of the parameters among the inputs of a layer. Return inputs with their present values."""
        given = self.list_given(args, named)
        if not given:
            return None
        found: list[Derived] = []
        wrapped, wrapped_named = (
            self._wrap(args, found),
            {name: self._wrap(part, found) for name, part in named.items()},
        )
        self.compute(given, lambda: None)
        return remake(wrapped), remake(wrapped_named)

    def close(self) -> None:
        """Leave the operations whose addition never came."""
        for records in self._open:
            for record in records:
                self.watcher.leave(record, {"": None})
        self._open = []

    def _find(self, use: Use) -> list[LayerRecord]:
        records = self._records.get(use.key, [])
        if not records and use.kind == "rows":
            # Another sample may use other rows of the same table.
            records = self._rows.get(id(use.arrays["rows"].root), [])[:1]
        return records

    def _enter(self, use: Use, records: Sequence[LayerRecord]) -> None:
        given, form = use.given, use.arranged
        if records[0].layer.from_module and form is not None and given is not None:
            given, form = form.apply_alike(self.stack[-1][1] if self.stack else None, given), None
        arrays = _to_arrays(given, form, use.parts)
        for record in records:
            self.watcher.enter(record, {"": None if arrays is None else arrays[record.layer.part]})

    def _leave(self, records: Sequence[LayerRecord], use: Use, result: Any) -> Any:
        output = result if isinstance(result, torch.Tensor) else None
        arrays = _to_arrays(output, use.result, use.parts) if use.result is not None else None
        if use.columns is not None and arrays is not None:
            arrays = [array[:, use.columns] for array in arrays]
        parts = [None if arrays is None else arrays[record.layer.part] for record in records]
        values = [self.watcher.leave(record, {"": part}) for record, part in zip(records, parts, strict=True)]
        if output is None or use.result is None or len(values) != max(use.parts, 1):
            return result
        given = [value for value in values if value is not None]
        if len(given) < len(values):
            return result
        value = np.stack(given) if use.parts else given[0]
        if use.columns is not None:
            whole = np.array(host(use.result.apply(output)))
            whole[:, use.columns] = value
            value = whole
        replaced = use.result.restore(to_tensor(value), output)
        return result if replaced is None else replaced


def _to_arrays(tensor: torch.Tensor | None, form: Arrangement | None, parts: int) -> list[Array] | None:
    """Return the neutral arrays of a tensor, one for each matrix of a stack."""
    if tensor is None:
        return None
    array = host(tensor if form is None else form.apply(tensor))
    if array is None:
        return None
    return list(array) if parts else [array]
