"""``hold``: begin a hold, whatever its rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xweights.core.parameter import Parameter
from xweights.core.registry import backend_of
from xweights.core.selection import WhereLike
from xweights.core.targets import open_plan, tracing
from xweights.edit.execute import as_rule
from xweights.errors import ArgumentError
from xweights.rules.base import Rule
from xweights.rules.pruning import Prune
from xweights.rules.tying import Tied, TiedShare
from xweights.training.held import Hold, begin, refuse_statistics
from xweights.training.hold_shards import agree_on_blocks
from xweights.training.prune_hold import hold_pruned, hold_pruned_blocks
from xweights.training.sparsity_schedule import SparsitySchedule


def hold(
    target: Any,
    rule: Rule | Callable[[Any], Any],
    *,
    where: WhereLike,
    optimizer: Any = None,
    schedule: SparsitySchedule | None = None,
) -> Hold:
    """Keep a rule true on the selected parameters: after every optimizer step, and after every write by xweights.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        rule: A rule such as ``Clip(-1, 1)``, ``Mask(masks)`` or ``Keep()``; or a function of the native tensor.
        where: Which parameters; required.
        optimizer: The optimizer that trains them. Default: in torch any optimizer that steps them, in Keras the one the
            model was compiled with.
        schedule: For ``Prune``: when and how much is pruned, as in ``Cubic(begin=0, end=1000, every=50)``.

    Returns:
        A :class:`Hold`. Its ``manual`` is True where there is no optimizer to attach to (``tf.Module``, arrays): call
        ``held.apply()`` after each update then.

    The rule is applied at once. Holds on one parameter run in the order of attachment, after a constraint that was
    there before; Mask and Keep last. Optimizer slots are left alone. As exact as the rule.
    Raises ArgumentError (a random or joint rule), HoldError (a rule that contradicts another hold, an optimizer that
    doesn't own a parameter), SelectionError, WriteError; nothing is attached then, and nothing changed.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([3.0])}; held = xw.hold(w, xw.Clip(-1, 1), where="w"); xw.fill(w, -5.0); w["w"]
        array([-1.])
    """
    rule = as_rule(rule)
    if rule.random:
        raise ArgumentError(
            f"{rule!r} is random: it is never true, so it can't be held\nFix: bind it and draw each step"
        )
    if rule.joint and not isinstance(rule, (Tied, Prune)):
        raise ArgumentError(f"{rule!r} looks at several parameters together, and holds work on each by itself")
    if tracing(target):
        raise ArgumentError("a hold can't begin inside a compiled step\nFix: hold before the step is traced")
    plan = open_plan(target)
    if plan.is_shared and not isinstance(rule, (Prune, Tied)) and schedule is None:
        return _hold_blocks(target, rule, plan.everything, where, optimizer)
    if plan.is_shared and isinstance(rule, Prune):
        return hold_pruned_blocks(target, rule, plan.everything, where, schedule, optimizer)
    selection = plan.select(where)
    chosen = selection.parameters
    if isinstance(rule, Prune):
        return hold_pruned(target, rule, chosen, schedule, optimizer)
    if schedule is not None:
        raise ArgumentError(
            f"a schedule says how much is pruned, and when\ngot: schedule={schedule!r} with {rule!r}\n"
            "Fix: hold Prune(...) with it, or leave it out"
        )
    choice = selection.choice
    if "no statistics" not in choice.notes:
        refuse_statistics(chosen)
        choice.notes["no statistics"] = True
    if not isinstance(rule, Tied):
        writable = frozenset(chosen[position] for group in choice.groups for position in group.positions)
        return begin(Hold(rule, []), target, chosen, optimizer, writable=writable)
    rule.check_all(chosen)
    if len({getattr(backend_of(p), "name", "") for p in chosen}) > 1:
        raise ArgumentError("parameters of several frameworks can't be tied\nFix: set_params after each step")
    shares = {id(p): TiedShare(rule, chosen, position) for position, p in enumerate(chosen)}
    return begin(Hold(rule, []), target, chosen, optimizer, rule_of=lambda p: shares[id(p)])


def _hold_blocks(target: Any, rule: Rule, everything: Sequence[Parameter], where: WhereLike, optimizer: Any) -> Hold:
    """Hold a rule on this rank's blocks; every rank makes this call, or none holds anything."""
    held = Hold(rule, [])
    try:
        with agree_on_blocks(everything, where, rule, "hold") as (blocks, members):
            refuse_statistics(blocks)
            rules = members or {}
            begin(held, target, blocks, optimizer, operands=lambda p: rules[p][1], rule_of=lambda p: rules[p][0])
    except BaseException:
        held.release()
        raise
    return held
