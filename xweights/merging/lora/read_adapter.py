"""Read an adapter: a folder or file of PEFT's, factors by Keras' names, or factors that were just extracted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.targets import is_path, open_target
from xweights.errors import (
    ArgumentError,
    NonfiniteError,
    Problems,
    RefusedFileError,
    SelectionError,
    ShapeError,
    got_expected,
)
from xweights.files.io.open_file import refused
from xweights.files.load import Checkpoint, load
from xweights.merging.lora.factors import Adapter, Factors, Kind
from xweights.merging.lora.peft_config import CONFIG, PeftConfig, read_config
from xweights.merging.lora.peft_names import Part, read_names

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_ENDS = ("_a", "_b")


def read_adapter(source: Any, alpha: float | None) -> Adapter:
    """Return the adapter in a folder, file or mapping; everything that is wrong with it is raised at once.

    ``alpha``: of factors by Keras' names, which no file of them states. Default: the rank, as in Keras.
    """
    if isinstance(source, Adapter):
        return source
    own = getattr(source, "as_adapter", None)
    if own is not None:
        adapter: Adapter = own()
        return adapter
    path = Path(source) if is_path(source) else Path(source.path) if isinstance(source, Checkpoint) else None
    opened = load(_weights_in(path)) if is_path(source) and path is not None else source
    parameters = open_target(opened)
    label = "the adapter" if path is None else repr(path.name)
    config = _find_config(path)
    if any(p.role.startswith("lora_") and p.role.endswith(_ENDS) for p in parameters):
        return _read_neutral(parameters, alpha, label)
    if alpha is not None:
        raise ArgumentError(f"alpha= is for factors by Keras' names\ngot: {label}, which states its own")
    if config is None:
        where = "a mapping has none" if path is None else f"there is none beside {path.name!r}"
        raise refused(
            label if path is None else str(path),
            f"PEFT's factors need their {CONFIG}, which states rank and alpha, and {where}",
            fix="pass the folder that has both",
        )
    return _read_peft(parameters, read_config(str(config)), label)


def _weights_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    return next((path / name for name in _WEIGHTS if (path / name).exists()), path)


def _find_config(path: Path | None) -> Path | None:
    if path is None:
        return None
    config = (path if path.is_dir() else path.parent) / CONFIG
    return config if config.exists() else None


def _read_peft(parameters: list[Parameter], config: PeftConfig, label: str) -> Adapter:
    problems = Problems(f"{label} can't be merged, and nothing was changed")
    parts, rest = read_names({p.native_name: p for p in parameters}, problems)
    factors: dict[str, Factors] = {}
    added: dict[str, tuple[Parameter, float]] = {}
    for module, found in parts.items():
        scaling = config.scaling_of(module)
        pair = _find_pair(module, found, problems)
        if pair is None:
            continue
        if Part.BIAS in found:
            added[f"{module}.bias"] = (found[Part.BIAS], scaling)
        magnitude = found.get(Part.MAGNITUDE)
        if (magnitude is not None) != config.dora:
            text = f"{module!r} has {'a' if magnitude is not None else 'no'} magnitude, and use_dora is {config.dora}"
            problems.add(SelectionError, text)
        made = _make_factors(module, *pair, config.rank_of(module), scaling, magnitude, problems)
        if made is not None:
            factors[f"{module}.weight"] = made
    if not factors and not problems:
        problems.add(SelectionError, "it has no factors: no key ends in lora_A.weight or lora_embedding_A")
    for p in (*added_parameters(added), *rest.values()):
        _check_values(p, problems)
    problems.check()
    return Adapter(label, factors, added, rest, config.transposed)


def added_parameters(added: Mapping[str, tuple[Parameter, float]]) -> list[Parameter]:
    """Return what is added to biases."""
    return [p for p, _ in added.values()]


def _find_pair(
    module: str, found: Mapping[str, Parameter], problems: Problems
) -> tuple[Kind, Parameter, Parameter] | None:
    for kind, names in (("linear", (Part.A, Part.B)), ("embedding", (Part.EMBEDDING_A, Part.EMBEDDING_B))):
        have = [name for name in names if name in found]
        if len(have) == 2:
            a, b = (found[name] for name in names)
            shape = a.layout.stored
            return ("conv" if kind == "linear" and len(shape) > 2 else kind), a, b  # type: ignore[return-value]
        if have:
            missing = next(name for name in names if name not in found)
            problems.add(SelectionError, f"{module!r} has {have[0]} and no {missing}")
            return None
    problems.add(SelectionError, f"{module!r} has {', '.join(map(str, found))} and no factors")
    return None


def _make_factors(
    module: str,
    kind: Kind,
    a: Parameter,
    b: Parameter,
    rank: int,
    scaling: float,
    magnitude: Parameter | None,
    problems: Problems,
) -> Factors | None:
    """Return PEFT's pair as left (B, from the rank to the outputs) and right (A, from the inputs to the rank)."""
    down, up = a.layout.stored, b.layout.stored
    fits = len(down) == len(up) >= 2 and down[0] == up[1] and all(n == 1 for n in up[2:])
    if not fits or not up[0] * down[0] or (kind == "embedding" and len(down) != 2) or len(down) > 5:
        grouped = " (a convolution with groups isn't merged here)" * (kind == "conv" and len(up) == len(down))
        text = f"the factors of {module!r} don't fit together{grouped}\nA: {down}\nB: {up}"
        problems.add(ShapeError, text)
        return None
    if down[0] != rank:
        text = f"the factors of {module!r} have another rank than the configuration states"
        problems.add(ShapeError, f"{text}\n{got_expected(down[0], rank)}")
        return None
    if magnitude is not None and (kind != "linear" or magnitude.size != up[0]):
        text = f"{module!r}: DoRA's magnitude of {magnitude.size} entries for a {kind} layer of {up[0]} outputs"
        problems.add(RefusedFileError, f"{text} isn't merged here", fix="merge it with PEFT: model.merge_and_unload()")
        return None
    checked = [_check_values(p, problems) for p in (a, b, magnitude) if p is not None]
    if not all(checked):
        return None
    dtype = np.result_type(a.dtype, b.dtype)
    shape = (up[0], *down[1:])
    left, right = partial(_matrix, b, (up[0], rank)), partial(_matrix, a, (rank, -1))
    return Factors(left, right, shape, kind, dtype, rank, scaling, None if magnitude is None else magnitude.read)


