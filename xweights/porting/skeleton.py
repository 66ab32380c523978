"""``skeleton``: write the source code of a twin, to edit and to port into.

A backend reads its models as neutral steps and writes steps as code of its framework, so that any two backends can be
combined.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.registry import backend_for, installed_backends, load
from xweights.errors import ArgumentError, PortError, Problems, XweightsError
from xweights.porting.port import port
from xweights.porting.protocol import porting_for
from xweights.porting.shards import refuse_uncopied
from xweights.porting.skeletons.graph import Graph, Reading
from xweights.porting.skeletons.patterns import find_layers
from xweights.porting.skeletons.proving import prove
from xweights.porting.skeletons.samples import map_arrays
from xweights.porting.skeletons.weights import Written

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Step:
    """One step of a model, described independently of the framework.

    ``name`` is the name of its output, ``kind`` a key of LAYERS or FUNCTIONS, ``inputs`` the steps whose outputs it
    takes. ``layer`` is the attribute that a layer is kept under; a layer called twice is two steps of one ``layer``.
    ``fused`` is the activation that is part of a layer. ``shape`` is that of the output, without the batch and with
    channels last, as all shapes and axes in ``options`` are (axis 1 is the first after the batch); None: unknown.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    fused: str = "linear"
    layer: str = ""
    shape: Shape | None = None


# Layers with weights, and the settings that their steps have in ``options``.
LAYERS: Mapping[str, tuple[str, ...]] = {
    "dense": ("inputs", "units", "bias", "tied"),  # tied: the embedding whose table is its kernel, or None
    "einsum": ("equation", "inputs", "outputs", "bias"),
    "embedding": ("vocab", "width"),
    "conv": ("channels", "filters", "size", "strides", "dilation", "groups", "padding", "bias", "space"),
    "conv_transpose": ("channels", "filters", "size", "strides", "dilation", "crop", "bias"),
    "batch_norm": ("channels", "eps", "momentum", "scale", "center"),
    "layer_norm": ("normalized", "eps", "scale", "center"),
    "rms_norm": ("width", "eps"),
    "group_norm": ("channels", "groups", "eps"),
    "normalization": ("width",),
    "prelu": ("slopes",),  # the shape of the slopes: with 1 where an axis shares them
    "simple_rnn": ("inputs", "units", "bias", "layers", "both", "backwards", "sequences", "activation"),
    "lstm": ("inputs", "units", "bias", "layers", "both", "backwards", "sequences"),
    "gru": ("inputs", "units", "bias", "layers", "both", "backwards", "sequences"),
    "attention": ("widths", "heads", "key_heads", "key_size", "value_size", "outputs", "bias", "causal"),
    "attention_scale": (),
    "additive_attention": ("width",),
    "conv_lstm": ("channels", "filters", "size", "padding", "bias", "sequences"),
}
# Functions without weights.
FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "input": (),
    "output": (),  # what the model returns
    "activation": ("does",),  # and slope, alpha or axis
    "dropout": ("rate",),
    "flatten": (),
    "reshape": (),
    "permute": ("order",),
    "repeat": ("times",),
    "select": ("place",),  # one position of the first axis after the batch
    "merge_frames": (),
    "split_frames": ("frames",),
    "max_pool": ("size", "strides", "padding", "space"),
    "average_pool": ("size", "strides", "padding", "space"),
    "global_average": ("axes", "keeps"),
    "global_max": ("axes", "keeps"),
    "zero_padding": ("padding",),
    "cropping": ("cropping",),
    "upsample": ("size", "mode"),
    "add": (),
    "subtract": (),
    "multiply": (),
    "average": (),
    "maximum": (),
    "minimum": (),
    "concatenate": ("axis",),
    "scale": ("factor", "offset"),
}
KINDS = LAYERS.keys() | FUNCTIONS.keys()
ACTIVATIONS = frozenset(
    {
        "linear", "relu", "relu6", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "elu", "selu", "softmax",
        "leaky_relu", "softplus", "softsign", "hard_sigmoid", "hard_silu", "mish", "log_softmax",
    }
)  # fmt: skip


class Describing(Protocol):
    """A reader of one framework's models as steps, and writer of steps as its source code."""

    def steps(self, model: Any, sample: Any) -> Sequence[Step]:
        """Return a model's steps in order of calls; a kind that isn't one of KINDS is a description of the step."""

    def code(self, steps: Sequence[Step], problems: Problems) -> str:
        """Return the source code of a model with these steps; add those that can't be written to ``problems``."""

    def record(self, model: Any, sample: Any) -> Reading:
        """Run a model on a sample and return the graph of what it computed; raise PortError where there is none."""

    def graph_code(self, graph: Graph, problems: Problems, *, blocks: bool = True) -> Written:
        """Return the source code of a model that computes a graph; add what can't be written to ``problems``.

        ``blocks``: equal runs of lines are a class and a loop.
        """

    def run_twin(self, twin: Any, inputs: Any) -> list[Array]:
        """Call a twin in inference mode and return its outputs; the first call builds it."""

    def fill_twin(self, twin: Any, arrays: Mapping[str, Array]) -> None:
        """Set a twin's parameters by their attributes, such as "head.kernel"."""


