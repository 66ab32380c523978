"""Find the parts of a training run's checkpoint: which of its trees hold weights, and which hold anything else.

A file of a training run is nested: a state dict beside its average, an optimizer's state, random states, an epoch.
Parts are told apart by what they contain; names decide only between trees that could be either.

The functions here are pure: a tree is nested dicts and lists, and an array is whatever has a ``shape`` and a ``dtype``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["weights", "optimizer", "other"]
Path = tuple[Any, ...]

# Words by which training scripts keep a model's weights, and what may follow them. Sets, and no regular expression: the
# names come from files, and one with nested repetitions can take forever on the wrong one.
_WEIGHTS = frozenset(
    {"model", "models", "net", "nets", "network", "networks", "module", "modules", "params", "parameters", "weights"}
    | {"statedict", "statedicts", "ema", "average", "averaged", "swa", "shadow", "shadowparams"}
)
_BEHIND = frozenset({"state", "dict", "dicts", "avg", "best", "last"})
# ... and a part of it: of another tree these may as well be layers.
_PARTS_OF_MODELS = frozenset(
    {"teacher", "student", "generator", "discriminator", "encoder", "decoder", "backbone", "head", "policy", "critic"}
    | {"actor"}
)
_OPTIMIZER = frozenset({"optim", "optimizer", "optimizers", "opt"})
_SETTINGS = (
    r"(hyper[_-]?param|hparams|config|args|callback|metric|histor|schedul|scaler|loops|criterion|loss|random|rng)"
)
# The last words of the names that layers give their arrays.
_ROLES = frozenset(
    {"weight", "bias", "kernel", "gamma", "beta", "scale", "embeddings", "embedding", "running_mean", "running_var"}
    | {"moving_mean", "moving_variance", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "in_proj_weight"}
    | {"in_proj_bias", "weight_g", "weight_v", "weight_orig", "pos_embed", "cls_token"}
)
# What optimizers keep for each parameter.
_SLOTS = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta", "grad_avg", "exp_inf"}
    | {"mu_product", "prev", "step_size", "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_diff", "ax", "eta"}
)
_DEPTH = 100


def _words(key: Any) -> list[str]:
    """Return the words of a key in small letters, without numbers at their ends."""
    words = [word.rstrip("0123456789") for word in re.split(r"[\W_]+", str(key).lower())]
    return [word for word in words if word]


def _names_weights(key: Any) -> bool:
    """Return whether a key says that weights are behind it: its last words are those of weights."""
    for word in reversed(_words(key)):
        if word in _WEIGHTS:
            return True
        if word not in _BEHIND:
            return False
    # ``state_dict``, and nothing more.
    return _words(key)[:2] == ["state", "dict"] or _words(key) == ["state", "dicts"]


@dataclass(frozen=True, repr=False, eq=False)
class Part:
    """One tree of a checkpoint.

    Attributes:
        name: Its place in the file, ``/`` between the levels; empty if the file is this part alone.
        kind: "weights", "optimizer", or "other" for arrays that are neither (random states, losses).
        arrays: Its arrays, by their names inside.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"b": np.ones(2)}, "w.npz"); (part,) = xw.parts("w.npz"); part.kind, part.entries
        ('weights', 2)
    """

    name: str
    kind: Kind
    arrays: Mapping[str, Any]

    @property
    def entries(self) -> int:
        """Number of entries of all its arrays, a tied one once."""
        return sum(math.prod(array.shape) for array in {id(array): array for array in self.arrays.values()}.values())

    def __repr__(self) -> str:
        return f"<Part {show_parts([self]).replace('  ', ': ', 1)}>"


def find_parts(tree: Any) -> list[Part]:
    """Return the parts of a tree that hold arrays, in the tree's order.

    Example:
        >>> import numpy as np
        >>> from xweights.core.parts import find_parts
        >>> [(p.name, p.kind) for p in find_parts({"model": {"a.weight": np.ones(2)}, "rng": np.ones(2, np.uint8)})]
        [('model', 'weights'), ('rng', 'other')]
    """
    parts = list(_split(tree, ()))
    if not any(part.kind == "weights" for part in parts):
        # Nothing looks like a state dict: then arrays under names of no meaning are what it is about.
        others = [part for part in parts if part.kind == "other" and not _is_state(part)]
        if others and all(part.kind == "other" for part in parts):
            return [Part("", "weights", dict(iter_arrays(tree)))]
        parts = [Part(part.name, "weights", part.arrays) if part in others else part for part in parts]
    return parts


def parts_named(parts: Sequence[Part], name: str) -> list[Part]:
    """Return the parts that a name means."""
    meant = names_meant([part.name for part in parts], name)
    return [part for part in parts if part.name in meant]


def names_meant(names: Iterable[str], name: str) -> list[str]:
    """Return the name itself if it is there; else those that begin or end with it (``ema`` for ``ema/module``)."""
    known = list(names)
    if name in known:
        return [name]
    return [one for one in known if one.startswith(f"{name}/") or one.endswith(f"/{name}")]


def is_run(tree: Any) -> bool:
    """Return whether a mapping is what a training run saved, and no plain (nested) mapping of arrays.

    Stricter than what is asked of a file: dotted names inside, or an optimizer's state, and not words alone.
    """
    branches = [value for value in tree.values() if _is_branch(value)]
    return not _is_state_dict(tree) and any(_is_optimizer(value) or _has_dots(value) for value in branches)


def is_array(value: Any) -> bool:
    """Return whether a value of a tree is an array: it has a shape and a dtype."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def iter_arrays(tree: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the (name, array) pairs of a tree, ``/`` between the levels."""
    if depth > _DEPTH:
        return
    if is_array(tree):
        yield prefix or "tensor", tree
    for key, value in _items(tree):
        yield from iter_arrays(value, f"{prefix}/{key}" if prefix else str(key), depth + 1)


