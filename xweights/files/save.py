"""Save a target to a file, or convert one file into another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from xweights.core.agreement import Outcome, Vote
from xweights.core.backend import FileLayout, HasState, NamesFiles
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter, is_shared
from xweights.core.registry import backend_for
from xweights.core.selection import WhereLike, select
from xweights.core.targets import is_path, open_target
from xweights.edit.adapt.base import check_count
from xweights.edit.adapting import Adapt
from xweights.edit.read import check_readable, effective_array
from xweights.edit.serve import work_on_one_rank
from xweights.errors import ArgumentError
from xweights.files.adapted import adapt_arrays
from xweights.files.formats import dcp
from xweights.files.formats.sharded import SHARD_BYTES
from xweights.files.formats.table import format_of
from xweights.files.io.arrays_to_write import ArrayToWrite, StateValues, array_to_write
from xweights.files.io.atomic import replace_file
from xweights.files.io.open_file import refused
from xweights.files.io.records import Record
from xweights.files.load import load
from xweights.files.placing import Placing
from xweights.files.whole_model import save_model

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
    """Write the weights of a target to a file, replacing an existing file completely or not at all.

    The ending of ``path`` determines the format. Arrays are written as their framework stores them, together with
    their metadata (neutral names, roles, axes, gates), so that the file is as good a target as the model.

    Args:
        target: Model, layer, module, variable, checkpoint, mapping of arrays, or a list of these.
        path: Path of the file; an existing file is replaced. One that ends in ``/`` is a folder of
            torch.distributed.checkpoint. Of a sharded model every rank makes the call, with the same path.
        where: Which parameters. Default: all.
        names: The keys in the file: "neutral" names, or the framework's own ("native"). Default: whichever other
            readers of such files expect: native for frameworks with state dicts, else neutral.
        metadata: Further texts to keep in the file, where the format has a place for them.
        shard_bytes: The largest size of a shard, if ``path`` is an index (``.safetensors.index.json``).
        durable: True waits until the data is on disk, so that not even a power cut leaves half a file.

    Exact: exactly the same bits.
    Raises FileAccessError (no space, no permission), RefusedFileError (an array that the format can't hold),
    SelectionError, TargetError, WriteError; in every case the old file is untouched.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"b": np.ones(2)}, "w.safetensors"); xw.equal("w.safetensors", {"b": np.ones(2)})
        True
    """
    if names not in (None, "neutral", "native"):
        raise ArgumentError(f'names= is "neutral" or "native"\ngot: {names!r}')
    check_count(shard_bytes, "shard_bytes=", least=1)
    path = _find_path(path)
    everything = open_target(target)
    options: dict[str, Any] = {"where": where, "names": names, "metadata": metadata, "shard_bytes": shard_bytes}
    with Vote(everything, "save", writing=False) as vote:
        vote.agree("save", str(path), names, metadata, shard_bytes)
        chosen = vote.open(select(everything, where))
        check_readable(chosen)
    fmt = format_of(os.fspath(path))
    if fmt.write_blocks is not None:
        with Outcome(vote.group):
            if metadata:
                raise refused(os.fspath(path), f"a {fmt.name} folder has no place for metadata")
            arrays, _, state = _list_arrays(target, chosen, path, where, names, None)
            _check_arrays(arrays, path, state)
        fmt.write_blocks(os.fspath(path), arrays, durable, vote.group)
        return
    placing = Placing(vote.group, chosen, durable=durable) if vote.group is not None and fmt.places else None
    # Of a sharded model one rank writes the file, and the others their blocks of it, or send them where they can't.
    work_on_one_rank(
        vote.group,
        chosen,
        lambda chosen: _save(target, chosen, path, **options, durable=durable, placing=placing),
        None if placing is None else placing.join,
    )


def _find_path(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the path of the metadata of a folder of torch.distributed.checkpoint, and any other path as it is."""
    text = os.fspath(path)
    is_folder = text.endswith(os.sep) or os.path.isfile(os.path.join(text, dcp.ENDING))
    return os.path.join(text, dcp.ENDING) if is_folder else path


def _save(
    target: Any,
    chosen: Sequence[Parameter],
    path: str | os.PathLike[str],
    *,
    where: WhereLike,
    names: Names | None,
    metadata: Mapping[str, str] | None,
    shard_bytes: int,
    durable: bool,
    placing: Placing | None,
) -> None:
    if format_of(os.fspath(path)).name == "keras":
        save_model(target, path, where=where, names=names, metadata=metadata, durable=durable)
        return
    arrays, texts, state = _list_arrays(target, chosen, path, where, names, metadata)
    write_arrays(arrays, path, metadata=texts, shard_bytes=shard_bytes, durable=durable, state=state, placing=placing)


