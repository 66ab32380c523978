"""Which models and optimizers of Keras train a variable.

A layer doesn't know the models that it is a part of, so what is changed about a layer of a fitted model would miss
the model's compiled step (measured: without a word). The garbage collector knows every object there is; asking it
takes about 0.2 s with 600,000 objects, so it is asked only where the target doesn't say it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras

from xweights.errors import HoldError


@dataclass(frozen=True)
class Trainers:
    """The models that a variable is trained in, and the optimizers that do it."""

    models: tuple[Any, ...]
    optimizers: tuple[Any, ...]

    def make_anew(self) -> None:
        """Have the compiled models trace their train functions again. (compile() would lose the optimizer's state.)"""
        for model in self.models:
            if getattr(model, "train_function", None) is not None:
                model.make_train_function(force=True)


def owning_models(target: Any, variables: Iterable[Any], optimizer: Any = None) -> Trainers:
    """Return what trains these variables; ``optimizer`` is one that the caller named."""
    if optimizer is not None and not isinstance(optimizer, keras.optimizers.Optimizer):
        raise HoldError(
            f"optimizer= is no Keras optimizer\ngot: {type(optimizer).__module__}.{type(optimizer).__qualname__}"
        )
    if isinstance(target, keras.Model) and target.compiled:
        models = [target]
        optimizers = [] if target.optimizer is None else [target.optimizer]
    else:
        models, optimizers = _searched({id(one) for one in variables})
        if isinstance(target, keras.Model):
            models.insert(0, target)  # it may be compiled later
    if optimizer is not None and not any(one is optimizer for one in optimizers):
        optimizers.append(optimizer)
    return Trainers(tuple(models), tuple(optimizers))


def owns(optimizer: Any, variable: Any) -> bool:
    """Return whether an optimizer that was built updates a variable."""
    return any(one is variable for one in optimizer._trainable_variables)


def innermost(optimizer: Any) -> Any:
    """Return the optimizer that updates: the one inside of loss scaling."""
    while isinstance(getattr(optimizer, "inner_optimizer", None), keras.optimizers.Optimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def iterations_of(optimizer: Any) -> int:
    """Return how many updates an optimizer has made; gradients that were only collected are not counted."""
    if optimizer is None or not optimizer.built:
        return 0
    return int(keras.ops.convert_to_numpy(innermost(optimizer).iterations))


def _searched(variables: set[int]) -> tuple[list[Any], list[Any]]:
    kinds: dict[type, bool] = {}
    models, optimizers, inner = [], [], set()
    for one in gc.get_objects():
        kind = type(one)
        if kind not in kinds:
            kinds[kind] = issubclass(kind, (keras.Model, keras.optimizers.Optimizer))
        if not kinds[kind]:
            continue
        if isinstance(one, keras.Model):
            if getattr(one, "compiled", False) and any(id(v) in variables for v in one.variables):
                models.append(one)
                if one.optimizer is not None:
                    optimizers.append(one.optimizer)
        elif getattr(one, "built", False) and any(id(v) in variables for v in one._trainable_variables):
            optimizers.append(one)
    for one in optimizers:
        if innermost(one) is not one:
            inner.add(id(innermost(one)))
    unique = {id(one): one for one in optimizers if id(one) not in inner}
    return models, list(unique.values())
