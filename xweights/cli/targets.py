"""Open the targets, models and samples that are named on the command line.

A model file is opened by the backend that registers its suffix in the entry-point group ``xweights.models``.
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

from xweights.cli.streams import STDIO, read_stdin

if TYPE_CHECKING:
    from xweights.errors import XweightsError

GROUP = "xweights.models"
_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_FACTORY = re.compile(rf"(?P<module>{_NAME}):(?P<factory>{_NAME})(?:@(?P<weights>.+))?", re.DOTALL)


def load_target(text: str) -> Any:
    """Return a target: the model that a factory builds, or a weight file."""
    if text == STDIO or text.startswith(f"{STDIO}#"):
        return load_file(Path(f"{read_stdin()}{text[1:]}"))
    match = _match_factory(text)
    if match is not None:
        return load_model(text)
    return load_file(Path(text))


def load_model(text: str) -> Any:
    """Return a model, built by a factory or opened by a backend from a model file."""
    from xweights.errors import ArgumentError

    match = _match_factory(text)
    if match is None:
        return _open_model_file(Path(text))
    model = _build(text, match["module"], match["factory"])
    if match["weights"] is not None:
        _set_weights(model, Path(match["weights"]))
    if model is None:
        raise ArgumentError(f"{text!r} built nothing\ngot:      None\nexpected: a model\nFix: return it")
    return model


def load_sample(path: Path) -> Any:
    """Return the array of a .npy file, or a tuple or dict of those of an .npz file."""
    import numpy as np

    from xweights.errors import ArgumentError

    if not path.is_file():
        raise missing_file_error(path)
    if path.suffix not in (".npy", ".npz"):
        raise ArgumentError(f"a sample is a .npy or .npz file\ngot: {str(path)!r}\nFix: numpy.save('x.npy', x)")
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            arrays = {name: content[name] for name in content.files}
    except (ValueError, EOFError, KeyError, NotImplementedError) as wrong:
        raise ArgumentError(f"{str(path)!r} holds no sample\ncause: {wrong}\nFix: numpy.save a plain array") from None
    # Arrays without names of their own are positional.
    if arrays and all(re.fullmatch(r"arr_\d+", name) for name in arrays):
        return tuple(arrays[f"arr_{i}"] for i in range(len(arrays)))
    return arrays


def load_file(path: Path) -> Any:
    """Return a weight file as a target (``FILE#PART`` for one of several parts); only its index is read."""
    from xweights.files.load import load

    path, part = split_part(path)
    if not _is_checkpoint(path):
        raise missing_file_error(path)
    return load(path, part=part)


def _is_checkpoint(path: Path) -> bool:
    """Return whether there is a file, or several whose names begin with the path, or match it as a glob."""
    return path.exists() or any(path.parent.glob(f"{escape(path.name)}.*")) or any(path.parent.glob(path.name or "."))


def split_part(path: Path) -> tuple[Path, str | None]:
    """Return the path of a file and the part that is named behind it, as in ``run.ckpt#ema``."""
    before, mark, part = str(path).rpartition("#")
    return (Path(before), part) if mark and before and part and not path.exists() else (path, None)


def weight_file(text: str) -> tuple[Path, str | None]:
    """Return the path of a weight file to edit, and the part that is meant."""
    from xweights.errors import ArgumentError

    path = Path(text)
    if _match_factory(text) is not None:
        fix = f"xweights convert {text} w.safetensors, and edit that"
        raise ArgumentError(f"what is edited is a file\ngot: {text!r}, a model in Python code\nFix: {fix}")
    path, part = split_part(path)
    if not _is_checkpoint(path):
        raise missing_file_error(path)
    return path, part


def count_file_bytes(path: Path) -> int:
    """Return about how many bytes a checkpoint has: a file, a folder, or the files that a glob matches."""
    files = path.iterdir() if path.is_dir() else [path] if path.exists() else path.parent.glob(path.name)
    return sum(file.stat().st_size for file in files if file.is_file())


def count_bytes(target: Any) -> int:
    """Return the size of a target's weights in bytes."""
    from xweights.edit.read import parameters

    return sum(p.size * p.dtype.itemsize for p in parameters(target))


def missing_file_error(path: Path) -> XweightsError:
    """Return the error for a file that doesn't exist."""
    from xweights.errors import ArgumentError, near

    siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = near(path.name, siblings) if siblings else f"there is no folder {str(path.parent)!r}"
    fix = "" if ":" not in str(path) else "\nFix: a model in Python code is package.module:factory"
    return ArgumentError(f"there is no file {str(path)!r}\n{hint}{fix}")


def is_factory(text: str) -> bool:
    """Return True if a text names a model that Python code builds."""
    return _match_factory(text) is not None


def _match_factory(text: str) -> re.Match[str] | None:
    return None if Path(text).exists() else _FACTORY.fullmatch(text)


def _build(text: str, module_name: str, factory_name: str) -> Any:
    from xweights.core.registry import backend_for
    from xweights.errors import ArgumentError, near

    # The working directory is importable, as with `python -m`.
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
            raise _user_code_error(f"{module_name!r} can't be imported", wrong) from None
        modules = [file.stem for file in Path.cwd().glob("*.py")]
        raise ArgumentError(f"there is no module {module_name!r}\n{near(module_name, modules)}") from None
    except (Exception, SystemExit) as wrong:  # noqa: BLE001 - whatever the user's code raises
        raise _user_code_error(f"{module_name!r} can't be imported", wrong) from None
    factory: Any = module
    for part in factory_name.split("."):
        if not hasattr(factory, part):
            names = [name for name in vars(factory) if not name.startswith("_") and callable(getattr(factory, name))]
            raise ArgumentError(f"{module_name!r} has no {factory_name!r}\n{near(factory_name, names)}")
        factory = getattr(factory, part)
    backend = backend_for(factory)
    if isinstance(factory, Mapping) or (backend is not None and backend.adapter(factory) is not None):
        return factory  # the module has a model under this name, not a factory
    if not callable(factory):
        kind = type(factory).__name__
        raise ArgumentError(f"{text!r} is no factory\ngot:      {kind}\nexpected: a function that returns a model")
    try:
        return factory()
    except (Exception, SystemExit) as wrong:  # noqa: BLE001 - whatever the user's code raises
        raise _user_code_error(f"{module_name}:{factory_name} raised an error", wrong) from None


def _user_code_error(fact: str, wrong: BaseException) -> XweightsError:
    """Return the error for user code that failed, with its message and the line that raised it."""
    from xweights.errors import ArgumentError

    # The last frame outside of Python's import system.
    frames = [frame for frame in traceback.extract_tb(wrong.__traceback__) if "importlib" not in frame.filename]
    location = f"\nat:    {frames[-1].filename}:{frames[-1].lineno}" if len(frames) > 1 else ""
    if isinstance(wrong, SyntaxError):
        location = f"\nat:    {wrong.filename}:{wrong.lineno}"
    message = str(wrong).strip() or "(no message)"
    return ArgumentError(f"{fact}\ncause: {type(wrong).__name__}: {message}{location}")


def _open_model_file(path: Path) -> Any:
    from xweights.errors import ArgumentError, BackendBrokenError

    openers = _openers()
    suffix = path.suffix.removeprefix(".")
    if not path.exists():
        raise missing_file_error(path)
    if suffix not in openers:
        known = ", ".join(f".{name}" for name in sorted(openers)) or "none"
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


def _set_weights(model: Any, path: Path) -> None:
    from xweights.edit.counterparts import has_native_names
    from xweights.edit.write import set_params

    opened = load_file(path)
    # Arrays under the framework's own names are in its own layout: a state dict. The layout of other arrays without
    # axes is unknown, and set_params refuses them where it matters.
    set_params(model, opened, layout="native" if has_native_names(model, opened) else None)
