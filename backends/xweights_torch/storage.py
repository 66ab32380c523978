"""The one place that reads and writes torch tensors.

How a write happens: into the memory the tensor has, under no_grad, never by ``.data =``. The object, its memory, dtype,
device and requires_grad stay, so optimizers, tied parameters and views keep seeing the same tensor; and its version
counter goes up, so that a backward pass that needed the old values raises instead of using the new ones.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from xweights.core.blocks import copy_into
from xweights.core.dtypes import Array
from xweights.errors import WriteError
from xweights_torch.checks import reason
from xweights_torch.dtypes import BITS, QUICK, from_host, host_view, is_lazy_view, plain_bits

Table = Literal["parameter", "buffer"]

# Below this many bytes NumPy's plain copy is the quickest, whatever the strides. Above, torch's copy uses all cores
# (with one it takes twice NumPy's time); and for a transposed source tiles are 2-4 times as quick as NumPy, as quick as
# torch on two cores.
_LARGE = 1 << 22


class Slot:
    """A tensor, and every place where a module keeps it: the handle of a Parameter.

    The places are for undo: a user's ``module.weight = nn.Parameter(...)`` leaves the tensor as it was and takes it out
    of its place. ``twins`` are the further places of a tied one.
    """

    __slots__ = ("key", "owner", "table", "tensor", "twins")

    def __init__(self, tensor: torch.Tensor, owner: nn.Module, table: Table, key: str) -> None:
        self.tensor = tensor
        self.owner = owner
        self.table = table
        self.key = key
        self.twins: tuple[Slot, ...] = ()

    @property
    def places(self) -> tuple[Slot, ...]:
        """This place and all others of the same array."""
        return (self, *self.twins)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensor; several objects only where parameters are tied by their memory."""
        return list({id(one.tensor): one.tensor for one in self.places}.values())

    @property
    def in_place(self) -> bool:
        """Whether the tensor still stands in its place in the module."""
        kept: Any = self.owner._parameters if self.table == "parameter" else self.owner._buffers
        return kept.get(self.key) is self.tensor

    def put_back(self) -> None:
        """Put the tensor back into its place in the module."""
        owner, key, tensor = self.owner, self.key, self.tensor
        kept: Any = owner._parameters if self.table == "parameter" else owner._buffers
        if kept.get(key) is tensor:
            return
        if parametrize.is_parametrized(owner, key) or key in owner.__dict__:
            raise WriteError(
                f"{type(owner).__name__}.{key} is computed from other parameters now: its values were put back, but\n"
                "the parametrization that was added meanwhile is still there\n"
                f"Fix: remove it: torch.nn.utils.parametrize.remove_parametrizations(module, {key!r})"
            )
        if isinstance(tensor, nn.Parameter):
            # By the module's own door, because some modules keep further lists of their parameters.
            setattr(owner, key, tensor)
        else:
            kept[key] = tensor


def identity(tensor: torch.Tensor) -> Hashable:
    """Return a key that two tensors share if they are one array: the same entries in the same memory."""
    address = address_of(tensor)
    return (address, tensor.shape, tensor.stride(), tensor.dtype) if address else id(tensor)


def address_of(tensor: torch.Tensor) -> int:
    """Return where the values lie, or 0 for a tensor that has no memory of its own."""
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return 0
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


@dataclass(slots=True)
class Kept:
    """What brings one tensor back: a copy of its bits, and the memory they were in."""

    memory: torch.Tensor
    bits: torch.Tensor
    requires_grad: bool


def keep(tensor: torch.Tensor) -> Kept:
    """Return what :func:`bring_back` needs."""
    memory = tensor.detach()
    return Kept(memory, _entries(memory).clone(), tensor.requires_grad)


def bring_back(tensor: torch.Tensor, kept: Kept) -> None:
    """Put the kept bits back into the kept memory, and that memory back into the tensor if it has another by now."""
    with torch.no_grad():
        _entries(kept.memory).copy_(kept.bits)
    if not _same_memory(tensor, kept.memory):
        # The user swapped the memory (p.data = x, module.to(...)). To copy into the new one would write into x.
        tensor.data = kept.memory
        bump(tensor)
    if tensor.requires_grad != kept.requires_grad:
        tensor.requires_grad_(kept.requires_grad)


def _entries(tensor: torch.Tensor) -> torch.Tensor:
    # One of each: torch refuses to write to an expanded tensor. As integers, so that no NaN loses its payload.
    if 0 in tensor.stride() and tensor.numel():
        tensor = tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())]
    return tensor if tensor.is_complex() or tensor.dtype not in BITS_OF else tensor.view(BITS[tensor.itemsize])


BITS_OF = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
        and one.device == other.device
    )


