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


class _FormerPaths:
    """Finds a module under its former path, and loads it as a copy of the names of today's."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        former = fullname.removeprefix("xweights.")
        if former == fullname or former not in _FORMER:
            return None
        loader: Any = self  # not a Loader by inheritance: importlib.abc takes a third of NumPy's import
        return ModuleSpec(fullname, loader, is_package=former == "handing")

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        former = module.__name__.removeprefix("xweights.")
        today = vars(import_module(f"xweights.{_FORMER[former]}"))
        names = {name: value for name, value in today.items() if not name.startswith("__")}
        names |= {name: today[new] for name, new in _RENAMED.get(former, {}).items()}
        vars(module).update(names)


_FINDER = _FormerPaths()


def install() -> None:
    """Let Python find the former paths, after everything that it finds by itself."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
