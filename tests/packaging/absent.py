"""Frameworks that are installed, and left out of a run as though they weren't."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from importlib.abc import MetaPathFinder
from typing import Any

# What each run of `pytest --only=` leaves out. TensorFlow keeps Keras, which runs on it.
LEFT_OUT = {
    "numpy": ("torch", "keras", "tensorflow", "jax", "jaxlib"),
    "torch": ("keras", "tensorflow", "jax", "jaxlib"),
    "tensorflow": ("torch", "jax", "jaxlib"),
}


class Absent(MetaPathFinder):
    """Stands in front of all finders and says of some packages that there are none."""

    def __init__(self, packages: Iterable[str]) -> None:
        self.packages = frozenset(packages)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if self.hides(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    def hides(self, name: str) -> bool:
        """Whether a module belongs to what is left out."""
        return name.partition(".")[0] in self.packages


def leave_out(packages: Iterable[str]) -> None:
    """Make these packages look as they do where they aren't installed: no import, and no spec."""
    absent = Absent(packages)
    loaded = sorted(name for name in sys.modules if absent.hides(name))
    assert not loaded, f"imported already: {loaded}"
    find = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        # A finder can only raise. A package that isn't there has no spec, but its modules raise there too.
        return None if name in absent.packages else find(name, package)

    sys.meta_path.insert(0, absent)
    importlib.util.find_spec = find_spec
