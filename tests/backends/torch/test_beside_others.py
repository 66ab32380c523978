"""The refusal of verbs inside torch.compile works when another framework's backend is loaded too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import xweights as xw
from xweights.core.registry import backend_for

torch = pytest.importorskip("torch")


def variable_of_tensorflow() -> Any:
    return pytest.importorskip("tensorflow").Variable(1.0)


def array_of_jax() -> Any:
    return pytest.importorskip("jax.numpy").ones(2)


@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("other", [variable_of_tensorflow, array_of_jax])
def test_a_verb_in_a_compiled_step_shows_the_bind_line_when_another_framework_is_loaded(
    other: Callable[[], Any], fullgraph: bool
) -> None:
    assert backend_for(other()) is not None  # which loads it
    model = torch.nn.Linear(4, 4)
    before = xw.get_params(model)
    torch._dynamo.reset()
    step = torch.compile(lambda: xw.fill(model, 1.0), fullgraph=fullgraph, backend="eager")
    # Whole graphs raise Dynamo's own error, which carries our text.
    with pytest.raises(Exception, match=r"xweights\.bind\(model, Fill\(value=1\.0\)"):
        step()
    assert xw.equal(model, before)
