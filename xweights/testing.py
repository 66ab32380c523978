"""The conformance suite: does a backend keep the promises of xweights?

It is for whoever writes a backend; the toy in ``examples/xweights_toy`` is held against it.

    from xweights.testing import check_backend
    check_backend(lambda: my_framework.Model(...))      # a fresh target each time, with the same names and shapes

or, one test for each promise::

    @pytest.mark.parametrize("promise", CHECKS)
    def test_my_backend_keeps_its_promises(promise):
        CHECKS[promise](make_target)

Targets should be small, and have a kernel with at least two axes and a bias. They are compared with the NumPy backend,
bit by bit where a rule is exact, else within the rtol of its docstring (the dtype's own eps where that is larger).
"""

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
    """A backend doesn't do what it must."""


class _StopError(Exception):
    """Raised on purpose, inside of a block that has to undo itself."""


def tricky(shape: Sequence[int], dtype: np.dtype[Any], seed: int = 0) -> Array:
    """Return numbers that are easily lost: any bit pattern, subnormals, both zeros, infinities, NaN with a payload.

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
    found: Array = source.integers(0, 256, size * dtype.itemsize, dtype=np.uint8).view(dtype)
    tiny = np.asarray(1, f"u{dtype.itemsize}").view(dtype)
    special = [np.asarray(one).astype(dtype) for one in (-0.0, np.inf, -np.inf, np.nan)] + [tiny]
    for place, one in zip(source.permutation(size), special, strict=False):
        found[place] = one
    return found.reshape(tuple(shape))


def ordinary(shape: Sequence[int], dtype: np.dtype[Any], seed: int = 0) -> Array:
    """Return numbers of ordinary size, with ties among their magnitudes and both zeros.

    Example:
        >>> import numpy as np
        >>> from xweights.testing import ordinary
        >>> bool(np.abs(ordinary((9,), np.dtype(np.float16))).max() <= 2)
        True
    """
    source = np.random.Generator(np.random.Philox(seed))
    size = int(np.prod(shape, dtype=np.int64))
    found = source.uniform(0.05, 2.0, size) * source.choice([-1.0, 1.0], size)
    found[source.random(size) < 0.3] = 0.25
    found[: min(size, 2)] = [-0.0, 0.0][:size]
    return np.asarray(found.astype(dtype).reshape(tuple(shape)))


def filled(target: Any, make: Callable[..., Array], seed: int = 0) -> Params:
    """Fill a target with what ``make`` makes, and return the same values as Params of NumPy arrays: its twin.

    Example:
        >>> import numpy as np
        >>> from xweights.testing import filled, ordinary
        >>> filled({"w": np.zeros(2)}, ordinary)["w"]
        array([-0.,  0.])
    """
    twin = get_params(target)
    for position, array in enumerate(twin.values()):
        array[...] = make(array.shape, array.dtype, seed + position)
    set_params(target, twin.copy(), allow_nonfinite=True)
    return twin


def check_backend(make_target: MakeTarget) -> None:
    """Run every check of :data:`CHECKS` and raise PromiseBrokenError that lists all that failed.

    Args:
        make_target: Makes a fresh target of your framework, each time with the same names, shapes and dtypes.

    Raises:
        PromiseBrokenError: with one line for each promise that is not kept, and what happened.

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


def _need(kept: object, told: str) -> None:
    if not kept:
        raise PromiseBrokenError(told)


def _same(target: Any, twin: Params, *, rtol: float = 0.0) -> None:
    if not equal(target, twin, rtol=rtol):
        raise PromiseBrokenError(str(diff(target, twin)))


def names_are_the_same_for_two_instances(make_target: MakeTarget) -> None:
    """Names, roles, shapes and axes don't depend on the instance, and no name comes twice."""
    found = parameters(make_target())
    facts = [(p.name, p.role, p.shape, p.axes, p.dtype) for p in found]
    again = [(p.name, p.role, p.shape, p.axes, p.dtype) for p in parameters(make_target())]
    _need(facts, "the target has no parameters")
    _need(facts == again, f"first:  {facts}\nsecond: {again}")
    names = [p.name for p in found]
    _need(len(set(names)) == len(names), f"a name comes twice: {names}")
    for p in found:
        _need(p.native_name and p.role, f"{p.name!r} has the native name {p.native_name!r} and the role {p.role!r}")
        _need(p.axes is None or len(p.axes) == len(p.shape), f"{p.name!r}: axes {p.axes}, shape {p.shape}")


def what_is_written_is_read_again(make_target: MakeTarget) -> None:
    """get(set(x)) is x, bit by bit, in the neutral and in the native order."""
    target = make_target()
    twin = filled(target, tricky)
    _same(target, twin)
    native = get_params(target, layout="native")
    other = make_target()
    set_params(other, dict(native), layout="native", allow_nonfinite=True)
    _same(other, twin)


