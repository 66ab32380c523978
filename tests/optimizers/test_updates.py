"""The update formulas, run by NumPy, agree with every optimizer of the frameworks."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw
from xweights.optimizers.rules.array_math import NumpyMath
from xweights.optimizers.rules.scalars import HostNumbers
from xweights.optimizers.rules.updates import apply_update

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

from experiments.optimizers import KERAS, MUON, TORCH  # noqa: E402
from experiments.running import floats  # noqa: E402

STEPS = 4


def numpy_steps(state, weights, grads):
    """Continue from a state by the formulas."""
    slots = {name: dict(mine) for name, mine in state.slots.items()}
    for number, step in enumerate(grads):
        for group in state.groups:
            for name in group.names:
                n = HostNumbers(
                    group.hyper, group.variant, t=state.updates + number + 1, dtype=weights[name].dtype,
                    lr=state.rate(group, state.iterations + number), factored=state.factored.get(name),
                )  # fmt: skip
                own = {k: v for k, v in slots[name].items() if k not in ("average", "accumulated")}
                weights[name], made = apply_update(group.rule, NumpyMath(), n, weights[name], step[name], own)
                slots[name].update(made)
    return weights


def gradients(shapes):
    source = np.random.default_rng(3)
    return [{name: source.normal(size=shape) for name, shape in shapes.items()} for _ in range(2 * STEPS)]


def apart(got, expected):
    return max(float(np.abs(got[name] - value).max()) for name, value in expected.items())


@pytest.mark.parametrize("name", TORCH)
def test_numpy_goes_on_as_pytorchs_optimizer_does(name):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3).double()
    optimizer = TORCH[name](model.parameters())
    steps = gradients({p.name: p.shape for p in xw.parameters(model)})

    def run(part):
        for step in part:
            for p in xw.parameters(model):
                p.handle.tensor.grad = torch.from_numpy(np.ascontiguousarray(p.layout.to_stored(step[p.name])))
            optimizer.step()

    run(steps[:STEPS])
    state = xw.get_optimizer(model, optimizer, step=STEPS)
    start = dict(xw.get_params(model))
    run(steps[STEPS:])
    assert apart(numpy_steps(state, start, steps[STEPS:]), xw.get_params(model)) < 1e-15


@pytest.mark.parametrize("name", MUON)
@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (5, 5)])
def test_numpy_goes_on_as_pytorchs_muon_does_with_its_roundings_to_bfloat16(name, shape):
    torch.manual_seed(0)
    model = torch.nn.Linear(*shape, bias=False)
    optimizer = MUON[name](model.parameters())
    (p,) = xw.parameters(model)
    steps = [{key: value.astype("float32") for key, value in step.items()} for step in gradients({p.name: p.shape})]

    def run(part):
        for step in part:
            p.handle.tensor.grad = torch.from_numpy(np.ascontiguousarray(p.layout.to_stored(step[p.name])))
            optimizer.step()

    run(steps[:STEPS])
    state = xw.get_optimizer(model, optimizer, step=STEPS)
    start = dict(xw.get_params(model))
    run(steps[STEPS:])
    got = numpy_steps(state, start, steps[STEPS:])[p.name]
    off = np.abs(got - xw.get_params(model)[p.name])
    # A last bit of a sum flips a rounding now and then. Without the roundings the median would be 1e-3.
    assert float(np.median(off)) < 1e-6
    assert float(off.max()) < 2e-2


ACCUMULATING = [name for name in KERAS if "accumulation" in name or "clip" in name or "overwriting" in name]


@pytest.mark.parametrize("name", [name for name in KERAS if name not in ACCUMULATING])
def test_numpy_goes_on_as_keras_optimizer_does(name):
    keras.utils.set_random_seed(0)
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the other backends of Keras round otherwise; hand-offs on them are tested")
    model = keras.Sequential([keras.Input((4,), dtype="float64"), keras.layers.Dense(3, dtype="float64")])
    optimizer = KERAS[name]()
    optimizer.build(model.trainable_variables)
    names = {id(p.handle): p.name for p in xw.parameters(model)}
    steps = gradients({p.name: p.shape for p in xw.parameters(model)})

    def run(part):
        for step in part:
            grads = [keras.ops.convert_to_tensor(step[names[id(v)]]) for v in model.trainable_variables]
            with floats("float64"):  # Keras' Muon makes numbers of this dtype in its step
                optimizer.apply(grads)

    run(steps[:STEPS])
    state = xw.get_optimizer(model, optimizer)
    start = dict(xw.get_params(model))
    run(steps[STEPS:])
    assert state.updates == STEPS
    # Newton-Schulz steps enlarge what differs in a last bit.
    limit = 1e-13 if name == "muon" else 5e-15
    assert apart(numpy_steps(state, start, steps[STEPS:]), xw.get_params(model)) < limit


@pytest.mark.parametrize("rule", ["nadam", "ftrl"])
def test_a_large_array_is_updated_block_by_block_to_the_same_numbers(rule):
    model = torch.nn.Linear(210, 200).double()  # 42,000 entries: more than a block
    steps = gradients({p.name: p.shape for p in xw.parameters(model)})
    start = dict(xw.get_params(model))
    state = xw.optimizer_state(model, rule, learning_rate=0.01)
    optimizer = xw.set_optimizer(model, None, state, grade="exact").optimizer
    if rule == "nadam":
        optimizer = optimizer_with_shim(model, state)
    for step in steps:
        for p in xw.parameters(model):
            p.handle.tensor.grad = torch.from_numpy(np.ascontiguousarray(p.layout.to_stored(step[p.name])))
        optimizer.step()
    assert type(optimizer).__name__ == "ForeignOptimizer"
    assert apart(numpy_steps(state, start, steps), xw.get_params(model)) < 1e-14


def optimizer_with_shim(model, state):
    """Return an optimizer that runs the formula, though torch has the rule."""
    from dataclasses import replace

    groups = tuple(replace(group, variant={**group.variant, "powers": "dtype"}) for group in state.groups)
    return xw.set_optimizer(model, None, replace(state, groups=groups)).optimizer
