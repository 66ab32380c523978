"""Freezing, scaled updates and averages in Keras.

``trainable`` is never touched: once a model was fitted, TensorFlow ignores it and JAX raises.
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
from xweights_keras.training.step_counter import Share, counting, updates_of
from xweights_keras.training.trainers import Trainers, innermost, iterations_of, owning_models
from xweights_keras.training.update import OptimizerPatch, active_patch, keys_of, update_of


class KerasTraining:
    """What Keras' own training offers beyond holds (``xweights.training.Training``)."""

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
    ) -> KerasResting:
        statistics = [p for p in parameters if self.is_statistic(p)]
        owners = {key: layer for layer in _layers(target) for key in _owned_by(layer)}
        problems = Problems("these can't be frozen, and nothing was changed")
        for p in statistics:
            if id(p.handle) not in owners:
                problems.add(HoldError, f"{p.name!r} has no layer that could be stopped", fix="freeze it by its model")
        problems.check()
        found = [owners[id(p.handle)] for p in parameters if id(p.handle) in owners]
        inferring = [one for one in found if isinstance(one, keras.layers.BatchNormalization)] if inference else []
        trainers = owning_models(target, [p.handle for p in parameters], optimizer)
        spared = [p for p in parameters if p not in statistics] if whole else []
        return KerasResting(
            trainers,
            spared,
            [(owners[id(p.handle)], p.handle) for p in statistics],
            inferring,
            owner,
        )

    def multiply(self, pairs: Sequence[tuple[Parameter, float]], *, target: Any, optimizer: Any) -> KerasScaled:
        trainers = owning_models(target, [p.handle for p, _ in pairs], optimizer)
        found = trainers.optimizers if optimizer is None else (optimizer,)
        if len(found) != 1:
            raise ArgumentError(
                "multiply_lr needs one optimizer\n"
                f"found: {len(found)} that train these parameters\nFix: compile the model first, or optimizer=..."
            )
        plain = innermost(found[0])
        owned = {id(v) for v in plain._trainable_variables} if plain.built else None
        standing = active_patch(plain)
        taken = set() if standing is None else standing.factors.keys()
        problems = Problems("these learning rates can't be multiplied, and nothing was changed")
        for (p, _), key in zip(pairs, keys_of([p for p, _ in pairs]), strict=True):
            if owned is not None and id(p.handle) not in owned:
                problems.add(HoldError, f"{p.name!r} is not among the optimizer's variables", fix="narrow factors=")
            elif key in taken:
                problems.add(HoldError, f"{p.name!r} has a factor already", fix="release() the former one")
        problems.check()
        return KerasScaled(update_of(plain), pairs, trainers)

    def follow(
        self, parameters: Sequence[Parameter], call: Callable[[StepState | None], None], *, target: Any, optimizer: Any
    ) -> KerasFollowing | None:
        model = target if isinstance(target, keras.Model) else None
        if optimizer is not None and optimizer is not getattr(model, "optimizer", None):
            raise HoldError(
                "in Keras, averages follow the optimizer that the model was compiled with\n"
                "Fix: leave out optimizer=; in a loop of your own attach=False, and averages.update() after each step"
            )
        return None if model is None else KerasFollowing(model, call)


class KerasResting:
    """Variables that the optimizer leaves out, and layers that don't change some or don't train."""

    def __init__(
        self,
        trainers: Trainers,
        spared: Sequence[Parameter],
        stopped: Sequence[tuple[Any, Any]],
        inferring: Sequence[Any],
        owner: object,
    ) -> None:
        self.trainers = trainers
        self.updates = [update_of(innermost(one)) for one in trainers.optimizers] if spared else []
        self.keys = keys_of(spared)
        self.calls: list[tuple[Call, int | None]] = []
        for update in self.updates:
            update.left_out.update(self.keys)
        for layer, variable in stopped:
            self._stop(layer, variable, owner)
        for layer in dict.fromkeys(inferring):
            self._stop(layer, None, owner)
        trainers.make_anew()

    def _stop(self, layer: Any, variable: Any, owner: object) -> None:
        call = call_of(layer)
        key = None if variable is None else id(variable)
        call.stopped[key] += 1
        call.keepers.append(owner)
        if variable is not None:
            call.variables[id(variable)] = variable
        self.calls.append((call, key))

    def unfreeze(self, parameters: Sequence[Parameter] | None) -> None:
        """Have the optimizer update these again, and their layers run as they did."""
        keys = set(self.keys) if parameters is None else set(keys_of(parameters))
        for update in self.updates:
            update.left_out.subtract(key for key in self.keys if key in keys)
            update.drop()
        self.keys = [key for key in self.keys if key not in keys]
        mine = None if parameters is None else {id(p.handle) for p in parameters}
        for call, key in list(self.calls):
            if mine is None or key in mine or (key is None and mine & _owned_by(call.layer)):
                call.drop(key)
                self.calls.remove((call, key))
        self.trainers.make_anew()