@runtime_checkable
class Describes(Protocol):
    """A backend whose models can be read as steps and written from them."""

    def describing(self) -> Describing:
        """Return the reader and writer; its code is loaded only now."""


def _find_describer(backend: Any, what: str) -> Describing:
    if not isinstance(backend, Describes):
        raise ArgumentError(f"models of this framework can't be {what} as steps")
    return backend.describing()


def skeleton(model: Any, framework: str, *, sample: Any = None, verify: bool = True) -> str:
    """Return the source code of a twin of a model in another framework: the same layers under the same names.

    Args:
        model: The model. Without a sample, a Sequential or functional model, or a module that can be traced
            symbolically, made of the layers that have recipes.
        framework: The entry point of the framework that the code is for, such as "torch" or "keras".
        sample: Input of the model (array, tuple or dict). With it, a model whose layers have no recipes is recorded
            while it runs, and written as the layers and functions that it called.
        verify: With a sample, build the twin, write the weights to it and compare its outputs before its code is
            returned. False returns code that wasn't run.

    The code is a class ``Twin``, ready to edit; ``port(model, Twin(), sample=...)`` then moves the weights and proves
    that it is a twin.
    Raises ArgumentError (no such framework, or a sample without examples), PortError (what can't be written: all of it,
    or the first that a recorded run can't be read beyond; or a twin that computes something else).

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
                head = torch.relu(head)
                return head
        <BLANKLINE>
    """
    if framework not in installed_backends():
        raise ArgumentError(f"no backend is called {framework!r}\ninstalled: {', '.join(sorted(installed_backends()))}")
    porting_for(model, "model")  # refuses objects that aren't models
    if backend_for(model) is load(framework):
        raise ArgumentError(f"the model is one of {framework!r} already\nFix: name the other framework")
    reader = _find_describer(backend_for(model), "read")
    writer = _find_describer(load(framework), "written")
    if sample is None:
        return _write_layers(model, reader, writer, None)
    refuse_uncopied(model, "a skeleton with a sample")
    # Layers of both frameworks say more than what they compute: they come first where the model is ported into them.
    try:
        code = _write_layers(model, reader, writer, sample)
        if not verify or _is_ported(model, code, writer, sample):
            return code
    except XweightsError:
        pass
    return _write_recording(model, reader, writer, sample, verify)


def _is_ported(model: Any, code: str, writer: Describing, sample: Any) -> bool:
    """Return whether the model is ported into the twin that this code makes."""
    space: dict[str, Any] = {}
    try:
        # The code is the writer's own; names and numbers of the model are in it as identifiers and literals only.
        exec(compile(code, "<skeleton>", "exec"), space)  # noqa: S102 - code that was written here, to be proved
        twin = space["Twin"]()
        for least_rank in (4, 3, 99):  # channels of images are moved; those of sequences may be; or none
            with contextlib.suppress(Exception):
                writer.run_twin(twin, _move_channels(sample, porting_for(model, "model").channels_first, least_rank))
                break  # it is built by its first call
        port(model, twin, sample=sample)
    except Exception:  # noqa: BLE001 - the twin's own errors are any
        return False
    return True


def _move_channels(sample: Any, first: bool, least_rank: int) -> Any:
    """Return a sample with the channels where the other framework has them, in arrays of at least so many axes."""

    def move(array: Array) -> Array:
        if array.ndim < least_rank:
            return array
        return np.moveaxis(array, 1, -1) if first else np.moveaxis(array, -1, 1)

    return map_arrays(sample, move)


def _write_layers(model: Any, reader: Describing, writer: Describing, sample: Any) -> str:
    """Return the code of a twin that is written layer by layer."""
    steps = list(reader.steps(model, sample))
    problems = Problems("no twin of this model can be written")
    for step in steps:
        if step.kind not in KINDS:
            problems.add(PortError, f"{step.name!r} is {step.kind}", fix="write the twin by hand, and port into it")
        elif step.fused not in ACTIVATIONS or step.options.get("does", "linear") not in ACTIVATIONS:
            unknown = step.options["does"] if step.kind == "activation" else step.fused
            problems.add(PortError, f"{step.name!r} has the activation {unknown}", fix="write that layer by hand")
    problems.check()
    code = writer.code(steps, problems)
    problems.check()
    return code


def _write_recording(model: Any, reader: Describing, writer: Describing, sample: Any, verify: bool) -> str:
    """Return the code of a twin that computes what a model was seen to compute."""
    problems = Problems("no twin of this model can be written")
    try:
        reading = reader.record(model, sample)
    except PortError as error:
        problems.add(PortError, str(error), fix="write the twin by hand, and port into it")
        problems.check()
        raise
    graph = find_layers(reading.graph)
    written = writer.graph_code(graph, problems)
    problems.check()
    if not verify:
        return written.code
    try:
        prove(reading, written, writer, sample)
    except PortError:
        # What frameworks do around the call of a layer (casts, masks) may be what a block can't do with.
        flat = writer.graph_code(graph, problems, blocks=False)
        if flat.code == written.code:
            raise
        prove(reading, flat, writer, sample)
        return flat.code
    return written.code
