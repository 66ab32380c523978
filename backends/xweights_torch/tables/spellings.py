"""The keys under which state dicts keep what a weight is computed from, in old and new versions of torch.nn.utils.

Names alone, without a tensor. The formulas stand beside torch's functions in ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

Kind = Literal["weight_norm", "spectral_norm", "prune"]


class Form(NamedTuple):
    """One way to keep a weight as several arrays: the endings of their keys, in the order of the formula's arguments.

    ``old``: the arrays are beside the weight (``conv.weight_g``), otherwise in its parametrization
    (``conv.parametrizations.weight.original0``).
    """

    kind: Kind
    old: bool
    endings: tuple[str, ...]

    def keys(self, path: str) -> tuple[str, ...]:
        """Return the keys of the weight ``path``."""
        if self.old:
            return tuple(path + ending for ending in self.endings)
        return tuple(parametrization_of(path) + ending for ending in self.endings)

    def path_of(self, key: str) -> str | None:
        """Return the weight that an array of this form belongs to, by its key; None for another key."""
        for ending in self.endings:
            if key.endswith(ending):
                path = key.removesuffix(ending)
                if self.old:
                    return path or None
                head, found, name = path.removesuffix(".").rpartition(_LIST)
                if found and path.endswith(".") and name and "." not in name and (not head or head.endswith(".")):
                    return head + name
        return None


_LIST = "parametrizations."

# The first of a kind is the old spelling. The new ones are what torch's own hooks make of the old ones where it has
# such hooks (weight_norm in torch/nn/utils/parametrizations.py); for spectral_norm it has none, and the arrays of both
# are the same three.
FORMS = (
    Form("weight_norm", True, ("_g", "_v")),
    Form("weight_norm", False, ("original0", "original1")),
    Form("spectral_norm", True, ("_orig", "_u", "_v")),
    Form("spectral_norm", False, ("original", "0._u", "0._v")),
    Form("prune", True, ("_orig", "_mask")),
)

_OLD_ENDINGS = frozenset(ending for form in FORMS if form.old for ending in form.endings)


def parametrization_of(path: str) -> str:
    """Return the beginning of all keys of the parametrization of a weight."""
    head, _, name = path.rpartition(".")
    return f"{head}.{_LIST}{name}." if head else f"{_LIST}{name}."


def respell(keys: Iterable[str], wanted: Iterable[str]) -> Mapping[str, str]:
    """Return ``{wanted key: key}`` for keys that spell the wanted ones in the other version of torch.nn.utils.

    Keys that are spelled alike aren't listed. A weight is respelled as a whole: all its arrays are wanted in one
    spelling, and there in the other.

    Example:
        >>> respell(["0.weight_g", "0.weight_v"], [f"0.parametrizations.weight.original{i}" for i in (0, 1)])
        {'0.parametrizations.weight.original0': '0.weight_g', '0.parametrizations.weight.original1': '0.weight_v'}
    """
    there, needed = set(keys), dict.fromkeys(wanted)
    found: dict[str, str] = {}
    for key in needed:
        for form in FORMS:
            path = None if key in found or key in there else form.path_of(key)
            if path is None or not needed.keys() >= set(form.keys(path)):
                continue
            for other in FORMS:
                if other.kind == form.kind and other.old != form.old and there >= set(other.keys(path)):
                    found.update(zip(form.keys(path), other.keys(path), strict=True))
    return found


class Product(NamedTuple):
    """How a weight is computed from arrays of a file: the formula, and for each argument a key or a further formula."""

    kind: Kind
    parts: tuple[str | Product, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all arrays that the value needs."""
        return tuple(key for part in self.parts for key in (part.keys if isinstance(part, Product) else (part,)))


class FileKeys:
    """The keys of a file, searched for weights that it keeps as several arrays."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.all = dict.fromkeys(keys)
        self.lists: dict[str, set[str]] = {}
        # The weights that may be kept that way, so that the search for all others ends at once.
        self.paths: set[str] = set()
        for key in self.all:
            if _LIST in key:
                head, _, tail = key.rpartition(_LIST)
                name = tail.partition(".")[0]
                self.lists.setdefault(f"{head}{_LIST}{name}.", set()).add(key)
                self.paths.add(head + name)
            path, mark, ending = key.rpartition("_")
            while mark + ending in _OLD_ENDINGS:
                self.paths.add(path)
                path, mark, ending = path.rpartition("_")

    def product(self, path: str, depth: int = 2) -> Product | None:
        """Return how the file's arrays give the weight ``path``; None if it doesn't keep it that way.

        A pruned part of a normalized weight has a formula of its own (``weight_v_orig``, ``weight_v_mask``).
        """
        if path not in self.paths:
            return None
        for form in FORMS:
            keys = form.keys(path)
            if not form.old:
                # Any further state belongs to a parametrization whose formula isn't known.
                if self.lists.get(parametrization_of(path)) == set(keys):
                    return Product(form.kind, keys)
                continue
            # Old spectral norms and weight norms both have a ``_v``, so no part may be missing.
            parts: list[str | Product] = []
            for key in keys:
                part = key if key in self.all else self.product(key, depth - 1) if depth > 1 else None
                if part is None:
                    break
                parts.append(part)
            if len(parts) == len(keys):
                return Product(form.kind, tuple(parts))
        return None
