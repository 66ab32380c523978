"""Freezing, multiplied learning rates and averages in Keras.

``trainable`` is never changed: once a model was fitted, TensorFlow ignores it and JAX raises.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from xweights.core.backend import StepState
from xweights.core.parameter import Parameter
from xweights.errors import ArgumentError, HoldError, Problems, StaleTrainFunctionError
from xweights_keras.training.optimizer_patch import OptimizerPatch, ensure_patch, find_patch, keys_of
from xweights_keras.training.step_counter import StepSubscription, count_steps, updates_of
from xweights_keras.training.trainers import Trainers, innermost, iterations_of, owning_models, refuse_parts


class KerasTraining:
    """Freezing, LR factors and averages in Keras' own training (see ``xweights.training.hooks.TrainingHooks``)."""

    def is_statistic(self, parameter: Parameter) -> bool:
        return id(parameter.handle) in getattr(parameter.storage, "statistics", ())

    def freeze(
        self,
        parameters: Sequence[Parameter],
        *,
        target: Any,
        optimizer: Any,
        whole: bool,
        inference: bool,
        owner: object,
    ) -> FrozenHandle:
        statistics = [p for p in parameters if self.is_statistic(p)]
        owners = {key: layer for layer in _layers(target) for key in _owned_by(layer)}
        problems = Problems("these can't be frozen, and nothing was changed")
        for p in statistics:
            if id(p.handle) not in owners:
                problems.add(HoldError, f"{p.name!r} has no layer that could be stopped", fix="freeze it by its model")
        problems.check()
        layers = [owners[id(p.handle)] for p in parameters if id(p.handle) in owners]
        norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)] if inference else []
        trainers = owning_models(target, [p.handle for p in parameters], optimizer)
        spared = [p for p in parameters if p not in statistics] if whole else []
        return FrozenHandle(
            trainers,
            spared,
            [(owners[id(p.handle)], p.handle) for p in statistics],
            norms,
            owner,
        )

    def multiply(
        self, pairs: Sequence[tuple[Parameter, float]], *, target: Any, optimizer: Any, owner: object
    ) -> LRFactorsHandle:
        trainers = owning_models(target, [p.handle for p, _ in pairs], optimizer)
        optimizers = trainers.optimizers if optimizer is None else (optimizer,)
        if len(optimizers) != 1:
            raise ArgumentError(
                "multiply_lr needs one optimizer\n"
                f"found: {len(optimizers)} that train these parameters\nFix: compile the model first, or optimizer=..."
            )
        plain = innermost(optimizers[0])
        owned = {id(v) for v in plain._trainable_variables} if plain.built else None
        patch = find_patch(plain)
        taken = set() if patch is None else patch.factors.keys()
        problems = Problems("these learning rates can't be multiplied, and nothing was changed")
        for (p, _), key in zip(pairs, keys_of([p for p, _ in pairs]), strict=True):
            if owned is not None and id(p.handle) not in owned:
                problems.add(HoldError, f"{p.name!r} is not among the optimizer's variables", fix="narrow factors=")
            elif key in taken:
                problems.add(HoldError, f"{p.name!r} has a factor already", fix="release() the former one")
        problems.check()
        return LRFactorsHandle(ensure_patch(plain), pairs, trainers, owner)

    def follow(
        self, parameters: Sequence[Parameter], call: Callable[[StepState | None], None], *, target: Any, optimizer: Any
    ) -> StepFollower | None:
        model = target if isinstance(target, keras.Model) else None
        refuse_parts(parameters, "these can't be averaged while they train")
        if optimizer is not None and optimizer is not getattr(model, "optimizer", None):
            raise HoldError(
                "in Keras, averages follow the optimizer that the model was compiled with\n"
                "Fix: leave out optimizer=; in a loop of your own attach=False, and averages.update() after each step"
            )
        return None if model is None else StepFollower(model, call)


class FrozenHandle:
    """Variables that the optimizer leaves out, and layers that leave some unchanged or run in inference mode."""

    def __init__(
        self,
        trainers: Trainers,
        spared: Sequence[Parameter],
        stopped: Sequence[tuple[Any, Any]],
        inferring: Sequence[Any],
        owner: object,
    ) -> None:
        self.trainers = trainers
        self.patches = [ensure_patch(innermost(optimizer)) for optimizer in trainers.optimizers] if spared else []
        self.keys = keys_of(spared)
        self.calls: list[tuple[LayerCall, int | None]] = []
        for patch in self.patches:
            patch.left_out.update(self.keys)
        for layer, variable in stopped:
            self._stop(layer, variable, owner)
        for layer in dict.fromkeys(inferring):
            self._stop(layer, None, owner)
        trainers.retrace()

    def _stop(self, layer: Any, variable: Any, owner: object) -> None:
        call = ensure_layer_call(layer)
        key = None if variable is None else id(variable)
        call.stopped[key] += 1
        call.owners.append(owner)
        if variable is not None:
            call.variables[id(variable)] = variable
        self.calls.append((call, key))

    def unfreeze(self, parameters: Sequence[Parameter] | None) -> None:
        """Let the optimizer update these again, and their layers run as before."""
        keys = set(self.keys) if parameters is None else set(keys_of(parameters))
        for patch in self.patches:
            patch.left_out.subtract(key for key in self.keys if key in keys)
            patch.drop()
        self.keys = [key for key in self.keys if key not in keys]
        wanted = None if parameters is None else {id(p.handle) for p in parameters}
        for call, key in list(self.calls):
            if wanted is None or key in wanted or (key is None and wanted & _owned_by(call.layer)):
                call.drop(key)
                self.calls.remove((call, key))
        self.trainers.retrace()


