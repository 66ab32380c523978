"""Everything public, in one place: what ``import xweights`` stands for, once something of it is used.

``xweights/__init__.py`` loads this file at the first use of a name.
"""

from contextlib import suppress as _suppress

from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.registry import backends
from xweights.core.selection import Where, layer, native, role, trainable
from xweights.edit.apply import apply
from xweights.edit.bind import Bound, bind
from xweights.edit.read import get_params, parameters
from xweights.edit.undo import Snapshot, snapshot, transaction
from xweights.edit.verbs import (
    add,
    clip,
    clip_norm,
    fill,
    init,
    mask,
    max_norm,
    noise,
    non_negative,
    scale,
    set_entries,
    spectral_norm,
    unit_norm,
)
from xweights.edit.write import set_params
from xweights.errors import (
    ArgumentError,
    BackendBrokenError,
    BackendMissingError,
    CheckpointError,
    DamagedFileError,
    DtypeError,
    FileAccessError,
    HandoffError,
    HoldError,
    LayoutError,
    NonfiniteError,
    NotBuiltError,
    PortError,
    RefusedFileError,
    SelectionError,
    ShapeError,
    StaleDrawError,
    StaleTrainFunctionError,
    TargetError,
    TraceError,
    UseBindError,
    WriteError,
    XweightsError,
)
from xweights.files.edit.edit import EditReport, edit_file
from xweights.files.load import Checkpoint, load
from xweights.files.save import convert, save
from xweights.inspection.checksum import checksum
from xweights.inspection.diff import diff, equal
from xweights.inspection.plots import plot, plot_diff
from xweights.inspection.results import Diff, Stats
from xweights.inspection.stats import stats, summary
from xweights.merging.merge import merge
from xweights.optimizers.batches import batches, dropout_mask
from xweights.optimizers.get_set import get_optimizer, set_optimizer
from xweights.optimizers.handoff import handoff
from xweights.optimizers.initial_state import optimizer_state
from xweights.optimizers.lr_schedule import LRSchedule as RateSchedule
from xweights.optimizers.lr_schedule import schedule
from xweights.optimizers.protocol import Training
from xweights.optimizers.reports import HandoffProof, HandoffReport
from xweights.optimizers.state import OptimizerGroup, OptimizerState
from xweights.optimizers.verify import verify_handoff
from xweights.porting.plan import plan_port
from xweights.porting.port import port
from xweights.porting.reports import PortPlan, PortReport, VerifyReport
from xweights.porting.skeleton import skeleton
from xweights.porting.verify import verify
from xweights.rules.base import Rule
from xweights.rules.constraints import Keep, Pattern, SumToOne, Symmetric
from xweights.rules.elementwise import Add, Clip, Fill, Mask, NonNegative, Scale
from xweights.rules.entries import SetEntries
from xweights.rules.initializers import Init
from xweights.rules.noise import Noise
from xweights.rules.norms import ClipNorm, MaxNorm, SpectralNorm, UnitNorm
from xweights.rules.pruning import Prune
from xweights.rules.tying import Tied
from xweights.training.averages import Averages, average
from xweights.training.freeze import Freeze, freeze, unfreeze
from xweights.training.held import Hold
from xweights.training.hold import hold
from xweights.training.learning_rates import Multipliers, multiply_lr
from xweights.training.penalties import AddedPenalty, BoundPenalty, Penalty, add_penalty, bind_penalty, penalty
from xweights.training.prune import PruneHold, prune
from xweights.training.sparsity_schedule import ByStep, Constant, Cubic, OneShot, Polynomial
from xweights.training.sparsity_schedule import SparsitySchedule as Schedule

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
    "convert",
    "diff",
    "dropout_mask",
    "edit_file",
    "equal",
    "fill",
    "freeze",
    "get_optimizer",
    "get_params",
    "handoff",
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
    "optimizer_state",
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

# Tracers that rewrite Python source leave alone what bears this mark, and all that it calls. Without it the first
# traced step with two verbs on 20 variables took 13.7 s instead of 0.5 s, because this package was rewritten as well.
for _name in __all__:
    _thing = globals()[_name]
    for _one in (_thing, *(vars(_thing).values() if isinstance(_thing, type) else ())):
        if callable(_one) and not (isinstance(_one, type) and issubclass(_one, BaseException)):
            with _suppress(AttributeError, TypeError):
                _one.autograph_info__ = {}
del _name, _thing, _one
