# The names of the table in __init__.py, for type checkers. Written by tests/packaging/test_public_names.py.

from xweights.core.layer_rows import register_layer as register_layer
from xweights.core.parameter import Parameter as Parameter
from xweights.core.params import Params as Params
from xweights.core.parts import Part as Part
from xweights.core.registry import backends as backends
from xweights.core.selection import Where as Where
from xweights.core.selection import layer as layer
from xweights.core.selection import native as native
from xweights.core.selection import role as role
from xweights.core.selection import trainable as trainable
from xweights.edit.adapting import adapt as adapt
from xweights.edit.apply import apply as apply
from xweights.edit.bind import Bound as Bound
from xweights.edit.bind import bind as bind
from xweights.edit.load_report import LoadReport as LoadReport
from xweights.edit.read import effective_params as effective_params
from xweights.edit.read import get_params as get_params
from xweights.edit.read import parameters as parameters
from xweights.edit.undo import Snapshot as Snapshot
from xweights.edit.undo import snapshot as snapshot
from xweights.edit.undo import transaction as transaction
from xweights.edit.verbs import add as add
from xweights.edit.verbs import clip as clip
from xweights.edit.verbs import clip_norm as clip_norm
from xweights.edit.verbs import fill as fill
from xweights.edit.verbs import init as init
from xweights.edit.verbs import mask as mask
from xweights.edit.verbs import max_norm as max_norm
from xweights.edit.verbs import noise as noise
from xweights.edit.verbs import non_negative as non_negative
from xweights.edit.verbs import scale as scale
from xweights.edit.verbs import set_entries as set_entries
from xweights.edit.verbs import spectral_norm as spectral_norm
from xweights.edit.verbs import unit_norm as unit_norm
from xweights.edit.write import set_params as set_params
from xweights.errors import ArgumentError as ArgumentError
from xweights.errors import BackendBrokenError as BackendBrokenError
from xweights.errors import BackendMissingError as BackendMissingError
from xweights.errors import CheckpointError as CheckpointError
from xweights.errors import DamagedFileError as DamagedFileError
from xweights.errors import DtypeError as DtypeError
from xweights.errors import FileAccessError as FileAccessError
from xweights.errors import HandoffError as HandoffError
from xweights.errors import HoldError as HoldError
from xweights.errors import LayoutError as LayoutError
from xweights.errors import NonfiniteError as NonfiniteError
from xweights.errors import NotBuiltError as NotBuiltError
from xweights.errors import PortError as PortError
from xweights.errors import RankError as RankError
from xweights.errors import RefusedFileError as RefusedFileError
from xweights.errors import SelectionError as SelectionError
from xweights.errors import ShapeError as ShapeError
from xweights.errors import StaleDrawError as StaleDrawError
from xweights.errors import StaleTrainFunctionError as StaleTrainFunctionError
from xweights.errors import TargetError as TargetError
from xweights.errors import TraceError as TraceError
from xweights.errors import UnknownRoleWarning as UnknownRoleWarning
from xweights.errors import UseBindError as UseBindError
from xweights.errors import WriteError as WriteError
from xweights.errors import XweightsError as XweightsError
from xweights.files.edit.edit import EditReport as EditReport
from xweights.files.edit.edit import edit_file as edit_file
from xweights.files.load import Checkpoint as Checkpoint
from xweights.files.load import load as load
from xweights.files.load import parts as parts
from xweights.files.save import convert as convert
from xweights.files.save import save as save
from xweights.inspection.checksum import checksum as checksum
from xweights.inspection.diff import diff as diff
from xweights.inspection.diff import equal as equal
from xweights.inspection.plots import plot as plot
from xweights.inspection.plots import plot_diff as plot_diff
from xweights.inspection.results import Diff as Diff
from xweights.inspection.results import Stats as Stats
from xweights.inspection.stats import stats as stats
from xweights.inspection.stats import summary as summary
from xweights.merging.lora.extract import ExtractedLora as ExtractedLora
from xweights.merging.lora.extract import extract_lora as extract_lora
from xweights.merging.lora.merge import merge_lora as merge_lora
from xweights.merging.lora.report import LoraReport as LoraReport
from xweights.merging.merge import merge as merge
from xweights.merging.report import MergeReport as MergeReport
from xweights.optimizers.batches import batches as batches
from xweights.optimizers.batches import dropout_mask as dropout_mask
from xweights.optimizers.get_set import get_optimizer as get_optimizer
from xweights.optimizers.get_set import set_optimizer as set_optimizer
from xweights.optimizers.handoff import handoff as handoff
from xweights.optimizers.initial_state import optimizer_state as optimizer_state
from xweights.optimizers.lr_schedule import LRSchedule as RateSchedule
from xweights.optimizers.lr_schedule import schedule as schedule
from xweights.optimizers.protocol import Training as Training
from xweights.optimizers.reports import HandoffProof as HandoffProof
from xweights.optimizers.reports import HandoffReport as HandoffReport
from xweights.optimizers.state import OptimizerGroup as OptimizerGroup
from xweights.optimizers.state import OptimizerState as OptimizerState
from xweights.optimizers.training_state import TrainingState as TrainingState
from xweights.optimizers.training_state import get_training_state as get_training_state
from xweights.optimizers.training_state import set_training_state as set_training_state
from xweights.optimizers.verify import verify_handoff as verify_handoff
from xweights.porting.hub.export import export_hf as export_hf
from xweights.porting.hub.load_folder import import_hf as import_hf
from xweights.porting.plan import plan_port as plan_port
from xweights.porting.port import port as port
from xweights.porting.reports import PortPlan as PortPlan
from xweights.porting.reports import PortReport as PortReport
from xweights.porting.reports import VerifyReport as VerifyReport
from xweights.porting.skeleton import skeleton as skeleton
from xweights.porting.verify import verify as verify
from xweights.rules.base import Rule as Rule
from xweights.rules.constraints import Keep as Keep
from xweights.rules.constraints import Pattern as Pattern
from xweights.rules.constraints import SumToOne as SumToOne
from xweights.rules.constraints import Symmetric as Symmetric
from xweights.rules.elementwise import Add as Add
from xweights.rules.elementwise import Clip as Clip
from xweights.rules.elementwise import Fill as Fill
from xweights.rules.elementwise import Mask as Mask
from xweights.rules.elementwise import NonNegative as NonNegative
from xweights.rules.elementwise import Scale as Scale
from xweights.rules.entries import SetEntries as SetEntries
from xweights.rules.initializers import Init as Init
from xweights.rules.noise import Noise as Noise
from xweights.rules.norms import ClipNorm as ClipNorm
from xweights.rules.norms import MaxNorm as MaxNorm
from xweights.rules.norms import SpectralNorm as SpectralNorm
from xweights.rules.norms import UnitNorm as UnitNorm
from xweights.rules.penalties import Penalty as Penalty
from xweights.rules.pruning import Prune as Prune
from xweights.rules.tying import Tied as Tied
from xweights.training.averages import Averages as Averages
from xweights.training.averages import average as average
from xweights.training.bound_penalties import BoundPenalty as BoundPenalty
from xweights.training.freeze import Freeze as Freeze
from xweights.training.freeze import freeze as freeze
from xweights.training.freeze import unfreeze as unfreeze
from xweights.training.held import Hold as Hold
from xweights.training.hold import hold as hold
from xweights.training.learning_rates import Multipliers as Multipliers
from xweights.training.learning_rates import multiply_lr as multiply_lr
from xweights.training.penalties import AddedPenalty as AddedPenalty
from xweights.training.penalties import add_penalty as add_penalty
from xweights.training.penalties import bind_penalty as bind_penalty
from xweights.training.penalties import penalty as penalty
from xweights.training.prune import prune as prune
from xweights.training.prune_hold import PruneHold as PruneHold
from xweights.training.sparsity_schedule import ByStep as ByStep
from xweights.training.sparsity_schedule import Constant as Constant
from xweights.training.sparsity_schedule import Cubic as Cubic
from xweights.training.sparsity_schedule import OneShot as OneShot
from xweights.training.sparsity_schedule import Polynomial as Polynomial
from xweights.training.sparsity_schedule import SparsitySchedule as Schedule