def _matrix(p: Parameter, shape: tuple[int, int]) -> Array:
    return p.read().reshape(shape)


def _check_values(p: Parameter, problems: Problems) -> bool:
    """Note an array that isn't of finite floats."""
    reason = p.refusal(writing=False)
    if reason is not None or not p.floating or p.dtype.itemsize < 2:
        text = reason or f"it is {p.dtype.name}, and factors are floats of 16 bits or more"
        problems.add(RefusedFileError, f"{p.native_name!r}: {text}")
        return False
    wrong = p.size - int(np.count_nonzero(np.isfinite(p.read())))
    if wrong:
        problems.add(NonfiniteError, f"{p.native_name!r}: {wrong:,} of {p.size:,} entries aren't finite")
    return not wrong


def _read_neutral(parameters: list[Parameter], alpha: float | None, label: str) -> Adapter:
    """Return factors by Keras' names: ``dense/lora_kernel_a`` and ``dense/lora_kernel_b`` of ``dense/kernel``."""
    problems = Problems(f"{label} can't be merged, and nothing was changed")
    by_name = {p.name: p for p in parameters}
    factors: dict[str, Factors] = {}
    for p in parameters:
        path, _, role = p.name.rpartition("/")
        if not (role.startswith("lora_") and role.endswith(_ENDS)):
            problems.add(SelectionError, f"{p.name!r} is no factor of LoRA", fix="pass the factors alone")
            continue
        name = f"{path}/{role[5:-2]}" if path else role[5:-2]
        ends = [by_name.get(f"{p.name[:-2]}{end}") for end in _ENDS]
        a, b = ends
        if a is None or b is None:
            problems.add(SelectionError, f"{name!r} has {p.name!r} and no other factor")
            continue
        if role.endswith("_b"):
            continue
        first, last = a.shape, b.shape
        if len(last) != 2 or len(first) < 2 or first[-1] != last[0] or not last[0]:
            problems.add(ShapeError, f"the factors of {name!r} don't fit together\na: {first}\nb: {last}")
            continue
        checked = [_check_values(end, problems) for end in (a, b)]
        if not all(checked):
            continue
        rank = last[0]
        left: Callable[[], Array] = partial(_neutral_matrix, a, (-1, rank))
        right = partial(_neutral_matrix, b, last)
        dtype = np.result_type(a.dtype, b.dtype)
        scaling = 1.0 if alpha is None else alpha / rank
        factors[name] = Factors(left, right, (*first[:-1], last[1]), "neutral", dtype, rank, scaling)
    problems.check()
    return Adapter(label, factors, native=False)


def _neutral_matrix(p: Parameter, shape: tuple[int, int]) -> Array:
    return p.layout.to_neutral(p.read()).reshape(shape)
