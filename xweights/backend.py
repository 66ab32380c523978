"""Everything that a backend needs: the protocols, the row of a layer table, and registration."""

from xweights.core.backend import (
    Adapter,
    Attachment,
    Backend,
    Entry,
    HeldChain,
    HoldAttachment,
    Ops,
    Regularizing,
    StepState,
    Storage,
    Tracing,
    backend_for,
    doors,
    load,
    loaded,
    register,
    roots,
)
from xweights.core.layout import Layout, layout_of, plain_layout
from xweights.core.parameter import Array, Parameter
from xweights.edit.execute import NUMPY_OPS

__all__ = [
    "NUMPY_OPS",
    "Adapter",
    "Array",
    "Attachment",
    "Backend",
    "Entry",
    "HeldChain",
    "HoldAttachment",
    "Layout",
    "Ops",
    "Parameter",
    "Regularizing",
    "StepState",
    "Storage",
    "Tracing",
    "backend_for",
    "doors",
    "layout_of",
    "load",
    "loaded",
    "plain_layout",
    "register",
    "roots",
]
