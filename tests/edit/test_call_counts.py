"""The number of Python functions that a call enters for each parameter: what a plan saves, the same on every machine.

Times are in benchmarks/.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest

import xweights as xw
from xweights.core import hold_registry

torch = pytest.importorskip("torch", reason="PyTorch isn't installed")

COUNT = 1_000


def count_calls(call: Callable[[], Any]) -> int:
    """Return the number of Python functions that a call begins, in this package or anywhere else."""
    count = 0
    if sys.version_info < (3, 12):

        def profile(frame: FrameType, event: str, argument: Any) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(profile)
        try:
            call()
        finally:
            sys.setprofile(None)
        return count

    def start(code: CodeType, offset: int) -> None:
        nonlocal count
        count += 1

    monitoring: Any = sys.monitoring
    tool, events = monitoring.PROFILER_ID, monitoring.events
    monitoring.use_tool_id(tool, "calls per parameter")
    try:
        for event in (events.PY_START, events.PY_RESUME):
            monitoring.register_callback(tool, event, start)
        monitoring.set_events(tool, events.PY_START | events.PY_RESUME)
        call()
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    return count


class Case:
    """A model of many small layers, and everything that the calls need."""

    def __init__(self) -> None:
        self.model = torch.nn.Sequential(*[torch.nn.Linear(2, 3, bias=False) for _ in range(COUNT)])
        self.params = xw.get_params(self.model)
        self.out = xw.get_params(self.model)
        self.masks = {name: array > 0 for name, array in self.params.items()}
        self.deltas = {name: np.ones_like(array) for name, array in self.params.items()}
        kernels = {"where": "*/kernel"}
        self.clip = xw.bind(self.model, xw.Clip(-1, 1), **kernels)
        self.mask = xw.bind(self.model, xw.Mask(self.masks), **kernels)


# Before there was a plan these were 60 for a clip, 66 for a mask, 22 for a bound clip, 14 for get_params and 87 for
# set_params (Python 3.11). What NumPy itself calls in Python (copyto, dot) counts, too.
CALLS: dict[str, tuple[Callable[[Case], object], float]] = {
    "clip": (lambda case: xw.clip(case.model, -1, 1), 0.5),
    "scale": (lambda case: xw.scale(case.model, 0.5), 0.5),
    "fill": (lambda case: xw.fill(case.model, 0.5, where="*/kernel"), 1.5),
    "add arrays": (lambda case: xw.add(case.model, case.deltas), 5),
    "mask": (lambda case: xw.mask(case.model, case.masks), 3),
    "bound clip": (lambda case: case.clip(), 0.2),
    "bound mask": (lambda case: case.mask(), 1.2),
    "get_params": (lambda case: xw.get_params(case.model), 1.5),
    "get_params(copy=False)": (lambda case: xw.get_params(case.model, copy=False), 1.5),
    "get_params(out=)": (lambda case: xw.get_params(case.model, out=case.out), 1.5),
    "set_params": (lambda case: xw.set_params(case.model, case.params), 4.5),
    "set_params(allow_nonfinite=True)": (
        lambda case: xw.set_params(case.model, case.params, allow_nonfinite=True),
        0.5,
    ),
    "prune": (lambda case: xw.prune(case.model, fraction=0.5, scope="global"), 12),
}


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_python_functions_per_parameter(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    # What other tests hold costs a few calls for each parameter of theirs.
    monkeypatch.setattr(hold_registry, "is_empty", lambda: True)
    call, most = CALLS[name]
    call(case)  # what is kept is made by the first call
    assert count_calls(lambda: call(case)) / COUNT <= most


# Before files were streamed into a kept plan: 284 and 306.
FILE_CALLS: dict[str, tuple[Any, float]] = {"saved by xweights": (None, 47), "a state dict": ("native", 36)}


@pytest.mark.parametrize("name", FILE_CALLS)
def test_calls_of_python_functions_per_parameter_that_is_read_from_a_file(
    name: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold_registry, "is_empty", lambda: True)
    path = str(tmp_path / "w.safetensors")
    if name == "a state dict":
        pytest.importorskip("safetensors.torch", reason="safetensors isn't installed").save_file(
            case.model.state_dict(), path
        )
    else:
        xw.save(case.model, path, durable=False)
    layout, most = FILE_CALLS[name]
    xw.set_params(case.model, path, layout=layout)
    assert count_calls(lambda: xw.set_params(case.model, path, layout=layout)) / COUNT <= most


# Before there was a plan for Keras, these were on TensorFlow and JAX 92 and 119 for a clip, 88 and 117 for a mask, 27
# and 23 for get_params, 68 and 121 for set_params.
KERAS_CALLS: dict[str, tuple[Callable[[Any], object], dict[str, float]]] = {
    "clip": (lambda case: xw.clip(case.model, -1, 1), {"tensorflow": 12, "jax": 9, "torch": 3}),
    "mask": (lambda case: xw.mask(case.model, case.masks), {"tensorflow": 19, "jax": 11, "torch": 5}),
    "get_params": (lambda case: xw.get_params(case.model), {"tensorflow": 5, "jax": 5, "torch": 4}),
    "set_params": (lambda case: xw.set_params(case.model, case.params), {"tensorflow": 16, "jax": 12, "torch": 6}),
}


class KerasCase:
    """A Keras model of many small layers, and everything that the calls need."""

    def __init__(self) -> None:
        keras = pytest.importorskip("keras", reason="Keras isn't installed")

        class Stack(keras.Model):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                super().__init__()
                self.blocks = [keras.layers.Dense(3, use_bias=False) for _ in range(COUNT)]
                for block in self.blocks:
                    block.build((None, 2))
                self.built = True

        self.backend = keras.backend.backend()
        self.model = Stack()
        self.params = xw.get_params(self.model)
        self.masks = {name: array > 0 for name, array in self.params.items()}


@pytest.fixture(scope="module")
def keras_case() -> KerasCase:
    return KerasCase()


@pytest.mark.parametrize("name", KERAS_CALLS)
def test_calls_of_python_functions_per_variable_of_keras(
    name: str, keras_case: KerasCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold_registry, "is_empty", lambda: True)
    call, most = KERAS_CALLS[name]
    for _ in range(2):  # what is kept is made by the first call, compiled by the second
        call(keras_case)
    count = count_calls(lambda: call(keras_case)) / COUNT
    assert count <= most[keras_case.backend], count


def test_a_step_with_a_hold_calls_a_few_functions_for_all_parameters(case: Case) -> None:
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.0, foreach=True)
    for p in case.model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    plain = count_calls(optimizer.step)
    held = xw.hold(case.model, xw.Mask(case.masks), where="*/kernel")
    optimizer.step()
    assert (count_calls(optimizer.step) - plain) / COUNT <= 0.1
    held.release()
