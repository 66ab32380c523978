"""Training steps of PyTorch for proofs, copies of modules, and statistics collected as another framework does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from xweights.core.parameter import Parameter
from xweights.errors import HandoffError, PortError
from xweights.optimizers.protocol import Route, Step, Training, WrittenState
from xweights.optimizers.state import OptimizerState
from xweights_torch.optimizers.read import read_state
from xweights_torch.optimizers.write import backup, plan_route, write_state
from xweights_torch.porting.port import unwrapped

LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "crossentropy": nn.functional.cross_entropy,
    "mse": nn.functional.mse_loss,
}


class TorchOptimizing:
    """What the hand-off needs of PyTorch (``xweights.optimizers.protocol.Optimizing``)."""

    name = "torch"

    def read(self, side: Training, parameters: Sequence[Parameter], step: int | None) -> OptimizerState:
        return read_state(side, parameters, step)

    def plan(self, state: OptimizerState, parameters: Sequence[Parameter], optimizer: Any, grade: str) -> Route:
        return plan_route(state, parameters, optimizer, grade)

    def write(
        self, side: Training, state: OptimizerState, parameters: Sequence[Parameter], route: Route, grade: str
    ) -> WrittenState:
        return write_state(side, state, parameters, route, grade)

    def backup(self, optimizer: Any) -> Callable[[], None]:
        return backup(optimizer)

    def unbiased(self, layers: Sequence[Any]) -> bool:
        return not any(getattr(layer, _MARK, False) for layer in layers)

    def statistics(self, model: Any, layers: Sequence[Any], *, unbiased: bool) -> Callable[[], None]:
        if unbiased:
            for layer in layers:
                _release(layer)
            return lambda: None
        fresh = [layer for layer in layers if not getattr(layer, _MARK, False)]
        for layer in fresh:
            _hooks[layer] = _biased(layer)
            setattr(layer, _MARK, True)

        def release() -> None:
            for layer in fresh:
                _release(layer)

        return release

    def drops(self, layer: Any) -> bool:
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            return layer.p > 0
        rate = getattr(layer, "dropout", 0.0)  # attention has it as a number, and recurrent layers between theirs
        return isinstance(rate, float) and rate > 0 and getattr(layer, "num_layers", 2) > 1

    def copy(self, model: Any, dtype: np.dtype[Any] | None) -> Any:
        try:
            made = copy.deepcopy(unwrapped(model))
        except Exception as wrong:
            raise PortError(f"this module can't be copied: {type(wrong).__name__}: {wrong}") from wrong
        return made if dtype is None else made.to(getattr(torch, dtype.name))

    def computed(self, dtype: str) -> str:
        return dtype

    def trainer(self, side: Training, loss: Any, *, compiled: bool) -> Step:
        function = LOSSES.get(loss, loss) if isinstance(loss, str) else loss
        if not callable(function):
            raise HandoffError(f"there is no such loss\ngot: {loss!r}\nexpected: {', '.join(LOSSES)} or a function")
        model, optimizer = side.model, side.optimizer
        called = torch.compile(model, backend="aot_eager") if compiled else model
        wide = next(p.dtype for p in model.parameters() if p.is_floating_point())
        model.train()
        state = {"done": side.micro_done}

        def step(inputs: Any, wanted: Any) -> float:
            value = function(called(_tensor(inputs, wide)), _tensor(wanted, wide))
            value.backward()
            state["done"] += 1
            if state["done"] >= side.micro_steps:
                optimizer.step()
                optimizer.zero_grad()
                state["done"] = 0
                if side.scheduler is not None:
                    side.scheduler.step()
            return float(value.detach())

        return step


def _tensor(array: Any, dtype: torch.dtype) -> torch.Tensor:
    made = torch.from_numpy(np.array(array))
    if made.is_floating_point():
        return made.to(dtype)
    return made.long()


# Set on a batch normalization that collects the biased variance; a copy of it has the hooks too, and the mark.
_MARK = "_collects_biased_variance"
_hooks: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()


def _release(layer: nn.Module) -> None:
    for handle in _hooks.pop(layer, ()):
        handle.remove()
    if getattr(layer, _MARK, False):
        delattr(layer, _MARK)


def _biased(layer: Any) -> list[Any]:
    """Have a batch normalization collect the biased variance, as others do."""
    kept: list[torch.Tensor] = []

    def before(module: Any, args: Any) -> None:
        kept.clear()
        if module.training and module.running_var is not None:
            kept.append(module.running_var.clone())

    def after(module: Any, args: Any, output: Any) -> None:
        if kept:
            old = kept.pop()
            count = args[0].numel() // args[0].shape[1]
            rest = 1.0 - module.momentum
            # Through .data: autograd has saved the statistics, though in training its backward doesn't use them.
            collected = module.running_var.data - old * rest
            module.running_var.data.copy_(old * rest + collected * ((count - 1) / count))

    return [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
