"""Find which norms of two models belong to a layer, and offer the source's layers in the form that the target has.

Both models are watched once: a batch norm that is given just what a layer puts out can be folded into that layer, and
one that puts out just what a layer is given as well. Where the source has a norm and the target none, the folded layer
is offered for the pairing in the place of the layer; where the target has one more, the layer and a norm that changes
nothing. Which is right, the numbers decide as everywhere.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.matching.folds import (
    NORMS,
    OUTPUTS,
    Fold,
    count_features,
    count_outputs,
    drop_bias,
    fold_before,
    fold_behind,
    has_bias,
    is_foldable,
    make_idle,
    move_bias_into_mean,
    read_norm,
)
from xweights.porting.matching.forms import fit
from xweights.porting.matching.samples import is_nowhere_negative
from xweights.porting.matching.scaling import find_scaling, is_input
from xweights.porting.matching.trace import TracedModel, UnitCall, read_arrays, select_array
from xweights.porting.protocol import Arrays, LayerRecord
from xweights.porting.units import LayerUnit

_Key = tuple[int, int, bytes]
# A model has no more inputs than this, as a rule.
_FIRST = 4


@dataclass(eq=False)
class _KeyedCall:
    """A call of a unit, with digests of its input and its output in the place of the arrays."""

    unit: LayerUnit
    given: _Key | None = None
    made: _Key | None = None
    call: UnitCall | None = None


class KeyWatcher:
    """A watcher that keeps a digest of what goes in and out of layers and norms that may be folded.

    An output that is nowhere negative is replaced by one that is: else no rectifier behind it would show.
    ``first`` are the layers that are called first, with their inputs: those that may be given the model's own.
    """

    def __init__(self, traced: TracedModel) -> None:
        self.calls: list[_KeyedCall] = []
        self.first: list[tuple[LayerUnit, Array]] = []
        self._traced = traced
        self._open: dict[int, list[list[_KeyedCall]]] = {}

    def enter(self, record: LayerRecord, inputs: Arrays) -> None:
        """Note a call, with its input."""
        units = [unit for unit in self._traced.by_record.get(id(record), ()) if unit.call in inputs]
        units = [unit for unit in units if unit.kind in OUTPUTS or unit.kind in NORMS]
        given = [(unit, select_array(unit, inputs, 0)) for unit in units]
        if len(self.first) < _FIRST:
            self.first += [(unit, np.array(array)) for unit, array in given if _may_scale(unit) and array is not None]
        calls = [_KeyedCall(unit, _make_key(array)) for unit, array in given]
        self.calls += calls
        self._open.setdefault(id(record), []).append(calls)

    def leave(self, record: LayerRecord, outputs: Arrays) -> Array | None:
        """Note the output of a call; return one that has negative numbers if it has none."""
        calls, replaced = self._open[id(record)].pop(), None
        for call in calls:
            array = select_array(call.unit, outputs, 1)
            if array is not None and len(calls) == 1 and is_nowhere_negative(array):
                array = replaced = -1 - array
            call.made = _make_key(array)
        return replaced


class Links:
    """Which norm follows which layer of a model, and which comes before which, by the ids of the units.

    ``probed`` are the calls as a ``KeyWatcher`` saw them.
    """

    def __init__(self, calls: Sequence[_KeyedCall], probed: Sequence[_KeyedCall]) -> None:
        self.behind: dict[int, LayerUnit] = {}  # a layer's: the norm that is given what it puts out
        self.before: dict[int, LayerUnit] = {}  # a layer's: the norm that puts out what it is given
        self.owners: dict[int, LayerUnit] = {}  # a norm's: the layer that it belongs to
        self.norm_calls: dict[int, UnitCall] = {}  # by the number of the layer's call
        self.norm_calls_before: dict[int, UnitCall] = {}
        kinds = frozenset(OUTPUTS) | NORMS
        linked = {(id(first.unit), id(second.unit)) for first, second in _find_next(probed, kinds, kinds)}
        for layer, norm in _find_next(calls, frozenset(OUTPUTS), frozenset({"batch_norm"})):
            if is_foldable(norm.unit) and (id(layer.unit), id(norm.unit)) in linked:
                self.behind[id(layer.unit)] = norm.unit
                self.owners[id(norm.unit)] = layer.unit
                if layer.call is not None and norm.call is not None:
                    self.norm_calls[layer.call.number] = norm.call
        for norm, layer in _find_next(calls, NORMS, frozenset({"dense", "conv"})):
            free = is_foldable(norm.unit) and id(norm.unit) not in self.owners
            if free and (id(norm.unit), id(layer.unit)) in linked:
                self.before[id(layer.unit)] = norm.unit
                if layer.call is not None and norm.call is not None:
                    self.norm_calls_before[layer.call.number] = norm.call
        self.owners |= {id(self.before[id(c.unit)]): c.unit for c in calls if id(c.unit) in self.before}


class Folding:
    """The folds of two models: the source's calls with those of folded units among them, and what may be paired."""

    def __init__(
        self,
        calls: Sequence[UnitCall],
        probed: KeyWatcher,
        target_probed: KeyWatcher,
        units: Sequence[LayerUnit],
        samples: Sequence[Any] = (),
    ) -> None:
        keyed = [_KeyedCall(c.unit, _make_key(c.input), _make_key(c.output), c) for c in calls if _may_fold(c.unit)]
        self._source, self._target = Links(keyed, probed.calls), Links(target_probed.calls, target_probed.calls)
        self._layers = [unit for unit in units if unit.kind in OUTPUTS]
        self._norms = [unit for unit in units if id(unit) in self._target.owners]
        self._first = target_probed.first
        self._samples = samples
        self._made: dict[tuple[object, ...], LayerUnit] = {}
        self.folds: dict[int, Fold] = {}
        self.calls = [replace(call, number=number) for number, call in enumerate(self._list_calls(calls))]

    def allows(self, source: LayerUnit, target: LayerUnit) -> bool:
        """Return whether a unit of the source, folded or not, has the form that a unit of the target needs."""
        fold = self.folds.get(id(source))
        if fold is not None:
            return fold.fits(target)
        if source.kind not in OUTPUTS or target.kind not in OUTPUTS:
            return True
        if id(source) in self._source.before and id(target) not in self._target.before:
            return False
        if id(target) not in self._target.behind:
            return id(source) not in self._source.behind
        return "bias" in target.slices or not has_bias(source)

    def list_origins(self, unit: LayerUnit) -> tuple[LayerUnit, ...]:
        """Return the units of the source that a unit stands for."""
        fold = self.folds.get(id(unit))
        return (unit,) if fold is None else fold.origins

    def _list_calls(self, calls: Sequence[UnitCall]) -> Iterator[UnitCall]:
        for call in calls:
            layer = call.unit
            if layer.kind not in OUTPUTS or call.input is None or call.output is None:
                yield call
                continue
            before = self._source.norm_calls_before.get(call.number)
            behind = self._source.norm_calls.get(call.number)
            if before is None:
                yield from self._list_idle_before(call)
            yield call
            yield from self._list_folded(call, before, behind)
            yield from self._list_without_bias(call, behind)
            if before is None and _may_scale(layer):
                yield from self._list_scaled(call)

    def _list_folded(self, call: UnitCall, before: UnitCall | None, behind: UnitCall | None) -> Iterator[UnitCall]:
        """Yield the calls of a layer with the norms beside it folded into it."""
        for first in dict.fromkeys((before, None)):
            for last in dict.fromkeys((behind, None)):
                if first is None and last is None:
                    continue
                unit, origins, texts, given, made = call.unit, [call.unit], [], call.input, call.output
                if last is not None and call.output is not None and last.output is not None:
                    unit, made = fold_behind(unit, last.unit), last.output.reshape(call.output.shape)
                    origins.append(last.unit)
                    texts.append(last.unit.path)
                if first is not None and call.input is not None and first.input is not None:
                    unit, given = (
                        fold_before(partial(read_norm, first.unit), unit),
                        first.input.reshape(call.input.shape),
                    )
                    origins.insert(0, first.unit)
                    texts.insert(0, first.unit.path)
                text = f"{' and '.join(texts)} folded into {call.unit.path}"
                wanted = (None if before is None else first is None, None if behind is None else last is None)
                fits = partial(self._has_norms, *wanted)
                unit = self._keep(Fold(unit, tuple(origins), text, fits), ("folded", *map(id, origins)))
                yield UnitCall(unit, call.number, given, made)

    def _list_scaled(self, call: UnitCall) -> Iterator[UnitCall]:
        """Yield the calls of a layer into which a scaling of its input is folded that only one model has."""
        layer = call.unit
        for unit, given in self._first:
            if call.input is None or not fit(layer, unit):
                continue
            scaling = find_scaling(given, call.input)
            # Elsewhere a function that isn't linear may look like a factor, on this sample.
            if scaling is not None and (is_input(given, self._samples) or is_input(call.input, self._samples)):
                text = f"{layer.path}, whose input is scaled: {scaling.describe()}"
                scaled = fold_before(scaling.read, layer)
                fold = Fold(scaled, (layer,), text, partial(operator.is_, unit))
                yield UnitCall(self._keep(fold, ("scaled", id(layer), id(unit))), call.number, given, call.output)

    def _has_norms(self, before: bool | None, behind: bool | None, target: LayerUnit) -> bool:
        """Return whether a layer of the target has a norm before and behind it, as wanted (None: either way)."""
        found = id(target) in self._target.before, id(target) in self._target.behind
        return all(wanted is None or wanted == one for wanted, one in zip((before, behind), found, strict=True))

    def _list_without_bias(self, call: UnitCall, behind: UnitCall | None) -> Iterator[UnitCall]:
        """Yield the calls of a layer without its bias and of a norm that has it, and of norms that change nothing."""
        layer, output = call.unit, call.output
        assert output is not None
        owned = [norm for norm in self._norms if self._target.behind.get(id(self._target.owners[id(norm)])) is norm]
        owned = [norm for norm in owned if fit(layer, self._target.owners[id(norm)])]
        bare = [norm for norm in owned if "bias" not in self._target.owners[id(norm)].slices]
        if bare and has_bias(layer):
            bias = read_arrays(layer)["bias"]
            unit = self._keep(
                Fold(
                    drop_bias(layer), (layer,), f"the bias of {layer.path} moved into the norm behind it", self._is_bare
                ),
                ("bare", id(layer)),
            )
            smaller = (output - bias).astype(output.dtype)
            yield UnitCall(unit, call.number, call.input, smaller)
            if behind is not None and behind.input is not None:
                norm = behind.unit
                moved = Fold(move_bias_into_mean(layer, norm), (norm, layer), "", self._follows_bare)
                unit = self._keep(moved, ("moved", id(layer), id(norm)))
                yield UnitCall(unit, call.number, smaller.reshape(behind.input.shape), behind.output)
            else:
                yield from self._list_idle(call, bare, smaller, bias=True)
        if behind is None and (len(bare) < len(owned) or not has_bias(layer)):
            yield from self._list_idle(
                call, owned if not has_bias(layer) else [n for n in owned if n not in bare], output
            )

    def _list_idle(
        self, call: UnitCall, norms: Sequence[LayerUnit], given: Array, *, bias: bool = False
    ) -> Iterator[UnitCall]:
        """Yield calls of norms that change nothing, one for each kind of norm in the target."""
        layer, made = call.unit, call.output
        for norm in {_describe(norm): norm for norm in norms}.values():
            path = f"{layer.path} has no norm: that of the target changes nothing" + (" but adds its bias" * bias)
            fits = partial(_is_like, norm, self._target.behind)
            idle = Fold(make_idle(layer, norm, bias=bias), (layer,), path, fits)
            unit = self._keep(idle, ("idle", id(layer), _describe(norm), bias))
            assert made is not None
            rows = (-1, count_outputs(layer))
            yield UnitCall(unit, call.number, given.reshape(rows), made.reshape(rows))

    def _list_idle_before(self, call: UnitCall) -> Iterator[UnitCall]:
        """Yield calls of norms before a layer that change nothing."""
        layer, given = call.unit, call.input
        norms = [norm for norm in self._norms if self._target.before.get(id(self._target.owners[id(norm)])) is norm]
        norms = [norm for norm in norms if fit(layer, self._target.owners[id(norm)])]
        for norm in {_describe(norm): norm for norm in norms}.values():
            if given is None or given.shape[-1] != count_features(norm):
                continue
            text = f"{layer.path} has no norm before it: that of the target changes nothing"
            idle = Fold(
                make_idle(layer, norm, bias=False), (layer,), text, partial(_is_like, norm, self._target.before)
            )
            unit = self._keep(idle, ("idle before", id(layer), _describe(norm)))
            rows = given if norm.kind == "normalization" else given.reshape(-1, given.shape[-1])
            yield UnitCall(unit, call.number, rows, rows)

    def _is_bare(self, target: LayerUnit) -> bool:
        return id(target) in self._target.behind and "bias" not in target.slices

    def _follows_bare(self, target: LayerUnit) -> bool:
        owner = self._target.owners.get(id(target))
        return owner is not None and "bias" not in owner.slices

    def _keep(self, fold: Fold, key: tuple[object, ...]) -> LayerUnit:
        """Return the unit of a fold, the same one for every call of a layer."""
        if key not in self._made:
            self._made[key] = fold.unit
            self.folds[id(fold.unit)] = fold
        return self._made[key]


