"""Replace arrays in a folder of torch.distributed.checkpoint, and leave the data files of all others as they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from xweights.core.dtypes import Array
from xweights.files.edit.plan import Steps
from xweights.files.formats import dcp, dcp_write
from xweights.files.load import Checkpoint


def can_rewrite_folder(checkpoint: Checkpoint) -> bool:
    """Return whether the checkpoint is such a folder."""
    return checkpoint.format == "torch distributed"


def rewrite_folder(checkpoint: Checkpoint, steps: Steps, edit: Callable[[int], Array], *, durable: bool) -> None:
    """Write the touched arrays to a new data file.

    The metadata then names that file in the place of their old chunks, all at once.
    """
    path = os.path.join(checkpoint.path, dcp.ENDING)
    parameters = {position: steps.parameters[position] for position in steps.touched}
    values = {
        p.handle.key: (partial(edit, position), p.handle.metadata.native_aliases) for position, p in parameters.items()
    }
    dcp_write.replace_values(path, dcp.read_contents(path), values, durable=durable)
