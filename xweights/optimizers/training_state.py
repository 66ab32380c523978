"""``get_training_state`` and ``set_training_state``: a whole training run, to go on with it later or elsewhere."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xweights.core import attachments
from xweights.core.agreement import Vote
from xweights.core.names import Names, renamer
from xweights.core.params import Params
from xweights.edit.read import get_params, parameters
from xweights.edit.undo import transaction
from xweights.edit.write import set_params
from xweights.errors import HandoffError, Problems, got_expected
from xweights.files.load import Checkpoint
from xweights.files.save import save
from xweights.optimizers import rule_files
from xweights.optimizers.attached import (
    Attached,
    attach_others,
    attach_rules,
    check_fit,
    describe,
    rename,
    without_counters,
)
from xweights.optimizers.get_set import get_optimizer, set_optimizer
from xweights.optimizers.protocol import Grade, Part, Training, optimizing_for
from xweights.optimizers.reports import HandoffReport
from xweights.optimizers.saved import open_saved
from xweights.optimizers.state import OptimizerState

VERSION = 1
_METADATA = "training_state"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """The state of a training run, free of any framework: weights, optimizer, and what xweights attached.

    :func:`get_training_state` reads it, :func:`set_training_state` writes it.

    Attributes:
        weights: All parameters, in neutral order.
        optimizer: The state of the optimizer; None if there was none.
        attached: Held rules, freezes, pruning with its schedule where it stands, learning-rate factors, and averages.

    Example:
        >>> import torch, xweights as xw
        >>> model = torch.nn.Linear(2, 1); held = xw.hold(model, xw.Clip(-1, 1), where="kernel")
        >>> xw.get_training_state(model)
        <TrainingState of 2 parameters, without an optimizer
          held: Clip(low=-1, high=1) on 1 parameter>
    """

    weights: Params
    optimizer: OptimizerState | None = None
    attached: tuple[Attached, ...] = ()

    def save(self, path: str | os.PathLike[str], *, durable: bool = True) -> None:
        """Write it to a file of any format that :func:`xweights.save` writes, replaced as a whole or not at all.

        Args:
            path: The file; its suffix sets the format.
            durable: As for :func:`xweights.save`.

        Exact: to the bit. Raises HandoffError, with all causes, for what no file can hold: a rule, a score or a decay
        that is a function, a schedule or rule of a class of your own; FileAccessError, RefusedFileError.

        Example:
            >>> import torch, xweights as xw
            >>> model = torch.nn.Linear(2, 1); held = xw.hold(model, xw.Clip(-1, 1), where="kernel")
            >>> xw.get_training_state(model).save("run.safetensors")
            >>> len(xw.TrainingState.load("run.safetensors").attached)
            1
        """
        rules, rows = rule_files.to_flat(self.attached)
        arrays = {f"weights/{name}": value for name, value in self.weights.items()}
        arrays |= {f"attached/{key}": value for key, value in rules.items()}
        of_optimizer = None
        if self.optimizer is not None:
            slots, of_optimizer = self.optimizer.to_flat()
            arrays |= {f"optimizer/{key}": value for key, value in slots.items()}
        weights = {
            name: [self.weights.axes[name], self.weights.roles[name], self.weights.gates[name]] for name in self.weights
        }
        meta = {"version": VERSION, "weights": weights, "optimizer": of_optimizer, "attached": rows}
        save({**arrays, _METADATA: np.frombuffer(json.dumps(meta).encode(), np.uint8)}, path, durable=durable)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | Checkpoint) -> TrainingState:
        """Read a file that :meth:`save` wrote; nothing in it is executed.

        Raises HandoffError (no training state, or a damaged one), DamagedFileError, RefusedFileError, FileAccessError.
        """
        opened = open_saved(path)
        try:
            arrays = {p.name: p.layout.to_neutral(p.read()).copy() for p in parameters(opened)}
            name = opened.path
        finally:
            if opened is not path:
                opened.close()
        if _METADATA not in arrays:
            fix = "xw.OptimizerState.load, or xw.set_params for weights alone"
            raise HandoffError(f"{name!r} has no training state\nFix: {fix}")
        try:
            meta = json.loads(arrays.pop(_METADATA).tobytes())
            if meta["version"] != VERSION:
                raise HandoffError(f"{name!r}: {got_expected(meta['version'], f'version {VERSION}')}")
            return cls._from_flat(arrays, meta)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as wrong:
            if isinstance(wrong, HandoffError):
                raise
            raise HandoffError(f"the training state in {name!r} is damaged: {type(wrong).__name__}: {wrong}") from wrong

    @classmethod
    def _from_flat(cls, arrays: dict[str, Any], meta: dict[str, Any]) -> TrainingState:
        def under(prefix: str) -> dict[str, Any]:
            return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}

        known = meta["weights"]
        weights = {name: arrays[f"weights/{name}"] for name in known}
        params = Params(
            weights,
            axes={name: None if row[0] is None else tuple(row[0]) for name, row in known.items()},
            roles={name: row[1] for name, row in known.items()},
            gates={name: None if row[2] is None else tuple(row[2]) for name, row in known.items()},
        )
        of_optimizer = meta["optimizer"]
        state = None if of_optimizer is None else OptimizerState.from_flat(under("optimizer/"), of_optimizer)
        return cls(params, state, rule_files.from_flat(under("attached/"), meta["attached"]))

    def __repr__(self) -> str:
        count = len(self.weights)
        rule = "without an optimizer" if self.optimizer is None else f"{self.optimizer.rule}"
        updates = "" if self.optimizer is None else f" after {self.optimizer.updates} updates"
        first = f"<TrainingState of {count} parameter{'s' * (count != 1)}, {rule}{updates}"
        return "\n  ".join([first, *map(str, self.attached)]) + ">"


def get_training_state(model: Any, optimizer: Any = None, *, step: int | None = None) -> TrainingState:
    """Return the whole state of a training run: weights, optimizer, and what xweights attached; nothing is changed.

    Args:
        model: The module or model that is trained; or a :class:`Training`, if there is a scheduler, clipping or an EMA.
        optimizer: Its optimizer; None: only weights and what is attached.
        step: As for :func:`get_optimizer`.

    Exact: the same bits. Raises as :func:`get_optimizer`; HandoffError while averages are swapped in.

    Example:
        >>> import torch, xweights as xw
        >>> model = torch.nn.Linear(2, 1)
        >>> xw.get_training_state(model, torch.optim.Adam(model.parameters()))
        <TrainingState of 2 parameters, adam after 0 updates>
    """
    side = model if isinstance(model, Training) else Training(model, optimizer)
    optimizing_for(side.model, "model")
    state = None if side.optimizer is None else get_optimizer(side, step=step)
    return TrainingState(get_params(side.model), state, describe(parameters(side.model)))


def set_training_state(
    model: Any, optimizer: Any, state: TrainingState, *, names: Names | None = None
) -> HandoffReport:
    """Have training go on from a state, in any framework whose model has parameters of the same names and axes.

    What is attached to the model is released first: after this, just what the state has is attached.

    Args:
        model: The module or model that is trained.
        optimizer: The optimizer to fill, in place; None: one is built if the state has one. The report has it.
        state: What :func:`get_training_state` or :meth:`TrainingState.load` returned.
        names: ``{"0/*": "dense/0/*"}`` if names differ (model's glob: state's glob).

    Returns:
        A report whose ``held`` has the handles of all that is attached now, in the order of ``state.attached``.

    Exact: exactly the same bits. A schedule goes on at its step, averages from their values and counts.
    Raises HandoffError, ShapeError, LayoutError, HoldError with every cause; all is then as it was.

    Example:
        >>> import torch, xweights as xw
        >>> a, b = (torch.nn.Linear(2, 1) for _ in range(2))
        >>> held = xw.hold(a, xw.Clip(-1, 1), where="kernel")
        >>> xw.set_training_state(b, None, xw.get_training_state(a)).held
        (<Hold Clip(low=-1, high=1) on 1 parameter>,)
    """
    return write_training_state(model, optimizer, state, names=names)


def write_training_state(
    model: Any, optimizer: Any, state: TrainingState, *, names: Names | None = None, grade: Grade = "exact"
) -> HandoffReport:
    """Do what :func:`set_training_state` does; ``grade``: that of :func:`set_optimizer`."""
    backend = optimizing_for(model, "model")
    if not isinstance(state, TrainingState):
        fix = "xw.TrainingState.load(path) for a file; xw.set_params for weights alone"
        raise HandoffError(f"{got_expected(type(state).__name__, 'a TrainingState')}\nFix: {fix}")
    own = parameters(model)
    renamed = renamer(names)
    to_model = {renamed(p.name): p.name for p in own}
    with Vote(own, "set_training_state", writing=True) as vote:
        vote.agree(repr(state), [str(record) for record in state.attached], names)
        vote.open(own)
        attached = without_counters(rename(state.attached, to_model), own)
        problems = Problems("this training state can't be set, and nothing was changed")
        check_fit(attached, own, problems)
        problems.check()
    undo = [backend.backup(optimizer)]
    parts = [Part("weights", "exact", "set to the bit")]
    try:
        with transaction(model):
            for handle in reversed(attachments.handles_on(own)):
                handle.release()
            set_params(model, state.weights, names=names, allow_nonfinite=True)
            trained = None
            if state.optimizer is not None:
                trained = [to_model.get(name, name) for name in state.optimizer.names]
            held = attach_rules(attached, model, own, trained)
            report = HandoffReport(Training(model, optimizer), "exact", tuple(parts))
            if state.optimizer is not None:
                report = set_optimizer(model, optimizer, state.optimizer, names=names, grade=grade)
                undo += report._release
            others = attach_others(attached, model, report.optimizer)
    except BaseException:
        for call in reversed(undo):
            call()
        raise
    handles = (*held, *others)
    parts += [*report.parts, *(Part("attached", "exact (hook)", str(record)) for record in attached)]
    release = (*report._release, *(handle.release for handle in handles))
    return replace(report, parts=tuple(dict.fromkeys(parts)), held=handles, _release=release)
