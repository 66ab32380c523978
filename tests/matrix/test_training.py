"""The training axis of the matrix: every rule, held under every optimizer, in every kind of training.

A cell's name reads ``torch-compiled-AdamW-Clip(-0.1, 0.1)``. All rules of one kind and optimizer are held on one model
in training, which begins before they do; each is measured after every step. docs/matrix.md has what was found.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from harness.held import FREE, RULES
from harness.training import FEW_STEPS, MANY_STEPS, OPTIMIZERS, STEPS, Kind, every, run, titled, why_not

import xweights as xw

pytestmark = pytest.mark.matrix
Record = Callable[..., None]


def kept_out(kind: Kind, name: str, record: Record, **facts: Any) -> dict[str, Any]:
    """What is known of a cell before it is run. Skips, and says so to the record, where it can't be."""
    rule = RULES[name]
    cell = {"rule": name, "order": list(RULES).index(name), "kind": kind.id, "tolerance": rule.tolerance, **facts}
    obstacle = kind.column.obstacle()
    if obstacle is not None:
        record(**cell, outcome="skipped", reason=obstacle)
        pytest.skip(obstacle)
    return cell


def cells() -> list[Any]:
    """All cells of this process. Those of one run are a group, which one worker gets."""
    return [
        pytest.param(kind, optimizer, name, id=f"{kind.id}-{optimizer}-{name}", marks=marks(kind, optimizer))
        for kind, optimizer in every()
        for name, rule in RULES.items()
        if why_not(rule, kind) is None
    ]


def marks(kind: Kind, optimizer: str | None = None) -> list[pytest.MarkDecorator]:
    """Return the marks of a training under an optimizer, or of what takes no training."""
    made = [pytest.mark.xdist_group(f"{kind.id}-{optimizer}-training")] if optimizer else []
    made += [pytest.mark.keras_backend] if kind.column.keras else []
    return [*made, pytest.mark.thorough] if optimizer and kind.takes_long(optimizer) else made


LENGTHS = [
    pytest.param(FEW_STEPS, id=f"{FEW_STEPS} steps"),
    pytest.param(STEPS, id=f"{STEPS} steps", marks=pytest.mark.thorough),
    pytest.param(MANY_STEPS, id="many", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize(("kind", "optimizer", "name"), cells())
def test_a_held_rule_is_true_after_every_step_of_training(
    kind: Kind, optimizer: str, name: str, steps: int, record: Record
) -> None:
    rule = RULES[name]
    cell = kept_out(kind, name, record, optimizer=titled(optimizer), steps=steps)
    try:
        found = run(kind, optimizer, steps)[name]
    except BaseException:
        record(**cell, outcome="failed", broken=None)
        raise
    kept = found.broken <= rule.tolerance
    record(**cell, outcome="passed" if kept else "failed", broken=found.broken)
    assert kept, f"{name} was broken by {found.broken:g}, more than {rule.tolerance:g}"
    # What isn't held goes on moving: in a training that has come to rest, any rule is kept.
    free = rule.free is None or bool(rule.free.any())
    assert found.moves >= steps // 2 if free else not found.moves, f"free entries moved in {found.moves} steps"
    assert rule.rests or not found.stuck, f"{found.stuck} free entries are where they were at the beginning"


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [pytest.param(*one, id=f"{one[0].id}-{one[1]}", marks=marks(*one)) for one in every()],
)
def test_a_layer_without_a_hold_moves_at_every_update(kind: Kind, optimizer: str, steps: int) -> None:
    if kind.column.obstacle() is not None:
        pytest.skip(kind.column.obstacle())
    found = run(kind, optimizer, steps)[FREE]
    assert found.moves >= steps // 2
    assert found.stuck == 0


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, id=f"{kind.id}-{name}", marks=marks(kind))
        for kind in Kind
        for name, rule in RULES.items()
        if kind.here and why_not(rule, kind) is not None
    ],
)
def test_a_rule_that_a_kind_of_training_cannot_have_is_refused(kind: Kind, name: str, record: Record) -> None:
    cell = kept_out(kind, name, record)
    trainer = kind.trainer("SGD")
    with pytest.raises(xw.LayoutError, match="axes"):
        RULES[name].attach(trainer.target, trainer.optimizer)
    record(**cell, outcome="unsupported", reason=why_not(RULES[name], kind))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=kind.id, marks=marks(kind)) for kind in Kind if kind.here and kind is not Kind.TORCH]
)
def test_what_takes_long_is_named(kind: Kind, record: Record) -> None:
    """So that a run without them isn't taken for one in which they were lost."""
    later = [one for other, one in every() if other is kind and kind.takes_long(one)]
    assert bool(later) is (kind is not Kind.TF_MODULE)
    for one in later:
        record(kind=kind.id, optimizer=titled(one), outcome="later")


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        pytest.param(kind, one, id=f"{kind.id}-{one}", marks=marks(kind))
        for kind in Kind
        for one in OPTIMIZERS
        if kind.here and kind.refused(one) is not None
    ],
)
def test_the_reason_why_an_optimizer_is_left_out_is_true(kind: Kind, optimizer: str, record: Record) -> None:
    obstacle = kind.column.obstacle()
    if obstacle is not None:
        pytest.skip(obstacle)
    if kind is Kind.TF_MODULE:
        with pytest.raises(xw.HoldError, match="optimizer="):
            xw.hold(kind.trainer("SGD").target, xw.Clip(-1, 1), where="clip/kernel", optimizer=object())
    elif optimizer == "plain SGD":
        assert "SGD" in [other for one, other in every() if one is kind]
    elif optimizer == "EMA":
        import torch

        assert "use_ema" not in inspect.signature(torch.optim.Adam).parameters
    else:
        owner = importlib.import_module("keras.optimizers" if kind.column.keras else "torch.optim")
        assert not hasattr(owner, optimizer)
    record(kind=kind.id, optimizer=titled(optimizer), outcome="unmeasured", reason=kind.refused(optimizer))
