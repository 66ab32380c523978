"""Call a module on a sample so that nothing about it changes."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def inference_mode(module: nn.Module, *, written: bool = False) -> Iterator[None]:
    """Put every module in eval mode, and restore modes, buffers and random state afterwards.

    ``written``: weights may be written meanwhile, so that only buffers that are no weights are restored.
    """
    modes = [(child, child.training) for child in module.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    # The fast path computes whole blocks without calling the layers in them.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _kept_tensors(module, written):
            module.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for child, mode in modes:
            child.training = mode


@contextlib.contextmanager
def _kept_tensors(module: nn.Module, written: bool) -> Iterator[None]:
    """Restore what a forward may write to: buffers, and tables whose rows it clips (``max_norm``)."""
    tables: list[tuple[Any, str]] = []
    for child in module.modules():
        tables += [(child._buffers, key) for key in child._buffers]
        if getattr(child, "max_norm", None) and not written:
            tables.append((child._parameters, "weight"))
    kept = []
    for table, key in tables:
        tensor = table.get(key)
        if tensor is not None and not tensor.is_meta and not (written and tensor.is_floating_point()):
            kept.append((table, key, tensor, tensor.detach().clone(), tensor._version))
    try:
        yield
    finally:
        for table, key, tensor, copy, version in kept:
            if tensor._version != version:
                tensor.detach().copy_(copy)
            if table.get(key) is not tensor:
                table[key] = tensor


@contextlib.contextmanager
def experts_one_by_one(module: nn.Module) -> Iterator[None]:
    """Let the experts of transformers compute one after the other, each by operations of its own.

    By default they are sorted and multiplied by one grouped product, in which the experts can't be told apart.
    """
    changed: list[tuple[Any, str]] = []
    name = "_experts_implementation"
    for child in module.modules():
        settings = getattr(child, "config", None)
        former = getattr(settings, name, None)
        if isinstance(former, str) and former != "eager":
            changed.append((settings, former))
            setattr(settings, name, "eager")
    try:
        yield
    finally:
        for settings, former in reversed(changed):
            setattr(settings, name, former)


def call_arguments(sample: Any, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments and keywords of a module's call: a dict by its names where the signature has them."""
    like = next((p for p in module.parameters() if p.is_floating_point()), None)

    def convert(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: convert(part) for name, part in value.items()}
        if type(value) in (tuple, list):
            return type(value)(convert(part) for part in value)
        if isinstance(value, (np.ndarray, np.generic)):
            value = torch.from_numpy(np.array(value, order="C"))
        elif not isinstance(value, torch.Tensor):
            return value
        elif not value.is_sparse and not value.is_nested:
            # A model that calls ``view`` was written for samples as they are loaded.
            value = value.contiguous()
        if like is None:
            return value
        return value.to(like.device, like.dtype) if value.is_floating_point() else value.to(like.device)

    converted = convert(sample)
    if isinstance(sample, Mapping):
        return ((), converted) if _takes_names(module, converted) else ((converted,), {})
    if isinstance(sample, (tuple, list)):
        return tuple(converted), {}
    return (converted,), {}


def _takes_names(module: nn.Module, sample: Mapping[Any, Any]) -> bool:
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):
        return True
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    names = {
        name for name, one in signature.parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    }
    return all(isinstance(name, str) for name in sample) and (
        inspect.Parameter.VAR_KEYWORD in kinds or sample.keys() <= names
    )


def to_mapping(output: Any) -> Any:
    """Return a model's output with its dataclasses as mappings."""
    if dataclasses.is_dataclass(output) and not isinstance(output, (type, Mapping)):
        fields = {one.name: getattr(output, one.name) for one in dataclasses.fields(output)}
        return {name: to_mapping(value) for name, value in fields.items() if value is not None}
    return output