def show_parts(parts: Sequence[Part]) -> str:
    """Return a line for each part: its name, what it is, and how much it holds."""
    width = max((len(repr(part.name)) for part in parts), default=0)
    lines = [
        f"{part.name!r:<{width}}  {part.kind}, {len(part.arrays):,} array{'s' * (len(part.arrays) != 1)}, "
        f"{part.entries:,} entries"
        for part in parts[:30]
    ]
    return "\n".join(lines + [f"... and {len(parts) - 30} more"] * (len(parts) > 30))


def _items(tree: Any) -> list[tuple[Any, Any]]:
    if isinstance(tree, Mapping):
        return list(tree.items())
    return list(enumerate(tree)) if isinstance(tree, (list, tuple)) else []


def _split(tree: Any, path: Path) -> Iterator[Part]:
    """Yield the parts of a tree that is found at ``path``."""
    name = "/".join(map(str, path))
    if is_array(tree):
        yield Part(name, "other", {"tensor": tree})
        return
    arrays = dict(iter_arrays(tree))
    if not arrays or len(path) > _DEPTH:
        return
    if _is_optimizer(tree) or (path and _OPTIMIZER & set(_words(path[-1])) and not _is_state_dict(tree)):
        yield Part(name, "optimizer", arrays)
    elif _is_state_dict(tree):
        # Other things lie flat beside the weights (an epoch), or in them (a module's extra state).
        yield Part(name, "weights", {key: array for key, array in arrays.items() if not _is_random_state(key, array)})
    elif _is_run(tree):
        for key, value in _items(tree):
            yield from _split(value, (*path, key))
    elif path and not _looks_like_weights(path[-1], tree):
        yield Part(name, "other", arrays)
    else:
        yield Part(name, "weights", arrays)


def _is_optimizer(tree: Any) -> bool:
    """Return whether a tree is the state of an optimizer, by what it keeps for each parameter."""
    if not isinstance(tree, Mapping):
        states = _items(tree)
        return bool(states) and all(_is_optimizer(state) for _, state in states)
    if "param_groups" in tree and "state" in tree:
        return True
    slots = {str(key) for _, value in _items(tree.get("state", tree)) if isinstance(value, Mapping) for key in value}
    return bool(slots & _SLOTS)


def _is_state_dict(tree: Any) -> bool:
    """Return whether a dict is a module's state dict: flat, with dotted names, or the names that layers give."""
    if not isinstance(tree, Mapping):
        return False
    names = [str(key) for key, value in tree.items() if is_array(value)]
    if any("." in name or "/" in name for name in names):
        return True
    return bool(set(names) & _ROLES) and not any(_is_branch(value) for value in tree.values())


def _is_branch(tree: Any) -> bool:
    return next(iter_arrays(tree), None) is not None and not is_array(tree)


def _is_run(tree: Any) -> bool:
    """Return whether a tree is what a training run saved: trees of several kinds beside each other."""
    if not isinstance(tree, Mapping):
        return any(_is_state_dict(value) or _is_optimizer(value) for _, value in _items(tree))
    branches = [(str(key), value) for key, value in tree.items() if _is_branch(value)]
    if {"params", "batch_stats"} <= {key for key, _ in branches}:
        return False  # the collections of one Flax model
    if any(_is_optimizer(value) or _has_dots(value) for _, value in branches):
        return True
    if any(_names_weights(key) for key, _ in branches):
        return True
    # Python's numbers and texts beside trees of arrays: no tree of weights has them.
    plain = any(not is_array(value) and not _items(value) and value is not None for value in tree.values())
    loose = any(is_array(v) and len(v.shape) > 0 and not _is_random_state(str(k), v) for k, v in tree.items())
    return bool(branches) and plain and not loose


def _has_dots(tree: Any) -> bool:
    """Return whether some dict in a tree has dotted names, as state dicts have and nested trees haven't."""
    if isinstance(tree, Mapping) and any(is_array(v) and "." in str(k) for k, v in tree.items()):
        return True
    return any(_has_dots(value) for _, value in _items(tree) if _is_branch(value))


def _looks_like_weights(key: Any, tree: Any) -> bool:
    """Return whether a tree under this key of a run's checkpoint is one of weights, and not of settings or records."""
    arrays = dict(iter_arrays(tree))
    if all(len(array.shape) == 0 or _is_random_state(str(key), array) for array in arrays.values()):
        return False
    if _names_weights(key) or _PARTS_OF_MODELS & set(_words(key)):
        return True
    return not re.search(_SETTINGS, str(key), re.IGNORECASE) and bool(
        {name.rsplit("/", 1)[-1] for name in arrays} & _ROLES
    )


def _is_random_state(name: str, array: Any) -> bool:
    """Return whether an array is the state of a random generator, as torch keeps them: bytes in one row."""
    return (
        "uint8" in str(array.dtype)
        and len(array.shape) == 1
        and re.search("rng|random|seed", name, re.IGNORECASE) is not None
    )


def _is_state(part: Part) -> bool:
    return all(len(array.shape) == 0 or _is_random_state(part.name, array) for array in part.arrays.values())
