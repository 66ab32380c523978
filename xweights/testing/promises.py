"""The promises that a backend keeps, each a function that takes a function that makes targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from xweights.core.dtypes import Array, is_floating
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.edit.apply import apply
from xweights.edit.bind import bind
from xweights.edit.read import get_params, parameters
from xweights.edit.undo import snapshot, transaction
from xweights.edit.write import set_params
from xweights.errors import Problems, ShapeError, XweightsError
from xweights.inspection.diff import diff, equal
from xweights.rules.base import Rule
from xweights.rules.elementwise import Add, Clip, Fill, Mask, NonNegative, Scale
from xweights.rules.initializers import Init
from xweights.rules.noise import Noise
from xweights.rules.norms import ClipNorm
from xweights.rules.pruning import Prune
from xweights.training.hold import hold

MakeTarget = Callable[[], Any]


class PromiseBrokenError(XweightsError, AssertionError):
    """A promise that a backend doesn't keep."""


class _StopError(Exception):
    """An error raised on purpose, inside a block that has to undo itself."""


def tricky(shape: Sequence[int], dtype: np.dtype[Any], seed: int = 0) -> Array:
    """Return values that are easily lost: any bit pattern, subnormals, both zeros, infinities, NaN with a payload.

    Example:
        >>> import numpy as np
        >>> from xweights.testing import tricky
        >>> tricky((2, 3), np.dtype(np.float32)).shape
        (2, 3)
    """
    source = np.random.Generator(np.random.Philox(seed))
    size = int(np.prod(shape, dtype=np.int64))
    if not is_floating(dtype):
        return np.asarray(source.integers(0, 2, size).astype(dtype).reshape(tuple(shape)))
    values: Array = source.integers(0, 256, size * dtype.itemsize, dtype=np.uint8).view(dtype)
    tiny = np.asarray(1, f"u{dtype.itemsize}").view(dtype)
    special = [np.asarray(number).astype(dtype) for number in (-0.0, np.inf, -np.inf, np.nan)] + [tiny]
    for position, value in zip(source.permutation(size), special, strict=False):
        values[position] = value
    return values.reshape(tuple(shape))


def ordinary(shape: Sequence[int], dtype: np.dtype[Any], seed: int = 0) -> Array:
    """Return numbers of ordinary size, with ties in magnitude and both zeros.

    Example:
        >>> import numpy as np
        >>> from xweights.testing import ordinary
        >>> bool(np.abs(ordinary((9,), np.dtype(np.float16))).max() <= 2)
        True
    """
    source = np.random.Generator(np.random.Philox(seed))
    size = int(np.prod(shape, dtype=np.int64))
    values = source.uniform(0.05, 2.0, size) * source.choice([-1.0, 1.0], size)
    values[source.random(size) < 0.3] = 0.25
    values[: min(size, 2)] = [-0.0, 0.0][:size]
    return np.asarray(values.astype(dtype).reshape(tuple(shape)))


def filled(target: Any, make: Callable[..., Array], seed: int = 0) -> Params:
    """Fill a target with arrays from ``make``, and return the same values as Params.

    Example:
        >>> import numpy as np
        >>> from xweights.testing import filled, ordinary
        >>> filled({"w": np.zeros(2)}, ordinary)["w"]
        array([-0.,  0.])
    """
    reference = get_params(target)
    for position, array in enumerate(reference.values()):
        array[...] = make(array.shape, array.dtype, seed + position)
    set_params(target, reference.copy(), allow_nonfinite=True)
    return reference


def check_backend(make_target: MakeTarget) -> None:
    """Run every check of :data:`CHECKS`; raise a PromiseBrokenError that lists all failures.

    Args:
        make_target: Returns a fresh target of your framework, each time with the same names, shapes and dtypes.

    Raises:
        PromiseBrokenError: lists each broken promise and its error.

    Example:
        >>> import numpy as np
        >>> from xweights.testing import check_backend
        >>> check_backend(lambda: {"dense": {"kernel": np.ones((4, 3)), "bias": np.zeros(3)}})
    """
    problems = Problems("this backend doesn't keep its promises")
    for promise, check in CHECKS.items():
        try:
            check(make_target)
        except Exception as wrong:  # noqa: BLE001 - whatever a backend raises is a broken promise
            problems.add(PromiseBrokenError, f"{promise}\n{type(wrong).__name__}: {wrong}")
    problems.check()


def _require(condition: object, message: str) -> None:
    if not condition:
        raise PromiseBrokenError(message)


