"""Neutral steps written as the source code of a torch module.

Steps have channels last; torch has them second in images. So the order of each value is tracked, and it is permuted
where a layer needs the other order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xweights.errors import PortError, Problems
from xweights.porting.skeleton import Step
from xweights_torch.activations import code_of as activation_code
from xweights_torch.skeleton.functions import StepCode
from xweights_torch.skeleton.helpers import HELPERS
from xweights_torch.skeleton.layers import BOTH_WAYS, FIRST, LAST, write_step


@dataclass(frozen=True)
class WrittenValue:
    """Output of a step: its axes after the batch, and whether the channels come first among them."""

    rank: int
    first: bool


def write_code(steps: Sequence[Step], problems: Problems) -> str:
    """Return the source code of a module that does these steps."""
    writer = _Writer(steps)
    for step in steps:
        try:
            writer.write(step)
        except PortError as error:
            problems.add(PortError, str(error).partition("\nFix:")[0], fix="write the twin by hand, and port into it")
    return writer.code()


class _Writer:
    def __init__(self, steps: Sequence[Step]) -> None:
        self.values: dict[str, WrittenValue] = {}
        self.layers: dict[str, str] = {}
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
            self.values[step.name] = WrittenValue(self._rank(step), self._is_image(step))
            return
        if step.kind == "output":
            self.results = list(step.inputs)
            return
        if any(name not in self.values for name in step.inputs):
            return  # the step that produces it couldn't be written, and was reported
        if step.kind == "activation" and step.options["does"] == "linear":
            self.forward.append(f"{step.name} = {step.inputs[0]}")
            self.values[step.name] = self.values[step.inputs[0]]
            return
        ranks = {self.values[name].rank for name in step.inputs}
        if len(ranks) > 1 and step.kind in BOTH_WAYS:
            raise PortError(f"{step.name!r} combines values of several ranks, which broadcasting would align otherwise")
        first = self._wants_channels_first(step)
        inputs = [self._align(name, first) for name in step.inputs]
        vectors = all(self.values[name].rank == 1 for name in step.inputs)
        step_code = write_step(step, inputs, first=first and not vectors)
        self._collect(step, step_code)
        self.forward.append(f"{step.name} = {step_code.call}")
        rank = self._rank(step)
        self.values[step.name] = WrittenValue(
            rank, rank > 1 and (first if step_code.first is None else step_code.first)
        )
        if step.fused != "linear":
            channel = 1 if self.values[step.name].first else -1
            options = {"slope": 0.2} if step.fused == "leaky_relu" else {}
            self.forward.append(f"{step.name} = {activation_code(step.fused, step.name, channel, options)}")

    def _collect(self, step: Step, step_code: StepCode) -> None:
        for name, code in step_code.layers.items():
            self.layers.setdefault(name, code)
        for line in step_code.ties:
            if line not in self.tied:
                self.tied.append(line)
        self.helpers.update(dict.fromkeys(step_code.helpers))

    def _rank(self, step: Step) -> int:
        if step.shape is None:
            raise PortError(f"{step.name!r} has a shape that isn't known")
        return len(step.shape)

    def _is_image(self, step: Step) -> bool:
        """Return True for an input with channels second: an image whose consumers all take them there."""
        consumers = self.consumers.get(step.name, [])
        return self._rank(step) > 2 and all(
            consumer.kind in FIRST or consumer.kind in BOTH_WAYS for consumer in consumers
        )

    def _wants_channels_first(self, step: Step) -> bool:
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
        """Return True if only dense layers follow, which are ported in either order; others need Keras' order."""
        consumers = self.consumers.get(step.name, [])
        return all(
            after.kind == "dense" or (after.kind == "dropout" and self._feeds_dense(after)) for after in consumers
        )

    def _align(self, name: str, first: bool) -> str:
        value = self.values[name]
        if value.rank < 2 or value.first == first:
            return name
        return f"{name}.movedim(-1, 1)" if first else f"{name}.movedim(1, -1)"

    def code(self) -> str:
        """Return the source code."""
        init_lines = [f"self.{name} = {code}" for name, code in self.layers.items()] + self.tied
        body = "\n".join(f"        {line}" for line in init_lines) or "        pass"
        forward_lines = "\n".join(f"        {line}" for line in self.forward)
        parts = [HELPERS[name] for name in self.helpers]
        module_code = (
            "class Twin(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            f"{body}\n\n    def forward(self, {', '.join(self.arguments)}):\n{forward_lines}\n"
            f"        return {', '.join(self.results)}\n"
        )
        return "\n\n\n".join(
            ["import torch\nfrom torch import nn\nfrom torch.nn import functional", *parts, module_code]
        )
