"""Products with a parameter: dense layers and convolutions, under all the names that torch has for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from xweights_torch.porting.uses import Arrangement, Use, as_tensor, bind, collect, flat, is_computed, make_use, whole
from xweights_torch.porting.views import Derived, cut, permute, reshape

# The most matrices of a stack that are told apart.
_MOST_PARTS = 1024


def contract(x: Any, weight: Derived, letters: tuple[str, str, str], bias: Any = None) -> Use | None:
    """Return a product over some axes of the input as a dense layer, or as a stack of them.

    ``letters`` name the axes of the input, the weight and the output.
    """
    own, kernel, out = letters
    batch = [letter for letter in kernel if letter in own and letter in out]
    summed = [letter for letter in own if letter in kernel and letter not in out]
    made = [letter for letter in out if letter in kernel and letter not in own]
    free = [letter for letter in out if letter not in kernel]
    complete = sorted(batch + summed + made) == sorted(kernel) and sorted(batch + summed + free) == sorted(own)
    source = whole(weight)
    if not summed or not complete or source.steps is None:
        return None
    lengths = dict(zip(kernel, weight.tensor.shape, strict=True))
    parts = math.prod(lengths[letter] for letter in batch) if batch else 0
    if parts > _MOST_PARTS:
        return None
    rows, columns = (math.prod(lengths[letter] for letter in some) for some in (summed, made))
    shape = (parts, rows, columns) if batch else (rows, columns)
    order = tuple(kernel.index(letter) for letter in [*batch, *summed, *made])
    arrays = {"kernel": source.then(permute(*order), reshape(*shape))}
    if isinstance(bias, Derived) and bias.tensor.numel() == max(parts, 1) * columns:
        flat = reshape(parts, columns) if batch else reshape(columns)
        arrays |= collect({"bias": bias}, lambda value: (flat,))
    given = tuple(own.index(letter) for letter in [*batch, *free, *summed])
    result = tuple(out.index(letter) for letter in [*batch, *free, *made])
    # Where the output isn't what the views make of the input.
    computed = is_computed(weight) or (bias is not None and "bias" not in arrays)
    return make_use(
        "dense",
        arrays,
        {"computed": True} if computed else {},
        given=as_tensor(x),
        arranged=Arrangement(given, len(summed), len(batch)),
        result=Arrangement(result, len(made), len(batch)),
        parts=parts,
    )


_LETTERS = "abcdefgh"


def _linear(args: tuple[Any, ...], named: dict[str, Any]) -> Use | list[Use] | None:
    bound = bind(args, named, "input weight bias")
    x, weight, bias = bound["input"], bound["weight"], bound.get("bias")
    if not isinstance(weight, Derived):
        return None
    joined = next((one for one in (weight, bias) if isinstance(one, Derived) and one.joined), None)
    if joined is not None:
        return _joined_linear(x, weight, bias, [len(member.tensor) for member in joined.members])
    free = _LETTERS[: as_tensor(x).dim() - 1]
    made = "o" if weight.tensor.dim() == 2 else ""
    return contract(x, weight, (f"{free}i", f"{made}i", f"{free}{made}"), bias)


def _joined_linear(x: Any, weight: Derived, bias: Any, sizes: Sequence[int]) -> list[Use] | None:
    """Return a layer whose kernel or bias is several parameters, one after the other, as a layer for each."""
    uses = []
    start = 0
    for size in sizes:
        parts = [_cut_rows(one, start, start + size) for one in (weight, bias)]
        use = _linear((x, *parts), {}) if isinstance(parts[0], Derived) else None
        if not isinstance(use, Use):
            return None
        use.columns = slice(start, start + size)
        uses.append(use)
        start += size
    return uses


def _cut_rows(value: Any, start: int, stop: int) -> Any:
    """Return some rows of a weight; None if they are those of several parameters, or constant."""
    if not isinstance(value, Derived):
        return value
    if value.joined:
        at = 0
        for member in value.members:
            if (at, at + len(member.tensor)) == (start, stop):
                return member if member.root.parameter is not None else None
            at += len(member.tensor)
        return None
    if value.steps is None:
        return None
    return replace(value.then(cut(start, stop)), tensor=value.tensor[start:stop])


def _matmul(args: tuple[Any, ...], named: dict[str, Any], bias: Any = None) -> Use | None:
    first, second = args if len(args) == 2 else (args[0], next(iter(named.values())))
    at = 1 if isinstance(second, Derived) else 0
    shapes = [list(as_tensor(one).shape) for one in (first, second)]
    batch_rank = max(0, *(len(shape) - 2 for shape in shapes))
    stack = _LETTERS[:batch_rank]
    ends = ["i" if len(shapes[0]) == 1 else "ni", "i" if len(shapes[1]) == 1 else "io"]
    names = [list(stack[batch_rank - max(len(s) - 2, 0) :] + end) for s, end in zip(shapes, ends, strict=True)]
    out = "".join(letter for letter in stack + "no" if letter in names[0] or letter in names[1])
    tensors: list[Any] = [first, second]
    # An axis of length 1 that is broadcast isn't an axis of that operand.
    for position in (at, 1 - at):
        other = dict(zip(names[1 - position], shapes[1 - position], strict=True))
        shared = (letter in stack and letter in other for letter in names[position])
        dropped = [is_shared and size == 1 for is_shared, size in zip(shared, shapes[position], strict=True)]
        if any(dropped):
            names[position] = [letter for letter, drop in zip(names[position], dropped, strict=True) if not drop]
            shapes[position] = [size for size, drop in zip(shapes[position], dropped, strict=True) if not drop]
            tensors[position] = _reshaped(tensors[position], shapes[position])
    return contract(tensors[1 - at], tensors[at], ("".join(names[1 - at]), "".join(names[at]), out), bias)


def _reshaped(value: Any, shape: Sequence[int]) -> Any:
    if isinstance(value, Derived):
        tensor = value.tensor.reshape(tuple(shape))
        return (
            replace(value, tensor=tensor)
            if value.steps is None
            else replace(value.then(reshape(*shape)), tensor=tensor)
        )
    return value.reshape(tuple(shape))


def _added_product(args: tuple[Any, ...], named: dict[str, Any]) -> Use | None:
    bound = bind(args, named, "input first second")
    first, second = (bound.get(a, bound.get(b)) for a, b in (("first", "mat1"), ("second", "mat2")))
    if bound.get("beta", 1) != 1 or bound.get("alpha", 1) != 1:
        return None
    return _matmul((first, second), {}, bound["input"])


def _einsum(args: tuple[Any, ...], named: dict[str, Any]) -> Use | None:
    equation, operands = str(args[0]).replace(" ", ""), args[1:]
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    inputs, _, out = equation.partition("->")
    letters = inputs.split(",")
    if len(operands) != 2 or "->" not in equation or sum(isinstance(one, Derived) for one in operands) != 1:
        return None
    rest = _LETTERS.upper()
    for position, one in enumerate(operands):
        if "..." in letters[position]:
            count = as_tensor(one).dim() - len(letters[position]) + 3
            letters[position] = letters[position].replace("...", rest[len(rest) - count :])
            out = out.replace("...", rest[len(rest) - count :])
    at = 0 if isinstance(operands[0], Derived) else 1
    return contract(operands[1 - at], operands[at], (letters[1 - at], letters[at], out))


def _conv(space: int, transposed: bool) -> Callable[[tuple[Any, ...], dict[str, Any]], Use | None]:
    tail = "output_padding groups dilation" if transposed else "dilation groups"

    def many(value: Any) -> tuple[int, ...]:
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        return values * space if len(values) == 1 else values

    def rule(args: tuple[Any, ...], named: dict[str, Any]) -> Use | None:
        bound = bind(args, named, f"input weight bias stride padding {tail}")
        x, weight = as_tensor(bound["input"]), whole(bound["weight"])
        padding, groups = bound.get("padding", 0), bound.get("groups", 1)
        attributes: dict[str, Any] = {
            "groups": groups,
            "strides": many(bound.get("stride", 1)),
            "dilation": many(bound.get("dilation", 1)),
            "padding": padding if isinstance(padding, str) else many(padding),
        }
        if transposed and any(many(bound.get("output_padding", 0))):
            attributes["output_padding"] = many(bound["output_padding"])
        if is_computed(bound["weight"]):
            attributes["computed"] = True
        # Stored (out, in, *space); transposed (in, out, *space). Neutral: (*space, in, out) and (*space, out, in).
        order = (*range(2, space + 2), 1, 0)
        arrays = collect({"kernel": weight}, lambda value: (permute(*order),))
        arrays |= collect({"bias": bound.get("bias")}, flat)
        if "kernel" not in arrays:
            return None
        rank = x.dim()
        first = rank - space - 1
        form = Arrangement((*range(first), *range(first + 1, rank), first), rows=False, unbatched=rank == space + 1)
        kind = "conv_transpose" if transposed else "conv"
        use = make_use(kind, arrays, attributes, given=x, arranged=form, result=form)
        if use is not None and transposed and groups > 1:
            use.refused = "a transposed convolution with groups that is called as a function has no counterpart"
        return use

    return rule


PRODUCTS: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], Use | list[Use] | None]] = {
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "mv": _matmul,
    "__rmatmul__": lambda args, named: _matmul(args[::-1], named),
    "addmm": _added_product,
    "addmv": _added_product,
    "baddbmm": _added_product,
    "einsum": _einsum,
    **{f"conv{space}d": _conv(space, False) for space in (1, 2, 3)},
    **{f"conv_transpose{space}d": _conv(space, True) for space in (1, 2, 3)},
}
