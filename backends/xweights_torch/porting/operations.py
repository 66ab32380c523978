"""Operations that use parameters: which layer computes the same.

Everything here is pure: it looks at a function, its arguments and their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from xweights_torch.porting.products import PRODUCTS
from xweights_torch.porting.uses import Arrangement, Use, as_tensor, bind, collect, fit_addend, flat, make_use
from xweights_torch.porting.views import Derived, permute, reshape


def recognize(name: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> list[Use]:
    """Return the uses that a function makes of the parameters among its arguments, if layers compute the same."""
    rule = _RULES.get(name)
    try:
        found = None if rule is None else rule(args, dict(named))
    except (IndexError, KeyError, TypeError, ValueError, AttributeError):
        return []  # arguments of an unusual form: the parameter is used in a way that no layer does
    uses = found if isinstance(found, list) else [found]
    # A buffer that isn't saved is no weight.
    return [use for use in uses if use is not None and all(one.root.parameter for one in use.arrays.values())]


# Norms


def _channels(rank: int) -> Arrangement:
    return Arrangement((0, *range(2, rank), 1) if rank > 1 else (0,))


def _eps(value: Any, x: torch.Tensor) -> float:
    return float(torch.finfo(x.dtype).eps if value is None else value)


def _batch_norm(names: str) -> Callable[[tuple[Any, ...], dict[str, Any]], Use | None]:
    def rule(args: tuple[Any, ...], named: dict[str, Any]) -> Use | None:
        bound = bind(args, named, names)
        roles = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
        if bound.get("training") or bound.get("use_input_stats") or bound.get("running_mean") is None:
            return None
        x = as_tensor(bound["input"])
        given = {role: bound.get(native) for role, native in roles.items()}
        form = _channels(x.dim())
        attributes = {"eps": _eps(bound.get("eps", 1e-5), x)}
        arrays = collect(given, flat)
        return make_use("batch_norm", arrays, attributes, given=x, arranged=form, result=form)

    return rule


def _group_norm(names: str) -> Callable[[tuple[Any, ...], dict[str, Any]], Use | None]:
    def rule(args: tuple[Any, ...], named: dict[str, Any]) -> Use | None:
        bound = bind(args, named, names)
        if bound.get("running_mean") is not None:
            return None
        x = as_tensor(bound["input"])
        groups = bound.get("num_groups", x.shape[1])
        given = {"gamma": bound.get("weight"), "beta": bound.get("bias")}
        form = Arrangement((0, *range(2, x.dim()), 1), rows=False)
        attributes = {"eps": _eps(bound.get("eps", 1e-5), x), "groups": groups}
        arrays = collect(given, flat)
        return make_use("group_norm", arrays, attributes, given=x, arranged=form, result=form)

    return rule


def _layer_norm(
    kind: str, names: str, default: float | None
) -> Callable[[tuple[Any, ...], dict[str, Any]], Use | None]:
    def rule(args: tuple[Any, ...], named: dict[str, Any]) -> Use | None:
        bound = bind(args, named, names)
        x = as_tensor(bound["input"])
        axes, rank = len(bound["normalized_shape"]), x.dim()
        given = {"gamma": bound.get("weight"), "beta": bound.get("bias")}
        # Over an image torch has the channels first.
        order, own = tuple(range(rank)), tuple(range(axes))
        if axes >= 3:
            order = (*order[:-axes], *order[rank - axes + 1 :], rank - axes)
            own = (*own[1:], 0)
        form = Arrangement(order, axes)
        attributes: dict[str, Any] = {"eps": _eps(bound.get("eps", default), x)}
        arrays = collect(given, lambda value: (permute(*own), reshape(value.tensor.numel())), offset=True)
        if arrays.get("gamma") is not None and arrays["gamma"].offset:
            attributes["offset"] = arrays["gamma"].offset
        return make_use(kind, arrays, attributes, given=x, arranged=form, result=form)

    return rule


def _prelu(args: tuple[Any, ...], named: dict[str, Any]) -> Use | None:
    bound = bind(args, named, "input weight")
    x, weight = as_tensor(bound["input"]), bound["weight"]
    form = _channels(x.dim())
    if weight.tensor.numel() == 1:
        form = replace(form, rows=False) if x.dim() > 3 else Arrangement(tuple(range(x.dim())), rows=False)
    arrays = collect({"alpha": weight}, flat)
    return make_use("prelu", arrays, {}, given=x, arranged=form, result=form)


# Tables


def _embedding(names: str) -> Callable[[tuple[Any, ...], dict[str, Any]], Use | None]:
    def rule(args: tuple[Any, ...], named: dict[str, Any]) -> Use | None:
        bound = bind(args, named, names)
        return _look_up(bound["weight"], 0, as_tensor(bound["input"]))

    return rule


def _look_up(table: Any, axis: int, ids: torch.Tensor) -> Use | None:
    """Return a selection of rows along an axis of a parameter."""
    if not isinstance(table, Derived) or ids.is_floating_point() or ids.dtype in (torch.bool, torch.uint8):
        return None
    rank = table.tensor.dim()
    others = tuple(other for other in range(rank) if other != axis)
    width = table.tensor.numel() // max(table.tensor.shape[axis], 1)
    steps = (permute(axis, *others), reshape(table.tensor.shape[axis], width))
    arrays = collect({"embeddings": table}, lambda value: steps)
    # The axes of the ids stand in the place of the axis.
    count = ids.dim()
    order = (*range(axis, axis + count), *range(axis), *range(axis + count, rank - 1 + count))
    given = torch.where(ids < 0, ids + table.tensor.shape[axis], ids).reshape(-1)
    return make_use("embedding", arrays, {}, given=given, result=Arrangement(order, rank - 1))


def _getitem(args: tuple[Any, ...], named: dict[str, Any]) -> Use | None:
    table, index = args
    parts = index if isinstance(index, tuple) else (index,)
    places = [place for place, part in enumerate(parts) if isinstance(part, torch.Tensor)]
    whole = all(isinstance(part, torch.Tensor) or part == slice(None) for part in parts)
    if len(places) != 1 or not whole or not parts[places[0]].dim():
        return None
    return _look_up(table, places[0], parts[places[0]])


def _index_select(args: tuple[Any, ...], named: dict[str, Any]) -> Use | None:
    bound = bind(args, named, "input dim index")
    return _look_up(bound["input"], bound["dim"] % as_tensor(bound["input"]).dim(), bound["index"])


def _gather(args: tuple[Any, ...], named: dict[str, Any]) -> Use | None:
    bound = bind(args, named, "input dim index")
    table, ids = bound["input"], bound["index"]
    if as_tensor(table).dim() != 2 or bound["dim"] not in (0, -2) or ids.shape[1] != table.tensor.shape[1]:
        return None
    return _look_up(table, 0, ids[:, 0]) if bool((ids == ids[:, :1]).all()) else None


# Arithmetic


def multiply(gamma: Derived, x: torch.Tensor) -> Use | None:
    """Return a product with a parameter along some axes of the input."""
    shape = tuple(gamma.tensor.shape)
    rank = x.dim()
    if gamma.steps is None or len(shape) > rank:
        return None
    shape = (1,) * (rank - len(shape)) + shape
    axes = tuple(axis for axis, length in enumerate(shape) if length != 1)
    if any(x.shape[axis] != shape[axis] for axis in axes):
        return None
    form = Arrangement((*(axis for axis in range(rank) if axis not in axes), *axes), len(axes))
    arrays = {"gamma": gamma.then(reshape(gamma.tensor.numel()))}
    attributes = {"offset": gamma.offset}
    return Use("multiply", arrays, attributes, given=x, arranged=form, result=form)


def _multiply(args: tuple[Any, ...], named: dict[str, Any]) -> Use | None:
    first, second = args if len(args) == 2 else (args[0], next(iter(named.values())))
    gamma, x = (first, second) if isinstance(first, Derived) else (second, first)
    return multiply(gamma, x) if isinstance(gamma, Derived) and isinstance(x, torch.Tensor) else None


def _added_multiple(args: tuple[Any, ...], named: dict[str, Any]) -> Use | None:
    bound = bind(args, named, "input tensor1 tensor2 value")
    use = _multiply((bound["tensor1"], bound["tensor2"]), {})
    if use is None or bound.get("value", 1) != 1:
        return None
    beta = fit_addend(use, use.given if use.given is not None else torch.empty(0), bound["input"])
    if beta is not None:
        use.arrays["beta"] = beta
    return use


_RULES: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], Use | list[Use] | None]] = {
    **PRODUCTS,
    "batch_norm": _batch_norm("input running_mean running_var weight bias training momentum eps"),
    "instance_norm": _group_norm("input running_mean running_var weight bias use_input_stats momentum eps"),
    "group_norm": _group_norm("input num_groups weight bias eps"),
    "layer_norm": _layer_norm("layer_norm", "input normalized_shape weight bias eps", 1e-5),
    "rms_norm": _layer_norm("rms_norm", "input normalized_shape weight eps", None),
    "prelu": _prelu,
    "embedding": _embedding("input weight"),
    # The builtin functions have another order.
    "native_batch_norm": _batch_norm("input weight bias running_mean running_var training momentum eps"),
    "native_instance_norm": _group_norm("input weight bias running_mean running_var use_input_stats momentum eps"),
    "native_embedding": _embedding("weight input"),
    "__getitem__": _getitem,
    "index_select": _index_select,
    "gather": _gather,
    "mul": _multiply,
    "mul_": _multiply,
    "multiply": _multiply,
    "__rmul__": _multiply,
    "addcmul": _added_multiple,
}
