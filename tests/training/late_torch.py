"""Ways to attach a hold late in PyTorch and on a tf.Module."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

from late import APPLIED, DETECTED, FREE, FREEZE, HOLD, RAISES, RATE, SCHEDULE, Array, Scene, Thing, Way
from learners import X, Y

KERNEL = "0/kernel"
ALL_APPLIED = {HOLD: APPLIED, SCHEDULE: APPLIED, FREEZE: APPLIED, RATE: APPLIED}


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
        """Attach the thing; ``by_name`` passes the optimizer where it is optional (learning rates always need it)."""
        optimizer = self.optimizer if by_name or scene.thing.needs_optimizer else None
        scene.begin(self.model, KERNEL, optimizer)


def before_the_optimizer(thing: Thing) -> Scene:
    training = Training(optimizer=False)
    scene = training.scene(thing)
    training.begin(scene)
    training.new_optimizer()
    return scene


def after_steps(count: int, *, by_name: bool) -> Callable[[Thing], Scene]:
    def make(thing: Thing) -> Scene:
        training = Training()
        scene = training.scene(thing)
        for _ in range(count):
            training.step()
        training.begin(scene, by_name=by_name)
        return scene

    return make


def compiled(part: str) -> Callable[[Thing], Scene]:
    def make(thing: Thing) -> Scene:
        import torch

        training = Training()
        torch.compiler.reset()
        if part == "model":
            training.call = torch.compile(training.model, backend="aot_eager")
        elif part == "optimizer":
            update = torch.compile(training.optimizer.step, backend="aot_eager")

            def step() -> None:
                training.optimizer.zero_grad()
                training.backward()
                update()

            training.step = step  # type: ignore[method-assign]
        else:
            training.step = torch.compile(training.step, backend="aot_eager")  # type: ignore[method-assign]
        scene = training.scene(thing)
        for _ in range(2):
            training.step()
        training.begin(scene)
        return scene

    return make


def amid_accumulation(thing: Thing) -> Scene:
    training = Training()
    scene = training.scene(thing)
    training.step()
    training.backward()
    training.begin(scene)
    return scene


def added_later(*, by_name: bool) -> Callable[[Thing], Scene]:
    def make(thing: Thing) -> Scene:
        training = Training(only_second=True)
        scene = training.scene(thing)
        training.step()
        training.begin(scene, by_name=by_name)
        training.optimizer.add_param_group({"params": list(training.model[0].parameters())})
        return scene

    return make


def then(change: str, *, by_name: bool = False) -> Callable[[Thing], Scene]:
    """Attach the thing after a step; then change the model or its optimizer."""

    def make(thing: Thing) -> Scene:
        import torch

        training = Training()
        scene = training.scene(thing)
        training.step()
        weights, slots = copy.deepcopy(training.model.state_dict()), copy.deepcopy(training.optimizer.state_dict())
        training.step()
        training.begin(scene, by_name=by_name)
        layer = training.model[0]
        if change == "load_state_dict":
            training.model.load_state_dict(weights)
        if change == "load_state_dict(assign=True)":
            training.model.load_state_dict(weights, assign=True)
            training.new_optimizer()
        if change == "optimizer.load_state_dict":
            training.optimizer.load_state_dict(slots)
        if change == "new optimizer":
            training.new_optimizer()
        if change == "to":
            training.model.to(torch.float64)
            training.optimizer.state.clear()  # Adam can't continue with slots of another dtype
        if change == "parameter":
            layer.weight = torch.nn.Parameter(torch.ones_like(layer.weight))
            training.new_optimizer()
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

        original, duplicate = Training(), Training()
        scene = original.scene(thing)
        original.step()
        original.begin(scene)
        if how == "deepcopy":
            duplicate.model = copy.deepcopy(original.model)
        elif how == "pickle":
            file = io.BytesIO()
            torch.save(original.model, file)
            file.seek(0)
            duplicate.model = torch.load(file, weights_only=False)
        else:
            duplicate.model.load_state_dict(original.model.state_dict())
        duplicate.call = duplicate.model
        duplicate.new_optimizer()

        def train() -> None:
            original.step()
            duplicate.step()

        scene.train, scene.copied = train, duplicate.read
        return scene

    return make


def without_an_optimizer(thing: Thing) -> Scene:
    training = Training(optimizer=False)
    scene = training.scene(thing)

    def step() -> None:
        import torch

        training.model.zero_grad()
        training.backward()
        with torch.no_grad():
            for weight in training.model.parameters():
                weight.add_(weight, alpha=0.05)

    training.step = step  # type: ignore[method-assign]
    training.begin(scene)
    return scene


def on_a_wrapper(thing: Thing) -> Scene:
    import torch

    training = Training()
    scene = training.scene(thing)
    torch.compiler.reset()
    training.call = torch.compile(training.model, backend="aot_eager")
    training.step()
    scene.begin(training.call, KERNEL, training.optimizer)
    return scene


# tf.Module


def on_a_module(*, applied: bool) -> Callable[[Thing], Scene]:
    def make(thing: Thing) -> Scene:
        import tensorflow as tf

        module = tf.Module()
        module.kernel = tf.Variable(tf.ones((4, 3)))
        scene = Scene(thing, lambda: module.kernel.numpy().copy(), lambda: None)

        def make_step() -> Callable[[], None]:
            @tf.function
            def step() -> None:
                module.kernel.assign_add(0.5 * tf.ones((4, 3)))
                if applied:
                    scene.handle.apply()

            return step

        if applied:
            scene.begin(module, "kernel")
            scene.train = make_step()
        else:
            scene.train = make_step()
            scene.train()
            scene.begin(module, "kernel")
        return scene

    return make


_COPY_OF_FREEZE = "torch copies `requires_grad` with a model: the copy of a frozen weight is frozen by that flag"
WAYS = [
    Way(
        *("PyTorch", "before the optimizer is made", before_the_optimizer),
        {HOLD: APPLIED, SCHEDULE: APPLIED, FREEZE: APPLIED, RATE: RAISES},
        "`multiply_lr` needs the optimizer",
    ),
    Way("PyTorch", "after the optimizer is made", after_steps(0, by_name=False), ALL_APPLIED),
    Way("PyTorch", "after some steps", after_steps(3, by_name=False), ALL_APPLIED),
    Way("PyTorch", "after some steps, with `optimizer=`", after_steps(3, by_name=True), ALL_APPLIED),
    Way("PyTorch", "after `torch.compile` of the model", compiled("model"), ALL_APPLIED),
    Way("PyTorch", "after `torch.compile` of the optimizer's step", compiled("optimizer"), ALL_APPLIED),
    Way("PyTorch", "after `torch.compile` of the whole step", compiled("step"), ALL_APPLIED),
    Way("PyTorch", "on what `torch.compile` made of a model", on_a_wrapper, ALL_APPLIED),
    Way("PyTorch", "between gradients that are accumulated", amid_accumulation, ALL_APPLIED),
    Way(
        *("PyTorch", "before `add_param_group` with the parameter", added_later(by_name=False)),
        {HOLD: APPLIED, SCHEDULE: APPLIED, FREEZE: APPLIED, RATE: RAISES},
        "`multiply_lr` needs an optimizer that has the parameter",
    ),
    Way(
        *("PyTorch", "before `add_param_group`, with `optimizer=`", added_later(by_name=True)),
        {HOLD: RAISES, SCHEDULE: RAISES, FREEZE: RAISES, RATE: RAISES},
        "the optimizer doesn't have the parameter yet",
    ),
    Way(
        *("PyTorch", "then `load_state_dict`", then("load_state_dict"), ALL_APPLIED),
        "what was loaded is there until the next step; then a hold is true, and a freeze has its old values back",
    ),
    Way("PyTorch", "then a write by hand, or `weight.data = ...`", then("data"), ALL_APPLIED, "as above"),
    Way("PyTorch", "then `optimizer.load_state_dict`", then("optimizer.load_state_dict"), ALL_APPLIED),
    Way(
        *("PyTorch", "then another optimizer", then("new optimizer")),
        {HOLD: APPLIED, SCHEDULE: APPLIED, FREEZE: APPLIED, RATE: DETECTED},
    ),
    Way(
        *("PyTorch", "with `optimizer=`, then another optimizer", then("new optimizer", by_name=True)),
        {HOLD: DETECTED, SCHEDULE: DETECTED, FREEZE: APPLIED, RATE: DETECTED},
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
        {HOLD: APPLIED, SCHEDULE: APPLIED, FREEZE: APPLIED, RATE: APPLIED},
        "torch keeps the parameter, in another dtype",
    ),
    Way(
        *("PyTorch", "then `requires_grad_(True)` by hand", then("requires_grad"), ALL_APPLIED),
        "a freeze puts the values back after each step",
    ),
    Way("PyTorch", "then an edit in place, by hand", then("in_place"), ALL_APPLIED),
    Way(
        *(
            "PyTorch",
            "then `copy.deepcopy`",
            copied("deepcopy"),
            {HOLD: FREE, SCHEDULE: FREE, FREEZE: APPLIED, RATE: FREE},
        ),
        _COPY_OF_FREEZE,
    ),
    Way(
        *(
            "PyTorch",
            "then `torch.save` of the model",
            copied("pickle"),
            {HOLD: FREE, SCHEDULE: FREE, FREEZE: APPLIED, RATE: FREE},
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
        {HOLD: APPLIED, SCHEDULE: RAISES, FREEZE: APPLIED, RATE: RAISES},
        "a `tf.Module` has no optimizer; a schedule selects on the host: call `held.apply()` after the step then",
    ),
    Way(
        *("tf.Module", "after the step was traced", on_a_module(applied=False)),
        {HOLD: DETECTED, SCHEDULE: DETECTED, FREEZE: DETECTED, RATE: RAISES},
        "build the step again, with `held.apply()` in it",
    ),
]
