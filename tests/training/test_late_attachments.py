"""The table of late attachments: a hold, a freeze or a learning rate is never ignored, however late it comes.

The ways are data, in late_keras.py and late_torch.py. ``python tests/training/test_late_attachments.py`` writes them
into docs/holds.md.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import late_keras
import late_torch
import pytest
from late import (
    APPLIED,
    DETECTED,
    FREE,
    FREEZE,
    HOLD,
    IGNORED,
    RAISES,
    RATE,
    SCHEDULE,
    THINGS,
    Nothing,
    Thing,
    Way,
    outcome,
)
from learners import KERAS_BACKEND

import xweights as xw

WAYS = [*late_keras.WAYS, *late_torch.WAYS]
PAGE = Path(__file__).parents[2] / "docs" / "holds.md"
NEEDS = {"Keras": "keras", "PyTorch": "torch", "tf.Module": "tensorflow"}


# What CI runs of Keras, of which each cell traces a train function or two. Holds come in every way in which something
# else may lose them, the rest of what can be attached in one way to each outcome that it has: applied, detected and
# refused (a freeze stands for what isn't on a copy). On the other Keras backends CI has the holds of MECHANISMS,
# because only compiled training differs.
MECHANISMS = (
    "before `compile`",
    "in a callback, when a batch ends",
    "then `compile` again, with a new optimizer",
    "then a constraint of your own is put in its place",
    "then `clone_model`",
    "after a `tf.function` or `jax.jit` step of your own was traced",
    "between gradients that are accumulated",
)
HOLDS = (
    *MECHANISMS,
    "before the model is built",
    "after a `fit`",
    "after training with averages (`use_ema`)",
    "then `compile` again, with `steps_per_execution=2`",
    "then `load_weights`",
    "before a step of your own is traced",
)
OTHERS = {
    "before the model is built": (SCHEDULE, FREEZE, RATE),
    "before `compile`": (RATE,),
    "in a callback, when a batch ends": (SCHEDULE, FREEZE, RATE),
    "then `compile` again, with a new optimizer": (FREEZE, RATE),
    "then a constraint of your own is put in its place": (SCHEDULE, FREEZE),
    "then `clone_model`": (FREEZE,),
    "after a `tf.function` or `jax.jit` step of your own was traced": (FREEZE, RATE),
    "between gradients that are accumulated": (SCHEDULE, RATE),
}
# Nothing is attached there, and that is seen: one of each kind of scene, as CI has them.
CONTROLS = (
    "in a callback, when a batch ends",
    "then `clone_model`",
    "between gradients that are accumulated",
)
# What torch.compile takes seconds for, three times over: the whole step has the other two in it.
COMPILED = (
    "after `torch.compile` of the model",
    "after `torch.compile` of the optimizer's step",
    "on what `torch.compile` made of a model",
)


assert {*HOLDS, *OTHERS, *CONTROLS, *COMPILED} <= {way.moment for way in WAYS}


def marks(way: Way, thing: str) -> list[Any]:
    made = [pytest.mark.keras_backend] if way.framework == "Keras" else []
    if way.framework == "Keras":
        first = KERAS_BACKEND == "tensorflow"
        here = way.moment in (HOLDS if first else MECHANISMS) if thing == HOLD else first and thing in others(way)
        made += [] if here else [pytest.mark.thorough]
    if way.moment in COMPILED and thing != HOLD:
        made.append(pytest.mark.thorough)
    return made


def others(way: Way) -> tuple[str, ...]:
    """Return what else than a hold comes in this way in CI."""
    return OTHERS.get(way.moment, ())


def marks_of_the_control(way: Way) -> list[Any]:
    """Return the marks of the control: one way of each kind of training shows a missing hold, and CI runs that one."""
    made = [pytest.mark.keras_backend] if way.framework == "Keras" else []
    if way.framework == "Keras" and not (KERAS_BACKEND == "tensorflow" and way.moment in CONTROLS):
        made.append(pytest.mark.thorough)
    return [*made, pytest.mark.thorough] if way.moment in COMPILED else made


def cells() -> list[Any]:
    made = []
    for way in WAYS:
        for thing, expected in way.expected.items():
            name = f"{way.framework}: {way.moment}: {thing}"
            made.append(pytest.param(way, thing, expected, id=name, marks=marks(way, thing)))
    return made


def need(way: Way) -> None:
    if importlib.util.find_spec(NEEDS[way.framework]) is None:
        pytest.skip(f"{NEEDS[way.framework]} is not installed")
    if way.skipped:
        pytest.skip(way.skipped)
    if way.framework == "tf.Module" and KERAS_BACKEND != "tensorflow":
        pytest.skip("run once, with Keras on TensorFlow")


@pytest.mark.parametrize(("way", "thing", "expected"), cells())
def test_a_late_attachment_is_never_ignored(way: Way, thing: str, expected: str) -> None:
    need(way)
    assert outcome(way, THINGS[thing]) == expected


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, id=f"{way.framework}: {way.moment}", marks=marks_of_the_control(way))
        for way in WAYS
        if set(way.expected.values()) != {RAISES}
    ],
)
def test_a_missing_attachment_is_distinguished_from_a_late_one(way: Way) -> None:
    need(way)
    judged = [THINGS[one] for one, expected in way.expected.items() if expected != RAISES]
    nothing = Thing(
        lambda target, where, optimizer: Nothing(),
        lambda *kernels: any(one.in_effect(*kernels) for one in judged),
    )
    assert outcome(way, nothing) == IGNORED


@pytest.mark.skipif(KERAS_BACKEND != "tensorflow", reason="a tf.Module is TensorFlow's")
def test_a_schedule_whose_apply_is_traced_is_refused() -> None:
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.kernel = tf.Variable(tf.ones((4, 3)))
    held = xw.prune(module, fraction=0.5, where="kernel", schedule=xw.OneShot(at=3))

    @tf.function
    def step() -> None:
        module.kernel.assign_add(tf.ones((4, 3)))
        held.apply()

    with pytest.raises(xw.TraceError, match=r"Fix: call held\.apply\(\) after the compiled step"):
        step()


# The page

HEADER = f"""# Holds, freezes and learning rates that come late

Nobody sets everything up ahead of the first step.
A rule may be held, a parameter frozen and a learning rate multiplied at any time; what happens is one of these:

- **{APPLIED}**: it takes effect from the next step on, with the optimizer's state as it was.
- **{RAISES}**: the call, or what you do after it, is refused with an error that says what to do.
- **{DETECTED}**: it can't take effect; `held.check()` raises after the next step.
- **{FREE}**: a copy of a model is trained freely; on the model itself it stays in effect.

A row that begins with *then* is about something that happens to the model or its optimizer afterwards.
A late attachment is never ignored.
These tables are written from the list that `tests/training/test_late_attachments.py` runs.
"""


def page() -> str:
    parts = [HEADER]
    for framework in dict.fromkeys(way.framework for way in WAYS):
        ways = [way for way in WAYS if way.framework == framework]
        lines = [
            "| when it comes | " + " | ".join(f"`{thing}`" for thing in THINGS) + " | |",
            "|---" * (len(THINGS) + 2) + "|",
        ]
        for way in ways:
            told = [way.expected.get(thing, "") for thing in THINGS]
            lines.append(f"| {way.moment} | {' | '.join(told)} | {way.why} |")
        parts.append(f"## {framework}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


@pytest.mark.skipif(KERAS_BACKEND == "torch", reason="a step of the user's own isn't traced there")
def test_the_page_has_the_results_of_these_tests() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), f"Fix: python {Path(__file__).name}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
