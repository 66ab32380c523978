"""The training axis: kinds of training, optimizers, and the run that measures every rule after every step.

One model has a layer for each rule, so that one compiled step measures them all; the tests of one run share its
measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from typing import Any

from harness import trainers
from harness.columns import Column
from harness.held import FREE, RULES, Held, start
from harness.running import NO_AXES
from harness.trainers import Trainer

# There is momentum when the holds begin, and compiled steps have been traced.
WARM = 2
# What CI trains for: every rule has been true under momentum by then, and every second update of an accumulating
# optimizer has come ten times. docs/matrix.md has the longer run.
FEW_STEPS = 20
STEPS = 50
MANY_STEPS = 1000

TORCH_ONLY = "LBFGS is torch's; Keras has no such optimizer"
KERAS_ONLY = {"Lion": "Lion is Keras'; torch has no such optimizer", "EMA": "use_ema is a setting of Keras' optimizers"}
BY_HAND = "a tf.Module has no optimizer: its step is written by hand here, SGD with and without momentum"
OWN_SGD = "what the step of a tf.Module is written with; elsewhere a case of SGD with momentum"

OPTIMIZERS = {
    "SGD": "momentum, Nesterov, weight decay",
    "plain SGD": "weight decay",
    "Adam": "",
    "AdamW": "decay 0.1",
    "RMSprop": "momentum",
    "Adagrad": "",
    "Lion": "decay 0.1",
    "Muon": "decay 0.1",
    "LBFGS": "",
    "EMA": "Adam, overwrites every 3 steps",
    "accumulation": "AdamW, of 2 gradients",
    "loss scaling": "SGD",
}


class Kind(Enum):
    """A kind of training: ``(the matrix's column of the same framework, mode)``."""

    TORCH = (Column.TORCH, "eager")
    TORCH_COMPILED = (Column.TORCH, "compiled")
    TF_MODULE = (Column.TF_MODULE_FUNCTION, "function")
    KERAS_TF = (Column.KERAS_TF_FUNCTION, "function")
    KERAS_TF_JIT = (Column.KERAS_TF_JIT, "jit")
    KERAS_TORCH = (Column.KERAS_TORCH, "eager")
    KERAS_JAX = (Column.KERAS_JAX_JIT, "jit")

    @property
    def column(self) -> Column:
        return self.value[0]

    @property
    def id(self) -> str:
        """Return the kind's name, as in ``torch-compiled``."""
        return f"{self.column.twin_name}-{self.value[1]}"

    @property
    def here(self) -> bool:
        """Return whether this process runs it."""
        return self.column.here

    def refused(self, optimizer: str) -> str | None:
        """Return the reason why this kind has no such optimizer, or None."""
        if self is Kind.TF_MODULE:
            return None if optimizer in ("SGD", "plain SGD") else BY_HAND
        if optimizer == "plain SGD":
            return OWN_SGD
        if self.column.keras:
            return TORCH_ONLY if optimizer == "LBFGS" else None
        return KERAS_ONLY.get(optimizer)

    def takes_long(self, optimizer: str) -> bool:
        """Return whether compiling it takes so long that only ``nox -s nightly`` runs it, and CI doesn't."""
        return optimizer not in _QUICK.get(self, tuple(OPTIMIZERS))

    def trainer(self, optimizer: str) -> Trainer:
        """Build a new model in training."""
        make: dict[Kind, Callable[[str], Trainer]] = {
            Kind.TORCH: trainers.TorchTrainer,
            # Which compiler is behind Dynamo makes no difference to hooks, and this one compiles quicker than inductor.
            Kind.TORCH_COMPILED: partial(trainers.TorchTrainer, compiler="aot_eager"),
            Kind.TF_MODULE: trainers.TfModuleTrainer,
            Kind.KERAS_TF: partial(trainers.KerasTrainer, jit=False),
            Kind.KERAS_TF_JIT: partial(trainers.KerasTrainer, jit=True),
            Kind.KERAS_TORCH: partial(trainers.KerasTrainer, jit=False),
            Kind.KERAS_JAX: partial(trainers.KerasTrainer, jit=True),
        }
        return make[self](optimizer)


# Each kind of training has decay and momentum (SGD's, or those of AdamW, whose gradients are accumulated), and what
# Keras does between and after updates: accumulation, and averages that overwrite the weights.
_FEW = ("EMA", "accumulation")
_QUICK = {
    Kind.TORCH_COMPILED: ("SGD",),
    Kind.KERAS_TF: _FEW,
    Kind.KERAS_TF_JIT: ("SGD",),
    Kind.KERAS_JAX: _FEW,
    Kind.KERAS_TORCH: _FEW,
}


@dataclass
class Measured:
    """Measurements of one rule: how far it was broken at worst, and how often its free entries moved."""

    broken: float = 0.0
    moves: int = 0
    stuck: int = 0  # free entries that are the same at the end as at the beginning


Attach = Callable[[str, Held, Trainer], Any]


def as_documented(name: str, rule: Held, trainer: Trainer) -> Any:
    """Attach a rule as a user would."""
    return rule.attach(trainer.target, trainer.optimizer)


def titled(optimizer: str) -> str:
    """Return an optimizer as the table names it."""
    how = OPTIMIZERS[optimizer]
    return f"{optimizer} ({how})" if how else optimizer


def why_not(rule: Held, kind: Kind) -> str | None:
    """Return the reason why this kind has to refuse the rule, or None."""
    return NO_AXES if rule.needs_axes and kind is Kind.TF_MODULE else None


@cache
def run(kind: Kind, optimizer: str, steps: int) -> dict[str, Measured]:
    """Train with every rule held; each is measured after each step. ``free`` is a layer without a hold."""
    return measure(kind, optimizer, steps, as_documented)


def measure(kind: Kind, optimizer: str, steps: int, attach: Attach) -> dict[str, Measured]:
    """Train and measure, with the rules attached by ``attach``."""
    trainer = kind.trainer(optimizer)
    trainer.load(start())
    for number in range(WARM):
        trainer.step(number)
    rules = {name: rule for name, rule in RULES.items() if why_not(rule, kind) is None}
    holds = [attach(name, rule, trainer) for name, rule in rules.items()]
    trainer.held([held for held in holds if held is not None])
    measured = {name: Measured() for name in (*rules, FREE)}
    first = before = trainer.read()
    for number in range(1, steps + 1):
        trainer.step(number)
        now = trainer.read()
        for name, rule in rules.items():
            broken = rule.broken(now, first, number // trainer.steps_per_update)
            measured[name].broken = max(measured[name].broken, broken)
            measured[name].moves += bool(rule.moving(now, before).any())
        measured[FREE].moves += bool((now[FREE] != before[FREE]).any())
        before = now
    for name, rule in rules.items():
        measured[name].stuck = int((~rule.moving(now, first)).sum())
    for held in holds:
        if held is not None:
            held.release()
    return measured


def every() -> list[tuple[Kind, str]]:
    """Return every run of this process."""
    return [
        (kind, optimizer) for kind in Kind if kind.here for optimizer in OPTIMIZERS if kind.refused(optimizer) is None
    ]
