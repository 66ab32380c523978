"""Everything a backend needs: the protocols, the row of a layer table, and registration."""

from xweights.core.backend import (
    Adapter,
    Attachment,
    Backend,
    HeldChain,
    HoldAttachment,
    Regularizing,
    StepState,
    Tracing,
)
from xweights.core.dispatch import NUMPY_OPS
from xweights.core.dtypes import Array
from xweights.core.layer_table import Entry
from xweights.core.layout import Layout, layout_of, plain_layout
from xweights.core.parameter import Parameter
from xweights.core.protocols import BaseStorage, Ops, Storage, StreamingStorage
from xweights.core.registry import backend_for, installed_backends, load, loaded, register, roots
from xweights.edit import connect_parameters

# A plugin that takes parameters from its own adapter, and nothing else from xweights, can read and write them, too.
connect_parameters()

__all__ = [
    "NUMPY_OPS",
    "Adapter",
    "Array",
    "Attachment",
    "Backend",
    "BaseStorage",
    "Entry",
    "HeldChain",
    "HoldAttachment",
    "Layout",
    "Ops",
    "Parameter",
    "Regularizing",
    "StepState",
    "Storage",
    "StreamingStorage",
    "Tracing",
    "backend_for",
    "installed_backends",
    "layout_of",
    "load",
    "loaded",
    "plain_layout",
    "register",
    "roots",
]
