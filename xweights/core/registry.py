"""Registration and lookup of backends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from xweights.core.entry_points import entry_points_of
from xweights.errors import BackendBrokenError, BackendMissingError

if TYPE_CHECKING:
    from xweights.core.backend import Backend
    from xweights.core.parameter import Parameter

GROUP = "xweights.backends"
_DISTRIBUTION = "xweights-nn"


_registered: dict[str, Backend] = {}


_loaded: dict[str, Backend] = {}


_points: dict[str, Any] | None = None


_by_type: dict[type[Any], Backend | None] = {}


def register(framework: str, backend: Backend) -> None:
    """Register a backend in this process for the root package ``framework``, before any entry point.

    Example:
        >>> from xweights.core.registry import register
        >>> register.__name__
        'register'
    """
    from xweights.core.backend import Backend

    if not isinstance(backend, Backend):
        missing = sorted(name for name in dir(Backend) if not name.startswith("_") and not hasattr(backend, name))
        raise BackendBrokenError(
            f"{backend!r} is no backend\nmissing: {', '.join(missing) or 'name'}\n"
            "Fix: give it the attributes of xweights.backend.Backend"
        )
    _registered[framework] = backend
    _by_type.clear()


def installed_backends() -> dict[str, str]:
    """Return the installed backends and the object each would load: ``{"torch": "xweights_torch:backend", ...}``."""
    installed = {name: point.value for name, point in _entry_points().items()}
    return installed | {name: f"{type(b).__module__}:{type(b).__qualname__}" for name, b in _registered.items()}


def roots(kind: type[Any]) -> Iterator[str]:
    """Yield the root packages of a type's bases, nearest first."""
    for base in kind.__mro__:
        yield base.__module__.partition(".")[0]


def backend_for(value: Any) -> Backend | None:
    """Return the backend of the framework of ``value``, loading it if needed; None if no entry point matches."""
    kind = type(value)
    if kind not in _by_type:
        names = _registered.keys() | _entry_points().keys()
        framework = next((root for root in roots(kind) if root in names), None)
        _by_type[kind] = None if framework is None else load(framework)
    return _by_type[kind]


@runtime_checkable
class FindsTensor(Protocol):
    """A handle that finds its native tensor in the place where the framework keeps it."""

    @property
    def tensor(self) -> Any:
        """The native tensor."""


def native_of(parameter: Parameter) -> Any:
    """Return the native object of a parameter, whose type determines the backend."""
    handle = parameter.handle
    return handle.tensor if isinstance(handle, FindsTensor) else handle


def backend_of(parameter: Parameter) -> Backend | None:
    """Return the backend of the framework that a parameter belongs to, or None."""
    return backend_for(native_of(parameter))


def load(framework: str) -> Backend:
    """Return a framework's backend; raise BackendBrokenError if it is installed and can't be imported."""
    if framework in _registered:
        return _registered[framework]
    if framework not in _loaded:
        points = _entry_points()
        if framework not in points:
            raise BackendMissingError(
                f"no backend for {framework!r} is installed\n"
                f"installed: {', '.join(sorted(installed_backends())) or 'none'}\n"
                f"Fix: python -m pip install 'xweights-nn[{framework}]' (in a checkout: python -m pip install -e .)"
            )
        try:
            backend = points[framework].load()
        except Exception as cause:
            raise BackendBrokenError(
                f"the backend {points[framework].value!r} for {framework!r} is installed but can't be imported\n"
                f"cause: {_causes(cause)}\n"
                f"{_versions(framework)}"
                f"Fix: make `python -c 'import {framework}'` work, or reinstall with "
                f"python -m pip install 'xweights-nn[{framework}]'"
            ) from cause
        from xweights.core.backend import Backend

        if not isinstance(backend, Backend):
            raise BackendBrokenError(
                f"{points[framework].value!r} is no backend\n"
                f"Fix: it must be an object with the methods of xweights.backend.Backend"
            )
        _loaded[framework] = backend
    return _loaded[framework]


def loaded() -> list[Backend]:
    """Return the backends that are loaded so far."""
    return [*_registered.values(), *_loaded.values()]


def _causes(error: BaseException) -> str:
    """Return an error, and what it was raised from: frameworks wrap the import that failed in one of their own."""
    texts = [f"{type(error).__name__}: {error}"]
    if error.__cause__ is not None:
        texts.append(_causes(error.__cause__))
    return ", because of ".join(texts)


def _versions(framework: str) -> str:
    """Return a line with the release that is installed and those that are supported; "" if either isn't known."""
    from importlib.metadata import PackageNotFoundError, requires, version

    for name in (framework, f"{framework}-cpu"):
        try:
            known = re.findall(rf"^({re.escape(name)}\W[^;]*)", "\n".join(requires(_DISTRIBUTION) or ()), re.MULTILINE)
            return f"installed: {name} {version(name)}\nsupported: {known[0].strip()}\n" if known else ""
        except PackageNotFoundError:
            continue
    return ""


def _entry_points() -> dict[str, Any]:
    global _points
    if _points is None:
        _points = entry_points_of(GROUP)
    return _points


def backends() -> dict[str, str]:
    """Return the installed backends and whether each loads: ``{"torch": "ready", "keras": "broken: ..."}``.

    Loading imports the framework. Raises nothing.

    Example:
        >>> import xweights as xw
        >>> isinstance(xw.backends(), dict)
        True
    """
    states = {}
    for framework in sorted(installed_backends()):
        try:
            load(framework)
            states[framework] = "ready"
        except BackendBrokenError as broken:
            states[framework] = "broken: " + str(broken).splitlines()[1].removeprefix("cause: ")
    return states
