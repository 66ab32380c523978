"""Module paths of version 0.1, so that pickles made with it still load."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Only modules with classes that a pickle can name; nothing else of 0.1 was public under such a path.
_FORMER = {
    "arrays": "core.numpy_backend",
    "averaging": "training.averages",
    "axes": "core.layout",
    "entries": "rules.entries",
    "files.checkpoint": "files.load",
    "files.editing": "files.edit.edit",
    "freezing": "training.freeze",
    "handing": "optimizers",
    "handing.protocol": "optimizers.protocol",
    "handing.rates": "optimizers.lr_schedule",
    "handing.reports": "optimizers.reports",
    "handing.state": "optimizers.state",
    "holds": "training.held",
    "initializers": "rules.initializers",
    "keeping": "rules.constraints",
    "multipliers": "training.learning_rates",
    "norms": "rules.norms",
    "parameter": "core.parameter",
    "params": "core.params",
    "penalties": "training.penalties",
    "pruning": "rules.pruning",
    "pruning_holds": "training.prune",
    "randomness": "rules.noise",
    "results": "inspection.results",
    "running": "edit.bind",
    "schedules": "training.sparsity_schedule",
    "selecting": "core.selection",
    "tying": "rules.tying",
    "undo": "edit.undo",
}
# Classes that had another name there.
_RENAMED = {
    "handing.rates": {"RateSchedule": "LRSchedule"},
    "handing.state": {"Moving": "WeightEMA"},
    "schedules": {"Schedule": "SparsitySchedule"},
    "selecting": {"Native": "NativeName"},
}


_BY_NAME: dict[str, tuple[str, dict[str, str]]] = {
    f"xweights.{former}": (f"xweights.{today}", _RENAMED.get(former, {})) for former, today in _FORMER.items()
}


def register(former: str, today: str, **renamed: str) -> None:
    """Let a module be found under its former path, too; ``renamed`` maps former names in it to today's."""
    _BY_NAME[former] = (today, renamed)


class _FormerPaths:
    """Finds a module under its former path, and loads it as a copy of the names of today's."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _BY_NAME:
            return None
        loader: Any = self  # not a Loader by inheritance: importlib.abc takes a third of NumPy's import
        return ModuleSpec(fullname, loader, is_package=fullname == "xweights.handing")

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        today, renamed = _BY_NAME[module.__name__]
        defined = vars(import_module(today))
        names = {name: value for name, value in defined.items() if not name.startswith("__")}
        names |= {former: defined[name] for former, name in renamed.items()}
        vars(module).update(names)


_FINDER = _FormerPaths()


def install() -> None:
    """Let Python find the former paths, after everything that it finds by itself."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
