"""From whatever a user passes as a target to its parameters."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from xweights.core.mappings import mapping_parameters
from xweights.core.numpy_backend import NumpyStorage
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for, installed_backends, loaded, roots
from xweights.errors import TargetError, UseBindError

_openers: list[Callable[[Any], list[Parameter]]] = []


def register_opener(opener: Callable[[Any], list[Parameter]]) -> None:
    """Have ``opener`` return the parameters behind a path."""
    _openers[:] = [opener]


def open_target(target: Any, *, bind_line: str = "bound = xweights.bind(target, rule, where=...)") -> list[Parameter]:
    """Return the parameters of a target, hidden ones included; raise TargetError for what is none.

    ``bind_line`` is the corrected call that UseBindError shows inside a compiled step which can't trace us.
    """
    refuse_in_trace(target, bind_line)
    if isinstance(target, Parameter):
        return [_asked_for(target)]
    own = getattr(type(target), "__xweights_parameters__", None)
    if own is not None:
        return list(own(target))
    if isinstance(target, Mapping):
        return mapping_parameters(target)
    if is_path(target) and _openers:
        return _openers[0](target)
    if isinstance(target, (list, tuple)):
        return _listed_parameters(target, bind_line)
    if isinstance(target, (np.ndarray, np.generic)):
        raise _bare(target, "{'name': array}")
    backend = backend_for(target)
    if backend is None:
        raise _unknown(target)
    adapter = backend.adapter(target)
    if adapter is None:
        if backend.is_tensor(target):
            raise _bare(target, "{'name': tensor}")
        raise _unknown(target)
    return list(adapter.parameters(target))


def is_path(target: Any) -> bool:
    """Return True for what names a file."""
    return isinstance(target, (str, os.PathLike))


def refuse_in_trace(target: Any, bind_line: str) -> None:
    """Raise UseBindError inside a compiled step that can't trace us."""
    # A model's own backend is asked first: a tracer that refuses us may be unable to trace another framework's answer.
    own = None if isinstance(target, (Parameter, Mapping, list, tuple)) else backend_for(target)
    asked = loaded() if own is None else [own, *(one for one in loaded() if one is not own)]
    if any(one.tracing() == "refuse" for one in asked):
        raise UseBindError(
            "this call is inside a compiled step that can't trace it\n"
            "Fix: select once, outside of the step, and call what comes back inside:\n"
            f"    {bind_line}\n"
            "    ... and in the compiled step: bound()"
        )


def tracing(target: Any) -> bool:
    """Return True while a compiled step is being traced that a verb on ``target`` becomes a part of."""
    if isinstance(target, Parameter):
        # Its backend can't be told from every kind of handle, and no two of them trace at once.
        return not isinstance(target.storage, NumpyStorage) and any(one.tracing() == "inline" for one in loaded())
    if isinstance(target, (list, tuple)):
        return any(tracing(one) for one in target)
    if isinstance(target, (Mapping, np.ndarray)):
        return False
    backend = backend_for(target)
    return backend is not None and backend.tracing() == "inline"


def _asked_for(parameter: Parameter) -> Parameter:
    """Whoever passes a parameter has named it, so it isn't hidden any more."""
    if parameter.hidden:
        parameter = copy(parameter)
        parameter.hidden = False
    return parameter


def _listed_parameters(targets: Sequence[Any], bind_line: str) -> list[Parameter]:
    if not targets:
        raise TargetError("an empty list is no target")
    # The same array may sit in two of the targets; it is still one parameter.
    seen: dict[Hashable, Parameter] = {}
    if all(isinstance(one, Parameter) for one in targets):
        for given in targets:
            seen.setdefault((type(given.storage), given.identity()), _asked_for(given))
        names = [one.name for one in seen.values()]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise TargetError(
                f"two of these parameters have the name {twice!r}\n"
                "Fix: pass the models as a list, [a, b]: names then begin with 0/ and 1/"
            )
        return list(seen.values())
    for position, target in enumerate(targets):
        for parameter in open_target(target, bind_line=bind_line):
            one = parameter.renamed(str(position))
            key = (type(one.storage), one.identity())
            if key in seen:
                seen[key].aliases += (one.name, *one.aliases)
            else:
                seen[key] = one
    return list(seen.values())


def _bare(target: Any, fix: str) -> TargetError:
    return TargetError(
        f"a bare array or tensor is no target: a rule's result could be lost\n"
        f"got:      {type(target).__module__}.{type(target).__qualname__}\n"
        f"Fix: give it a name, as in {fix}, or pass the model it belongs to"
    )


def _unknown(target: Any) -> TargetError:
    kind = type(target)
    shown = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(target, (str, bytes)) or hasattr(target, "__fspath__"):
        return TargetError(f"this is no path that can be opened\ngot: {target!r}\nFix: xweights.load(path), with a str")
    family = [root for root in dict.fromkeys(roots(kind)) if root not in ("builtins", "__main__", "abc", "typing")]
    installed = ", ".join(sorted(installed_backends())) or "none (in a checkout: python -m pip install -e .)"
    text = (
        f"xweights can't reach weights in this object\n"
        f"got:      {shown}\n"
        "expected: a model, layer, module or variable of an installed backend, a mapping of arrays, "
        "or a list of these\n"
        f"installed backends: {installed}"
    )
    if family and not (set(family) & installed_backends().keys()):
        # Not BackendMissingError alone: whoever passed a wrong object expects a TypeError.
        command = f"python -m pip install 'xweights-nn[{family[0]}]'"
        text += f"\nFix: if {family[0]!r} is a framework, install its backend: {command}"
    return TargetError(text)
