"""Storage of torch tensors: the only code that reads and writes them.

A write goes into the memory that the tensor has, under no_grad, never by ``.data =``. The object, its memory, dtype,
device and requires_grad stay, so optimizers, tied parameters and views keep seeing the same tensor; and its version
counter goes up, so that a backward pass that needed the old values raises instead of using the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from xweights.core.blocks import copy_into
from xweights.core.dtypes import Array
from xweights.core.numpy_groups import NUMPY_GROUP_OPS
from xweights.core.protocols import BaseStorage
from xweights.errors import WriteError
from xweights_torch.checks import packed_reason, refusal_reason
from xweights_torch.dtypes import BITS, FAST_IN_NUMPY, PLAIN, from_host, host_view, is_lazy_view, plain_bits
from xweights_torch.overlaid import merged_array, overlay_refusal

Table = Literal["parameter", "buffer"]

# Below this many bytes NumPy's plain copy is the fastest, whatever the strides. Above, torch's copy uses all cores
# (with one it takes twice NumPy's time); and for a transposed source tiles are 2-4 times as fast as NumPy, as fast as
# torch on two cores.
_LARGE = 1 << 22


class TensorHandle:
    """A tensor and every place where a module keeps it: the handle of a Parameter.

    Undo needs the places: a user's ``module.weight = nn.Parameter(...)`` leaves the tensor as it was but takes it out
    of the module. ``tied`` holds the other places of a tied parameter, ``wrappers`` what overlays the owner's arrays;
    ``is_part`` is True for the arrays of such an overlay.
    """

    __slots__ = ("is_part", "key", "owner", "table", "tensor", "tied", "wrappers")

    def __init__(self, tensor: torch.Tensor, owner: nn.Module, table: Table, key: str) -> None:
        self.tensor = tensor
        self.owner = owner
        self.table = table
        self.key = key
        self.tied: tuple[TensorHandle, ...] = ()
        self.wrappers: Sequence[nn.Module] = ()
        self.is_part = False

    @property
    def places(self) -> tuple[TensorHandle, ...]:
        """Return this place and all others of the same array."""
        return (self, *self.tied)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Return the tensor objects: several only where parameters are tied by sharing memory."""
        return list({id(handle.tensor): handle.tensor for handle in self.places}.values())

    @property
    def is_registered(self) -> bool:
        """Return whether the module still has this tensor under its key."""
        registry: Any = self.owner._parameters if self.table == "parameter" else self.owner._buffers
        return registry.get(self.key) is self.tensor

    def reregister(self) -> None:
        """Register the tensor in the module again."""
        owner, key, tensor = self.owner, self.key, self.tensor
        registry: Any = owner._parameters if self.table == "parameter" else owner._buffers
        if registry.get(key) is tensor:
            return
        if parametrize.is_parametrized(owner, key) or key in owner.__dict__:
            raise WriteError(
                f"{type(owner).__name__}.{key} is computed from other parameters now: its values were put back, but\n"
                "the parametrization that was added meanwhile is still there\n"
                f"Fix: remove it: torch.nn.utils.parametrize.remove_parametrizations(module, {key!r})"
            )
        if isinstance(tensor, nn.Parameter):
            # Through the module's __setattr__, because some modules keep further lists of their parameters.
            setattr(owner, key, tensor)
        else:
            registry[key] = tensor


def identity(tensor: torch.Tensor) -> Hashable:
    """Return a key that two tensors share if they are one array: the same entries in the same memory."""
    address = address_of(tensor)
    return (address, tensor.shape, tensor.stride(), tensor.dtype) if address else id(tensor)


def address_of(tensor: torch.Tensor) -> int:
    """Return the address of the values, or 0 for a tensor that has no memory of its own."""
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return 0
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


@dataclass(slots=True)
class TensorBackup:
    """A copy of a tensor's bits, and the memory they were in."""

    memory: torch.Tensor
    bits: torch.Tensor
    requires_grad: bool


def back_up(tensor: torch.Tensor) -> TensorBackup:
    """Return the backup that :func:`restore_tensor` takes."""
    memory = tensor.detach()
    return TensorBackup(memory, _entries(memory).clone(), tensor.requires_grad)


def restore_tensor(tensor: torch.Tensor, backup: TensorBackup) -> None:
    """Copy the bits back into their memory, and give the tensor that memory again if it has another by now."""
    with torch.no_grad():
        _entries(backup.memory).copy_(backup.bits)
    if not _same_memory(tensor, backup.memory):
        # The user swapped the memory (p.data = x, module.to(...)). Copying into the new memory would write into x.
        tensor.data = backup.memory
        bump_version(tensor)
    if tensor.requires_grad != backup.requires_grad:
        tensor.requires_grad_(backup.requires_grad)


def _entries(tensor: torch.Tensor) -> torch.Tensor:
    # Each entry once: torch refuses to write to an expanded tensor. As integers, so that no NaN loses its payload.
    if 0 in tensor.stride() and tensor.numel():
        tensor = tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())]
    return tensor if tensor.is_complex() or tensor.dtype not in BITS_OF else tensor.view(BITS[tensor.itemsize])


