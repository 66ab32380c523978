"""``skeleton``: the source code of a twin, to edit and to port into.

Owns :func:`skeleton`, :class:`Step` and :class:`Describing`. Imports backend, errors and protocol. A backend reads its
models as steps in neutral words and writes steps as code of its framework; so any two of them can meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from xweights.backend import doors, load
from xweights.errors import ArgumentError, PortError, Problems
from xweights.porting.protocol import porting_for


@dataclass(frozen=True)
class Step:
    """One thing that a model does, in neutral words.

    ``name`` is the attribute that a layer is kept under, and what its output is called. ``kind`` is one of
    :data:`KINDS`; ``options`` are its settings; ``inputs`` the steps whose outputs it takes. Shapes are without the
    batch, channels last; ``fused`` is the activation that is part of a layer.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    fused: str = "linear"


# What can be read and written. ``activation`` covers the functions of ACTIVATIONS.
KINDS = frozenset(
    {
        "input", "dense", "conv", "conv_transpose", "embedding", "batch_norm", "layer_norm", "group_norm", "rms_norm",
        "lstm", "gru", "simple_rnn", "activation", "dropout", "flatten", "max_pool", "average_pool", "global_average",
        "zero_padding", "add", "multiply", "concatenate",
    }
)  # fmt: skip
ACTIVATIONS = frozenset(
    {"linear", "relu", "relu6", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "elu", "selu", "softmax", "leaky_relu"}
)


@runtime_checkable
class Describing(Protocol):
    """What a backend keeps besides, if its models can be read as steps and written from them."""

    def steps(self, model: Any) -> Sequence[Step]:
        """Return what a model does, in order of calls; a kind that isn't one of KINDS says what it is."""

    def code(self, steps: Sequence[Step]) -> str:
        """Return the source code of a model that does this."""


def skeleton(model: Any, framework: str) -> str:
    """Return the source code of a twin of a model in another framework: the same layers under the same names.

    Args:
        model: A Sequential or functional model, or a module that can be traced symbolically, made of the layers that
            have recipes.
        framework: The door of the framework that the code is for, such as "torch" or "keras".

    The code is a class ``Twin``, ready to edit; ``port(model, Twin(), sample=...)`` then moves the weights and proves
    that it is a twin.
    Raises ArgumentError (no such framework), PortError (layers that can't be written, all of them listed).

    Example:
        >>> import keras
        >>> import torch
        >>> import xweights as xw
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "relu", name="head")])
        >>> print(xw.skeleton(model, "torch").partition("class")[2])
         Twin(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(3, 2, bias=True)
        <BLANKLINE>
            def forward(self, x):
                head = self.head(x)
                head = functional.relu(head)
                return head
        <BLANKLINE>
    """
    if framework not in doors():
        raise ArgumentError(f"no backend is called {framework!r}\ninstalled: {', '.join(sorted(doors()))}")
    reader: Any = porting_for(model, "model")
    made: Any = getattr(load(framework), "porting", None)
    writer: Any = None if made is None else made()
    for one, what in ((reader, "read"), (writer, "written")):
        if not isinstance(one, Describing):
            raise ArgumentError(f"models of this framework can't be {what} as steps")
    steps = list(reader.steps(model))
    problems = Problems("no twin of this model can be written")
    for step in steps:
        if step.kind not in KINDS:
            problems.add(PortError, f"{step.name!r} is {step.kind}", fix="write the twin by hand, and port into it")
        elif step.fused not in ACTIVATIONS:
            problems.add(PortError, f"{step.name!r} has the activation {step.fused}", fix="write that layer by hand")
    problems.check()
    code: str = writer.code(steps)
    return code
