"""Two biases that a recurrent layer adds up, where its twin has one.

Both get the same gradients (up to rounding), so their slots are equal, and their sum moves twice as fast as each of
them: the one bias moves so under twice the learning rate. That holds for rules that look at nothing but gradients.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.errors import HandoffError, Problems
from xweights.optimizers.state import OptimizerGroup, OptimizerState
from xweights.porting.matching.search import Pair
from xweights.porting.matching.similarity import distance, tolerance
from xweights.porting.units import ParamSlice

GRADIENTS_ALONE = frozenset({"sgd", "adam", "adamax", "nadam", "rmsprop", "adagrad", "adadelta", "lion"})


@dataclass(frozen=True)
class Joined:
    """The twin's bias, and the two of the source."""

    target: ParamSlice
    kept: ParamSlice
    gone: ParamSlice

    @property
    def name(self) -> str:
        """The name of the twin's bias."""
        return self.target.parameter.name

    @property
    def source_names(self) -> tuple[str, str]:
        """The names of the two."""
        return self.kept.parameter.name, self.gone.parameter.name

    def fill(self, slots: Mapping[str, Mapping[str, Array]], slot: str, made: Array) -> None:
        """Write a slot of both into that of the twin's bias: their mean, and of averages of weights the sum.

        The mean, because roundings have set the two apart: what that changes is the square of a rounding.
        """
        one, two = (piece.read(slots[piece.parameter.name][slot]) for piece in (self.kept, self.gone))
        both = one + two if slot == "average" else (one + two) / one.dtype.type(2)
        self.target.write(both.reshape(self.target.shape), made)


def recurrent_biases(pairs: Sequence[Pair]) -> list[Parameter]:
    """Return the second biases of the source that have no place in the target."""
    return [
        pair.source.pieces["recurrent_bias"].parameter
        for pair in pairs
        if "recurrent_bias" in pair.source.pieces and "recurrent_bias" not in pair.target.pieces
    ]


def joined(state: OptimizerState, pairs: Sequence[Pair], problems: Problems) -> list[Joined]:
    """Return the biases that become one; what can't is added to ``problems``."""
    trained, found = set(state.names), []
    for pair in pairs:
        gone, kept = pair.source.pieces.get("recurrent_bias"), pair.source.pieces.get("bias")
        theirs = pair.target.pieces.get("bias")
        if gone is None or gone.parameter.name not in trained or "recurrent_bias" in pair.target.pieces:
            continue
        why = _why_not(state, kept, gone)
        if kept is not None and theirs is not None and not why:
            found.append(Joined(theirs, kept, gone))
            continue
        problems.add(
            HandoffError,
            f"{gone.parameter.name!r} is trained, and {pair.target.path!r} has no place for its state: two biases that "
            f"are added up move twice as fast as one, and {why or 'there is no bias there'}",
            fix=f"train only one of them: requires_grad_(False) for {gone.parameter.name!r}, and leave it out",
        )
    return found


def _why_not(state: OptimizerState, kept: ParamSlice | None, gone: ParamSlice) -> str:
    """Return why one bias can't move as the sum of the two does."""
    if kept is None or kept.parameter.name not in state.names:
        return "only one of them is trained"
    one, two = kept.parameter.name, gone.parameter.name
    group = state.group_of(one)
    if group is not state.group_of(two):
        return "they are in two parameter groups"
    if group.rule not in GRADIENTS_ALONE:
        return f"{group.rule} looks at the weights as well"
    if group.hyper.get("weight_decay") and group.variant.get("decay") == "coupled":
        return "weight decay acts on their gradients"
    mine, theirs = state.slots[one], state.slots[two]
    same = all(distance(mine[slot], theirs[slot]) <= tolerance(mine[slot]) for slot in mine if slot != "average")
    return "" if same else "their slots differ, as those of two that were trained otherwise before"


def doubled(groups: Sequence[OptimizerGroup], names: Collection[str]) -> tuple[OptimizerGroup, ...]:
    """Return the groups with twice the learning rate for these parameters; they decay as before.

    In the norm of all gradients, theirs counts twice.
    """
    made = []
    for group in groups:
        hyper = {**group.hyper, "learning_rate": 2 * group.hyper["learning_rate"]}
        if hyper.get("weight_decay"):
            hyper["weight_decay"] = hyper["weight_decay"] / 2
        mine = tuple(name for name in group.names if name in names)
        rest = tuple(name for name in group.names if name not in names)
        made.append(replace(group, names=rest))
        variant = {**group.variant, "counts": 2}
        made.append(replace(group, names=mine, hyper=hyper, variant=variant, factor=2 * group.factor))
    return tuple(group for group in made if group.names)
