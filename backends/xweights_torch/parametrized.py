"""Parameters that a module computes from others: parametrizations, weight_norm, spectral_norm, pruning masks.

Each is one parameter under its plain name. Reading returns the value that the module uses in eval mode (in training
mode merely reading a spectral norm would change its buffers). Writing goes through ``right_inverse``: the value that
the module computes afterwards has to equal the written one up to rounding (64 units in the last place of the largest
entry); otherwise everything is restored and WriteError is raised.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from xweights.core.dtypes import Array
from xweights.core.protocols import BaseStorage
from xweights.errors import WriteError
from xweights_torch.checks import refusal_reason
from xweights_torch.dtypes import from_host, host_view
from xweights_torch.storage import TensorBackup, back_up, restore_tensor

Hook = WeightNorm | SpectralNorm | BasePruningMethod
Backup = list[tuple[dict[str, torch.Tensor | None], str, torch.Tensor, TensorBackup]]

# How much the recomputed value may differ from the written one, in units in the last place of the largest entry.
_SLACK = 64

# The shape of a parametrization's value is known only by computing it: once for each state of its inputs' shapes.
_known: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, torch.Size, torch.dtype]] = weakref.WeakKeyDictionary()


class ComputedParameter:
    """A parameter of ``module`` that is computed from others: the handle of a Parameter."""

    __slots__ = ("module", "name", "parametrization")

    def __init__(self, module: nn.Module, name: str, parametrization: parametrize.ParametrizationList | Hook) -> None:
        self.module = module
        self.name = name
        self.parametrization = parametrization

    @property
    def places(self) -> list[tuple[dict[str, torch.Tensor | None], str, torch.Tensor]]:
        """Return (registry, key, tensor) for every tensor that its value depends on."""
        if isinstance(self.parametrization, parametrize.ParametrizationList):
            tables: Any = [
                table for module in self.parametrization.modules() for table in (module._parameters, module._buffers)
            ]
            names = None
        else:
            tables = [self.module._parameters, self.module._buffers]
            names = {self.name + end for end in ("_g", "_v", "_orig", "_mask", "_u")}
        return [
            (table, key, tensor)
            for table in tables
            for key, tensor in table.items()
            if tensor is not None and (names is None or key in names)
        ]

    @property
    def inputs(self) -> list[torch.Tensor]:
        """Return every tensor that its value depends on."""
        return [tensor for _, _, tensor in self.places]

    @property
    def input_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that it is computed from."""
        return [tensor for tensor in self.inputs if isinstance(tensor, nn.Parameter)]

    def value(self) -> torch.Tensor:
        """Return the value of eval mode, as a new tensor."""
        parametrization = self.parametrization
        with torch.no_grad():
            if isinstance(parametrization, parametrize.ParametrizationList):
                with _eval_mode(parametrization):
                    return _detach_copy(parametrization())
            if isinstance(parametrization, WeightNorm):
                return _detach_copy(parametrization.compute_weight(self.module))
            if isinstance(parametrization, SpectralNorm):
                return _detach_copy(parametrization.compute_weight(self.module, do_power_iteration=False))
            return _detach_copy(parametrization.apply_mask(self.module))  # type: ignore[no-untyped-call] # PyTorch's

    def differentiable(self) -> torch.Tensor:
        """Return the value of eval mode, through which gradients reach the inputs."""
        parametrization: Any = self.parametrization
        value: torch.Tensor
        if isinstance(parametrization, parametrize.ParametrizationList):
            with _eval_mode(parametrization):
                value = parametrization()
        elif isinstance(parametrization, SpectralNorm):
            value = parametrization.compute_weight(self.module, do_power_iteration=False)
        else:
            value = (
                parametrization.compute_weight(self.module)
                if isinstance(parametrization, WeightNorm)
                else parametrization.apply_mask(self.module)
            )
        return value

    def shape_and_dtype(self) -> tuple[torch.Size, torch.dtype]:
        """Return the shape and the dtype of the value."""
        inputs = self.inputs
        if not isinstance(self.parametrization, parametrize.ParametrizationList):
            main = getattr(self.module, self.name + ("_v" if isinstance(self.parametrization, WeightNorm) else "_orig"))
            return main.shape, main.dtype
        state = (*((x.shape, x.dtype, x.device) for x in inputs), *(id(module) for module in self.parametrization))
        if self.parametrization not in _known or _known[self.parametrization][0] != state:
            value = self.value()
            _known[self.parametrization] = (state, value.shape, value.dtype)
        return _known[self.parametrization][1:]

    def write_refusal(self) -> str | None:
        """Return why it can't be written and what to do instead; None if a write can be tried."""
        parametrization = self.parametrization
        if isinstance(parametrization, BasePruningMethod):
            return (
                f"torch.nn.utils.prune computes it from {self.name}_orig and {self.name}_mask\n"
                f"Fix: torch.nn.utils.prune.remove(module, {self.name!r}), and xweights.prune(..., hold=True) instead"
            )
        if isinstance(parametrization, SpectralNorm):
            return (
                f"torch.nn.utils.spectral_norm divides {self.name}_orig by its largest singular value\n"
                f"Fix: torch.nn.utils.remove_spectral_norm(module, {self.name!r}) first"
            )
        if isinstance(parametrization, parametrize.ParametrizationList):
            one_way = [type(module).__name__ for module in parametrization if not hasattr(module, "right_inverse")]
            if one_way:
                return (
                    f"it is parametrized by {', '.join(one_way)}, without a right_inverse: nothing says what to store\n"
                    f"Fix: give it one, or parametrize.remove_parametrizations(module, {self.name!r}) first"
                )
        return None

    def write(self, value: torch.Tensor) -> None:
        """Store the inputs that give ``value``, in place; verify, or restore everything and raise."""
        kept = self.backup()
        try:
            with torch.no_grad():
                self._store(value)
            self._verify(value)
        except BaseException:
            self.restore(kept)
            raise
        self.refresh()

    def backup(self) -> Backup:
        """Return the backup that :meth:`restore` takes."""
        return [(table, key, tensor, back_up(tensor)) for table, key, tensor in self.places]

    def restore(self, kept: Backup) -> None:
        """Restore every input, and each to its place: an inverse may put others there."""
        for table, key, tensor, tensor_backup in kept:
            restore_tensor(tensor, tensor_backup)
            table[key] = tensor
        self.refresh()

    def _store(self, value: torch.Tensor) -> None:
        parametrization = self.parametrization
        if isinstance(parametrization, WeightNorm):
            _copy_checked(
                getattr(self.module, self.name + "_g"), torch.norm_except_dim(value, 2, parametrization.dim), self.name
            )
            _copy_checked(getattr(self.module, self.name + "_v"), value, self.name)
            return
        assert isinstance(parametrization, parametrize.ParametrizationList)
        # Like module.weight = value, but copied into the originals, which torch would give new memory.
        stored: Any = value
        for module in reversed(parametrization):
            try:
                stored = module.right_inverse(stored)  # type: ignore[operator] # a module, or a function
            except NotImplementedError as cause:
                raise WriteError(
                    f"{type(module).__name__} can't be inverted as it is set up: {cause}\n"
                    f"Fix: torch.nn.utils.parametrize.remove_parametrizations(module, {self.name!r}) first"
                ) from cause
        if parametrization.is_tensor:
            _copy_checked(parametrization.original, stored, self.name)
        else:
            for position, part in enumerate(stored):
                _copy_checked(getattr(parametrization, f"original{position}"), part, self.name)

    def _verify(self, value: torch.Tensor) -> None:
        expected, got = value.to(torch.float64), self.value().to(torch.float64)
        finite = expected[expected.isfinite()].abs()
        tolerance = _SLACK * torch.finfo(value.dtype).eps * float(finite.max()) if finite.numel() else 0.0
        if not torch.allclose(got, expected, rtol=0.0, atol=tolerance, equal_nan=True):
            raise WriteError(
                f"{type(self.module).__name__}.{self.name} can't take this value: what is computed again differs\n"
                f"largest difference: {float((got - expected).abs().max()):.3g} (rounding would be {tolerance:.3g})\n"
                f"computed by:        {self.computed_by}\n"
                "Fix: write values that it can represent, or remove the parametrization first"
            )

    @property
    def computed_by(self) -> str:
        """Return the class names of the parametrizations or the hook."""
        parts = (
            self.parametrization
            if isinstance(self.parametrization, parametrize.ParametrizationList)
            else [self.parametrization]
        )
        return ", ".join(type(part).__name__ for part in parts)

    def refresh(self) -> None:
        """Update the copy that the old hooks keep next to their inputs until the next forward."""
        if not isinstance(self.parametrization, parametrize.ParametrizationList):
            cached = self.module.__dict__.get(self.name)
            if isinstance(cached, torch.Tensor):
                object.__setattr__(self.module, self.name, self.value())


