"""Parameters that a module computes from others: parametrizations, weight_norm, spectral_norm, pruning masks.

Each is one parameter under its plain name. It reads as the value that the module computes with in eval mode (in
training mode a mere look at a spectral norm would change its buffers). It is written through ``right_inverse``: what
the module computes from afterwards has to be the value again, up to rounding (64 units in the last place of the largest
entry); otherwise everything is put back and WriteError says so.
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
from xweights.errors import WriteError
from xweights_torch.checks import reason
from xweights_torch.dtypes import from_host, host_view
from xweights_torch.storage import Kept, bring_back, keep

Hook = WeightNorm | SpectralNorm | BasePruningMethod
Backup = list[tuple[dict[str, torch.Tensor | None], str, torch.Tensor, Kept]]

# How far a value may come back from where it was written, in units in the last place of the largest entry.
_SLACK = 64

# The shape that a parametrization computes is known only by computing; once for each state of its inputs' shapes.
_known: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, torch.Size, torch.dtype]] = weakref.WeakKeyDictionary()


class Computed:
    """A parameter of ``module`` that is computed from others: the handle of a Parameter."""

    __slots__ = ("how", "module", "name")

    def __init__(self, module: nn.Module, name: str, how: parametrize.ParametrizationList | Hook) -> None:
        self.module = module
        self.name = name
        self.how = how

    @property
    def places(self) -> list[tuple[dict[str, torch.Tensor | None], str, torch.Tensor]]:
        """Every tensor that its value depends on, after the registry and the name it is kept under."""
        if isinstance(self.how, parametrize.ParametrizationList):
            tables: Any = [table for one in self.how.modules() for table in (one._parameters, one._buffers)]
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
        """Every tensor that its value depends on."""
        return [tensor for _, _, tensor in self.places]

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that it is computed from."""
        return [one for one in self.inputs if isinstance(one, nn.Parameter)]

    def value(self) -> torch.Tensor:
        """Return what the module computes, in eval mode; a tensor of its own."""
        how = self.how
        with torch.no_grad():
            if isinstance(how, parametrize.ParametrizationList):
                with _looking(how):
                    return _own(how())
            if isinstance(how, WeightNorm):
                return _own(how.compute_weight(self.module))
            if isinstance(how, SpectralNorm):
                return _own(how.compute_weight(self.module, do_power_iteration=False))
            return _own(how.apply_mask(self.module))  # type: ignore[no-untyped-call]

    def differentiable(self) -> torch.Tensor:
        """Return what the module computes, in eval mode, through which gradients reach what it is computed from."""
        how: Any = self.how
        made: torch.Tensor
        if isinstance(how, parametrize.ParametrizationList):
            with _looking(how):
                made = how()
        elif isinstance(how, SpectralNorm):
            made = how.compute_weight(self.module, do_power_iteration=False)
        else:
            made = how.compute_weight(self.module) if isinstance(how, WeightNorm) else how.apply_mask(self.module)
        return made

    def form(self) -> tuple[torch.Size, torch.dtype]:
        """Return the shape and the dtype of the value."""
        inputs = self.inputs
        if not isinstance(self.how, parametrize.ParametrizationList):
            main = getattr(self.module, self.name + ("_v" if isinstance(self.how, WeightNorm) else "_orig"))
            return main.shape, main.dtype
        state = (*((one.shape, one.dtype, one.device) for one in inputs), *(id(one) for one in self.how))
        if self.how not in _known or _known[self.how][0] != state:
            value = self.value()
            _known[self.how] = (state, value.shape, value.dtype)
        return _known[self.how][1:]

    def why_not(self) -> str | None:
        """Return why it can't be written, and the way out; None if it can be tried."""
        how = self.how
        if isinstance(how, BasePruningMethod):
            return (
                f"torch.nn.utils.prune computes it from {self.name}_orig and {self.name}_mask\n"
                f"Fix: torch.nn.utils.prune.remove(module, {self.name!r}), and xweights.prune(..., hold=True) instead"
            )
        if isinstance(how, SpectralNorm):
            return (
                f"torch.nn.utils.spectral_norm divides {self.name}_orig by its largest singular value\n"
                f"Fix: torch.nn.utils.remove_spectral_norm(module, {self.name!r}) first"
            )
        if isinstance(how, parametrize.ParametrizationList):
            one_way = [type(one).__name__ for one in how if not hasattr(one, "right_inverse")]
            if one_way:
                return (
                    f"it is parametrized by {', '.join(one_way)}, without a right_inverse: nothing says what to store\n"
                    f"Fix: give it one, or parametrize.remove_parametrizations(module, {self.name!r}) first"
                )
        return None

    def write(self, value: torch.Tensor) -> None:
        """Store what the module computes ``value`` from, in place; verify, or put everything back and raise."""
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
        """Return what :meth:`restore` needs."""
        return [(table, key, tensor, keep(tensor)) for table, key, tensor in self.places]

    def restore(self, kept: Backup) -> None:
        """Bring back every tensor it is computed from, and each to its place: an inverse may put others there."""
        for table, key, tensor, former in kept:
            bring_back(tensor, former)
            table[key] = tensor
        self.refresh()

    def _store(self, value: torch.Tensor) -> None:
        how = self.how
        if isinstance(how, WeightNorm):
            _fill(getattr(self.module, self.name + "_g"), torch.norm_except_dim(value, 2, how.dim), self.name)
            _fill(getattr(self.module, self.name + "_v"), value, self.name)
            return
        assert isinstance(how, parametrize.ParametrizationList)
        # As module.weight = value would, but copied into the originals: torch gives them new memory.
        stored: Any = value
        for one in reversed(how):
            try:
                stored = one.right_inverse(stored)  # type: ignore[operator]
            except NotImplementedError as cause:
                raise WriteError(
                    f"{type(one).__name__} can't be inverted as it is set up: {cause}\n"
                    f"Fix: torch.nn.utils.parametrize.remove_parametrizations(module, {self.name!r}) first"
                ) from cause
        if how.is_tensor:
            _fill(how.original, stored, self.name)
        else:
            for position, part in enumerate(stored):
                _fill(getattr(how, f"original{position}"), part, self.name)

    def _verify(self, value: torch.Tensor) -> None:
        wanted, got = value.to(torch.float64), self.value().to(torch.float64)
        finite = wanted[wanted.isfinite()].abs()
        slack = _SLACK * torch.finfo(value.dtype).eps * float(finite.max()) if finite.numel() else 0.0
        if not torch.allclose(got, wanted, rtol=0.0, atol=slack, equal_nan=True):
            raise WriteError(
                f"{type(self.module).__name__}.{self.name} can't take this value: what is computed again differs\n"
                f"largest difference: {float((got - wanted).abs().max()):.3g} (rounding would be {slack:.3g})\n"
                f"computed by:        {self.maker}\n"
                "Fix: write values that it can represent, or remove the parametrization first"
            )

    @property
    def maker(self) -> str:
        """Names of what computes it."""
        parts = self.how if isinstance(self.how, parametrize.ParametrizationList) else [self.how]
        return ", ".join(type(one).__name__ for one in parts)

    def refresh(self) -> None:
        """Bring the copy up to date that the old hooks keep beside their inputs until the next forward."""
        if not isinstance(self.how, parametrize.ParametrizationList):
            former = self.module.__dict__.get(self.name)
            if isinstance(former, torch.Tensor):
                object.__setattr__(self.module, self.name, self.value())


