"""Find the weights of a target that an adapter changes, and check that everything fits before a value is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xweights.core.casting import cast_exactly, round_to
from xweights.core.dtypes import Array
from xweights.core.layout import Shape
from xweights.core.names import Names, renamer
from xweights.core.parameter import Parameter
from xweights.core.readings import find_readings
from xweights.edit.execute import add_edit_refusal
from xweights.errors import (
    DtypeError,
    LayoutError,
    Problems,
    SelectionError,
    ShapeError,
    WriteError,
    XweightsError,
    got_expected,
    near,
)
from xweights.merging.lora.factors import Adapter, Factors, find_order
from xweights.merging.lora.product import add_product, apply_magnitude, multiply_factors

_SHOWN = 8
# What torch calls the roles of a layer's arrays; an adapter of PEFT's names them so for any framework.
_NATIVE = {"kernel": "weight", "embeddings": "weight", "gamma": "weight", "beta": "bias"}


@dataclass(frozen=True, eq=False)
class Change:
    """What an adapter does to one weight: replaces it, adds to a bias, adds a product; PEFT's files may do it all.

    Attributes:
        whole: The array that takes the place of the weight, and the permutation to its stored order.
        added: What is added to a bias, and its scaling.
        factors: The factors of the product, and the permutation that brings it to the stored order.
    """

    parameter: Parameter
    whole: tuple[Parameter, tuple[int, ...]] | None = None
    added: tuple[Parameter, float] | None = None
    factors: tuple[Factors, tuple[int, ...]] | None = None

    @property
    def rank(self) -> int:
        """The rank of the product; 0 for a bias."""
        return 0 if self.factors is None else self.factors[0].rank

    @property
    def merges(self) -> bool:
        """Whether anything is added to the weight."""
        return self.added is not None or self.factors is not None

    def compute(self) -> Array:
        """Return the changed weight on the host, in its stored order and dtype."""
        with np.errstate(all="ignore"):
            base = self._read_base()
            if self.added is not None:
                value, scaling = self.added
                base = add_product(base, round_to(value.read() * np.asarray(scaling, value.dtype), value.dtype))
            return base if self.factors is None else self._add(base, *self.factors)

    def _read_base(self) -> Array:
        p = self.parameter
        if self.whole is None:
            return p.read()
        value, order = self.whole
        return cast_exactly(np.ascontiguousarray(value.read().transpose(order)), p.dtype, what=repr(p.name), cast=True)

    def _add(self, base: Array, factors: Factors, order: tuple[int, ...]) -> Array:
        p = self.parameter
        product = multiply_factors(factors.left(), factors.right(), factors.scaling, p.native(tensor=True))
        if factors.magnitude is not None:
            turned = base.transpose(np.argsort(order))
            rows = apply_magnitude(turned, product.reshape(factors.shape), factors.magnitude())
            return np.ascontiguousarray(rows.transpose(order))
        return add_product(base, product.reshape(factors.shape).transpose(order).reshape(p.layout.stored))


def find_changes(
    adapter: Adapter, everything: Sequence[Parameter], names: Names | None, label: str, problems: Problems
) -> dict[str, Change]:
    """Return what the adapter does to each weight, by the adapter's own name of it; note all that doesn't fit."""
    weights = [p for p in everything if not p.is_part()]
    found = _find(adapter, weights, names)
    missing = [name for name in adapter.names if name not in found]
    if missing:
        known = [p.native_name if adapter.native else p.name for p in weights]
        more = f" and {len(missing) - _SHOWN} more" * (len(missing) > _SHOWN)
        problems.add(
            SelectionError,
            f"{adapter.label} is of another base: {label} has no {', '.join(map(repr, missing[:_SHOWN]))}{more}\n"
            f"{near(missing[0], known)}",
            fix='names={"glob of the base": "glob of the adapter"}, if it is the same model under other names',
        )
    changes: dict[str, Change] = {}
    taken: dict[int, str] = {}
    for name in dict.fromkeys(adapter.names):
        if name not in found:
            continue
        p = found[name]
        if taken.setdefault(id(p), name) != name:
            text = f"{p.name!r} is one tied array of {label}, which {taken[id(p)]!r} and {name!r} both change"
            problems.add(SelectionError, text, fix="untie it, or leave one of them out of the adapter")
            continue
        change = _check(adapter, name, p, problems)
        if change is not None:
            changes[name] = change
    return changes


def _find(adapter: Adapter, weights: Sequence[Parameter], names: Names | None) -> dict[str, Parameter]:
    """Return the weight for each name of the adapter that one has."""
    rename = renamer(names)
    by_name: dict[str, Parameter] = {}
    for p in weights:
        for name in (p.name, *p.aliases):
            by_name.setdefault(rename(name), p)
    if not adapter.native:
        return {name: by_name[name] for name in adapter.names if name in by_name}
    if not names:
        natives = {name: p for p in weights for name in (p.native_name, *p.native_aliases)}
        found = _read(adapter.names, natives)
        if len(found) == len(set(adapter.names)):
            return found
    spelled = {_spell(name): p for name, p in by_name.items()} | {name: p for name, p in by_name.items() if "." in name}
    return _read(adapter.names, spelled)


def _spell(name: str) -> str:
    """Return a neutral name as torch spells it."""
    path, _, role = name.rpartition("/")
    return ".".join([*path.split("/"), _NATIVE.get(role, role)]) if path else _NATIVE.get(role, role)


def _read(names: Sequence[str], weights: dict[str, Parameter]) -> dict[str, Parameter]:
    """Return the weights by the adapter's names, seen through wrappers' prefixes; {} if these fit in several ways."""
    exact = {name: weights[name] for name in names if name in weights}
    if len(exact) == len(set(names)):
        return exact
    readings = find_readings(list(dict.fromkeys(names)), {name: id(p) for name, p in weights.items()})
    if len(readings) != 1:
        return exact
    return {key: weights[name] for name, key in readings[0].pairs.items()}


def _check(adapter: Adapter, name: str, p: Parameter, problems: Problems) -> Change | None:
    """Return the change of one weight, or note why it can't be made."""
    reason = p.refusal(writing=False)
    if reason is not None or not p.floating or p.dtype.itemsize < 2:
        text = reason or f"it is {p.dtype.name}, as a quantised base has it"
        problems.add(
            WriteError if reason else DtypeError,
            f"{p.name!r} can't be merged into: {text}",
            fix="merge into the base in floating point, and quantise the result",
        )
        return None
    reason = p.edit_refusal()
    if reason is not None:
        add_edit_refusal(problems, p, reason)
        return None
    whole, added, factors = adapter.replaced.get(name), adapter.added.get(name), adapter.factors.get(name)
    try:
        if added is not None and added[0].layout.stored != p.layout.stored:
            raise _misfit(adapter, p, added[0].layout.stored)
        return Change(
            p,
            None if whole is None else (whole, _find_order_of_whole(whole, p, adapter)),
            added,
            None if factors is None else (factors, find_order(factors, p, adapter.transposed)),
        )
    except XweightsError as wrong:
        problems.add(type(wrong), str(wrong))
        return None


