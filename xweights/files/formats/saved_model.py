"""SavedModel folders of TensorFlow: a program, and a checkpoint of its variables in ``variables/``.

The program isn't read: the checkpoint has the names of the variables and the graph of the objects that they belong to.
"""

from __future__ import annotations

import os

from xweights.files.formats import tf_checkpoint
from xweights.files.io import journal
from xweights.files.io.limits import Limits
from xweights.files.io.open_file import OpenFile, refused
from xweights.files.io.records import Index

ENDING = "saved_model.pb"
_VARIABLES = os.path.join("variables", f"variables{tf_checkpoint.ENDING}")


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of the variables of a SavedModel whose ``saved_model.pb`` is open."""
    folder = os.path.dirname(file.path) or "."
    path = os.path.join(folder, _VARIABLES)
    if not os.path.lexists(path):
        reason = "it has no variables beside it: its weights are constants of its program, which isn't read"
        raise refused(file.path, reason, fix="save the model with its variables")
    index = tf_checkpoint.read(journal.open_recovered(path), limits)
    return Index(folder, "saved model", index.records, [file, *index.files], ignored=index.ignored, tree=index.tree)
