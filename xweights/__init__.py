"""xweights: one API over the weights of neural networks, whatever framework holds them.

Importing it imports nothing but the standard library. The first use of a name loads the module that defines it, and the
first object of a framework that framework's backend. The command line, which a shell starts at every press of the Tab
key, can't wait for NumPy.
"""

import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

from xweights.core import former_paths, openers

__version__ = "0.1.0"

# Every public name and the module that defines it (`public=name` where the module calls it otherwise). Everything else
# follows from this table: loading, __all__, dir(), xweights.api, and __init__.pyi for type checkers.
_TABLE = {
    "core.layer_rows": "register_layer",
    "core.parameter": "Parameter",
    "core.params": "Params",
    "core.parts": "Part",
    "core.registry": "backends",
    "core.selection": "layer native role trainable Where",
    "edit.adapting": "adapt",
    "edit.apply": "apply",
    "edit.bind": "bind Bound",
    "edit.load_report": "LoadReport",
    "edit.read": "effective_params get_params parameters",
    "edit.undo": "Snapshot snapshot transaction",
    "edit.verbs": (
        "add clip clip_norm fill init mask max_norm noise non_negative scale set_entries spectral_norm unit_norm"
    ),
    "edit.write": "set_params",
    "errors": (
        "ArgumentError BackendBrokenError BackendMissingError CheckpointError DamagedFileError DtypeError "
        "FileAccessError HandoffError HoldError LayoutError NonfiniteError NotBuiltError PortError RankError "
        "RefusedFileError SelectionError ShapeError StaleDrawError StaleTrainFunctionError TargetError TraceError "
        "UnknownRoleWarning UseBindError WriteError XweightsError"
    ),
    "files.edit.edit": "edit_file EditReport",
    "files.load": "Checkpoint load parts",
    "files.save": "convert save",
    "inspection.checksum": "checksum",
    "inspection.diff": "diff equal",
    "inspection.plots": "plot plot_diff",
    "inspection.results": "Diff Stats",
    "inspection.stats": "stats summary",
    "merging.lora.extract": "extract_lora ExtractedLora",
    "merging.lora.merge": "merge_lora",
    "merging.lora.report": "LoraReport",
    "merging.merge": "merge",
    "merging.report": "MergeReport",
    "optimizers.batches": "batches dropout_mask",
    "optimizers.get_set": "get_optimizer set_optimizer",
    "optimizers.handoff": "handoff",
    "optimizers.initial_state": "optimizer_state",
    "optimizers.lr_schedule": "RateSchedule=LRSchedule schedule",
    "optimizers.protocol": "Training",
    "optimizers.reports": "HandoffProof HandoffReport",
    "optimizers.state": "OptimizerGroup OptimizerState",
    "optimizers.training_state": "get_training_state set_training_state TrainingState",
    "optimizers.verify": "verify_handoff",
    "porting.hub.export": "export_hf",
    "porting.hub.load_folder": "import_hf",
    "porting.plan": "plan_port",
    "porting.port": "port",
    "porting.reports": "PortPlan PortReport VerifyReport",
    "porting.skeleton": "skeleton",
    "porting.verify": "verify",
    "rules.base": "Rule",
    "rules.constraints": "Keep Pattern SumToOne Symmetric",
    "rules.elementwise": "Add Clip Fill Mask NonNegative Scale",
    "rules.entries": "SetEntries",
    "rules.initializers": "Init",
    "rules.noise": "Noise",
    "rules.norms": "ClipNorm MaxNorm SpectralNorm UnitNorm",
    "rules.penalties": "Penalty",
    "rules.pruning": "Prune",
    "rules.tying": "Tied",
    "training.averages": "average Averages",
    "training.freeze": "Freeze freeze unfreeze",
    "training.held": "Hold",
    "training.hold": "hold",
    "training.learning_rates": "Multipliers multiply_lr",
    "training.bound_penalties": "BoundPenalty",
    "training.penalties": "add_penalty AddedPenalty bind_penalty penalty",
    "training.prune": "prune",
    "training.prune_hold": "PruneHold",
    "training.sparsity_schedule": "ByStep Constant Cubic OneShot Polynomial Schedule=SparsitySchedule",
}
_HOME = {
    public: (f"xweights.{module}", name or public)
    for module, names in _TABLE.items()
    for public, _, name in (entry.partition("=") for entry in names.split())
}

__all__ = sorted(_HOME)  # noqa: PLE0605 - a list, made of the table

former_paths.install()
openers.register(
    opener="xweights.files.load:load",
    writer="xweights.files.edit.write_through:write_through",
    model_folder="xweights.files.model_folder:ModelFolder",
)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'xweights' has no attribute {name!r}")
    module, own_name = _HOME[name]
    value = import_module("xweights.core.public_calls").guard_in(import_module(module), own_name, name)
    _opt_out_of_autograph()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    # What a Tab key offers: not what this file imports, nor the rooms that are loaded so far.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


_opted_out: set[str] = set()


def _opt_out_of_autograph() -> None:
    """Opt all public names that are loaded out of TensorFlow AutoGraph.

    It skips functions that have `autograph_info__`, and their callees. Without the mark it rewrites this package: the
    first traced step with two verbs on 20 variables took 13.7 s instead of 0.5 s.
    """
    for name, (module, own_name) in _HOME.items():
        if name in _opted_out or not hasattr(sys.modules.get(module), own_name):
            continue
        _opted_out.add(name)
        value = getattr(sys.modules[module], own_name)
        for part in (value, *(vars(value).values() if isinstance(value, type) else ())):
            if callable(part) and not (isinstance(part, type) and issubclass(part, BaseException)):
                with suppress(AttributeError, TypeError):
                    part.autograph_info__ = {}
