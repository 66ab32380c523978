"""xweights: one API over the weights of neural networks, whatever framework holds them.

Importing it imports NumPy; the rooms of the core are loaded when one of the names below is first used, and the backend
of a framework when its object arrives.
"""

from typing import TYPE_CHECKING, Any

import numpy as np  # noqa: F401 - paid for here, where everybody expects it

if TYPE_CHECKING:
    from xweights.api import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "Add",
    "AddedPenalty",
    "ArgumentError",
    "Averages",
    "BackendBrokenError",
    "BackendMissingError",
    "Bound",
    "BoundPenalty",
    "ByStep",
    "Clip",
    "ClipNorm",
    "Constant",
    "Cubic",
    "Diff",
    "DtypeError",
    "Fill",
    "Freeze",
    "HandoffError",
    "HandoffProof",
    "HandoffReport",
    "Hold",
    "HoldError",
    "Init",
    "Keep",
    "LayoutError",
    "Mask",
    "MaxNorm",
    "Multipliers",
    "Noise",
    "NonNegative",
    "NonfiniteError",
    "NotBuiltError",
    "OneShot",
    "OptimizerGroup",
    "OptimizerState",
    "Parameter",
    "Params",
    "Pattern",
    "Penalty",
    "Polynomial",
    "PortError",
    "PortPlan",
    "PortReport",
    "Prune",
    "PruneHold",
    "RateSchedule",
    "Rule",
    "Scale",
    "Schedule",
    "SelectionError",
    "SetEntries",
    "ShapeError",
    "Snapshot",
    "SpectralNorm",
    "StaleDrawError",
    "StaleTrainFunctionError",
    "Stats",
    "SumToOne",
    "Symmetric",
    "TargetError",
    "Tied",
    "TraceError",
    "Training",
    "UnitNorm",
    "UseBindError",
    "VerifyReport",
    "Where",
    "WriteError",
    "XweightsError",
    "add",
    "add_penalty",
    "apply",
    "average",
    "backends",
    "batches",
    "bind",
    "bind_penalty",
    "checksum",
    "clip",
    "clip_norm",
    "diff",
    "dropout_mask",
    "equal",
    "fill",
    "freeze",
    "get_optimizer",
    "get_params",
    "handoff",
    "hold",
    "init",
    "layer",
    "mask",
    "max_norm",
    "multiply_lr",
    "native",
    "noise",
    "non_negative",
    "optimizer_state",
    "parameters",
    "penalty",
    "plan_port",
    "port",
    "prune",
    "role",
    "scale",
    "schedule",
    "set_entries",
    "set_optimizer",
    "set_params",
    "skeleton",
    "snapshot",
    "spectral_norm",
    "stats",
    "summary",
    "trainable",
    "transaction",
    "unfreeze",
    "unit_norm",
    "verify",
    "verify_handoff",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'xweights' has no attribute {name!r}")
    from xweights import api

    globals().update({one: getattr(api, one) for one in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
