"""Find the operations of a layer with its own variables, from one call of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from xweights.core.dtypes import Array
from xweights_keras.porting.contractions import find_bias, find_contractions, is_lookup
from xweights_keras.porting.frames import Frame, Point
from xweights_keras.porting.operations import Operation
from xweights_keras.porting.probing import Probe, Use, are_close, list_eps, move_last, normalise, table_shape


def find_operations(frame: Frame, variables: Iterable[Any]) -> list[Operation]:
    """Return the operations of a layer with these variables, in the order in which it reads them."""
    listed, random = list(variables), np.random.default_rng(0)
    direct, joined_biases = _list_direct(frame, listed)
    listed = [variable for variable in listed if id(variable) not in joined_biases]
    uses = [_find_taken(frame, variable) or Probe(frame, variable, random).find_use() for variable in listed]
    for use in [use for use in uses if use.form == "none" and len(uses) > 1]:
        others = [variable for variable in listed if variable is not use.variable]
        use.point = Probe(frame, use.variable, random).has_effect(others)
        use.form = "none" if use.point is None else "unknown"
    added = [use for use in uses if use.form == "add"]
    operations = [
        _make_scale(frame, use, added, uses) if use.form == "scale" else _make_product(frame, use, added)
        for use in uses
        if use.form in ("scale", "dense", "conv")
    ]
    joined = {id(v) for operation in operations for v in operation.variables.values()}
    uses = [use for use in uses if id(use.variable) not in joined]
    operations += direct
    operations += [_make_embedding(frame.layer, use) for use in uses if use.form == "embedding"]
    operations += [make_rows(frame.layer, use) for use in uses if use.form in ("rows", "none", "unknown")]
    operations += [make_rows(frame.layer, use) for use in added]
    reads = frame.list_reads()
    return sorted(operations, key=lambda each: min(reads.get(id(v), len(reads)) for v in each.variables.values()))


def _list_direct(frame: Frame, variables: list[Any]) -> tuple[list[Operation], set[int]]:
    """Return the products with variables that show in calls, one for each matrix, and the variables in them."""
    found = find_contractions(frame, variables)
    by_id = {id(variable): variable for variable in variables}
    operations: list[Operation] = []
    joined: set[int] = set()
    for key, (number, one) in found.items():
        joined.add(key)
        point = Point(number, 0)
        if one is None:
            operations.append(make_rows(frame.layer, Use(by_id[key], "unknown", point)))
            continue
        if is_lookup(frame, number, one):
            made = Operation(frame.layer, "embedding", {"embeddings": by_id[key]}, point, argument=one.argument)
            made.contraction, made.taken = one, True
            operations.append(made)
            continue
        free = [variable for variable in variables if id(variable) not in joined and id(variable) not in found]
        bias = find_bias(frame, number, one, free)
        roles = {"kernel": by_id[key]} if bias is None else {"kernel": by_id[key], "bias": bias}
        joined |= set() if bias is None else {id(bias)}
        for part in range(one.parts):
            attributes = {"place": part} if one.stack else {}
            made = Operation(frame.layer, "dense", roles, point, attributes=attributes, argument=one.argument)
            made.contraction, made.part, made.taken = one, part, True
            operations.append(made)
    return operations, joined


def _find_taken(frame: Frame, variable: Any) -> Use | None:
    """Return a variable's use if its layer calls ``keras.ops.take`` with it."""
    for number, call in enumerate(frame.calls):
        if call.leaves and call.leaves[0] is variable and getattr(call.key, "__name__", "") == "take":
            rank = len(call.output.shape)
            return Use(variable, "embedding", Point(number, 0), rank - 1, 1, attributes={"argument": 1, "taken": True})
    return None


def make_rows(layer: Any, use: Use) -> Operation:
    """Return a use of a variable as rows."""
    count, _ = table_shape(tuple(use.variable.shape))
    attributes = {"first": 0, "count": count, **(use.attributes if use.form == "rows" else {})}
    if use.form == "none":
        attributes["unused"] = True
    return Operation(layer, "rows", {"rows": use.variable}, use.point, attributes=attributes)


def _make_embedding(layer: Any, use: Use) -> Operation:
    return Operation(
        layer,
        "embedding",
        {"embeddings": use.variable},
        use.point,
        use.start,
        use.length,
        argument=use.attributes["argument"],
        shift=use.attributes.get("shift", 0),
        repeats=use.attributes.get("repeats", 0),
        factor=use.attributes.get("factor", 1.0),
        residual=_is_something(use.base),
        taken=use.attributes.get("taken", False),
    )