def nobodys_arrays_are_aliased(make_target: MakeTarget) -> None:
    """A write copies; a copy that was read is the reader's own; a view can't be written."""
    target = make_target()
    given = get_params(target)
    for position, array in enumerate(given.values()):
        array[...] = ordinary(array.shape, array.dtype, position)
    kept = given.copy()
    set_params(target, given)
    for array in (*given.values(), *get_params(target).values()):
        array[...] = 1
    _same(target, kept)
    views = get_params(target, copy=False)
    _need(not any(view.flags.writeable for view in views.values()), "get_params(copy=False) gave a writable array")


def edits_happen_in_place(make_target: MakeTarget) -> None:
    """What was found before an edit is still the target's own array after it, with its dtype and trainable flag."""
    target = make_target()
    before = parameters(target)
    facts = [(p.name, p.dtype, p.trainable) for p in before]
    for rule in _exact_rules(before):
        apply(target, rule, where=_floating)
        undo = snapshot(target)
        filled(target, ordinary)
        undo.restore()
    after = [(p.name, p.dtype, p.trainable) for p in parameters(target)]
    _need(facts == after, f"before: {facts}\nafter:  {after}")
    twin = filled(target, tricky)
    for p in before:
        _need(p.numpy().tobytes() == twin[p.name].tobytes(), f"{p.name!r} is another array now")
        set_params(p, {p.name: ordinary(p.shape, p.dtype)})
        twin[p.name][...] = ordinary(p.shape, p.dtype)
    _same(target, twin)


def exact_rules_give_the_bits_of_numpy(make_target: MakeTarget) -> None:
    """Elementwise rules, masks, pruning and random numbers: the same bits, called at once or bound."""
    for rule in _exact_rules(parameters(make_target())):
        for bound in (False, True):
            target = make_target()
            twin = filled(target, ordinary)
            _run(target, rule, bound)
            apply(twin, rule, where=_floating)
            try:
                _same(target, twin)
            except PromiseBrokenError as wrong:
                raise PromiseBrokenError(f"{'bound ' * bound}{rule!r}\n{wrong}") from None


def close_rules_keep_their_rtol(make_target: MakeTarget) -> None:
    """Rules with a norm in them, within 1e-6."""
    for rule in (ClipNorm(0.5), ClipNorm(0.7, "global")):
        target = make_target()
        twin = filled(target, ordinary)
        apply(target, rule, where=_floating)
        apply(twin, rule, where=_floating)
        widest = max(_eps(p.dtype) for p in parameters(twin, where=_floating))
        _same(target, twin, rtol=max(1e-6, widest))


def a_refused_call_changes_nothing(make_target: MakeTarget) -> None:
    """Neither a value of the wrong shape nor a function that fails halfway leaves a trace."""
    target = make_target()
    twin = filled(target, tricky)
    last = list(twin)[-1]
    bad: dict[str, Any] = {name: np.zeros_like(array) for name, array in twin.items()}
    bad[last] = np.zeros((*twin[last].shape, 2), twin[last].dtype)
    try:
        set_params(target, bad)
    except ShapeError:
        pass
    else:
        raise PromiseBrokenError("set_params took a wrong shape")
    _same(target, twin)
    left = len(parameters(target, where=_floating))

    def fails_at_last(w: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            raise _StopError
        return -w

    try:
        apply(target, fails_at_last, where=_floating)
    except _StopError:
        pass
    else:
        raise PromiseBrokenError("the function's own error was lost")
    _same(target, twin)


def undo_brings_back_the_very_bits(make_target: MakeTarget) -> None:
    """snapshot and transaction, more than once, whoever wrote in between."""
    target = make_target()
    twin = filled(target, tricky)
    before = snapshot(target)
    for seed in (1, 2):
        filled(target, ordinary, seed)
        before.restore()
        _same(target, twin)
    with suppress(_StopError), transaction(target):
        apply(target, Fill(0.5), where=_floating)
        raise _StopError
    _same(target, twin)


def a_held_rule_is_true_after_every_write_until_it_is_released(make_target: MakeTarget) -> None:
    """hold: obeyed by verbs and set_params, by ``held.apply()`` after a write of the framework's own, and let go."""
    target = make_target()
    twin = filled(target, ordinary)
    held = hold(target, Clip(-0.25, 0.25), where=_floating)
    one = next(p for p in parameters(target) if p.floating)

    def obeyed() -> bool:
        return all(bool((np.abs(p.numpy()) <= 0.25).all()) for p in parameters(target, where=_floating))

    _need(obeyed(), "a hold is not true when it begins")
    apply(target, Fill(3.0), where=_floating)
    set_params(target, twin, allow_nonfinite=True)
    _need(obeyed(), "a hold is not true after xweights wrote to what is held")
    one.write(np.full_like(one.read(), 2.0))
    held.apply()
    _need(obeyed(), "a hold is not true after held.apply()")
    held.check()
    held.release()
    apply(target, Fill(3.0), where=_floating)
    _need(not obeyed(), "a hold is still there after release()")


def _floating(parameter: Parameter) -> bool:
    return parameter.floating


def _exact_rules(chosen: Sequence[Parameter]) -> list[Rule]:
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
"""Each promise by name, and the function that checks it on targets of a factory."""

__all__ = ["CHECKS", "MakeTarget", "PromiseBrokenError", "check_backend", "filled", "ordinary", "tricky"]
