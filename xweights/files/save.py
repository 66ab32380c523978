"""From a target to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for
from xweights.core.selection import WhereLike, select
from xweights.core.targets import is_path, open_target
from xweights.edit.read import check_readable
from xweights.errors import ArgumentError
from xweights.files.formats.sharded import SHARD_BYTES
from xweights.files.formats.table import format_of
from xweights.files.io.atomic import replacing
from xweights.files.io.items import ArrayToWrite, item_of
from xweights.files.io.open_file import refused
from xweights.files.load import load

Names = Literal["neutral", "native"]


def save(
    target: Any,
    path: str | os.PathLike[str],
    *,
    where: WhereLike = ...,
    names: Names | None = None,
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    durable: bool = True,
) -> None:
    """Write the weights of a target to a file, which takes the place of an old one wholly or not at all.

    The ending of ``path`` says the format. Arrays are written as their framework stores them, and what xweights knows
    of them (neutral names, roles, axes, gates) goes along, so that the file is as good a target as the model.

    Args:
        target: Model, layer, module, variable, checkpoint, mapping of arrays, or a list of these.
        path: Where to; an existing file is replaced.
        where: Which parameters. Default: all.
        names: The keys in the file: "neutral" names, or the framework's own ("native"). Default: whichever other
            readers of such files expect: native for frameworks with state dicts, else neutral.
        metadata: Texts to keep in the file besides, where the format has a place for them.
        shard_bytes: How large a shard may become, if ``path`` is an index (``.safetensors.index.json``).
        durable: True waits until the disk has it, so that not even a power cut leaves half a file.

    Exact: the very bits.
    Raises FileAccessError (no room, no right), RefusedFileError (an array that the format can't hold), SelectionError,
    TargetError, WriteError: whatever it is, the old file is untouched.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"b": np.ones(2)}, "w.safetensors"); xw.equal("w.safetensors", {"b": np.ones(2)})
        True
    """
    if names not in (None, "neutral", "native"):
        raise ArgumentError(f'names= is "neutral" or "native"\ngot: {names!r}')
    chosen = select(open_target(target), where)
    check_readable(chosen)
    items = _laid_out(target, chosen, path) if names is None else None
    if items is None:
        keys = keys_of(target, chosen, names)
        items = [item_of(p, key=key) for p, key in zip(chosen, keys, strict=True)]
    write_items(items, path, metadata=metadata, shard_bytes=shard_bytes, durable=durable)


def convert(
    source: str | os.PathLike[str], path: str | os.PathLike[str], *, where: WhereLike = ..., durable: bool = True
) -> None:
    """Write the weights of one file into another, of the format that its ending says; one array at a time.

    Args:
        source: A file that :func:`xweights.load` reads.
        path: Where to; an existing file is replaced.
        where: Which parameters. Default: all.
        durable: As for :func:`xweights.save`.

    Exact: the very bits. Raises what :func:`xweights.load` and :func:`xweights.save` raise.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"b": np.ones(2)}, "w.safetensors"); xw.convert("w.safetensors", "w.npz"); np.load("w.npz")["b"]
        array([1., 1.])
    """
    with load(source) as opened:
        save(opened, path, where=where, durable=durable)


def write_items(
    items: Sequence[ArrayToWrite],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    durable: bool = True,
) -> None:
    """Write arrays to a file, each when it is its turn: what save, convert and merge are made of.

    Args:
        items: What to write; see :class:`xweights.files.io.items.ArrayToWrite`.
        path: Where to; its ending says the format.
        metadata: Texts to keep besides.
        shard_bytes: How large a shard may become, if ``path`` is an index.
        durable: As for :func:`xweights.save`.
    """
    where = os.fspath(path)
    kind = format_of(where)
    if kind.write is None and kind.write_shards is None:
        raise refused(where, f"{kind.name} files are only read", fix="save as .safetensors, .npz, .pt or .weights.h5")
    twice = next((key for key, count in _counted(items).items() if count > 1), None)
    if twice is not None:
        raise refused(where, "two arrays would have this key", key=twice, fix='names="neutral"')
    if kind.write_shards is not None:
        kind.write_shards(where, items, dict(metadata or {}), durable, shard_bytes)
    elif kind.write is not None:
        with replacing(where, durable=durable) as sink:
            kind.write(sink, items, dict(metadata or {}))


def _laid_out(target: Any, chosen: Sequence[Parameter], path: str | os.PathLike[str]) -> list[ArrayToWrite] | None:
    """Return the items of an HDF5 file as the target's framework wants to find them; None if it has no wishes."""
    if format_of(os.fspath(path)).name != "h5" or isinstance(target, (Mapping, list, tuple, Parameter)):
        return None
    layout = getattr(backend_for(target), "file_layout", None)
    if layout is None or is_path(target) or hasattr(type(target), "__xweights_parameters__"):
        return None
    by_handle = {id(p.handle): p for p in chosen}
    items: list[ArrayToWrite] = []
    left = dict(by_handle)
    everything = len(chosen) == len(open_target(target))
    for key, value in layout(target):
        if isinstance(value, Parameter):
            if left.pop(id(value.handle), None) is not None:
                items.append(item_of(value, key=key))
        elif everything:
            items.append(_plain_item(key, value))
    if left:
        lost = next(iter(left.values())).name
        raise refused(os.fspath(path), "its framework keeps it in no file", key=lost, fix='names="neutral"')
    return items


def _plain_item(key: str, array: Array) -> ArrayToWrite:
    return ArrayToWrite(key, array.dtype, array.shape, None, lambda: [array])


def _counted(items: Sequence[ArrayToWrite]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in items:
        counts[item.key] = counts.get(item.key, 0) + 1
    return counts


def keys_of(target: Any, chosen: Sequence[Parameter], names: Names | None = None) -> list[str]:
    """Return the keys that parameters of a target have in a file."""
    if names is None:
        if isinstance(target, (str, os.PathLike)) or hasattr(type(target), "__xweights_parameters__"):
            return [getattr(p.handle, "key", p.name) for p in chosen]
        backend = None if isinstance(target, (Mapping, list, tuple, Parameter)) else backend_for(target)
        names = getattr(backend, "file_names", "neutral")
    return [p.name if names == "neutral" else p.native_name for p in chosen]