class LayerCall:
    """A layer's ``call`` that runs in inference mode, or drops assignments to some variables."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.former = layer, layer.call
        self.stopped: Counter[int | None] = Counter()  # by variable; None: all training
        self.variables: dict[int, Any] = {}
        self.owners: list[object] = []
        self.running = 0  # the replicas of tf.distribute, each a thread, may be in here at once
        functools.update_wrapper(self, layer.call)
        object.__setattr__(layer, "call", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.stopped[None]:
            kwargs["training"] = False
        unassigned = [self.variables[key] for key in self.stopped if key is not None and self.stopped[key]]
        for variable in unassigned:
            object.__setattr__(variable, "assign", lambda value: value)
        self.running += 1
        try:
            return self.former(*args, **kwargs)
        finally:
            self.running -= 1
            for variable in () if self.running else unassigned:
                object.__delattr__(variable, "assign")

    def drop(self, key: int | None) -> None:
        """Remove one stop; removing the last one restores the layer's own call."""
        self.stopped[key] -= 1
        if not +self.stopped:
            vars(self.layer).pop("call", None)
            if getattr(self.former, "__self__", None) is not self.layer:  # a hand-off has changed it
                object.__setattr__(self.layer, "call", self.former)


def ensure_layer_call(layer: Any) -> LayerCall:
    """Return the LayerCall of a layer; add one if it has none."""
    installed = vars(layer).get("call")
    return installed if isinstance(installed, LayerCall) else LayerCall(layer)


def own_call(layer: Any) -> Any:
    """Return the ``call`` of a layer below that of a freeze, which decides first whether anything is collected."""
    installed = vars(layer).get("call")
    return installed.former if isinstance(installed, LayerCall) else layer.call


def set_own_call(layer: Any, call: Callable[..., Any]) -> None:
    """Replace what :func:`own_call` returns."""
    installed = vars(layer).get("call")
    if isinstance(installed, LayerCall):
        installed.former = call
    else:
        layer.call = call


class LRFactorsHandle:
    """The factors of one ``multiply_lr`` call in the update of an optimizer."""

    def __init__(
        self, patch: OptimizerPatch, pairs: Sequence[tuple[Parameter, float]], trainers: Trainers, owner: object
    ) -> None:
        self.patch, self.trainers = patch, trainers
        self.keys = keys_of([p for p, _ in pairs])
        patch.factors |= dict(zip(self.keys, pairs, strict=True))
        patch.owners |= dict.fromkeys(self.keys, owner)
        self.start, self.traced = iterations_of(patch.optimizer), patch.traced
        trainers.retrace()

    def check(self) -> None:
        """Raise if the optimizer was replaced, or has made steps that were traced before."""
        optimizers = [getattr(model, "optimizer", None) for model in self.trainers.models]
        now = [innermost(optimizer) for optimizer in optimizers if optimizer is not None]
        if self.keys and now and all(optimizer is not self.patch.optimizer for optimizer in now):
            raise StaleTrainFunctionError(
                "the model was compiled again with another optimizer, and the multiplied learning rates stayed behind\n"
                "Fix: release() and call multiply_lr again"
            )
        steps = iterations_of(self.patch.optimizer) - self.start
        if steps and self.patch.traced == self.traced and self.keys:
            raise StaleTrainFunctionError(
                "training went on without the multiplied learning rates\n"
                f"optimizer steps since then: {steps}\nthe step was traced before\n"
                "Fix: call multiply_lr before your step is traced, or make it again (a new tf.function or jax.jit)"
            )

    def detach(self) -> None:
        """Remove the factors."""
        for key in self.keys:
            self.patch.factors.pop(key, None)
            self.patch.owners.pop(key, None)
        self.keys = []
        self.patch.drop()
        self.trainers.retrace()


class StepFollower:
    """A callback after each update in a model's own training."""

    def __init__(self, model: Any, call: Callable[[StepState | None], None]) -> None:
        self.model, self.call = model, call
        self.start, self.seen = updates_of(model, None), 0
        self.expected: tuple[Any, int] = (None, 0)
        self.subscription: StepSubscription | None = count_steps(model, self._after, last=True)

    def expect(self, optimizer: Any) -> None:
        """Allow for the updates that an optimizer has made elsewhere, with which the model will be compiled."""
        self.expected = (optimizer, iterations_of(optimizer))

    def _after(self, state: Any) -> None:
        self.seen += 1
        self.call(state)

    def check(self) -> None:
        """Raise if the optimizer has made steps that weren't seen."""
        optimizer, before = self.expected
        expected = optimizer is not None and optimizer is getattr(self.model, "optimizer", None)
        steps = updates_of(self.model, None) - (before if expected else self.start)
        if steps > self.seen:
            raise StaleTrainFunctionError(
                "training went on without the averages\n"
                f"optimizer steps: {steps}\nsteps seen:      {self.seen}\n"
                "Fix: train with fit or train_on_batch; or average(..., attach=False), and update() after each step"
            )

    def detach(self) -> None:
        """Stop following."""
        if self.subscription is not None:
            self.subscription.drop()
            self.subscription = None


def _owned_by(layer: Any) -> set[int]:
    return {id(v) for v in (*layer._trainable_variables, *layer._non_trainable_variables)}


def _layers(target: Any) -> Iterator[Any]:
    for part in target if isinstance(target, (list, tuple)) else [target]:
        if isinstance(part, keras.Layer):
            yield from part._flatten_layers(include_self=True, recursive=True)