def _list_arrays(
    target: Any,
    chosen: Sequence[Parameter],
    path: str | os.PathLike[str],
    where: WhereLike,
    names: Names | None,
    metadata: Mapping[str, str] | None,
) -> tuple[list[ArrayToWrite], Mapping[str, str] | None, StateValues | None]:
    """Return what the file will hold: arrays, further texts, and what else its framework's own file would."""
    if where is ... and names != "neutral":
        state = _read_state(target, chosen)
        if state is not None:
            texts = {**state.texts, **(metadata or {})} if format_of(os.fspath(path)).keeps_metadata else metadata
            return state.arrays, texts, state.values
    arrays = _lay_out(target, chosen, path) if names is None else None
    if arrays is None:
        keys = keys_of(target, chosen, names)
        arrays = [array_to_write(p, key=key) for p, key in zip(chosen, keys, strict=True)]
    return arrays, metadata, None


def convert(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    where: WhereLike = ...,
    part: str | None = None,
    durable: bool = True,
    adapt: Adapt | None = None,
) -> None:
    """Write the weights of one file to another, one array at a time; its ending determines the format.

    Args:
        source: A file that :func:`xweights.load` reads.
        path: Path of the new file; an existing file is replaced.
        where: Which parameters. Default: all.
        part: Which part of a training run's file, as for :func:`xweights.load`.
        durable: As for :func:`xweights.save`.
        adapt: ``{name or glob of the file: adapter}`` for arrays that are written in another shape, as for
            :func:`xweights.set_params`. No target says how long an axis gets: give the length, or the tokens of both.

    Exact: exactly the same bits, if nothing is adapted. Raises the errors of :func:`xweights.load` and
    :func:`xweights.save`, and for adapters SelectionError, ShapeError, DtypeError, LayoutError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"b": np.ones(2)}, "w.safetensors"); xw.convert("w.safetensors", "w.npz"); np.load("w.npz")["b"]
        array([1., 1.])
    """
    with load(source, part=part) as checkpoint:
        if adapt is None:
            save(checkpoint, path, where=where, durable=durable)
            return
        write_arrays(adapt_arrays(select(open_target(checkpoint), where), adapt), path, durable=durable)


def write_arrays(
    arrays: Sequence[ArrayToWrite],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    durable: bool = True,
    state: StateValues | None = None,
    placing: Placing | None = None,
) -> None:
    """Write arrays to a file one after the other.

    Args:
        arrays: The arrays; see :class:`xweights.files.io.arrays_to_write.ArrayToWrite`.
        path: Path of the file; its ending determines the format.
        metadata: Further texts to keep in the file.
        shard_bytes: The largest size of a shard, if ``path`` is an index.
        durable: As for :func:`xweights.save`.
        state: What else a framework's own file of these arrays would hold.
        placing: Where ranks write their own blocks.
    """
    file = os.fspath(path)
    fmt = format_of(file)
    _check_arrays(arrays, path, state)
    if placing is not None:
        arrays = placing.take(arrays)
    complete = _do_nothing if placing is None else placing.complete
    if fmt.write_blocks is not None:
        fmt.write_blocks(file, arrays, durable, None)
    elif fmt.write_shards is not None:
        fmt.write_shards(file, arrays, dict(metadata or {}), durable, shard_bytes, complete)
    elif fmt.write_state is not None and state is not None and not metadata:
        with replace_file(file, durable=durable) as sink:
            fmt.write_state(sink, arrays, state)
    elif fmt.write is not None:
        with replace_file(file, durable=durable) as sink:
            fmt.write(sink, arrays, dict(metadata or {}))
            sink.file.flush()
            complete()


def _do_nothing() -> None:
    pass


def _check_arrays(arrays: Sequence[ArrayToWrite], path: str | os.PathLike[str], state: StateValues | None) -> None:
    """Refuse what the format of a file can't hold, before anything is written."""
    file = os.fspath(path)
    fmt = format_of(file)
    if fmt.write is None and fmt.write_shards is None and fmt.write_blocks is None:
        whole = "a .keras file is a whole model, and these are arrays alone"
        reason = whole if fmt.name == "keras" else f"{fmt.name} files are only read"
        raise refused(file, reason, fix="save as .safetensors, .npz, .pt or .weights.h5")
    repeated = next((key for key, count in _count_keys(arrays).items() if count > 1), None)
    if repeated is not None:
        raise refused(file, "two arrays would have this key", key=repeated, fix='names="neutral"')
    if state is not None and fmt.write_state is None and state.values:
        raise refused(
            file,
            f"the model's state holds a value that is no array, and {fmt.name} has no place for it",
            key=next(iter(state.values)),
            fix='save as .pt, or names="neutral", which writes the parameters alone',
        )