def _detach_copy(value: torch.Tensor) -> torch.Tensor:
    return value.detach().clone()


def _copy_checked(tensor: torch.Tensor, value: torch.Tensor, name: str) -> None:
    if tensor.shape != value.shape:
        raise WriteError(
            f"right_inverse gave another shape for {name!r}\n"
            f"got:      {tuple(value.shape)}\nexpected: {tuple(tensor.shape)}"
        )
    tensor.copy_(value)


@contextmanager
def _eval_mode(root: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in root.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def find_computed(module: nn.Module) -> list[ComputedParameter]:
    """Return the computed parameters of a module, without those of its children."""
    computed = []
    if parametrize.is_parametrized(module):
        lists: Any = module.parametrizations
        computed += [ComputedParameter(module, name, parametrization) for name, parametrization in lists.items()]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            computed.append(ComputedParameter(module, hook.name, hook))
        elif isinstance(hook, BasePruningMethod):
            computed.append(ComputedParameter(module, hook._tensor_name, hook))
    return computed


class ComputedStorage(BaseStorage):
    """Storage of :class:`ComputedParameter` handles."""

    fallible = True

    def identity(self, handle: ComputedParameter) -> Hashable:
        return id(handle.parametrization)

    def refusal(self, handle: ComputedParameter, *, writing: bool) -> str | None:
        for tensor in handle.inputs:
            why = refusal_reason(tensor, writing=writing)
            if why is not None:
                return why
        if not writing:
            return None
        if torch.compiler.is_compiling():
            return "it is computed, and a compiled step can't verify what it stores\nFix: call the verb in eager code"
        return handle.write_refusal()

    def read(self, handle: ComputedParameter) -> Array:
        return host_view(handle.value())

    def write(self, handle: ComputedParameter, value: Array) -> None:
        handle.write(from_host(np.array(value)).to(handle.inputs[0].device))

    def native_array(self, handle: ComputedParameter, *, tensor: bool = False) -> Any:
        return handle.value()

    def tracked(self, handle: ComputedParameter) -> torch.Tensor:
        return handle.differentiable()

    def commit(self, handle: ComputedParameter, native: Any, value: Any) -> None:
        if torch.compiler.is_compiling():
            raise WriteError(
                "a computed parameter can't be written from a compiled step: what it stores can't be verified"
            )
        handle.write(value if isinstance(value, torch.Tensor) else from_host(np.array(value)))

    def guard(self) -> AbstractContextManager[Any]:
        return torch.no_grad()

    def backup(self, handle: ComputedParameter) -> Any:
        return handle.backup()

    def restore(self, handle: ComputedParameter, kept: Backup) -> None:
        handle.restore(kept)
        if not any(c.parametrization is handle.parametrization for c in find_computed(handle.module)):
            raise WriteError(
                f"{type(handle.module).__name__}.{handle.name} isn't computed by {handle.computed_by} any more: what "
                "it was\ncomputed from was put back, but the parameter that took its place is still there\n"
                "Fix: parametrize the module again"
            )

    def trainable(self, handle: ComputedParameter) -> bool:
        return any(parameter.requires_grad for parameter in handle.input_parameters)

    def set_trainable(self, handle: ComputedParameter, flag: bool) -> None:
        for parameter in handle.input_parameters:
            parameter.requires_grad_(flag)


COMPUTED = ComputedStorage()
