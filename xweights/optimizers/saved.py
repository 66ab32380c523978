"""Find the state of an optimizer in a file that a framework wrote: alone, or beside the weights of a training run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xweights.core.parts import is_array, iter_arrays, names_meant, show_parts
from xweights.core.targets import is_path
from xweights.errors import HandoffError, got_expected, near
from xweights.files.load import Checkpoint, load

_DEPTH = 100
_SHOWN = 10


@dataclass(frozen=True, eq=False)
class SavedOptimizer:
    """What a framework saved of an optimizer, with arrays in the place of records.

    Attributes:
        framework: Whose backend can read it.
        label: What messages call it: the file, and the part of it.
        tree: The nested dicts and lists as they are in the file.
    """

    framework: str
    label: str
    tree: Any

    def check_framework(self, framework: str) -> None:
        """Raise HandoffError unless this framework saved it."""
        if self.framework != framework:
            raise HandoffError(
                f"{self.label} is the state of an optimizer of another framework\n"
                f"{got_expected(self.framework, framework)}\n"
                "Fix: read it with the model that it was saved with, then xweights.handoff"
            )


def is_saved(optimizer: Any) -> bool:
    """Return whether what is passed as an optimizer is a file, or a file that was opened."""
    return is_path(optimizer) or isinstance(optimizer, Checkpoint)


def find_saved(checkpoint: Checkpoint, part: str | None) -> SavedOptimizer:
    """Return the state of the optimizer in a file.

    Raises HandoffError if there is none, or none of that name, or more than one and no part was named.
    """
    found = dict(_find(checkpoint.tree, (), checkpoint.format, checkpoint.metadata))
    chosen = list(found)
    if part is not None:
        chosen = names_meant(found, part)
    if len(chosen) != 1:
        raise _refuse(checkpoint, part, list(found), chosen)
    framework, tree = found[chosen[0]]
    label = repr(checkpoint.path) + (f", part {chosen[0]!r}" if chosen[0] else "")
    return SavedOptimizer(framework, label, read_arrays(tree))


def open_saved(source: Any) -> Checkpoint:
    """Return the file behind a path, opened; one that is open already as it is."""
    return source if isinstance(source, Checkpoint) else load(source)


def _find(tree: Any, path: tuple[str, ...], fmt: str, texts: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield (name of the part, (framework, its tree)) for each optimizer in the tree of a file."""
    if len(path) > _DEPTH or is_array(tree):
        return
    name = "/".join(path)
    if isinstance(tree, Mapping):
        if "param_groups" in tree and isinstance(tree.get("state"), Mapping):
            yield name, ("torch", tree)
            return
        if not path and fmt in ("keras", "h5") and isinstance(tree.get("optimizer_weights"), Mapping):
            settings = tree.get("compile_config")
            config = settings.get("optimizer") if isinstance(settings, Mapping) else None
            names = tree.get("optimizer_names") or []
            variables = dict(iter_arrays(tree["optimizer_weights"]))
            if names and sorted(names) == sorted(variables):
                variables = {str(number): variables[name] for number, name in enumerate(names)}
            described = {
                "config": config,
                "name": texts.get("name:optimizer/vars"),
                "names": names,
                "variables": variables,
            }
            yield "optimizer_weights", ("keras", described)
            return
        for key, value in tree.items():
            yield from _find(value, (*path, str(key)), fmt, texts)
    elif isinstance(tree, (list, tuple)):
        # A list of one, as Lightning keeps, isn't worth a number.
        for position, value in enumerate(tree):
            yield from _find(value, path if len(tree) == 1 else (*path, str(position)), fmt, texts)


def _refuse(checkpoint: Checkpoint, part: str | None, found: list[str], chosen: list[str]) -> HandoffError:
    if not found:
        shown = "\n".join(f"  {line}" for line in show_parts(checkpoint.parts[:_SHOWN]).splitlines())
        return HandoffError(f"there is no optimizer state in {checkpoint.path!r}\n{shown}".rstrip())
    listed = "\n".join(f"  {name!r}" for name in found[:_SHOWN])
    more = f"\n  ... and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    if part is not None and not chosen:
        what = f"{checkpoint.path!r} has no optimizer of the name {part!r}"
        return HandoffError(f"{what}\n{listed}{more}\n{near(part, found)}\nFix: part={found[0]!r}")
    names = chosen if part is None else found
    return HandoffError(
        f"{checkpoint.path!r} has the states of {len(names)} optimizers\n{listed}{more}\nFix: part={names[0]!r}"
    )


def read_arrays(tree: Any) -> Any:
    """Return a tree with the arrays of a file in memory."""
    if is_array(tree):
        return tree.read()
    if isinstance(tree, Mapping):
        return {key: read_arrays(value) for key, value in tree.items()}
    return [read_arrays(value) for value in tree] if isinstance(tree, (list, tuple)) else tree