__version__: str

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
    "ExtractedLora",
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
    "LoadReport",
    "LoraReport",
    "Mask",
    "MaxNorm",
    "MergeReport",
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
    "Part",
    "Pattern",
    "Penalty",
    "Polynomial",
    "PortError",
    "PortPlan",
    "PortReport",
    "Prune",
    "PruneHold",
    "RankError",
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
    "TrainingState",
    "UnitNorm",
    "UnknownRoleWarning",
    "UseBindError",
    "VerifyReport",
    "Where",
    "WriteError",
    "XweightsError",
    "adapt",
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
    "effective_params",
    "equal",
    "export_hf",
    "extract_lora",
    "fill",
    "freeze",
    "get_optimizer",
    "get_params",
    "get_training_state",
    "handoff",
    "hold",
    "import_hf",
    "init",
    "layer",
    "load",
    "mask",
    "max_norm",
    "merge",
    "merge_lora",
    "multiply_lr",
    "native",
    "noise",
    "non_negative",
    "optimizer_state",
    "parameters",
    "parts",
    "penalty",
    "plan_port",
    "plot",
    "plot_diff",
    "port",
    "prune",
    "register_layer",
    "role",
    "save",
    "scale",
    "schedule",
    "set_entries",
    "set_optimizer",
    "set_params",
    "set_training_state",
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