BITS_OF = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
        and a.device == b.device
    )


def bump_version(tensor: torch.Tensor) -> None:
    """Tell autograd that the values changed without its knowledge."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def write_tensor(tensor: torch.Tensor, value: Array) -> None:
    """Copy host values in, by the fastest way that keeps every bit."""
    if not tensor.is_cpu or is_lazy_view(tensor):
        with torch.no_grad():
            tensor.copy_(from_host(value))
        return
    view = host_view(tensor)
    if view.shape != value.shape or view.dtype != value.dtype:
        raise WriteError(f"got:      {value.dtype} {value.shape}\nexpected: {view.dtype} {view.shape}")
    view, value = plain_bits(view), plain_bits(value)
    if value.nbytes < _LARGE:
        # NumPy handles a source in the same memory; torch doesn't.
        np.copyto(view, value, casting="no")
    elif np.may_share_memory(view, value):
        np.copyto(view, value.copy(), casting="no")
    elif view.strides == value.strides and torch.get_num_threads() > 1:
        torch.from_numpy(view).copy_(from_host(value))
    else:
        copy_into(view, value)
    bump_version(tensor)


class TensorStorage(BaseStorage):
    """Storage of dense tensors on any device.

    A handle is a :class:`TensorHandle`, or a bare tensor (which nobody can replace).
    """

    def __init__(self, *, fallible: bool) -> None:
        self.fallible = fallible

    def identity(self, handle: TensorHandle | torch.Tensor) -> Hashable:
        """Return a key that two handles share if they are one array."""
        return identity(tensor_of(handle))

    def refusal(self, handle: TensorHandle | torch.Tensor, *, writing: bool) -> str | None:
        return refusal_reason(tensor_of(handle), writing=writing)

    def edit_refusal(self, handle: TensorHandle | torch.Tensor) -> str | None:
        packed = packed_reason(tensor_of(handle))
        if packed is not None or not isinstance(handle, TensorHandle):
            return packed
        reasons = (overlay_refusal(wrapper, place.key) for place in handle.places for wrapper in place.wrappers)
        return next((reason for reason in reasons if reason is not None), None)

    def effective(self, handle: TensorHandle | torch.Tensor) -> Array | None:
        if not isinstance(handle, TensorHandle):
            return None
        overlays = [(place, wrapper) for place in handle.places for wrapper in place.wrappers]
        # A tied array has a value of its own in each place, and below two wrappers neither sees the other's base.
        merged = merged_array(overlays[0][1], overlays[0][0].key) if len(overlays) == 1 else None
        return None if merged is None else host_view(merged)

    def is_part(self, handle: TensorHandle | torch.Tensor) -> bool:
        return isinstance(handle, TensorHandle) and handle.is_part

    def read(self, handle: TensorHandle | torch.Tensor) -> Array:
        return host_view(tensor_of(handle))

    def write(self, handle: TensorHandle | torch.Tensor, value: Array) -> None:
        write_tensor(tensor_of(handle), value)

    def native_array(self, handle: TensorHandle | torch.Tensor, *, tensor: bool = False) -> Any:
        value = tensor_of(handle)
        if not tensor and value.is_cpu and value.dtype in FAST_IN_NUMPY and not is_lazy_view(value):
            return host_view(value)
        return value.detach()

    def memory(self, handle: TensorHandle | torch.Tensor) -> Array | None:
        native = self.native_array(handle)
        if isinstance(native, np.ndarray):
            return native
        # Of a half type, which NumPy computes with slowly: its bits are moved as fast as any.
        is_visible = type(native) is torch.Tensor and native.is_cpu and not is_lazy_view(native)
        return host_view(native) if is_visible else None

    def tracked(self, handle: TensorHandle | torch.Tensor) -> torch.Tensor:
        return tensor_of(handle)

    def commit(self, handle: TensorHandle | torch.Tensor, native: Any, value: Any) -> None:
        tensor = tensor_of(handle)
        if isinstance(value, torch.Tensor):
            # In place already: torch has counted it, since a detached tensor shares the counter.
            if value is not native:
                with torch.no_grad():
                    tensor.copy_(value)
        elif value is native:
            bump_version(tensor)
        else:
            write_tensor(tensor, value)

    def guard(self) -> AbstractContextManager[Any]:
        return torch.no_grad()

    def backup(self, handle: TensorHandle | torch.Tensor) -> Any:
        return [
            (tensor, back_up(tensor)) for tensor in (handle.tensors if isinstance(handle, TensorHandle) else [handle])
        ]

    def restore(self, handle: TensorHandle | torch.Tensor, kept: list[tuple[torch.Tensor, TensorBackup]]) -> None:
        for tensor, tensor_backup in kept:
            restore_tensor(tensor, tensor_backup)
        if isinstance(handle, TensorHandle):
            for place in handle.places:
                place.reregister()

    def group_key(self, handle: TensorHandle | torch.Tensor) -> Hashable | None:
        return "cpu" if may_be_grouped(tensor_of(handle)) else None

    def group_state(self, handles: Sequence[TensorHandle | torch.Tensor]) -> list[Hashable]:
        tensors = tensors_of(handles)
        state: list[Hashable] = list(zip(*(map(fact, tensors) for fact in PLACE_FACTS), strict=True))
        for position, handle in enumerate(handles):
            if type(handle) is TensorHandle:
                registry = handle.owner._parameters if handle.table == "parameter" else handle.owner._buffers
                if registry.get(handle.key) is not handle.tensor:
                    state[position] = None
        return state

    def read_group(self, handles: Sequence[TensorHandle | torch.Tensor]) -> list[Array]:
        return [tensor.numpy(force=True) for tensor in tensors_of(handles)]

    def write_group(self, handles: Sequence[TensorHandle | torch.Tensor], values: Sequence[Array]) -> None:
        tensors = tensors_of(handles)
        small = []
        for tensor, value in zip(tensors, values, strict=True):
            if value.nbytes < _LARGE:
                # An assignment takes 0.3 us less than np.copyto; the dtypes are the same.
                tensor.numpy(force=True)[...] = value
                small.append(tensor)
            else:
                write_tensor(tensor, value)
        torch.autograd.graph.increment_version(small)

    def apply_group(
        self,
        edit: Callable[..., Any],
        handles: Sequence[TensorHandle | torch.Tensor],
        operands: Sequence[Any],
        views: Sequence[Array] | None = None,
    ) -> None:
        tensors = tensors_of(handles)
        own = [tensor.numpy(force=True) for tensor in tensors] if views is None else list(views)
        try:
            edit(own, NUMPY_GROUP_OPS, *operands)
        finally:
            torch.autograd.graph.increment_version(tensors)

    def trainable(self, handle: TensorHandle | torch.Tensor) -> bool:
        tensor = tensor_of(handle)
        if isinstance(handle, TensorHandle):
            if not handle.tied:
                return handle.table == "parameter" and tensor.requires_grad
            return any(place.table == "parameter" and place.tensor.requires_grad for place in handle.places)
        if isinstance(tensor, nn.Parameter):
            return tensor.requires_grad
        # An array in a mapping: nobody trains it, and it counts as it would in a model.
        return tensor.is_floating_point() or tensor.is_complex()

    def set_trainable(self, handle: TensorHandle | torch.Tensor, flag: bool) -> None:
        if flag == self.trainable(handle):
            return
        if isinstance(handle, TensorHandle):
            tensors = [place.tensor for place in handle.places if place.table == "parameter"]
        else:
            tensors = [handle] if isinstance(handle, nn.Parameter) else []
        if not tensors:
            raise WriteError("it is no nn.Parameter: torch trains parameters only, no buffers and no bare tensors")
        if flag and not (tensors[0].is_floating_point() or tensors[0].is_complex()):
            raise WriteError(f"torch can't train {tensors[0].dtype}")
        for tensor in tensors:
            tensor.requires_grad_(flag)


_Tensor: Any = torch.Tensor

# Where and what the memory of a tensor is. Each fact is read for many tensors at once, in C.
PLACE_FACTS: tuple[Callable[[Any], Any], ...] = (
    _Tensor.data_ptr,
    _Tensor.dtype.__get__,
    _Tensor.shape.__get__,
    _Tensor.stride,
    _Tensor.is_neg,
    _Tensor.is_inference,
)


def tensors_of(handles: Sequence[TensorHandle | torch.Tensor]) -> list[torch.Tensor]:
    """Return the tensors behind many handles."""
    return [handle.tensor if isinstance(handle, TensorHandle) else handle for handle in handles]


def may_be_grouped(tensor: torch.Tensor) -> bool:
    """Return whether NumPy can edit the tensor's own memory through a plain view."""
    return (
        type(tensor) in (nn.Parameter, torch.Tensor)
        and tensor.is_cpu
        and tensor.dtype in GROUPED
        and tensor.layout is torch.strided
        and not tensor.is_neg()
        and not tensor.is_inference()
    )


# What Tensor.numpy() views without a copy, and NumPy computes with as fast.
GROUPED = frozenset(d for d in FAST_IN_NUMPY if d in PLAIN and d is not torch.bool and not d.is_complex)


def tensor_of(handle: TensorHandle | torch.Tensor) -> torch.Tensor:
    """Return the tensor behind a handle."""
    return handle if isinstance(handle, torch.Tensor) else handle.tensor


CPU = TensorStorage(fallible=False)
DEVICE = TensorStorage(fallible=True)


class RefusedStorage(TensorStorage):
    """Storage that refuses every read and write, whatever the tensors look like (shards inside of FSDP)."""

    def __init__(self, why: str) -> None:
        super().__init__(fallible=False)
        self.why = why

    def refusal(self, handle: TensorHandle | torch.Tensor, *, writing: bool) -> str | None:
        return self.why


def storage_of(tensor: torch.Tensor) -> TensorStorage:
    """Return the storage for a tensor (fallible on a device, whose memory may run out in the middle of a write)."""
    return CPU if tensor.is_cpu else DEVICE
