"""Arrays that a module of PEFT computes with only in part: the base of an adapter, and a module that has a copy in use.

PEFT is never imported: its wrappers are known by the names of their base classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from xweights.core.parameter import Parameter
from xweights.errors import Problems, WriteError

_TUNER, _COPY = "BaseTunerLayer", "ModulesToSaveWrapper"


def iter_overlaid(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules below a wrapper of PEFT whose arrays it may overlay; nothing for other modules."""
    wrapper: Any = module
    kind = _kind_of(_type_of(module))
    if kind == _TUNER and "base_layer" in module._modules:
        yield wrapper.get_base_layer()  # below all wrappers, where several are around one layer
    elif kind == _COPY:
        yield from wrapper.original_module.modules()


def overlay_refusal(wrapper: Any, key: str) -> str | None:
    """Return why the wrapper wouldn't obey an edit of its base's array ``key``, as of now, or None."""
    if wrapper.disable_adapters:
        return None
    if _kind_of(_type_of(wrapper)) == _COPY:
        if not wrapper.active_adapters:
            return None
        place = f"modules_to_save.{wrapper.active_adapters[0]}"
        return f"PEFT computes with the copy in {place!r}\nFix: edit that copy: where=xweights.native('*.{place}.*')"
    tables = [name for name in wrapper.adapter_layer_names if _names_in(getattr(wrapper, name, None))]
    active = [name for name in wrapper.active_adapters if any(name in getattr(wrapper, table) for table in tables)]
    if wrapper.merged or not active or not _changes(wrapper, active, key):
        return None
    globs = ", ".join(f"xweights.native('*.{table}.*')" for table in tables)
    return (
        f"the adapter {', '.join(map(repr, active))} of PEFT changes it in each forward pass\n"
        "Fix: merge the adapter before the edit: xweights.merge_lora(model), which is model.merge_adapter(),\n"
        "     or for good model.merge_and_unload()\n"
        f"     or edit the adapter: where=[{globs}]"
    )


def iter_parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules whose arrays only change others, or aren't used: an adapter's tables, a copied original."""
    wrapper: Any = module
    kind = _kind_of(_type_of(module))
    if kind == _TUNER and "base_layer" in module._modules:
        for name in wrapper.adapter_layer_names:
            table = getattr(wrapper, name, None)
            yield from table.modules() if isinstance(table, nn.Module) else ()
    elif kind == _COPY:
        active = wrapper.active_adapters[:1] if not wrapper.disable_adapters else []
        yield from wrapper.original_module.modules() if active else ()
        for name, saved in wrapper.modules_to_save.items():
            yield from () if name in active else saved.modules()


def merged_array(wrapper: Any, key: str) -> torch.Tensor | None:
    """Return the base's array ``key`` as PEFT's own merge makes it, of a copy of the layer; None for no adapter."""
    if _kind_of(_type_of(wrapper)) != _TUNER or overlay_refusal(wrapper, key) is None:
        return None
    with torch.no_grad():
        layer = copy.deepcopy(wrapper)
        layer.merge()
        merged: torch.Tensor = layer.get_base_layer()._parameters[key].detach()
    return merged


def merge_factors(parameters: Sequence[Parameter]) -> None:
    """Have PEFT merge the active adapters of the layers that own these arrays; unmerge_adapter() undoes it.

    Raises WriteError, before anything is merged, if a layer has another array that PEFT would change with these.
    """
    layers: dict[int, Any] = {}
    keys: dict[int, dict[str, Parameter]] = {}
    for p in parameters:
        for place in p.handle.places:
            for wrapper in place.wrappers:
                layers[id(wrapper)] = wrapper
                keys.setdefault(id(wrapper), {})[place.key] = p
    problems = Problems("these can't be merged, and nothing was changed")
    for number, layer in layers.items():
        chosen = keys[number]
        for key, array in layer.get_base_layer()._parameters.items():
            if array is not None and key not in chosen and overlay_refusal(layer, key) is not None:
                name = next(iter(chosen.values())).name
                text = f"{name!r}: PEFT merges the {key} of its layer with it, which where= leaves out"
                problems.add(WriteError, text, fix="select both: where= with the names of both, or none at all")
    problems.check()
    with torch.no_grad():
        for layer in layers.values():
            layer.merge()


def _changes(wrapper: Any, active: list[str], key: str) -> bool:
    only = getattr(wrapper, "parameter_name", None)
    if only is not None:
        return bool(key == only)
    biased: Any = getattr(wrapper, "lora_bias", {})
    return key != "bias" or any(biased.get(name) for name in active)


def _names_in(table: Any) -> list[str]:
    return list(table) if isinstance(table, (nn.ModuleDict, nn.ParameterDict)) else []


def _type_of(module: Any) -> Any:
    # Any: mypy takes the hash of a class for that of its instances.
    return type(module)


@lru_cache(maxsize=4096)
def _kind_of(kind: Any) -> str | None:
    names = {base.__name__ for base in kind.__mro__ if base.__module__.partition(".")[0] == "peft"}
    return next((name for name in (_TUNER, _COPY) if name in names), None)
