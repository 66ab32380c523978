"""Checks that a tensor can be read and written.

They run for every parameter before every call, so the common case comes first and does little.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from xweights_torch.dtypes import NUMPY_OF

_BY_NAME = {
    "DTensor": "it is a bare DTensor, sharded over devices: nobody knows which ranks make this call\n"
    "Fix: pass the module that has it, or its full_tensor()",
    "FakeTensor": "it is a fake tensor: it has a shape and no values\nFix: build the model outside of FakeTensorMode",
    "FunctionalTensor": "it belongs to a program that is being traced\nFix: call it outside of the traced function",
}

# Packages whose tensor types are quantized ones. They are known by name, and never imported.
_QUANTIZING = frozenset({"torchao", "optimum"})


def packed_reason(tensor: torch.Tensor) -> str | None:
    """Return why an edit of a parameter of bitsandbytes would be no edit of weights; None for other tensors.

    Its types are parameters that hold floats until they move to a device and packed values from then on, which may be
    stored in a floating-point dtype (``quant_storage``).
    """
    kind = type(tensor)
    if kind is nn.Parameter or kind is torch.Tensor or not kind.__module__.startswith("bitsandbytes."):
        return None
    parts = vars(tensor)
    if tensor.is_floating_point() and parts.get("quant_state") is None and not parts.get("bnb_quantized"):
        return None
    how = "dequantize_4bit(p.data, p.quant_state)" if "quant_state" in parts else "int8_vectorwise_dequant(p.CB, p.SCB)"
    return (
        f"it is quantized (a {kind.__module__}.{kind.__qualname__}): its values are packed, and make weights only "
        "together with its scaling factors\n"
        "Fix: edit the floating-point model and quantize it again; its weights are in\n"
        f"     bitsandbytes.functional.{how}"
    )


def refusal_reason(tensor: torch.Tensor, *, writing: bool) -> str | None:
    """Return why ``tensor`` can't be read (or written) and what to do instead; None if it can."""
    kind = type(tensor)
    if kind is not nn.Parameter and kind is not torch.Tensor:
        foreign_reason = _foreign_type_reason(tensor)
        if foreign_reason is not None:
            return foreign_reason
    if (
        tensor.is_cpu
        and tensor.layout is torch.strided
        and not writing
        and tensor.dtype in NUMPY_OF
        and not tensor.is_nested
    ):
        return _missing_memory_reason(tensor)
    if tensor.layout is not torch.strided:
        return f"it is sparse ({tensor.layout})\nFix: keep it dense: tensor.to_dense()"
    if tensor.is_meta:
        return (
            "it is on the meta device: it has a shape and no values\n"
            "Fix: model.to_empty(device='cpu'), then load its weights"
        )
    if tensor.dtype not in NUMPY_OF and not tensor.is_quantized:
        return f"it has the dtype {tensor.dtype}, which NumPy doesn't have\nFix: leave it out with where="
    if tensor.is_quantized:
        return f"it is quantized ({tensor.dtype})\nFix: edit the floating-point model and quantize it again"
    if tensor.is_nested:
        return "it is a nested tensor\nFix: edit its parts: tensor.unbind()"
    if tensor.is_inference() and writing and not torch.is_inference_mode_enabled():
        return (
            "it was made under torch.inference_mode(), and torch forbids changing it outside\n"
            "Fix: make the model outside of inference_mode, or call this inside of it"
        )
    if not tensor.is_contiguous() and writing and overlaps_itself(tensor):
        return (
            "several of its entries share one place in memory\n"
            f"shape: {tuple(tensor.shape)}, strides: {tensor.stride()}\n"
            "Fix: give it memory of its own: nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format))"
        )
    return _missing_memory_reason(tensor)


def _foreign_type_reason(tensor: torch.Tensor) -> str | None:
    kind = type(tensor)
    if nn.parameter.is_lazy(tensor):
        return "it has no shape yet\nFix: call the module once on a sample batch"
    if kind.__name__ == "FlatParameter":
        return (
            "it is the flat parameter of FullyShardedDataParallel, which xweights can't edit yet\n"
            "Fix: edit the model before it is wrapped"
        )
    if kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__:
        return None
    packages = {base.__module__.partition(".")[0] for base in kind.__mro__}
    if packages & _QUANTIZING and hasattr(kind, "dequantize"):
        return (
            f"it is quantized (a {kind.__module__}.{kind.__qualname__}): what it stores makes weights only together "
            "with its scaling factors\n"
            "Fix: edit the floating-point model and quantize it again; its values are in tensor.dequantize()"
        )
    reason = next((_BY_NAME[base.__name__] for base in kind.__mro__ if base.__name__ in _BY_NAME), None)
    return reason or (
        f"it is a {kind.__module__}.{kind.__qualname__}, a tensor type that keeps its values in a way of its own\n"
        "Fix: turn it into a plain tensor first"
    )


def _missing_memory_reason(tensor: torch.Tensor) -> str | None:
    try:
        if tensor.data_ptr() or not tensor.numel():
            return None
    except RuntimeError:
        return (
            "it is a placeholder of a function transform (vmap, grad, functional_call)\n"
            "Fix: call this outside of the transformed function"
        )
    return "its memory was given back (storage of size 0)\nFix: gather or load the weights first"


def overlaps_itself(tensor: torch.Tensor) -> bool:
    """Return True if two entries share memory (an expanded tensor, overlapping windows)."""
    steps = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    extent = 0
    for stride, size in steps:
        if stride <= extent:
            break
        extent += stride * (size - 1)
    else:
        return False
    if any(stride == 0 for stride, _ in steps):
        return True
    # Interleaving strides may still not overlap: count the distinct offsets.
    offsets = np.zeros((), np.int64)
    for stride, size in steps:
        offsets = np.add.outer(offsets, np.arange(size, dtype=np.int64) * stride)
    return int(np.unique(offsets).size) < tensor.numel()
