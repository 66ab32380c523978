"""The table of late attachments: whenever a hold, a freeze or a learning rate comes, it isn't ignored.

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
from late import DETECTED, FREE, HOLD, IGNORED, OBEYED, RAISES, THINGS, Nothing, Thing, Way, outcome
from learners import KERAS_BACKEND

import xweights as xw

WAYS = [*late_keras.WAYS, *late_torch.WAYS]
PAGE = Path(__file__).parents[2] / "docs" / "holds.md"
NEEDS = {"Keras": "keras", "PyTorch": "torch", "tf.Module": "tensorflow"}


def marks(way: Way) -> list[Any]:
    return [pytest.mark.keras_backend] if way.framework == "Keras" else []


def _if_keras(way: Way) -> list[Any]:
    return [pytest.mark.slow] if way.framework == "Keras" else []


def cells() -> list[Any]:
    made = []
    for way in WAYS:
        for thing, expected in way.expected.items():
            name = f"{way.framework}: {way.moment}: {thing}"
            # Each takes seconds to compile: on the other backends of Keras, the long run has all but the holds.
            long = KERAS_BACKEND != "tensorflow" and thing != HOLD
            made.append(
                pytest.param(way, thing, expected, id=name, marks=[*marks(way), *([pytest.mark.slow] if long else [])])
            )
    return made


def need(way: Way) -> None:
    if importlib.util.find_spec(NEEDS[way.framework]) is None:
        pytest.skip(f"{NEEDS[way.framework]} is not installed")
    if way.skipped:
        pytest.skip(way.skipped)
    if way.framework == "tf.Module" and KERAS_BACKEND != "tensorflow":
        pytest.skip("run once, with Keras on TensorFlow")


@pytest.mark.parametrize(("way", "thing", "expected"), cells())
def test_what_comes_late_is_never_ignored(way: Way, thing: str, expected: str) -> None:
    need(way)
    assert outcome(way, THINGS[thing]) == expected


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, id=f"{way.framework}: {way.moment}", marks=[*marks(way), *_if_keras(way)])
        for way in WAYS
        if set(way.expected.values()) != {RAISES}
    ],
)
def test_what_was_never_attached_is_told_from_what_was(way: Way) -> None:
    need(way)
    judged = [THINGS[one] for one, expected in way.expected.items() if expected != RAISES]
    nothing = Thing(
        lambda target, where, optimizer: Nothing(),
        lambda *kernels: any(one.obeyed(*kernels) for one in judged),
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

- **{OBEYED}**: it takes effect from the next step on, with the optimizer's state as it was.
- **{RAISES}**: the call, or what you do after it, is refused with an error that says what to do.
- **{DETECTED}**: it can't take effect; `held.check()` raises after the next step.
- **{FREE}**: a copy of a model is trained freely, while the model itself obeys.

*Then ...* stands for what happens to the model or its optimizer after it came.
None is ignored.
These tables are written from the list that `tests/training/test_late_attachments.py` runs.
"""


def page() -> str:
    parts = [HEADER]
    for framework in dict.fromkeys(way.framework for way in WAYS):
        ways = [way for way in WAYS if way.framework == framework]
        lines = [
            "| when it comes | " + " | ".join(f"`{one}`" for one in THINGS) + " | |",
            "|---" * (len(THINGS) + 2) + "|",
        ]
        for way in ways:
            told = [way.expected.get(one, "") for one in THINGS]
            lines.append(f"| {way.moment} | {' | '.join(told)} | {way.why} |")
        parts.append(f"## {framework}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


@pytest.mark.skipif(KERAS_BACKEND == "torch", reason="a step of the user's own isn't traced there")
def test_the_page_has_what_these_tests_run() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), f"Fix: python {Path(__file__).name}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