def _require_equal(target: Any, reference: Params, *, rtol: float = 0.0) -> None:
    if not equal(target, reference, rtol=rtol):
        raise PromiseBrokenError(str(diff(target, reference)))


def names_are_the_same_for_two_instances(make_target: MakeTarget) -> None:
    """Check that names, roles, shapes and axes don't depend on the instance, and that no name comes twice."""
    first = parameters(make_target())
    facts = [(p.name, p.role, p.shape, p.axes, p.dtype) for p in first]
    again = [(p.name, p.role, p.shape, p.axes, p.dtype) for p in parameters(make_target())]
    _require(facts, "the target has no parameters")
    _require(facts == again, f"first:  {facts}\nsecond: {again}")
    names = [p.name for p in first]
    _require(len(set(names)) == len(names), f"a name comes twice: {names}")
    for p in first:
        _require(p.native_name and p.role, f"{p.name!r} has the native name {p.native_name!r} and the role {p.role!r}")
        _require(p.axes is None or len(p.axes) == len(p.shape), f"{p.name!r}: axes {p.axes}, shape {p.shape}")


def what_is_written_is_read_again(make_target: MakeTarget) -> None:
    """Check that get(set(x)) is x, bit by bit, in neutral and in native order."""
    target = make_target()
    reference = filled(target, tricky)
    _require_equal(target, reference)
    native = get_params(target, layout="native")
    other = make_target()
    set_params(other, dict(native), layout="native", allow_nonfinite=True)
    _require_equal(other, reference)


def nobodys_arrays_are_aliased(make_target: MakeTarget) -> None:
    """Check that a write copies, that a copy read belongs to the reader, and that a view can't be written."""
    target = make_target()
    values = get_params(target)
    for position, array in enumerate(values.values()):
        array[...] = ordinary(array.shape, array.dtype, position)
    expected = values.copy()
    set_params(target, values)
    for array in (*values.values(), *get_params(target).values()):
        array[...] = 1
    _require_equal(target, expected)
    views = get_params(target, copy=False)
    _require(not any(view.flags.writeable for view in views.values()), "get_params(copy=False) gave a writable array")


def edits_happen_in_place(make_target: MakeTarget) -> None:
    """Check that an edit keeps the target's own array, with its dtype and trainable flag."""
    target = make_target()
    before = parameters(target)
    facts = [(p.name, p.dtype, p.trainable) for p in before]
    for rule in exact_rules(before):
        apply(target, rule, where=_floating)
        undo = snapshot(target)
        filled(target, ordinary)
        undo.restore()
    after = [(p.name, p.dtype, p.trainable) for p in parameters(target)]
    _require(facts == after, f"before: {facts}\nafter:  {after}")
    reference = filled(target, tricky)
    for p in before:
        _require(p.numpy().tobytes() == reference[p.name].tobytes(), f"{p.name!r} is another array now")
        set_params(p, {p.name: ordinary(p.shape, p.dtype)})
        reference[p.name][...] = ordinary(p.shape, p.dtype)
    _require_equal(target, reference)


def exact_rules_give_the_bits_of_numpy(make_target: MakeTarget) -> None:
    """Check that elementwise rules, masks, pruning and noise give the bits of NumPy, applied or bound."""
    for rule in exact_rules(parameters(make_target())):
        for bound in (False, True):
            gives_the_bits_of_numpy(make_target, rule, bound)


def gives_the_bits_of_numpy(make_target: MakeTarget, rule: Rule, bound: bool) -> None:
    """Check that one rule, applied or bound, gives the bits of NumPy."""
    target = make_target()
    reference = filled(target, ordinary)
    _run(target, rule, bound)
    apply(reference, rule, where=_floating)
    try:
        _require_equal(target, reference)
    except PromiseBrokenError as wrong:
        raise PromiseBrokenError(f"{'bound ' * bound}{rule!r}\n{wrong}") from None


def close_rules_keep_their_rtol(make_target: MakeTarget) -> None:
    """Check that rules with a norm in them are within 1e-6."""
    for rule in (ClipNorm(0.5), ClipNorm(0.7, "global")):
        target = make_target()
        reference = filled(target, ordinary)
        apply(target, rule, where=_floating)
        apply(reference, rule, where=_floating)
        widest = max(_eps(p.dtype) for p in parameters(reference, where=_floating))
        _require_equal(target, reference, rtol=max(1e-6, widest))


