"""From a text of the command line to a target, a model or a sample.

A model file is opened by the backend that says, in the entry-point group ``xweights.models``, that it knows the
suffix.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xweights.errors import XweightsError

GROUP = "xweights.models"
_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_FACTORY = re.compile(rf"(?P<module>{_NAME}):(?P<factory>{_NAME})(?:@(?P<weights>.+))?", re.DOTALL)


def target_of(text: str) -> Any:
    """Return what holds the weights: the model that a factory builds, or a file."""
    found = _factory(text)
    if found is not None:
        return model_of(text)
    return load_file(Path(text))


def model_of(text: str) -> Any:
    """Return a model: what a factory builds, or what a backend makes of a model file."""
    from xweights.errors import ArgumentError

    found = _factory(text)
    if found is None:
        return _model_file(Path(text))
    model = _built(text, found["module"], found["factory"])
    if found["weights"] is not None:
        _give_weights(model, Path(found["weights"]))
    if model is None:
        raise ArgumentError(f"{text!r} built nothing\ngot:      None\nexpected: a model\nFix: return it")
    return model


def sample_of(path: Path) -> Any:
    """Return the array of a .npy file, or a tuple or dict of those of an .npz file."""
    import numpy as np

    from xweights.errors import ArgumentError

    if not path.is_file():
        raise missing(path)
    if path.suffix not in (".npy", ".npz"):
        raise ArgumentError(f"a sample is a .npy or .npz file\ngot: {str(path)!r}\nFix: numpy.save('x.npy', x)")
    try:
        with path.open("rb") as file:
            held = np.load(file, allow_pickle=False)
            if isinstance(held, np.ndarray):
                return held
            found = {name: held[name] for name in held.files}
    except (ValueError, EOFError, KeyError, NotImplementedError) as wrong:
        raise ArgumentError(f"{str(path)!r} holds no sample\ncause: {wrong}\nFix: numpy.save a plain array") from None
    # Arrays without names of their own are positional.
    if found and all(re.fullmatch(r"arr_\d+", name) for name in found):
        return tuple(found[f"arr_{i}"] for i in range(len(found)))
    return found


def load_file(path: Path) -> Any:
    """Return a weight file as a target; nothing but its index is read yet."""
    from xweights.files.load import load

    # A checkpoint may be several files whose names begin with its own.
    if not path.exists() and not any(path.parent.glob(f"{escape(path.name)}.*")):
        raise missing(path)
    return load(path)


def file_of(text: str) -> Path:
    """Return the path of a weight file that is to be edited."""
    from xweights.errors import ArgumentError

    path = Path(text)
    if _factory(text) is not None:
        fix = f"xweights convert {text} w.safetensors, and edit that"
        raise ArgumentError(f"what is edited is a file\ngot: {text!r}, a model in Python code\nFix: {fix}")
    if not path.exists():
        raise missing(path)
    return path


def size_of(target: Any) -> int:
    """Return how many bytes the weights of a target have."""
    from xweights.edit.read import parameters

    return sum(p.size * p.dtype.itemsize for p in parameters(target))


def missing(path: Path) -> XweightsError:
    """Return the error for a file that isn't there."""
    from xweights.errors import ArgumentError, near

    beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = near(path.name, beside) if beside else f"there is no folder {str(path.parent)!r}"
    fix = "" if ":" not in str(path) else "\nFix: a model in Python code is package.module:factory"
    return ArgumentError(f"there is no file {str(path)!r}\n{hint}{fix}")


def _factory(text: str) -> re.Match[str] | None:
    return None if Path(text).exists() else _FACTORY.fullmatch(text)


def _built(text: str, module_name: str, factory_name: str) -> Any:
    from xweights.core.registry import backend_for
    from xweights.errors import ArgumentError, near

    # The folder that a command is run in is importable, as with `python -m`.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if module_name.endswith(".py"):
        fix = f"{module_name.removesuffix('.py')}:{factory_name}"
        raise ArgumentError(f"a module is named as in an import\ngot: {text!r}\nFix: {fix}")
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as wrong:
        if wrong.name is None or not f"{module_name}.".startswith(f"{wrong.name}."):
            raise _failed(f"{module_name!r} can't be imported", wrong) from None
        here = [one.stem for one in Path.cwd().glob("*.py")]
        raise ArgumentError(f"there is no module {module_name!r}\n{near(module_name, here)}") from None
    except (Exception, SystemExit) as wrong:  # noqa: BLE001 - whatever the user's code raises
        raise _failed(f"{module_name!r} can't be imported", wrong) from None
    factory: Any = module
    for part in factory_name.split("."):
        if not hasattr(factory, part):
            names = [name for name in vars(factory) if not name.startswith("_") and callable(getattr(factory, name))]
            raise ArgumentError(f"{module_name!r} has no {factory_name!r}\n{near(factory_name, names)}")
        factory = getattr(factory, part)
    backend = backend_for(factory)
    if isinstance(factory, Mapping) or (backend is not None and backend.adapter(factory) is not None):
        return factory  # a model that the module keeps, and no factory
    if not callable(factory):
        kind = type(factory).__name__
        raise ArgumentError(f"{text!r} is no factory\ngot:      {kind}\nexpected: a function that returns a model")
    try:
        return factory()
    except (Exception, SystemExit) as wrong:  # noqa: BLE001 - whatever the user's code raises
        raise _failed(f"{module_name}:{factory_name} raised an error", wrong) from None


def _failed(fact: str, wrong: BaseException) -> XweightsError:
    """Return the error for the user's code that failed: what it said, and the line that it came from."""
    from xweights.errors import ArgumentError

    # The last line that isn't Python's own machinery for imports.
    frames = [one for one in traceback.extract_tb(wrong.__traceback__) if "importlib" not in one.filename]
    place = f"\nat:    {frames[-1].filename}:{frames[-1].lineno}" if len(frames) > 1 else ""
    if isinstance(wrong, SyntaxError):
        place = f"\nat:    {wrong.filename}:{wrong.lineno}"
    said = str(wrong).strip() or "(no message)"
    return ArgumentError(f"{fact}\ncause: {type(wrong).__name__}: {said}{place}")


def _model_file(path: Path) -> Any:
    from xweights.errors import ArgumentError, BackendBrokenError

    openers = _openers()
    suffix = path.suffix.removeprefix(".")
    if not path.exists():
        raise missing(path)
    if suffix not in openers:
        known = ", ".join(f".{one}" for one in sorted(openers)) or "none"
        raise ArgumentError(
            "a model can't be made of this file\n"
            f"got:      {str(path)!r}\nexpected: {known}, or package.module:factory\n"
            f"Fix: name a factory, and the weights behind it: package.module:factory@{path}"
        )
    try:
        open_model: Callable[[Path], Any] = openers[suffix].load()
    except ImportError as wrong:
        raise BackendBrokenError(f"a .{suffix} file needs a framework that can't be imported\ncause: {wrong}") from None
    return open_model(path)


def _openers() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


def _give_weights(model: Any, path: Path) -> None:
    from xweights.edit.read import parameters
    from xweights.edit.write import set_params

    opened = load_file(path)
    own = {p.native_name for p in parameters(model)}
    # Arrays under the framework's own names lie as it stores them: a state dict. Of others that say nothing of their
    # axes nobody knows, and set_params refuses them where it would matter.
    state = any(p.axes is None and p.name in own for p in parameters(opened))
    set_params(model, opened, layout="native" if state else None)
