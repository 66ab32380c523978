"""xweights: one API over the weights of neural networks, whatever framework holds them.

Importing it imports nothing but the standard library: NumPy and the rooms of the core are loaded when one of the names
below is first used, and the backend of a framework when its object arrives. The command line, which a shell starts at
every press of the Tab key, can't wait for NumPy.
"""

from typing import TYPE_CHECKING, Any

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
    "Checkpoint",
    "CheckpointError",
    "Clip",
    "ClipNorm",
    "Constant",
    "Cubic",
    "DamagedFileError",
    "Diff",
    "DtypeError",
    "EditReport",
    "FileAccessError",
    "Fill",
    "Freeze",
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
    "RefusedFileError",
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
    "bind",
    "bind_penalty",
    "checksum",
    "clip",
    "clip_norm",
    "convert",
    "diff",
    "edit_file",
    "equal",
    "fill",
    "freeze",
    "get_params",
    "hold",
    "init",
    "layer",
    "load",
    "mask",
    "max_norm",
    "merge",
    "multiply_lr",
    "native",
    "noise",
    "non_negative",
    "parameters",
    "penalty",
    "plan_port",
    "plot",
    "plot_diff",
    "port",
    "prune",
    "role",
    "save",
    "scale",
    "set_entries",
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
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'xweights' has no attribute {name!r}")
    from xweights import api

    globals().update({one: getattr(api, one) for one in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
