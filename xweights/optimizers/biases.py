"""Two biases that a recurrent layer sums, where its twin has one.

Both get the same gradients (up to rounding), so their slots are equal, and their sum moves twice as fast as each of
them: the one bias does so under twice the learning rate. This holds for rules that depend on nothing but gradients.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.errors import HandoffError, Problems
from xweights.optimizers.state import OptimizerGroup, OptimizerState
from xweights.porting.matching.pairs import Pair
from xweights.porting.matching.similarity import distance, tolerance
from xweights.porting.units import ParamSlice

GRADIENTS_ALONE = frozenset({"sgd", "adam", "adamax", "nadam", "rmsprop", "adagrad", "adadelta", "lion"})


@dataclass(frozen=True)
class JoinedBias:
    """The twin's bias, and the two of the source that it replaces."""

    target: ParamSlice
    kept: ParamSlice
    gone: ParamSlice

    @property
    def name(self) -> str:
        """The name of the twin's bias."""
        return self.target.parameter.name

    @property
    def source_names(self) -> tuple[str, str]:
        """The names of the source's two biases."""
        return self.kept.parameter.name, self.gone.parameter.name

    def fill(self, slots: Mapping[str, Mapping[str, Array]], slot: str, out: Array) -> None:
        """Write the mean of both biases' slots to the slot of the twin's bias; for averages of weights, the sum.

        The mean, because rounding has moved the two apart: the error is the square of a rounding.
        """
        kept, gone = (piece.read(slots[piece.parameter.name][slot]) for piece in (self.kept, self.gone))
        joined = kept + gone if slot == "average" else (kept + gone) / kept.dtype.type(2)
        self.target.write(joined.reshape(self.target.shape), out)


def recurrent_biases(pairs: Sequence[Pair]) -> list[Parameter]:
    """Return the second biases of the source that have no place in the target."""
    return [
        pair.source.slices["recurrent_bias"].parameter
        for pair in pairs
        if "recurrent_bias" in pair.source.slices and "recurrent_bias" not in pair.target.slices
    ]


def find_joined_biases(state: OptimizerState, pairs: Sequence[Pair], problems: Problems) -> list[JoinedBias]:
    """Return the pairs of biases that become one; add those that can't to ``problems``."""
    trained, biases = set(state.names), []
    for pair in pairs:
        gone, kept = pair.source.slices.get("recurrent_bias"), pair.source.slices.get("bias")
        target = pair.target.slices.get("bias")
        if gone is None or gone.parameter.name not in trained or "recurrent_bias" in pair.target.slices:
            continue
        why = _why_not(state, kept, gone)
        if kept is not None and target is not None and not why:
            biases.append(JoinedBias(target, kept, gone))
            continue
        problems.add(
            HandoffError,
            f"{gone.parameter.name!r} is trained, and {pair.target.path!r} has no place for its state: two biases that "
            f"are added up move twice as fast as one, and {why or 'there is no bias there'}",
            fix=f"train only one of them: requires_grad_(False) for {gone.parameter.name!r}, and leave it out",
        )
    return biases


def _why_not(state: OptimizerState, kept: ParamSlice | None, gone: ParamSlice) -> str:
    """Return why one bias can't move as the sum of the two does; "" if it can."""
    if kept is None or kept.parameter.name not in state.names:
        return "only one of them is trained"
    first_name, second_name = kept.parameter.name, gone.parameter.name
    group = state.group_of(first_name)
    if group is not state.group_of(second_name):
        return "they are in two parameter groups"
    if group.rule not in GRADIENTS_ALONE:
        return f"{group.rule} looks at the weights as well"
    if group.hyper.get("weight_decay") and group.variant.get("decay") == "coupled":
        return "weight decay acts on their gradients"
    first, second = state.slots[first_name], state.slots[second_name]
    same = all(distance(first[slot], second[slot]) <= tolerance(first[slot]) for slot in first if slot != "average")
    return "" if same else "their slots differ, as those of two that were trained otherwise before"


def double_lr(groups: Sequence[OptimizerGroup], names: Collection[str]) -> tuple[OptimizerGroup, ...]:
    """Return the groups with twice the learning rate for these parameters; they decay as before.

    Their gradients count twice in the norm of all gradients.
    """
    split = []
    for group in groups:
        hyper = {**group.hyper, "learning_rate": 2 * group.hyper["learning_rate"]}
        if hyper.get("weight_decay"):
            hyper["weight_decay"] = hyper["weight_decay"] / 2
        doubled = tuple(name for name in group.names if name in names)
        rest = tuple(name for name in group.names if name not in names)
        split.append(replace(group, names=rest))
        variant = {**group.variant, "counts": 2}
        split.append(replace(group, names=doubled, hyper=hyper, variant=variant, factor=2 * group.factor))
    return tuple(group for group in split if group.names)