def _find_next(
    calls: Sequence[_KeyedCall], firsts: frozenset[str], seconds: frozenset[str]
) -> Iterator[tuple[_KeyedCall, _KeyedCall]]:
    """Yield each call that is given just what another one before it put out, with the last of those."""
    made: dict[_Key, _KeyedCall] = {}
    for call in calls:
        first = made.get(call.given) if call.given is not None and call.unit.kind in seconds else None
        if first is not None:
            yield first, call
        if call.made is not None and call.unit.kind in firsts:
            made[call.made] = call


def count_norms(traced: TracedModel) -> tuple[int, int]:
    """Return how many norms and how many biases of layers a model has, on which it depends whether folding may help."""
    norms = sum(is_foldable(unit) for unit in traced.units)
    return norms, sum(unit.kind in OUTPUTS and "bias" in unit.slices for unit in traced.units)


def _may_fold(unit: LayerUnit) -> bool:
    return unit.kind in OUTPUTS or unit.kind in NORMS


def _may_scale(unit: LayerUnit) -> bool:
    return unit.kind in ("dense", "conv")


def _make_key(array: Array | None) -> _Key | None:
    if array is None or not array.ndim or array.dtype.kind != "f":
        return None
    digest = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()
    return array.shape[-1], array.size, digest


def _describe(norm: LayerUnit) -> tuple[object, ...]:
    return norm.kind, norm.attributes.get("eps"), count_features(norm), "beta" in norm.slices


def _is_like(norm: LayerUnit, owned: dict[int, LayerUnit], target: LayerUnit) -> bool:
    return _describe(target) == _describe(norm) and any(unit is target for unit in owned.values())