class Call:
    """What stands as ``layer.call``: the layer's own, without training, or without assignments to some variables."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.former = layer, layer.call
        self.stopped: Counter[int | None] = Counter()  # by variable; None: all training
        self.variables: dict[int, Any] = {}
        self.keepers: list[object] = []
        functools.update_wrapper(self, layer.call)
        object.__setattr__(layer, "call", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.stopped[None]:
            kwargs["training"] = False
        quiet = [self.variables[key] for key in self.stopped if key is not None and self.stopped[key]]
        for variable in quiet:
            object.__setattr__(variable, "assign", lambda value: value)
        try:
            return self.former(*args, **kwargs)
        finally:
            for variable in quiet:
                object.__delattr__(variable, "assign")

    def drop(self, key: int | None) -> None:
        """Take one stop off; the layer's own call comes back with the last."""
        self.stopped[key] -= 1
        if not +self.stopped:
            vars(self.layer).pop("call", None)


def call_of(layer: Any) -> Call:
    """Return what stands as the call of a layer, now at the latest."""
    standing = vars(layer).get("call")
    return standing if isinstance(standing, Call) else Call(layer)


class KerasScaled:
    """One call's factors in the update of an optimizer."""

    def __init__(self, update: OptimizerPatch, pairs: Sequence[tuple[Parameter, float]], trainers: Trainers) -> None:
        self.update, self.trainers = update, trainers
        self.keys = keys_of([p for p, _ in pairs])
        update.factors |= dict(zip(self.keys, pairs, strict=True))
        self.start, self.traced = iterations_of(update.optimizer), update.traced
        trainers.make_anew()

    def check(self) -> None:
        """Raise if the optimizer has moved on by a step that was traced before, or was replaced."""
        optimizers = [getattr(model, "optimizer", None) for model in self.trainers.models]
        now = [innermost(one) for one in optimizers if one is not None]
        if self.keys and now and all(one is not self.update.optimizer for one in now):
            raise StaleTrainFunctionError(
                "the model was compiled again with another optimizer, and the multiplied learning rates stayed behind\n"
                "Fix: release() and call multiply_lr again"
            )
        steps = iterations_of(self.update.optimizer) - self.start
        if steps and self.update.traced == self.traced and self.keys:
            raise StaleTrainFunctionError(
                "training went on without the multiplied learning rates\n"
                f"optimizer steps since then: {steps}\nthe step was traced before\n"
                "Fix: call multiply_lr before your step is traced, or make the step anew (a new tf.function or jax.jit)"
            )

    def detach(self) -> None:
        """Take the factors off."""
        for key in self.keys:
            self.update.factors.pop(key, None)
        self.keys = []
        self.update.drop()
        self.trainers.make_anew()


class KerasFollowing:
    """A call after each update in a model's own training."""

    def __init__(self, model: Any, call: Callable[[StepState | None], None]) -> None:
        self.model, self.call = model, call
        self.start, self.seen = updates_of(model, None), 0
        self.share: Share | None = counting(model, self._after, last=True)

    def _after(self, state: Any) -> None:
        self.seen += 1
        self.call(state)

    def check(self) -> None:
        """Raise if the optimizer has moved on by steps that were not seen."""
        steps = updates_of(self.model, None) - self.start
        if steps > self.seen:
            raise StaleTrainFunctionError(
                "training went on without the averages\n"
                f"optimizer steps: {steps}\nsteps seen:      {self.seen}\n"
                "Fix: train with fit or train_on_batch; or average(..., attach=False), and update() after each step"
            )

    def detach(self) -> None:
        """Follow no more."""
        if self.share is not None:
            self.share.drop()
            self.share = None


def _owned_by(layer: Any) -> set[int]:
    return {id(v) for v in (*layer._trainable_variables, *layer._non_trainable_variables)}


def _layers(target: Any) -> Iterator[Any]:
    for one in target if isinstance(target, (list, tuple)) else [target]:
        if isinstance(one, keras.Layer):
            yield from one._flatten_layers(include_self=True, recursive=True)
