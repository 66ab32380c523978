"""Rewrite a ``.keras`` archive whose weights are compressed, in the archive or in its HDF5 file."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable
from typing import Any

from xweights.core.dtypes import Array
from xweights.files.edit.plan import Steps
from xweights.files.edit.rewrite import replace_datasets
from xweights.files.formats import h5
from xweights.files.formats.keras_archive import WEIGHTS
from xweights.files.formats.zip_archive import Archive
from xweights.files.io.atomic import replace_file
from xweights.files.io.limits import Limits
from xweights.files.io.open_file import PIECE, Window
from xweights.files.load import Checkpoint


def can_repack_archive(checkpoint: Checkpoint) -> bool:
    """Return whether the file is an archive that can be written again with other weights."""
    return checkpoint.format == "keras" and len(checkpoint.files) == 1


def repack_archive(
    checkpoint: Checkpoint, steps: Steps, edit: Callable[[int], Array], destination: str, *, durable: bool
) -> None:
    """Write the archive again: its weights edited, every other member with the same contents."""
    (file,) = checkpoint.files
    archive = Archive(file, Limits(1 << 62))  # opened within the caller's limits: now its members only pass through
    with zipfile.ZipFile(Window(file)) as old:
        infos = old.infolist()
    with (
        replace_file(destination, durable=durable) as sink,
        zipfile.ZipFile(sink.file, "w", allowZip64=True) as new,
        tempfile.TemporaryFile(dir=os.path.dirname(sink.temporary)) as weights,
    ):
        for part in archive.stream(archive.members[WEIGHTS]):
            weights.write(part)
        with h5.need_h5py(file.path).File(weights, "r+") as structure:
            replace_datasets(file.path, structure, steps, sorted(steps.touched), edit)
        size = weights.seek(0, os.SEEK_END)
        weights.seek(0)
        for info in infos:
            edited = info.filename == WEIGHTS
            with new.open(_describe_again(info), "w", force_zip64=max(size, info.file_size) >= 1 << 31) as member:
                if edited:
                    while part := weights.read(PIECE):
                        member.write(part)
                else:
                    for part in archive.stream(archive.members[info.filename]):
                        member.write(part)


def _describe_again(info: zipfile.ZipInfo) -> Any:
    """Return a member's entry for another archive."""
    again = zipfile.ZipInfo(info.filename, info.date_time)
    again.compress_type, again.external_attr = info.compress_type, info.external_attr
    again.create_system, again.comment = info.create_system, info.comment
    return again
