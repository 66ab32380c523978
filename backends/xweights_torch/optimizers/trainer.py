"""PyTorch in a hand-off: training steps for its proof, copies of modules, and other frameworks' batch statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from xweights.errors import HandoffError, PortError
from xweights.optimizers.protocol import Step, Training
from xweights_torch.optimizers.read import read_state
from xweights_torch.optimizers.saved import groups_of, read_saved, trained_order
from xweights_torch.optimizers.write import backup, plan_route, write_state
from xweights_torch.porting.port import unwrap_module

LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "crossentropy": nn.functional.cross_entropy,
    "mse": nn.functional.mse_loss,
}


class TorchOptimizing:
    """Optimizer support of PyTorch (``xweights.optimizers.protocol.Optimizing``)."""

    name = "torch"
    read = staticmethod(read_state)
    read_saved = staticmethod(read_saved)
    trained_order = staticmethod(trained_order)
    groups_of = staticmethod(groups_of)
    plan = staticmethod(plan_route)
    write = staticmethod(write_state)
    backup = staticmethod(backup)

    def collects_unbiased(self, layers: Sequence[Any]) -> bool:
        return not any(getattr(layer, _BIASED_MARK, False) for layer in layers)

    def set_statistics(self, model: Any, layers: Sequence[Any], *, unbiased: bool) -> Callable[[], None]:
        if unbiased:
            for layer in layers:
                _release(layer)
            return lambda: None
        changed = [layer for layer in layers if not getattr(layer, _BIASED_MARK, False)]
        for layer in changed:
            _hooks[layer] = _collect_biased(layer)
            setattr(layer, _BIASED_MARK, True)

        def release() -> None:
            for layer in changed:
                _release(layer)

        return release

    def drops(self, layer: Any) -> bool:
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            return layer.p > 0
        rate = getattr(layer, "dropout", 0.0)  # a number in attention; recurrent layers drop between their layers
        return isinstance(rate, float) and rate > 0 and getattr(layer, "num_layers", 2) > 1

    def copy(self, model: Any, dtype: np.dtype[Any] | None) -> Any:
        try:
            module = copy.deepcopy(unwrap_module(model))
        except Exception as error:
            raise PortError(f"this module can't be copied: {type(error).__name__}: {error}") from error
        return module if dtype is None else module.to(getattr(torch, dtype.name))

    def compute_dtype(self, dtype: str) -> str:
        return dtype

    def make_trainer(self, side: Training, loss: Any, *, compiled: bool) -> Step:
        function = LOSSES.get(loss, loss) if isinstance(loss, str) else loss
        if not callable(function):
            raise HandoffError(f"there is no such loss\ngot: {loss!r}\nexpected: {', '.join(LOSSES)} or a function")
        model, optimizer = side.model, side.optimizer
        called = torch.compile(model, backend="aot_eager") if compiled else model
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        model.train()
        state = {"done": side.micro_done}

        def step(inputs: Any, expected: Any) -> float:
            value = function(called(_tensor(inputs, dtype)), _tensor(expected, dtype))
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
    tensor = torch.from_numpy(np.array(array))
    if tensor.is_floating_point():
        return tensor.to(dtype)
    return tensor.long()


# Set on a batch normalization that collects the biased variance; a copy has the hooks and the mark too.
_BIASED_MARK = "_collects_biased_variance"
_hooks: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()


def _release(layer: nn.Module) -> None:
    for handle in _hooks.pop(layer, ()):
        handle.remove()
    if getattr(layer, _BIASED_MARK, False):
        delattr(layer, _BIASED_MARK)


def _collect_biased(layer: Any) -> list[Any]:
    """Make a batch normalization collect the biased variance, as other frameworks do."""
    old_variance: list[torch.Tensor] = []

    def before(module: Any, args: Any) -> None:
        old_variance.clear()
        if module.training and module.track_running_stats and module.running_var is not None:
            old_variance.append(module.running_var.clone())

    def after(module: Any, args: Any, output: Any) -> None:
        if old_variance:
            old = old_variance.pop()
            count = args[0].numel() // args[0].shape[1]
            kept_share = 1.0 - module.momentum
            # Through .data: autograd has saved the statistics, though its backward doesn't use them in training.
            collected = module.running_var.data - old * kept_share
            module.running_var.data.copy_(old * kept_share + collected * ((count - 1) / count))

    return [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