def _misfit(adapter: Adapter, p: Parameter, stored: Shape) -> ShapeError:
    return ShapeError(f"{adapter.label} has another shape of {p.name!r}\n{got_expected(stored, p.layout.stored)}")


def _find_order_of_whole(value: Parameter, p: Parameter, adapter: Adapter) -> tuple[int, ...]:
    """Return the permutation that brings an array which PEFT trained as a whole to the stored order of its weight.

    The weight of a torch layer has the same order there. Elsewhere, as in Keras, a kernel goes by the names of its
    axes, of which torch stores (out, in, ...): a square one would fit as it is, and be wrong.

    Raises:
        LayoutError, ShapeError: the array isn't one of this weight, or nothing tells its order.
    """
    stored, axes = value.layout.stored, p.layout.stored_axes
    order = tuple(range(len(stored)))
    if not p.native_name.endswith("weight") and axes is not None and "in" in axes and len(axes) == len(stored):
        if axes[-2:] != ("in", "out") or (adapter.transposed and len(set(stored)) == 1):
            raise LayoutError(
                f"{adapter.label} has an array in the place of {p.name!r} ({', '.join(axes)}), and nothing tells the "
                "order of its axes\nFix: leave it out with where=, and write it with set_params"
            )
        is_turned = adapter.transposed and stored == p.layout.stored
        order = order if is_turned else (*order[2:], 1, 0)
    if tuple(stored[axis] for axis in order) != p.layout.stored:
        raise _misfit(adapter, p, stored)
    return order


def iter_nonfinite(changes: Sequence[Change]) -> Iterator[tuple[Parameter, int]]:
    """Yield the weights that wouldn't be finite any more, with the number of such entries."""
    for change in changes:
        merged = change.compute()
        wrong = merged.size - int(np.count_nonzero(np.isfinite(merged)))
        if wrong:
            yield change.parameter, wrong
