"""Find the Keras models and optimizers that train a variable.

A layer has no reference to the models that it is a part of, so a change to a layer of a fitted model would miss the
model's compiled step (measured: no error and no warning). The garbage collector lists every object; searching it takes
about 0.2 s with 600,000 objects, so that is done only where the target doesn't give the answer.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras

from xweights.core.parameter import Parameter
from xweights.errors import HoldError, Problems
from xweights_keras.storage.base import KerasStorage


@dataclass(frozen=True)
class Trainers:
    """The models in which a variable is trained, and the optimizers that train it."""

    models: tuple[Any, ...]
    optimizers: tuple[Any, ...]

    def retrace(self) -> None:
        """Make compiled models trace their train functions again; compile() would lose the optimizer's state."""
        for model in self.models:
            if getattr(model, "train_function", None) is not None:
                model.make_train_function(force=True)


def owning_models(target: Any, variables: Iterable[Any], optimizer: Any = None) -> Trainers:
    """Return the models and optimizers that train these variables; ``optimizer`` is one that the caller named."""
    if optimizer is not None and not isinstance(optimizer, keras.optimizers.Optimizer):
        raise HoldError(
            f"optimizer= is no Keras optimizer\ngot: {type(optimizer).__module__}.{type(optimizer).__qualname__}"
        )
    if isinstance(target, keras.Model) and target.compiled:
        models = [target]
        optimizers = [] if target.optimizer is None else [target.optimizer]
    else:
        models, optimizers = _find_trainers({id(variable) for variable in variables})
        if isinstance(target, keras.Model):
            models.insert(0, target)  # it may be compiled later
    if optimizer is not None and not any(known is optimizer for known in optimizers):
        optimizers.append(optimizer)
    return Trainers(tuple(models), tuple(optimizers))


def ids_of_trained(optimizer: Any) -> frozenset[int]:
    """Return the ids of the variables that a built optimizer updates."""
    return frozenset(map(id, optimizer._trainable_variables))


def refuse_parts(parameters: Iterable[Parameter], what: str) -> None:
    """Raise HoldError for parameters of which this process has a part, and a compiled step all."""
    problems = Problems(f"{what}, and nothing was changed")
    for p in parameters:
        reason = p.storage.step_refusal(p.handle) if isinstance(p.storage, KerasStorage) else None
        if reason is not None:
            text, _, fix = reason.partition("\nFix: ")
            problems.add(HoldError, f"{p.name!r}: {text}", fix=fix)
    problems.check()


def innermost(optimizer: Any) -> Any:
    """Return the optimizer that does the updates: the one inside loss scaling."""
    while isinstance(getattr(optimizer, "inner_optimizer", None), keras.optimizers.Optimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def iterations_of(optimizer: Any) -> int:
    """Return how many updates an optimizer has made; gradients that were only collected don't count."""
    if optimizer is None or not optimizer.built:
        return 0
    return int(keras.ops.convert_to_numpy(innermost(optimizer).iterations))


def _find_trainers(variables: set[int]) -> tuple[list[Any], list[Any]]:
    kinds: dict[type, bool] = {}
    models, optimizers, inner = [], [], set()
    for item in gc.get_objects():
        kind = type(item)
        if kind not in kinds:
            kinds[kind] = issubclass(kind, (keras.Model, keras.optimizers.Optimizer))
        if not kinds[kind]:
            continue
        if isinstance(item, keras.Model):
            if getattr(item, "compiled", False) and any(id(v) in variables for v in item.variables):
                models.append(item)
                if item.optimizer is not None:
                    optimizers.append(item.optimizer)
        elif getattr(item, "built", False) and any(id(v) in variables for v in item._trainable_variables):
            optimizers.append(item)
    for optimizer in optimizers:
        if innermost(optimizer) is not optimizer:
            inner.add(id(innermost(optimizer)))
    unique = {id(optimizer): optimizer for optimizer in optimizers if id(optimizer) not in inner}
    return models, list(unique.values())