def _own(value: torch.Tensor) -> torch.Tensor:
    return value.detach().clone()


def _fill(tensor: torch.Tensor, value: torch.Tensor, name: str) -> None:
    if tensor.shape != value.shape:
        raise WriteError(
            f"right_inverse gave another shape for {name!r}\n"
            f"got:      {tuple(value.shape)}\nexpected: {tuple(tensor.shape)}"
        )
    tensor.copy_(value)


@contextmanager
def _looking(how: nn.Module) -> Iterator[None]:
    modes = [(one, one.training) for one in how.modules()]
    try:
        for one, _ in modes:
            one.training = False
        yield
    finally:
        for one, mode in modes:
            one.training = mode


def computed_in(module: nn.Module) -> list[Computed]:
    """Return the computed parameters of a module, without those of its children."""
    found = []
    if parametrize.is_parametrized(module):
        lists: Any = module.parametrizations
        found += [Computed(module, name, how) for name, how in lists.items()]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            found.append(Computed(module, hook.name, hook))
        elif isinstance(hook, BasePruningMethod):
            found.append(Computed(module, hook._tensor_name, hook))
    return found


class ComputedStorage:
    """Reads and writes :class:`Computed` handles."""

    fallible = True

    def identity(self, handle: Computed) -> Hashable:
        return id(handle.how)

    def refusal(self, handle: Computed, *, writing: bool) -> str | None:
        for one in handle.inputs:
            why = reason(one, writing=writing)
            if why is not None:
                return why
        if not writing:
            return None
        if torch.compiler.is_compiling():
            return "it is computed, and a compiled step can't verify what it stores\nFix: call the verb in eager code"
        return handle.why_not()

    def read(self, handle: Computed) -> Array:
        return host_view(handle.value())

    def write(self, handle: Computed, value: Array) -> None:
        handle.write(from_host(np.array(value)).to(handle.inputs[0].device))

    def native_array(self, handle: Computed, *, tensor: bool = False) -> Any:
        return handle.value()

    def tracked(self, handle: Computed) -> torch.Tensor:
        return handle.differentiable()

    def commit(self, handle: Computed, native: Any, value: Any) -> None:
        if torch.compiler.is_compiling():
            raise WriteError(
                "a computed parameter can't be written from a compiled step: what it stores can't be verified"
            )
        handle.write(value if isinstance(value, torch.Tensor) else from_host(np.array(value)))

    def guard(self) -> AbstractContextManager[Any]:
        return torch.no_grad()

    def backup(self, handle: Computed) -> Any:
        return handle.backup()

    def restore(self, handle: Computed, kept: Backup) -> None:
        handle.restore(kept)
        if not any(one.how is handle.how for one in computed_in(handle.module)):
            raise WriteError(
                f"{type(handle.module).__name__}.{handle.name} isn't computed by {handle.maker} any more: what it was\n"
                "computed from was put back, but the parameter that took its place is still there\n"
                "Fix: parametrize the module again"
            )

    def trainable(self, handle: Computed) -> bool:
        return any(one.requires_grad for one in handle.trained)

    def set_trainable(self, handle: Computed, flag: bool) -> None:
        for one in handle.trained:
            one.requires_grad_(flag)


COMPUTED = ComputedStorage()