def a_refused_call_changes_nothing(make_target: MakeTarget) -> None:
    """Check that a value of the wrong shape and a function that fails halfway change nothing."""
    target = make_target()
    reference = filled(target, tricky)
    last = list(reference)[-1]
    bad: dict[str, Any] = {name: np.zeros_like(array) for name, array in reference.items()}
    bad[last] = np.zeros((*reference[last].shape, 2), reference[last].dtype)
    try:
        set_params(target, bad)
    except ShapeError:
        pass
    else:
        raise PromiseBrokenError("set_params took a wrong shape")
    _require_equal(target, reference)
    remaining = len(parameters(target, where=_floating))

    def fails_at_last(w: Any) -> Any:
        nonlocal remaining
        remaining -= 1
        if not remaining:
            raise _StopError
        return -w

    try:
        apply(target, fails_at_last, where=_floating)
    except _StopError:
        pass
    else:
        raise PromiseBrokenError("the function's own error was lost")
    _require_equal(target, reference)


def undo_brings_back_the_very_bits(make_target: MakeTarget) -> None:
    """Check snapshot and transaction, more than once, whoever wrote in between."""
    target = make_target()
    reference = filled(target, tricky)
    before = snapshot(target)
    for seed in (1, 2):
        filled(target, ordinary, seed)
        before.restore()
        _require_equal(target, reference)
    with suppress(_StopError), transaction(target):
        apply(target, Fill(0.5), where=_floating)
        raise _StopError
    _require_equal(target, reference)


def a_held_rule_is_true_after_every_write_until_it_is_released(make_target: MakeTarget) -> None:
    """Check that verbs, set_params and ``held.apply()`` reapply a held rule, until it is released."""
    target = make_target()
    reference = filled(target, ordinary)
    held = hold(target, Clip(-0.25, 0.25), where=_floating)
    parameter = next(p for p in parameters(target) if p.floating)

    def is_within_bounds() -> bool:
        return all(bool((np.abs(p.numpy()) <= 0.25).all()) for p in parameters(target, where=_floating))

    _require(is_within_bounds(), "a hold is not true when it begins")
    apply(target, Fill(3.0), where=_floating)
    set_params(target, reference, allow_nonfinite=True)
    _require(is_within_bounds(), "a hold is not true after xweights wrote to what is held")
    parameter.write(np.full_like(parameter.read(), 2.0))
    held.apply()
    _require(is_within_bounds(), "a hold is not true after held.apply()")
    held.check()
    held.release()
    apply(target, Fill(3.0), where=_floating)
    _require(not is_within_bounds(), "a hold is still there after release()")


def _floating(parameter: Parameter) -> bool:
    return parameter.floating


def exact_rules(chosen: Sequence[Parameter]) -> list[Rule]:
    """Return the rules whose bits are compared, with masks and deltas for these parameters."""
    source = np.random.Generator(np.random.Philox(1))
    masks = {p.name: source.random(p.shape) < 0.5 for p in chosen}
    deltas = {p.name: source.integers(-8, 9, p.shape) / 8 for p in chosen}
    return [
        Fill(0.3), Scale(0.9), Add(0.1), Add(deltas), Clip(-0.3, 0.7), Clip(0.0), NonNegative(), Mask(masks),
        Prune(fraction=0.5), Prune(fraction=0.5, scope="global"), Prune(threshold=0.25),
        Noise(0.1, seed=3), Noise(low=-0.1, high=0.2, seed=3, step=2), Init("normal", 4, {"std": 0.5}),
    ]  # fmt: skip


def _run(target: Any, rule: Rule, bound: bool) -> None:
    if not bound:
        apply(target, rule, where=_floating)
        return
    step = bind(target, rule, where=_floating)
    if isinstance(rule, Noise):
        step.draw(rule.step)
    step()


def _eps(dtype: np.dtype[Any]) -> float:
    one = np.ones((), dtype)
    bits = np.asarray(one.view(f"u{dtype.itemsize}") + 1, f"u{dtype.itemsize}")
    return float(bits.view(dtype).astype(np.float64)) - 1.0


CHECKS: dict[str, Callable[[MakeTarget], None]] = {
    check.__name__: check
    for check in (
        names_are_the_same_for_two_instances,
        what_is_written_is_read_again,
        nobodys_arrays_are_aliased,
        edits_happen_in_place,
        exact_rules_give_the_bits_of_numpy,
        close_rules_keep_their_rtol,
        a_refused_call_changes_nothing,
        undo_brings_back_the_very_bits,
        a_held_rule_is_true_after_every_write_until_it_is_released,
    )
}
"""The checks by name of their promise; each takes a function that makes targets."""
