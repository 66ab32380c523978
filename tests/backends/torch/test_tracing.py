"""Inside torch.compile a verb raises an error that asks for bind, and never applies half of an edit."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import xweights as xw  # noqa: E402
from xweights.errors import UseBindError  # noqa: E402
from xweights_torch import backend  # noqa: E402


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def layer():
    layer = nn.Linear(3, 2)
    xw.parameters(layer)  # the backend is found and loaded: Dynamo can't trace the look-up of entry points
    return layer


def step_with(layer, verb):
    def step(x):
        y = layer(x)
        verb(layer)
        return y.sum()

    return step


VERBS = {
    "clip": lambda m: xw.clip(m, -0.1, 0.1),
    "apply": lambda m: xw.apply(m, xw.Scale(0.5), where="*kernel"),
    "get_params": lambda m: xw.get_params(m),
    "noise": lambda m: xw.noise(m, std=0.1, seed=0),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_verb_in_a_compiled_function_raises_and_changes_nothing(layer, verb):
    before = layer.weight.detach().clone()
    step = torch.compile(step_with(layer, verb), backend="eager")
    for _ in range(2):
        with pytest.raises(UseBindError, match=r"xweights\.bind\("):
            step(torch.ones(1, 3))
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_with_fullgraph_dynamo_s_own_error_carries_the_text(layer, verb):
    before = layer.weight.detach().clone()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"xweights\.bind\("):
        torch.compile(step_with(layer, verb), fullgraph=True, backend="eager")(torch.ones(1, 3))
    assert torch.equal(layer.weight, before)


def test_a_frame_that_dynamo_skipped_is_still_part_of_the_compiled_step():
    seen = []

    def note():
        yield seen.append(backend.tracing())  # Dynamo leaves generators that it can't trace to Python

    def step(x):
        torch._dynamo.graph_break()
        list(note())
        return x + 1

    torch.compile(step, backend="eager")(torch.ones(1))
    assert seen == ["refuse"]


def test_plain_code_that_is_called_from_compiled_code_on_purpose_may_edit(layer):
    @torch.compiler.disable
    def edit(m):
        assert backend.tracing() == "no"
        xw.clip(m, -0.1, 0.1)

    torch.compile(step_with(layer, edit), backend="eager")(torch.ones(1, 3))
    assert float(layer.weight.detach().abs().max()) < 0.1001


def test_eager_code_after_a_compiled_step_is_eager_again(layer):
    torch.compile(layer, backend="eager")(torch.ones(1, 3))
    assert backend.tracing() == "no"


def test_a_bound_rule_runs_with_fullgraph(layer):
    bound = xw.bind(layer, xw.Clip(-0.1, 0.1), where="*/kernel")
    torch.compile(step_with(layer, lambda _: bound()), fullgraph=True, backend="eager")(torch.ones(1, 3))
    assert float(layer.weight.detach().abs().max()) < 0.1001
