"""Penalties in Keras: terms of ``variable.regularizer``, which a model adds to its loss.

Keras takes regularizers when a layer is made, but it sums ``variable.regularizer`` of the trainable weights each time
it computes the loss. So a term that is added there counts from the next trace on: a compiled train function is made
again, and the optimizer keeps its state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from xweights.core.parameter import Parameter
from xweights.errors import HoldError, Problems, StaleTrainFunctionError, TargetError


class CombinedRegularizer(keras.regularizers.Regularizer):  # type: ignore[misc] # Keras before 3.14 takes no other
    """Sum of a variable's former regularizer and the added penalties; it replaces ``variable.regularizer``."""

    def __init__(self, former: Any) -> None:
        self.former = former
        self.parts: list[Callable[[Any], Any]] = []
        self.calls = 0

    def __call__(self, value: Any) -> Any:
        self.calls += 1
        terms = [] if self.former is None else [self.former(value)]
        # A model sums its losses in this dtype, and TensorFlow doesn't add tensors of different dtypes.
        terms += [keras.ops.cast(part(value), keras.config.floatx()) for part in self.parts]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


class PenaltyAttachment:
    """The terms of one penalty, on the variables of a model."""

    def __init__(
        self, parameters: Sequence[Parameter], penalty: Callable[[Parameter, Any], Any], model: keras.Model
    ) -> None:
        self.parameters = list(parameters)
        self.model = model
        self.parts = [self._part(p, penalty) for p in self.parameters]
        self.regularizers = [self._add(p, part) for p, part in zip(self.parameters, self.parts, strict=True)]
        self.start = _iterations(model)
        self.calls = [regularizer.calls for regularizer in self.regularizers]
        _retrace(model)

    @staticmethod
    def _part(parameter: Parameter, penalty: Callable[[Parameter, Any], Any]) -> Callable[[Any], Any]:
        def part(value: Any) -> Any:
            if isinstance(value, keras.Variable):
                value = parameter.storage.tracked(parameter.handle)
            return penalty(parameter, value)

        return part

    @staticmethod
    def _add(parameter: Parameter, part: Callable[[Any], Any]) -> CombinedRegularizer:
        variable = parameter.handle
        regularizer = variable.regularizer
        if not isinstance(regularizer, CombinedRegularizer):
            regularizer = variable.regularizer = CombinedRegularizer(regularizer)
        regularizer.parts.append(part)
        return regularizer

    def check(self) -> None:
        """Raise if the optimizer has moved on without the penalty."""
        steps = _iterations(self.model) - self.start
        missed = [
            p.name
            for p, added, before in zip(self.parameters, self.regularizers, self.calls, strict=True)
            if p.handle.regularizer is not added or (steps and p.trainable and added.calls == before)
        ]
        if missed:
            raise StaleTrainFunctionError(
                f"training goes on without the penalty on {', '.join(missed)}\n"
                f"optimizer steps since it was added: {steps}\n"
                "the regularizer was replaced meanwhile, or the step adds no model.losses, or it was traced before\n"
                "Fix: add model.losses to the loss of your step, and make the step again (a new tf.function or jax.jit)"
            )

    def detach(self) -> None:
        """Remove these terms; removing the last one of a variable restores its former regularizer."""
        for parameter, regularizer, part in zip(self.parameters, self.regularizers, self.parts, strict=True):
            regularizer.parts.remove(part)
            if not regularizer.parts and parameter.handle.regularizer is regularizer:
                parameter.handle.regularizer = regularizer.former
        _retrace(self.model)


def regularize(
    parameters: Sequence[Parameter], penalty: Callable[[Parameter, Any], Any], target: Any
) -> PenaltyAttachment:
    """Add a penalty to the loss of a model."""
    if not isinstance(target, keras.Model):
        raise TargetError(
            f"only a model puts together a loss\ngot: {type(target).__module__}.{type(target).__qualname__}\n"
            "Fix: pass the model that is fitted, and name the layer with where="
        )
    problems = Problems("this can't be penalised, and nothing was changed")
    for parameter in parameters:
        if not isinstance(parameter.handle, keras.Variable):
            problems.add(
                HoldError,
                f"{parameter.name!r} is no variable of Keras, which adds up penalties of its own variables only",
                fix="leave it out with where=, and add xweights.penalty(...) in a train_step of your own",
            )
    problems.check()
    return PenaltyAttachment(parameters, penalty, target)


def _iterations(model: Any) -> int:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        return 0
    return int(keras.ops.convert_to_numpy(optimizer.iterations))


def _retrace(model: Any) -> None:
    """Make a compiled model trace its functions again; compile() would lose the optimizer's state."""
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)
    if getattr(model, "test_function", None) is not None:
        model.make_test_function(force=True)