def _make_scale(frame: Frame, use: Use, added: list[Use], uses: list[Use]) -> Operation:
    """Return a scale, with the variable that is added to the product; a norm if it is one."""
    assert use.factor is not None, "it was measured"
    assert use.base is not None, "it was measured"
    operation = Operation(frame.layer, "multiply", {"gamma": use.variable}, use.point, use.start, use.length)
    factor, rest = use.factor, use.base

    def fits(rest: Array) -> bool:
        return not _is_something(rest, factor) or are_close(rest, factor)

    rest = _join(frame, operation, "beta", use, added, fits)
    offset = are_close(rest, factor)
    operation.attributes["offset"] = int(offset)
    operation.residual = not offset and _is_something(rest, factor)
    scaled = move_last(factor, use.start, use.length)
    for number, given in frame.tensors():
        if given.shape != factor.shape or given.dtype.kind in "iub":
            continue
        rows = move_last(given, use.start, use.length)
        statistics = None if operation.residual else _find_statistics(frame, use, uses, rows, scaled)
        if statistics is not None:
            mean, variance, eps = statistics
            operation.kind, operation.argument = "batch_norm", number
            operation.variables |= {"moving_mean": mean, "moving_variance": variance}
            operation.attributes = {"eps": eps}
            return operation
        for eps in () if operation.residual else list_eps(frame.layer).values():
            for kind, centred in (("rms_norm", False), ("layer_norm", True)):
                if are_close(normalise(rows, eps, centred=centred), scaled):
                    operation.kind, operation.argument = kind, number
                    operation.attributes["eps"] = eps
                    return operation
        positive = np.maximum(given, 0)
        if operation.residual and are_close(given - positive, factor) and are_close(positive, rest):
            operation.kind, operation.argument, operation.residual = "prelu", number, False
            operation.variables = {"alpha": use.variable}
            operation.attributes = {}
            return operation
    return operation


def _find_statistics(
    frame: Frame, use: Use, uses: list[Use], rows: Array, scaled: Array
) -> tuple[Any, Any, float] | None:
    """Return the mean, the variance and the epsilon by which the input of a batch norm by hand is normalised."""
    others = [
        other.variable for other in uses if other.form == "unknown" and other.variable.shape == use.variable.shape
    ]
    for mean, variance in itertools.permutations(others, 2):
        values = [np.asarray(keras.ops.convert_to_numpy(each), np.float64).reshape(-1) for each in (mean, variance)]
        for eps in list_eps(frame.layer).values():
            if (values[1] + eps > 0).all() and are_close((rows - values[0]) / np.sqrt(values[1] + eps), scaled):
                return mean, variance, eps
    return None


def _make_product(frame: Frame, use: Use, added: list[Use]) -> Operation:
    """Return a product with a kernel, with the variable that is added to it as its bias."""
    operation = Operation(frame.layer, use.form, {"kernel": use.variable}, use.point, use.start, use.length)
    operation.argument, operation.kernel = use.attributes["argument"], use.attributes.get("kernel")
    if use.form == "conv":
        names = ("strides", "padding", "dilation", "groups")
        operation.attributes = {name: use.attributes[name] for name in names}
    rest = _join(frame, operation, "bias", use, added, lambda rest: not _is_something(rest))
    operation.residual = _is_something(rest)
    return operation


def _join(
    frame: Frame, operation: Operation, role: str, use: Use, added: list[Use], fits: Callable[[Array], bool]
) -> Array:
    """Join the variable that is added to an operation to it, if what is left fits; return what is left."""
    assert use.base is not None, "it was measured"
    for other in added:
        same = (other.point, other.start, other.length) == (use.point, use.start, use.length)
        if not same or fits(use.base):
            continue
        operation.variables[role] = other.variable
        rest = operation.read_without(frame).astype(np.float64)
        if fits(rest):
            added.remove(other)
            return rest
        del operation.variables[role]
    return use.base


def _is_something(array: Array | None, beside: Array | None = None) -> bool:
    """Return True if an array isn't zero, beside another."""
    if array is None:
        return False
    scale = 1.0 if beside is None else max(float(np.abs(beside).max(initial=0)), 1e-30)
    return bool(np.abs(array).max(initial=0) > 1e-5 * scale)