class _StateToWrite(NamedTuple):
    """A framework's state of a model, ready to be written."""

    arrays: list[ArrayToWrite]
    values: StateValues
    texts: Mapping[str, str]


def _read_state(target: Any, chosen: Sequence[Parameter]) -> _StateToWrite | None:
    """Return what a framework's own saver would write of a target; None where it has none."""
    if isinstance(target, (Mapping, list, tuple, Parameter)) or is_path(target):
        return None
    backend = None if hasattr(type(target), "__xweights_parameters__") else backend_for(target)
    state = backend.state(target) if isinstance(backend, HasState) else None
    if state is None or not isinstance(backend, HasState):
        return None
    readable = {p.identity(): p for p in chosen}
    entries = [
        (
            entry,
            readable.get(entry.parameter.identity(), entry.parameter)
            if is_shared(entry.parameter)
            else entry.parameter,
        )
        for entry in state.entries
        if entry.parameter is not None
    ]
    check_readable([p for _, p in entries])
    arrays = [array_to_write(p, key=entry.keys[0], aliases=entry.keys[1:]) for entry, p in entries]
    values = {key: entry.value for entry in state.entries if entry.parameter is None for key in entry.keys}
    return _StateToWrite(arrays, StateValues(values, state.order, state.attributes), backend.file_texts)


def _lay_out(target: Any, chosen: Sequence[Parameter], path: str | os.PathLike[str]) -> list[ArrayToWrite] | None:
    """Return the arrays of an HDF5 file in its framework's own layout; None if the framework prescribes none."""
    if format_of(os.fspath(path)).name != "h5" or isinstance(target, (Mapping, list, tuple, Parameter)):
        return None
    backend = backend_for(target)
    if not isinstance(backend, FileLayout) or is_path(target) or hasattr(type(target), "__xweights_parameters__"):
        return None
    by_handle = {id(p.handle): p for p in chosen}
    arrays: list[ArrayToWrite] = []
    unwritten = dict(by_handle)
    all_chosen = len(chosen) == len(open_target(target))
    for key, value in backend.file_layout(target):
        if isinstance(value, Parameter):
            if unwritten.pop(id(value.handle), None) is not None:
                arrays.append(array_to_write(value, key=key, pieces=_merged_pieces(value)))
        elif all_chosen:
            arrays.append(_plain_array(key, value))
    # The framework's own file has them inside of the weights that they add to.
    unwritten = {key: p for key, p in unwritten.items() if not (all_chosen and p.is_part())}
    if unwritten:
        lost = next(iter(unwritten.values())).name
        raise refused(os.fspath(path), "its framework keeps it in no file", key=lost, fix='names="neutral"')
    return arrays


def _merged_pieces(p: Parameter) -> Callable[[], Iterable[Array]] | None:
    """Return what a framework's own file has in the place of a weight that factors add to; None for other weights."""
    if p.edit_refusal() is None:
        return None
    merged = effective_array(p)
    return None if merged is None else lambda: [merged]


def _plain_array(key: str, array: Array) -> ArrayToWrite:
    return ArrayToWrite(key, array.dtype, array.shape, None, lambda: [array])


def _count_keys(arrays: Sequence[ArrayToWrite]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for array in arrays:
        for key in (array.key, *array.aliases):
            counts[key] = counts.get(key, 0) + 1
    return counts


def keys_of(target: Any, chosen: Sequence[Parameter], names: Names | None = None) -> list[str]:
    """Return the keys that parameters of a target have in a file."""
    if names is None:
        if isinstance(target, (str, os.PathLike)) or hasattr(type(target), "__xweights_parameters__"):
            return [p.handle.key_in_part if isinstance(p.handle, Record) else p.name for p in chosen]
        backend = None if isinstance(target, (Mapping, list, tuple, Parameter)) else backend_for(target)
        names = backend.file_names if isinstance(backend, NamesFiles) else "neutral"
    return [p.name if names == "neutral" else p.native_name for p in chosen]
