"""The ways in which a hold can come late in PyTorch, and on a tf.Module."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

from late import DETECTED, FREE, FREEZE, HOLD, OBEYED, RAISES, RATE, SCHEDULE, Array, Scene, Thing, Way
from learners import X, Y

KERNEL = "0/kernel"
ALL_OBEYED = {HOLD: OBEYED, SCHEDULE: OBEYED, FREEZE: OBEYED, RATE: OBEYED}


class Training:
    """A model with an optimizer, and steps."""

    def __init__(self, *, optimizer: bool = True, only_second: bool = False) -> None:
        import torch

        self.model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
        self.call: Callable[[Any], Any] = self.model
        self.x, self.y = torch.from_numpy(X), torch.from_numpy(Y)
        self.optimizer: Any = None
        if optimizer:
            self.new_optimizer(self.model[2].parameters() if only_second else None)

    def new_optimizer(self, parameters: Any = None) -> None:
        import torch

        self.optimizer = torch.optim.Adam(parameters or self.model.parameters(), lr=0.05)

    def backward(self) -> None:
        dtype = next(self.model.parameters()).dtype
        ((self.call(self.x.to(dtype)) - self.y.to(dtype)) ** 2).mean().backward()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.backward()
        self.optimizer.step()

    def read(self) -> Array:
        kernel: Array = self.model[0].weight.detach().numpy().T.copy()
        return kernel

    def scene(self, thing: Thing) -> Scene:
        return Scene(thing, self.read, lambda: self.step())

    def begin(self, scene: Scene, *, by_name: bool = True) -> None:
        """``by_name``: hand over the optimizer where there is a choice; learning rates always need it."""
        given = self.optimizer if by_name or scene.thing.needs_optimizer else None
        scene.begin(self.model, KERNEL, given)


def before_the_optimizer(thing: Thing) -> Scene:
    one = Training(optimizer=False)
    scene = one.scene(thing)
    one.begin(scene)
    one.new_optimizer()
    return scene


def after_steps(count: int, *, by_name: bool) -> Callable[[Thing], Scene]:
    def make(thing: Thing) -> Scene:
        one = Training()
        scene = one.scene(thing)
        for _ in range(count):
            one.step()
        one.begin(scene, by_name=by_name)
        return scene

    return make


def compiled(what: str) -> Callable[[Thing], Scene]:
    def make(thing: Thing) -> Scene:
        import torch

        one = Training()
        torch.compiler.reset()
        if what == "model":
            one.call = torch.compile(one.model, backend="aot_eager")
        elif what == "optimizer":
            update = torch.compile(one.optimizer.step, backend="aot_eager")

            def step() -> None:
                one.optimizer.zero_grad()
                one.backward()
                update()

            one.step = step  # type: ignore[method-assign]
        else:
            one.step = torch.compile(one.step, backend="aot_eager")  # type: ignore[method-assign]
        scene = one.scene(thing)
        for _ in range(2):
            one.step()
        one.begin(scene)
        return scene

    return make


def amid_accumulation(thing: Thing) -> Scene:
    one = Training()
    scene = one.scene(thing)
    one.step()
    one.backward()
    one.begin(scene)
    return scene


def added_later(*, by_name: bool) -> Callable[[Thing], Scene]:
    def make(thing: Thing) -> Scene:
        one = Training(only_second=True)
        scene = one.scene(thing)
        one.step()
        one.begin(scene, by_name=by_name)
        one.optimizer.add_param_group({"params": list(one.model[0].parameters())})
        return scene

    return make


def then(change: str, *, by_name: bool = False) -> Callable[[Thing], Scene]:
    """The thing comes after a step; then something else happens to the model or its optimizer."""

    def make(thing: Thing) -> Scene:
        import torch

        one = Training()
        scene = one.scene(thing)
        one.step()
        weights, slots = copy.deepcopy(one.model.state_dict()), copy.deepcopy(one.optimizer.state_dict())
        one.step()
        one.begin(scene, by_name=by_name)
        layer = one.model[0]
        if change == "load_state_dict":
            one.model.load_state_dict(weights)
        if change == "load_state_dict(assign=True)":
            one.model.load_state_dict(weights, assign=True)
            one.new_optimizer()
        if change == "optimizer.load_state_dict":
            one.optimizer.load_state_dict(slots)
        if change == "new optimizer":
            one.new_optimizer()
        if change == "to":
            one.model.to(torch.float64)
            one.optimizer.state.clear()  # Adam can't go on with slots of another dtype
        if change == "parameter":
            layer.weight = torch.nn.Parameter(torch.ones_like(layer.weight))
            one.new_optimizer()
        if change == "data":
            layer.weight.data = torch.ones_like(layer.weight)
        if change == "requires_grad":
            layer.weight.requires_grad_(True)
        if change == "in_place":
            with torch.no_grad():
                layer.weight.add_(0.25)
        return scene

    return make


def copied(how: str) -> Callable[[Thing], Scene]:
    def make(thing: Thing) -> Scene:
        import torch

        one, other = Training(), Training()
        scene = one.scene(thing)
        one.step()
        one.begin(scene)
        if how == "deepcopy":
            other.model = copy.deepcopy(one.model)
        elif how == "pickle":
            file = io.BytesIO()
            torch.save(one.model, file)
            file.seek(0)
            other.model = torch.load(file, weights_only=False)
        else:
            other.model.load_state_dict(one.model.state_dict())
        other.call = other.model
        other.new_optimizer()

        def train() -> None:
            one.step()
            other.step()

        scene.train, scene.copied = train, other.read
        return scene

    return make


def without_an_optimizer(thing: Thing) -> Scene:
    one = Training(optimizer=False)
    scene = one.scene(thing)

    def step() -> None:
        import torch

        one.model.zero_grad()
        one.backward()
        with torch.no_grad():
            for weight in one.model.parameters():
                weight.add_(weight, alpha=0.05)

    one.step = step  # type: ignore[method-assign]
    one.begin(scene)
    return scene


def on_a_wrapper(thing: Thing) -> Scene:
    import torch

    one = Training()
    scene = one.scene(thing)
    torch.compiler.reset()
    one.call = torch.compile(one.model, backend="aot_eager")
    one.step()
    scene.begin(one.call, KERNEL, one.optimizer)
    return scene


# tf.Module


def on_a_module(*, applied: bool) -> Callable[[Thing], Scene]:
    def make(thing: Thing) -> Scene:
        import tensorflow as tf

        module = tf.Module()
        module.kernel = tf.Variable(tf.ones((4, 3)))
        scene = Scene(thing, lambda: module.kernel.numpy().copy(), lambda: None)

        def traced() -> Callable[[], None]:
            @tf.function
            def step() -> None:
                module.kernel.assign_add(0.5 * tf.ones((4, 3)))
                if applied:
                    scene.handle.apply()

            return step

        if applied:
            scene.begin(module, "kernel")
            scene.train = traced()
        else:
            scene.train = traced()
            scene.train()
            scene.begin(module, "kernel")
        return scene

    return make


_COPY_OF_FREEZE = "torch copies `requires_grad` with a model: the copy of a frozen weight is frozen by that flag"
WAYS = [
    Way(
        *("PyTorch", "before the optimizer is made", before_the_optimizer),
        {HOLD: OBEYED, SCHEDULE: OBEYED, FREEZE: OBEYED, RATE: RAISES},
        "`multiply_lr` needs the optimizer",
    ),
    Way("PyTorch", "after the optimizer is made", after_steps(0, by_name=False), ALL_OBEYED),
    Way("PyTorch", "after some steps", after_steps(3, by_name=False), ALL_OBEYED),
    Way("PyTorch", "after some steps, with `optimizer=`", after_steps(3, by_name=True), ALL_OBEYED),
    Way("PyTorch", "after `torch.compile` of the model", compiled("model"), ALL_OBEYED),
    Way("PyTorch", "after `torch.compile` of the optimizer's step", compiled("optimizer"), ALL_OBEYED),
    Way("PyTorch", "after `torch.compile` of the whole step", compiled("step"), ALL_OBEYED),
    Way("PyTorch", "on what `torch.compile` made of a model", on_a_wrapper, ALL_OBEYED),
    Way("PyTorch", "between gradients that are accumulated", amid_accumulation, ALL_OBEYED),
    Way(
        *("PyTorch", "before `add_param_group` with the parameter", added_later(by_name=False)),
        {HOLD: OBEYED, SCHEDULE: OBEYED, FREEZE: OBEYED, RATE: RAISES},
        "`multiply_lr` needs an optimizer that has the parameter",
    ),
    Way(
        *("PyTorch", "before `add_param_group`, with `optimizer=`", added_later(by_name=True)),
        {HOLD: RAISES, SCHEDULE: RAISES, FREEZE: RAISES, RATE: RAISES},
        "the optimizer doesn't have the parameter yet",
    ),
    Way(
        *("PyTorch", "then `load_state_dict`", then("load_state_dict"), ALL_OBEYED),
        "what was loaded is there until the next step; then a hold is true, and a freeze has its old values back",
    ),
    Way("PyTorch", "then a write by hand, or `weight.data = ...`", then("data"), ALL_OBEYED, "as above"),
    Way("PyTorch", "then `optimizer.load_state_dict`", then("optimizer.load_state_dict"), ALL_OBEYED),
    Way(
        *("PyTorch", "then another optimizer", then("new optimizer")),
        {HOLD: OBEYED, SCHEDULE: OBEYED, FREEZE: OBEYED, RATE: DETECTED},
    ),
    Way(
        *("PyTorch", "with `optimizer=`, then another optimizer", then("new optimizer", by_name=True)),
        {HOLD: DETECTED, SCHEDULE: DETECTED, FREEZE: OBEYED, RATE: DETECTED},
    ),
    Way(
        *("PyTorch", "then another object in the parameter's place", then("parameter")),
        {HOLD: DETECTED, SCHEDULE: DETECTED, FREEZE: DETECTED, RATE: DETECTED},
    ),
    Way(
        *("PyTorch", "then `load_state_dict(assign=True)`", then("load_state_dict(assign=True)")),
        {HOLD: DETECTED, SCHEDULE: DETECTED, FREEZE: DETECTED, RATE: DETECTED},
        "it puts other objects in the places of the parameters",
    ),
    Way(
        *("PyTorch", "then `model.to(dtype)`", then("to")),
        {HOLD: OBEYED, SCHEDULE: OBEYED, FREEZE: OBEYED, RATE: OBEYED},
        "torch keeps the parameter, in another dtype",
    ),
    Way(
        *("PyTorch", "then `requires_grad_(True)` by hand", then("requires_grad"), ALL_OBEYED),
        "a freeze puts the values back after each step",
    ),
    Way("PyTorch", "then an edit in place, by hand", then("in_place"), ALL_OBEYED),
    Way(
        *(
            "PyTorch",
            "then `copy.deepcopy`",
            copied("deepcopy"),
            {HOLD: FREE, SCHEDULE: FREE, FREEZE: OBEYED, RATE: FREE},
        ),
        _COPY_OF_FREEZE,
    ),
    Way(
        *(
            "PyTorch",
            "then `torch.save` of the model",
            copied("pickle"),
            {HOLD: FREE, SCHEDULE: FREE, FREEZE: OBEYED, RATE: FREE},
        ),
        "as above",
    ),
    Way(
        *(
            "PyTorch",
            "then its `state_dict` in another model",
            copied("state"),
            {HOLD: FREE, SCHEDULE: FREE, FREEZE: FREE, RATE: FREE},
        )
    ),
    Way(
        *("PyTorch", "in a loop without an optimizer", without_an_optimizer),
        {HOLD: DETECTED, SCHEDULE: DETECTED, FREEZE: DETECTED, RATE: RAISES},
        "call `held.apply()` after your update",
    ),
    Way(
        *("tf.Module", "before the step is traced, which calls `held.apply()`", on_a_module(applied=True)),
        {HOLD: OBEYED, SCHEDULE: RAISES, FREEZE: OBEYED, RATE: RAISES},
        "a `tf.Module` has no optimizer; a schedule selects on the host: `held.apply()` stands after the step then",
    ),
    Way(
        *("tf.Module", "after the step was traced", on_a_module(applied=False)),
        {HOLD: DETECTED, SCHEDULE: DETECTED, FREEZE: DETECTED, RATE: RAISES},
        "make the step anew, with `held.apply()` in it",
    ),
]
