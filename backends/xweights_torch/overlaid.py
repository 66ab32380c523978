"""Arrays that a module of PEFT computes with only in part: the base of an adapter, and a module that has a copy in use.

PEFT is never imported: its wrappers are known by the names of their base classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from torch import nn

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
        copy = f"modules_to_save.{wrapper.active_adapters[0]}"
        return f"PEFT computes with the copy in {copy!r}\nFix: edit that copy: where=xweights.native('*.{copy}.*')"
    tables = [name for name in wrapper.adapter_layer_names if _names_in(getattr(wrapper, name, None))]
    active = [name for name in wrapper.active_adapters if any(name in getattr(wrapper, table) for table in tables)]
    only = getattr(wrapper, "parameter_name", None)
    if wrapper.merged or not active or (key == "bias" if only is None else key != only):
        return None
    globs = ", ".join(f"xweights.native('*.{table}.*')" for table in tables)
    return (
        f"the adapter {', '.join(map(repr, active))} of PEFT changes it in each forward pass\n"
        "Fix: merge the adapter before the edit: model.merge_adapter(), or for good model.merge_and_unload()\n"
        f"     or edit the adapter: where=[{globs}]"
    )


def _names_in(table: Any) -> list[str]:
    return list(table) if isinstance(table, (nn.ModuleDict, nn.ParameterDict)) else []


def _type_of(module: Any) -> Any:
    # Any: mypy takes the hash of a class for that of its instances.
    return type(module)


@lru_cache(maxsize=4096)
def _kind_of(kind: Any) -> str | None:
    names = {base.__name__ for base in kind.__mro__ if base.__module__.partition(".")[0] == "peft"}
    return next((name for name in (_TUNER, _COPY) if name in names), None)
