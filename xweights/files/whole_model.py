"""Save a whole model, its configuration with its weights, by its framework's own saver."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from xweights.core.backend import SavesModels
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for
from xweights.core.selection import WhereLike
from xweights.core.targets import is_path
from xweights.errors import ArgumentError
from xweights.files.io.atomic import replace_file
from xweights.files.io.open_file import refused

_FIX = "save the live model, or its weights alone as .weights.h5 or .safetensors"


def save_model(
    target: Any,
    path: str | os.PathLike[str],
    *,
    where: WhereLike,
    names: str | None,
    metadata: Mapping[str, str] | None,
    durable: bool,
) -> None:
    """Write a live model to a ``.keras`` file, replacing an existing file completely or not at all."""
    file = os.fspath(path)
    is_target_of_ours = is_path(target) or hasattr(type(target), "__xweights_parameters__")
    plain = is_target_of_ours or isinstance(target, (Mapping, list, tuple, Parameter))
    backend = None if plain else backend_for(target)
    if not isinstance(backend, SavesModels):
        reason = "a .keras file is a whole model, its configuration with its weights"
        raise refused(file, f"{reason}\ngot: {type(target).__name__}", fix=_FIX)
    options = {"where=": where is not ..., "names=": names is not None, "metadata=": bool(metadata)}
    given = [option for option, is_given in options.items() if is_given]
    if given:
        reason = f"a .keras file has all weights of a model, under names of its own: {', '.join(given)} can't be had"
        raise refused(file, reason, fix=f"leave out {', '.join(given)}, or save as .safetensors")
    with replace_file(file, durable=durable) as sink:
        try:
            backend.save_model(target, sink.file)
        except ArgumentError as wrong:
            raise refused(file, str(wrong), fix=_FIX) from None
