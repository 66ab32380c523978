"""The state of an optimizer, free of any framework.

Slots are in neutral order under the neutral name of their parameter, as the rule keeps them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.registry import load as load_backend
from xweights.core.tables import render
from xweights.errors import HandoffError, got_expected
from xweights.files.load import Checkpoint
from xweights.files.save import save
from xweights.optimizers.lr_schedule import LRSchedule
from xweights.optimizers.saved import find_saved, open_saved

VERSION = 1
# The array of a file that has the settings of a state: JSON, as bytes, because some formats keep arrays only.
_METADATA = "optimizer_state"
_SCHEDULE = "schedule"
Slots = Mapping[str, Mapping[str, Array]]


@dataclass(frozen=True)
class OptimizerGroup:
    """Parameters that are updated by one rule with one set of numbers.

    Attributes:
        rule: "sgd", "adam", "adamax", "nadam", "rmsprop", "adagrad", "adadelta", "adafactor", "lion", "ftrl", "lamb" or
            "muon".
        names: Neutral names of the parameters.
        hyper: Hyperparameters under Keras' names, as they were given; ``learning_rate`` as it was evaluated.
        variant: How the rule is written where frameworks differ (see the page on hand-offs).
        factor: Factor on the schedule's learning rate.
        last_rate: The learning rate that is in the momentum, where the variant has it inside.

    Example:
        >>> import xweights as xw
        >>> xw.OptimizerGroup("sgd", ("0/kernel",), {"learning_rate": 0.1}).factor
        1.0
    """

    rule: str
    names: tuple[str, ...]
    hyper: Mapping[str, Any]
    variant: Mapping[str, Any] = field(default_factory=dict)
    factor: float = 1.0
    last_rate: float = 1.0


@dataclass(frozen=True)
class Clipping:
    """How gradients are clipped: ``kind`` is "norm" (of each), "global_norm" or "value"; ``eps`` is added to a norm."""

    kind: str
    limit: float
    eps: float = 0.0


@dataclass(frozen=True)
class WeightEMA:
    """A moving average of the weights that the optimizer keeps; ``every``: how often it overwrites them."""

    momentum: float
    every: int | None = None


@dataclass(frozen=True)
class SavedOrder:
    """Where a state was read from that no model has been found for yet, and how its parameters are told there.

    Attributes:
        framework: The framework that saved it; slots are in its own order.
        label: The file, and the part of it.
        named: True if the names of parameters are those of the framework, False if they are positions.
    """

    framework: str
    label: str
    named: bool = False


@dataclass(frozen=True, eq=False)
class OptimizerState:
    """The whole state of an optimizer, free of any framework.

    :func:`get_optimizer` reads it, :func:`set_optimizer` writes it.

    Attributes:
        groups: Rules, names and numbers.
        slots: By parameter and slot, in neutral order, as the rule keeps them (``average``: of the weights;
            ``accumulated``: the sum of gradients in the middle of an update).
        updates: How many updates were made.
        micro_steps, micro_done: Gradients that make up one update, and how many of the next one are counted.
        schedule: The learning rate over the steps; None if it is constant.
        clip, moving: Clipping, and a moving average of the weights.
        dtypes: By parameter.
        factored: By parameter, the two axes of adafactor's rows and columns.
        notes: How it was read from a framework's file: which position was taken for which parameter.
        saved: Set if it was read without the model, by :meth:`load`: names and order are then those of the file, and
            :func:`set_optimizer` finds the parameters.

    Example:
        >>> import torch, xweights as xw
        >>> model = torch.nn.Linear(1, 1)
        >>> xw.get_optimizer(model, torch.optim.Adam(model.parameters())).rule
        'adam'
    """

    groups: tuple[OptimizerGroup, ...]
    slots: Slots
    updates: int = 0
    micro_steps: int = 1
    micro_done: int = 0
    schedule: LRSchedule | None = None
    clip: Clipping | None = None
    moving: WeightEMA | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)
    factored: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    saved: SavedOrder | None = None

    @property
    def rule(self) -> str:
        """The rule; several are joined by ``+``."""
        return "+".join(dict.fromkeys(group.rule for group in self.groups))

    @property
    def names(self) -> list[str]:
        """The parameters that are updated."""
        return [name for group in self.groups for name in group.names]

    @property
    def iterations(self) -> int:
        """The number of gradients so far: the step that a schedule sees."""
        return self.updates * self.micro_steps + self.micro_done

    def group_of(self, name: str) -> OptimizerGroup:
        """Return the group of a parameter."""
        return next(group for group in self.groups if name in group.names)

    def rate(self, group: OptimizerGroup, iterations: int | None = None) -> float:
        """Return the learning rate of a group's next update, or of another step."""
        if self.schedule is None:
            return float(group.hyper["learning_rate"])
        return self.schedule.at(self.iterations if iterations is None else iterations) * group.factor

    # files

    def to_flat(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return (arrays by ``slot/name``, JSON metadata), which :meth:`from_flat` reads."""
        if self.schedule is not None and self.schedule.live is not None:
            return replace(self, schedule=self.schedule.tabulated(self.iterations)).to_flat()
        return self._flat()

    def _flat(self) -> tuple[dict[str, Array], dict[str, Any]]:
        arrays = {f"{slot}/{name}": value for name, slots in self.slots.items() for slot, value in slots.items()}
        meta: dict[str, Any] = {
            "version": VERSION,
            "groups": [{f.name: _plain(getattr(group, f.name)) for f in fields(group)} for group in self.groups],
            "updates": self.updates, "micro_steps": self.micro_steps, "micro_done": self.micro_done,
            "dtypes": dict(self.dtypes), "factored": {key: list(value) for key, value in self.factored.items()},
            "schedule": None if self.schedule is None else self.schedule.to_json(),
            "clip": None if self.clip is None else vars(self.clip),
            "moving": None if self.moving is None else vars(self.moving),
        }  # fmt: skip
        if self.saved is not None:
            meta["saved"] = vars(self.saved)
        if self.schedule is not None and self.schedule.known is not None:
            arrays[_SCHEDULE] = self.schedule.known
        return arrays, meta

    @classmethod
    def from_flat(cls, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> OptimizerState:
        """Return the state that :meth:`to_flat` flattened; raise HandoffError for anything else."""
        if meta.get("version") != VERSION:
            raise HandoffError(f"this is no optimizer state\n{got_expected(meta.get('version'), f'version {VERSION}')}")
        try:
            return cls._from_flat(arrays, meta)
        except (KeyError, TypeError) as wrong:
            raise HandoffError(f"this optimizer state is damaged: {type(wrong).__name__}: {wrong}") from wrong

    @classmethod
    def _from_flat(cls, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> OptimizerState:
        groups = [OptimizerGroup(**{**group, "names": tuple(group["names"])}) for group in meta["groups"]]
        slots: dict[str, dict[str, Array]] = {name: {} for group in groups for name in group.names}
        for key, value in arrays.items():
            slot, _, name = key.partition("/")
            if name:
                slots[name][slot] = value
        known = arrays.get(_SCHEDULE)
        return cls(
            groups=tuple(groups), slots=slots, updates=meta["updates"], micro_steps=meta["micro_steps"],
            micro_done=meta["micro_done"], dtypes=meta["dtypes"],
            factored={key: (int(row), int(column)) for key, (row, column) in meta["factored"].items()},
            schedule=None if meta["schedule"] is None else LRSchedule.from_json(meta["schedule"], known),
            clip=None if meta["clip"] is None else Clipping(**meta["clip"]),
            moving=None if meta["moving"] is None else WeightEMA(**meta["moving"]),
            saved=SavedOrder(**meta["saved"]) if meta.get("saved") else None,
        )  # fmt: skip

    def save(self, path: str | os.PathLike[str], *, durable: bool = True) -> None:
        """Write it to a file of any format that :func:`xweights.save` writes, replaced as a whole or not at all.

        The slots are its arrays ("velocity/dense/0/kernel"), so every verb that reads takes the file.

        Args:
            path: The file; its suffix sets the format.
            durable: As for :func:`xweights.save`.

        Exact: to the bit. Raises FileAccessError, RefusedFileError.

        Example:
            >>> import torch, xweights as xw
            >>> model = torch.nn.Linear(2, 1)
            >>> xw.optimizer_state(model, "adam", learning_rate=0.01).save("adam.safetensors")
            >>> xw.OptimizerState.load("adam.safetensors").rule
            'adam'
        """
        arrays, meta = self.to_flat()
        save({**arrays, _METADATA: np.frombuffer(json.dumps(meta).encode(), np.uint8)}, path, durable=durable)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | Checkpoint,
        *,
        part: str | None = None,
        rule: Any = None,
        step: int | None = None,
    ) -> OptimizerState:
        """Read a file that :meth:`save` wrote, or PyTorch's ``optimizer.state_dict()``; nothing in it is executed.

        The state dict may be the whole file or a part of a training run's. It tells its parameters by position, so
        :func:`set_optimizer` then finds them in the model; :func:`get_optimizer` does so at once.

        Args:
            path: The file, or what :func:`xweights.load` returned.
            part: Which optimizer, in a file of several.
            rule: The class that wrote it ("AdamW"), where its settings leave that open.
            step: How many updates it has made, where the file doesn't count them (PyTorch's SGD and Muon).

        Raises HandoffError (the file has no optimizer state, or one that can't be told), DamagedFileError,
        RefusedFileError, FileAccessError.
        """
        opened = open_saved(path)
        try:
            own = cls.load_own(opened)
            if own is not None:
                return own
            saved = find_saved(opened, part or opened.part)
        finally:
            if opened is not path:
                opened.close()
        optimizing: Any = load_backend(saved.framework).optimizing()  # type: ignore[attr-defined]
        state: OptimizerState = optimizing.read_saved(saved, None, (), rule, step)
        return state

    @classmethod
    def load_own(cls, opened: Checkpoint) -> OptimizerState | None:
        """Return the state that :meth:`save` wrote; None for any other file."""
        part = next((found for found in opened.parts if _METADATA in found.arrays), None)
        if part is None:
            return None
        arrays = {p.name: p.layout.to_neutral(p.read()) for p in part.arrays.values()}
        try:
            return cls.from_flat(arrays, json.loads(arrays.pop(_METADATA).tobytes()))
        except (ValueError, AttributeError) as wrong:
            raise HandoffError(f"the optimizer state in {opened.path!r} is damaged: {wrong}") from wrong

    # inspection

    def diff(self, other: OptimizerState) -> list[str]:
        """Return the differences, a sentence each; an empty list for two states that are equal to the bit."""
        a, b = self._flat(), other._flat()
        lines = [
            f"{key}: {a[1].get(key)!r} against {b[1].get(key)!r}"
            for key in a[1]
            if key != "groups" and a[1].get(key) != b[1].get(key)
        ]
        lines += [
            f"group {index}, {key}: {group[key]!r} against {other_group[key]!r}"
            for index, (group, other_group) in enumerate(zip(a[1]["groups"], b[1]["groups"], strict=False))
            for key in group
            if group[key] != other_group[key]
        ]
        counts = len(self.groups), len(other.groups)
        lines += [f"groups: {counts[0]} against {counts[1]}"] if counts[0] != counts[1] else []
        keys = dict.fromkeys([*a[0], *b[0]])
        differences = (_describe_difference(key.replace("/", " of ", 1), a[0].get(key), b[0].get(key)) for key in keys)
        lines += [text for text in differences if text]
        return lines

    def _row(self, group: OptimizerGroup) -> list[str]:
        hyper = ", ".join(f"{key}={_short(value)}" for key, value in group.hyper.items() if value is not None)
        variant = ", ".join(f"{key}: {value}" for key, value in group.variant.items() if value is not None)
        slots = dict.fromkeys(slot for name in group.names for slot in self.slots.get(name, ()))
        return [group.rule, str(len(group.names)), ", ".join(slots), hyper, variant]

    def __str__(self) -> str:
        rows = [self._row(group) for group in self.groups]
        lines = [render(["rule", "parameters", "slots", "numbers", "written"], rows), f"updates: {self.updates}"]
        if self.micro_steps > 1:
            lines.append(f"gradients of the next update: {self.micro_done} of {self.micro_steps}")
        extras = {name: getattr(self, name) for name in ("schedule", "clip", "moving")}
        lines += [f"{name}: {value}" for name, value in extras.items() if value is not None]
        if self.saved is not None:
            told = "names" if self.saved.named else "positions"
            lines.append(f"of {self.saved.label}, by {told}: set_optimizer finds the parameters in the model")
        lines += self.notes
        return "\n".join(lines)

    __repr__ = __str__

    def with_dtype(self, dtype: str) -> OptimizerState:
        """Return the same state with its slots in another dtype."""
        slots = {name: {slot: value.astype(dtype) for slot, value in own.items()} for name, own in self.slots.items()}
        return replace(self, slots=slots, dtypes=dict.fromkeys(self.dtypes, dtype))


def unscale_momentum_by_lr(group: OptimizerGroup, momentum: Array) -> Array:
    """Return a momentum with the learning rate divided out."""
    if not group.variant.get("rate_inside"):
        return momentum
    kind = momentum.dtype.type
    lr = group.last_rate or 1.0  # at a learning rate of 0 it holds no gradient that a division could recover
    return np.asarray(momentum / kind(-lr if group.rule == "sgd" else lr))


def scale_momentum_by_lr(group: OptimizerGroup, momentum: Array) -> Array:
    """Return a momentum multiplied by the learning rate."""
    kind = momentum.dtype.type
    lr = group.last_rate or 1.0
    return np.asarray(momentum * kind(-lr if group.rule == "sgd" else lr))


def _describe_difference(name: str, a: Array | None, b: Array | None) -> str:
    """Return how two arrays differ; "" if they don't."""
    if a is None or b is None:
        return f"{name} is missing on one side"
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{name}: {a.dtype.name} {a.shape} against {b.dtype.name} {b.shape}"
    if a.tobytes() == b.tobytes():
        return ""
    return f"{name} differs by up to {np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0):.1e}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
