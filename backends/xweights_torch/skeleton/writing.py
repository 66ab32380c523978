"""Steps in neutral words as the source code of a torch module.

Steps have channels last; torch wants them second in images. So each value is known to lie one way or the other, and
is turned where a layer wants it otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xweights.errors import PortError, Problems
from xweights.porting.skeleton import Step
from xweights_torch.skeleton.functions import Written, function_of
from xweights_torch.skeleton.helpers import HELPERS
from xweights_torch.skeleton.layers import BOTH_WAYS, FIRST, LAST, written


@dataclass(frozen=True)
class Value:
    """What a step has made: its axes after the batch, and whether the channels come first of them."""

    rank: int
    first: bool


def code_of(steps: Sequence[Step], problems: Problems) -> str:
    """Return the source code of a module that does these steps."""
    writer = _Writer(steps)
    for step in steps:
        try:
            writer.write(step)
        except PortError as wrong:
            problems.add(PortError, str(wrong).partition("\nFix:")[0], fix="write the twin by hand, and port into it")
    return writer.code()


class _Writer:
    def __init__(self, steps: Sequence[Step]) -> None:
        self.values: dict[str, Value] = {}
        self.made: dict[str, str] = {}
        self.tied: list[str] = []
        self.forward: list[str] = []
        self.arguments: list[str] = []
        self.results: list[str] = []
        self.helpers: dict[str, None] = {}
        self.consumers: dict[str, list[Step]] = {}
        for step in steps:
            for name in step.inputs:
                self.consumers.setdefault(name, []).append(step)

    def write(self, step: Step) -> None:
        if step.kind == "input":
            self.arguments.append(step.name)
            self.values[step.name] = Value(self._rank(step), self._image(step))
            return
        if step.kind == "output":
            self.results = list(step.inputs)
            return
        if any(name not in self.values for name in step.inputs):
            return  # what makes it couldn't be written, and has been reported
        if step.kind == "activation" and step.options["does"] == "linear":
            self.forward.append(f"{step.name} = {step.inputs[0]}")
            self.values[step.name] = self.values[step.inputs[0]]
            return
        ranks = {self.values[name].rank for name in step.inputs}
        if len(ranks) > 1 and step.kind in BOTH_WAYS:
            raise PortError(f"{step.name!r} combines values of several ranks, which broadcasting would align otherwise")
        first = self._first(step)
        given = [self._turned(name, first) for name in step.inputs]
        vectors = all(self.values[name].rank == 1 for name in step.inputs)
        one = written(step, given, first=first and not vectors)
        self._keep(step, one)
        self.forward.append(f"{step.name} = {one.call}")
        rank = self._rank(step)
        self.values[step.name] = Value(rank, rank > 1 and (first if one.first is None else one.first))
        if step.fused != "linear":
            channel = 1 if self.values[step.name].first else -1
            options = {"slope": 0.2} if step.fused == "leaky_relu" else {}
            self.forward.append(f"{step.name} = {function_of(step.fused, step.name, channel, options)}")

    def _keep(self, step: Step, one: Written) -> None:
        for name, code in one.layers.items():
            self.made.setdefault(name, code)
        for line in one.ties:
            if line not in self.tied:
                self.tied.append(line)
        self.helpers.update(dict.fromkeys(one.helpers))

    def _rank(self, step: Step) -> int:
        if step.shape is None:
            raise PortError(f"{step.name!r} has a shape that isn't known")
        return len(step.shape)

    def _image(self, step: Step) -> bool:
        """An input has channels second where it is an image and all that takes it wants them there."""
        wanted = self.consumers.get(step.name, [])
        return self._rank(step) > 2 and all(one.kind in FIRST or one.kind in BOTH_WAYS for one in wanted)

    def _first(self, step: Step) -> bool:
        if step.kind in FIRST:
            return True
        if step.kind in LAST:
            return False
        if step.kind == "layer_norm":
            return len(step.options["normalized"]) > 2
        if step.kind == "flatten" and self._feeds_dense(step):
            return self.values[step.inputs[0]].first
        if step.kind in BOTH_WAYS:
            return any(self.values[name].first for name in step.inputs)
        return False

    def _feeds_dense(self, step: Step) -> bool:
        """Dense layers are ported into either order; anything else behind a flatten has to have Keras'."""
        after = self.consumers.get(step.name, [])
        return all(one.kind == "dense" or (one.kind == "dropout" and self._feeds_dense(one)) for one in after)

    def _turned(self, name: str, first: bool) -> str:
        value = self.values[name]
        if value.rank < 2 or value.first == first:
            return name
        return f"{name}.movedim(-1, 1)" if first else f"{name}.movedim(1, -1)"

    def code(self) -> str:
        """Put it together."""
        made = [f"self.{name} = {code}" for name, code in self.made.items()] + self.tied
        body = "\n".join(f"        {line}" for line in made) or "        pass"
        run = "\n".join(f"        {line}" for line in self.forward)
        parts = [HELPERS[name] for name in self.helpers]
        own = (
            "class Twin(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            f"{body}\n\n    def forward(self, {', '.join(self.arguments)}):\n{run}\n"
            f"        return {', '.join(self.results)}\n"
        )
        return "\n\n\n".join(["import torch\nfrom torch import nn\nfrom torch.nn import functional", *parts, own])