def bump(tensor: torch.Tensor) -> None:
    """Tell autograd that the values changed behind its back."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def write_tensor(tensor: torch.Tensor, value: Array) -> None:
    """Copy host values in, by the quickest way that keeps every bit."""
    if not tensor.is_cpu or is_lazy_view(tensor):
        with torch.no_grad():
            tensor.copy_(from_host(value))
        return
    view = host_view(tensor)
    if view.shape != value.shape or view.dtype != value.dtype:
        raise WriteError(f"got:      {value.dtype} {value.shape}\nexpected: {view.dtype} {view.shape}")
    view, value = plain_bits(view), plain_bits(value)
    if value.nbytes < _LARGE:
        # NumPy minds a source that lies in the same memory, torch doesn't.
        np.copyto(view, value, casting="no")
    elif np.may_share_memory(view, value):
        np.copyto(view, value.copy(), casting="no")
    elif view.strides == value.strides and torch.get_num_threads() > 1:
        torch.from_numpy(view).copy_(from_host(value))
    else:
        copy_into(view, value)
    bump(tensor)


class TensorStorage:
    """Dense tensors of any device. A handle is a :class:`Slot`, or a bare tensor (then nobody can replace it)."""

    def __init__(self, *, fallible: bool) -> None:
        self.fallible = fallible

    def identity(self, handle: Slot | torch.Tensor) -> Hashable:
        """Return a key that two handles share if they are one array."""
        return identity(tensor_of(handle))

    def refusal(self, handle: Slot | torch.Tensor, *, writing: bool) -> str | None:
        return reason(tensor_of(handle), writing=writing)

    def read(self, handle: Slot | torch.Tensor) -> Array:
        return host_view(tensor_of(handle))

    def write(self, handle: Slot | torch.Tensor, value: Array) -> None:
        write_tensor(tensor_of(handle), value)

    def write_all(self, handles: Sequence[Slot | torch.Tensor], values: Sequence[Array]) -> None:
        """Write many at once: one call of torch for all that lie in the same order, the others one by one."""
        tensors, sources = [], []
        for handle, value in zip(handles, values, strict=True):
            tensor = tensor_of(handle)
            # No source may lie in the memory of any of these tensors: the core copies those first.
            if value.flags.c_contiguous and tensor.is_contiguous() and value.shape == tensor.shape:
                source = from_host(value)
                if source.dtype == tensor.dtype:
                    tensors.append(tensor)
                    sources.append(source)
                    continue
            write_tensor(tensor, value)
        if tensors:
            with torch.no_grad():
                torch._foreach_copy_(tensors, sources)

    def native_array(self, handle: Slot | torch.Tensor, *, tensor: bool = False) -> Any:
        value = tensor_of(handle)
        if not tensor and value.is_cpu and value.dtype in QUICK and not is_lazy_view(value):
            return host_view(value)
        return value.detach()

    def tracked(self, handle: Slot | torch.Tensor) -> torch.Tensor:
        return tensor_of(handle)

    def commit(self, handle: Slot | torch.Tensor, native: Any, value: Any) -> None:
        tensor = tensor_of(handle)
        if isinstance(value, torch.Tensor):
            # In place already: torch has counted it, since a detached tensor shares the counter.
            if value is not native:
                with torch.no_grad():
                    tensor.copy_(value)
        elif value is native:
            bump(tensor)
        else:
            write_tensor(tensor, value)

    def guard(self) -> AbstractContextManager[Any]:
        return torch.no_grad()

    def backup(self, handle: Slot | torch.Tensor) -> Any:
        return [(one, keep(one)) for one in (handle.tensors if isinstance(handle, Slot) else [handle])]

    def restore(self, handle: Slot | torch.Tensor, kept: list[tuple[torch.Tensor, Kept]]) -> None:
        for tensor, one in kept:
            bring_back(tensor, one)
        if isinstance(handle, Slot):
            for place in handle.places:
                place.put_back()

    def trainable(self, handle: Slot | torch.Tensor) -> bool:
        tensor = tensor_of(handle)
        if isinstance(handle, Slot):
            if not handle.twins:
                return handle.table == "parameter" and tensor.requires_grad
            return any(one.table == "parameter" and one.tensor.requires_grad for one in handle.places)
        if isinstance(tensor, nn.Parameter):
            return tensor.requires_grad
        # An array in a mapping: nobody trains it, and it counts as what it would be in a model.
        return tensor.is_floating_point() or tensor.is_complex()

    def set_trainable(self, handle: Slot | torch.Tensor, flag: bool) -> None:
        if flag == self.trainable(handle):
            return
        if isinstance(handle, Slot):
            tensors = [one.tensor for one in handle.places if one.table == "parameter"]
        else:
            tensors = [handle] if isinstance(handle, nn.Parameter) else []
        if not tensors:
            raise WriteError("it is no nn.Parameter: torch trains parameters only, no buffers and no bare tensors")
        if flag and not (tensors[0].is_floating_point() or tensors[0].is_complex()):
            raise WriteError(f"torch can't train {tensors[0].dtype}")
        for tensor in tensors:
            tensor.requires_grad_(flag)


def tensor_of(handle: Slot | torch.Tensor) -> torch.Tensor:
    """Return the tensor behind a handle."""
    return handle if isinstance(handle, torch.Tensor) else handle.tensor


CPU = TensorStorage(fallible=False)
DEVICE = TensorStorage(fallible=True)


class Refused(TensorStorage):
    """Tensors that must not be touched, whatever they look like (shards inside of FSDP)."""

    def __init__(self, why: str) -> None:
        super().__init__(fallible=False)
        self.why = why

    def refusal(self, handle: Slot | torch.Tensor, *, writing: bool) -> str | None:
        return self.why


def storage_of(tensor: torch.Tensor) -> TensorStorage:
    """Return the storage for a tensor: device memory may run out in the middle of a write."""
    return CPU if tensor.is_cpu else DEVICE
