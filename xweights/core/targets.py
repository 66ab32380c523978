"""Return the parameters of anything a user passes as a target."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xweights.core.numpy_backend import NumpyStorage
from xweights.core.openers import open_path
from xweights.core.parameter import Parameter
from xweights.core.plan import KeepsPlans, Plan, WatchesPlaces
from xweights.core.registry import backend_for, installed_backends, loaded, roots
from xweights.errors import TargetError, UseBindError, XweightsError

# Returns the call that binds what was to be done; it is written only for an error.
BindLine = Callable[[], str]


def _any_bind_line() -> str:
    return "bound = xweights.bind(target, rule, where=...)"


def open_target(target: Any, *, bind_line: BindLine = _any_bind_line) -> list[Parameter]:
    """Return the parameters of a target, hidden ones included; raise TargetError for any other object.

    ``bind_line`` returns the corrected call that UseBindError shows inside a compiled step that can't trace xweights.
    """
    refuse_in_trace(target, bind_line)
    if isinstance(target, Parameter):
        return [_unhide(target)]
    own = getattr(type(target), "__xweights_parameters__", None)
    if own is not None:
        return list(own(target))
    if isinstance(target, Mapping):
        from xweights.core.mappings import mapping_parameters

        return mapping_parameters(target)
    if is_path(target):
        return open_path(target)
    if isinstance(target, (list, tuple)):
        return _parameters_of_list(target, bind_line)
    if isinstance(target, (np.ndarray, np.generic)):
        raise _bare_array_error(target, "{'name': array}")
    backend = backend_for(target)
    if backend is None:
        raise _unknown_target_error(target)
    adapter = backend.adapter(target)
    if adapter is None:
        if backend.is_tensor(target):
            raise _bare_array_error(target, "{'name': tensor}")
        raise _unknown_target_error(target)
    return list(adapter.parameters(target))


def open_plan(target: Any, *, bind_line: BindLine = _any_bind_line) -> Plan:
    """Return the plan of a call on a target: a kept one where the backend keeps it and the target is as it was."""
    plan = _plan_of_adapter(target, bind_line)
    if plan is not None:
        return plan
    parameters = open_target(target, bind_line=bind_line)
    return Plan(lambda: parameters)


def open_kept(target: Any) -> Plan | None:
    """Return the plan of a target whose backend keeps plans; None for others, and inside a compiled step."""
    return None if is_path(target) or tracing(target) else _plan_of_adapter(target, _any_bind_line)


def _plan_of_adapter(target: Any, bind_line: BindLine) -> Plan | None:
    if isinstance(target, (Parameter, Mapping, list, tuple)) or is_path(target):
        return None
    backend = backend_for(target)
    adapter = None if backend is None else backend.adapter(target)
    if not isinstance(adapter, KeepsPlans) or hasattr(type(target), "__xweights_parameters__"):
        return None
    refuse_in_trace(target, bind_line)
    return adapter.plan(target)


def watch_places(target: Any, parameters: Sequence[Parameter]) -> list[Callable[[], list[str]]]:
    """Return functions that name those parameters of a target whose layer or array was replaced since."""
    if isinstance(target, (list, tuple)):
        return [watch for item in target for watch in watch_places(item, parameters)]
    if isinstance(target, (Parameter, Mapping)) or is_path(target):
        return []
    backend = backend_for(target)
    adapter = None if backend is None else backend.adapter(target)
    return [adapter.watch_places(target, parameters)] if isinstance(adapter, WatchesPlaces) else []


class Opened(NamedTuple):
    """The plan of a target, and whether an edit becomes part of a compiled step."""

    plan: Plan
    tracing: bool

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters of the target."""
        return self.plan.everything


def open_for_editing(target: Any, *, bind_line: BindLine) -> Opened:
    """Return the plan of a target, and whether a compiled step that traces xweights is being traced."""
    return Opened(open_plan(target, bind_line=bind_line), tracing(target))


def open_eagerly(target: Any, refused: XweightsError) -> list[Parameter]:
    """Return the parameters of a target for work on the host; raise ``refused`` inside a compiled step."""
    if tracing(target):
        raise refused
    return open_target(target)


def is_path(target: Any) -> bool:
    """Return True for a path of a file."""
    return isinstance(target, (str, os.PathLike))


def refuse_in_trace(target: Any, bind_line: BindLine) -> None:
    """Raise UseBindError inside a compiled step that can't trace xweights."""
    # The target's own backend is asked first: a tracer that refuses may be unable to trace another framework's answer.
    own = None if isinstance(target, (Parameter, Mapping, list, tuple)) else backend_for(target)
    asked = loaded() if own is None else [own, *(backend for backend in loaded() if backend is not own)]
    if any(backend.tracing() == "refuse" for backend in asked):
        raise UseBindError(
            "this call is inside a compiled step that can't trace it\n"
            "Fix: select once, outside of the step, and call what comes back inside:\n"
            f"    {bind_line()}\n"
            "    ... and in the compiled step: bound()"
        )


def tracing(target: Any) -> bool:
    """Return True while a compiled step is being traced that a verb on ``target`` becomes part of."""
    if isinstance(target, Parameter):
        # Not every kind of handle tells its backend, and no two backends trace at once.
        return not isinstance(target.storage, NumpyStorage) and any(b.tracing() == "inline" for b in loaded())
    if isinstance(target, (list, tuple)):
        return any(tracing(item) for item in target)
    if isinstance(target, (Mapping, np.ndarray)):
        return False
    backend = backend_for(target)
    return backend is not None and backend.tracing() == "inline"


def _unhide(parameter: Parameter) -> Parameter:
    """Return the parameter, not hidden: whoever passes it has named it."""
    return parameter.replace(hidden=False) if parameter.hidden else parameter


def _parameters_of_list(targets: Sequence[Any], bind_line: BindLine) -> list[Parameter]:
    if not targets:
        raise TargetError("an empty list is no target")
    # The same array may be in two of the targets; it is still one parameter.
    seen: dict[Hashable, Parameter] = {}
    if all(isinstance(target, Parameter) for target in targets):
        for parameter in targets:
            seen.setdefault((type(parameter.storage), parameter.identity()), _unhide(parameter))
        names = [parameter.name for parameter in seen.values()]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise TargetError(
                f"two of these parameters have the name {twice!r}\n"
                "Fix: pass the models as a list, [a, b]: names then begin with 0/ and 1/"
            )
        return list(seen.values())
    for position, target in enumerate(targets):
        for parameter in open_target(target, bind_line=bind_line):
            prefixed = parameter.renamed(str(position))
            key = (type(prefixed.storage), prefixed.identity())
            if key in seen:
                seen[key].aliases += (prefixed.name, *prefixed.aliases)
                seen[key].native_aliases += (prefixed.native_name, *prefixed.native_aliases)
            else:
                seen[key] = prefixed
    return list(seen.values())


def _bare_array_error(target: Any, fix: str) -> TargetError:
    return TargetError(
        f"a bare array or tensor is no target: a rule's result could be lost\n"
        f"got:      {type(target).__module__}.{type(target).__qualname__}\n"
        f"Fix: give it a name, as in {fix}, or pass the model it belongs to"
    )


def _unknown_target_error(target: Any) -> TargetError:
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
        # Not BackendMissingError alone: for a wrong object a TypeError is expected.
        command = f"python -m pip install 'xweights-nn[{family[0]}]'"
        text += f"\nFix: if {family[0]!r} is a framework, install its backend: {command}"
    return TargetError(text)
