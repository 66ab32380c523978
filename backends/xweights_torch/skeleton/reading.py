"""Torch modules read as neutral steps, from their traced graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from xweights.errors import PortError
from xweights.porting.skeleton import Step
from xweights.porting.skeletons.naming import check_names, to_identifier
from xweights_torch.skeleton.calls import record_call
from xweights_torch.skeleton.modules import record_module
from xweights_torch.skeleton.values import PendingOutput, StepRecorder, TracedValue


class _WrappedLayer(nn.Module):
    """Model that consists of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        return self.layer(x)


def read_steps(model: nn.Module, sample: Any) -> list[Step]:
    """Return the steps of a module; raise PortError where it can't be traced symbolically."""
    if type(model).__module__.startswith("torch.nn.modules") and not isinstance(model, nn.Sequential):
        model = _WrappedLayer(model)
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise PortError(
            f"this module can't be traced: {type(error).__name__}: {error}\n"
            "Fix: write the twin by hand, and port into it"
        ) from error
    _refuse_tied(model)
    ranks = _ranks(model, graph, sample)
    modules = dict(model.named_modules())
    check_names(path for path in modules if path)
    recorder = StepRecorder()
    values: dict[fx.Node, TracedValue | PendingOutput] = {}
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in graph.nodes:
        if node.op == "placeholder":
            name = to_identifier("x" if len(inputs) == 1 else str(node.name))
            recorder.steps.append(Step(name, "input"))
            values[node] = TracedValue(name, ranks.get(node), None)
        elif node.op == "output":
            outputs = node.args[0] if isinstance(node.args[0], (tuple, list)) else [node.args[0]]
            names = [_result_name(recorder, values, output) for output in outputs]
            recorder.steps.append(Step("results", "output", tuple(names)))
        elif node.op == "call_module":
            path = str(node.target)
            values[node] = record_module(recorder, path, modules[path], _arguments(values, node), node.kwargs)
        else:
            values[node] = record_call(recorder, node, values)
        value = values.get(node)
        if isinstance(value, TracedValue) and value.rank is None and node in ranks:
            values[node] = TracedValue(value.name, ranks[node], value.first, value.time_first)
    return recorder.steps


def _arguments(values: Mapping[Any, Any], node: Any) -> list[Any]:
    return [values[arg] if isinstance(arg, fx.Node) else arg for arg in node.args]


def _result_name(recorder: StepRecorder, values: Mapping[Any, Any], node: Any) -> str:
    value = values.get(node)
    if isinstance(value, TracedValue):
        return value.name
    name = recorder.unique_name("result")
    recorder.steps.append(Step(name, "a result that is no output of a layer, which has no recipe for code"))
    return name


def _refuse_tied(model: nn.Module) -> None:
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            raise PortError(
                f"{name!r} is {seen[id(parameter)]!r}: tied weights have no recipe for code\n"
                "Fix: write the twin by hand, and port into it"
            )
        seen[id(parameter)] = name


def _ranks(model: nn.Module, graph: fx.Graph, sample: Any) -> dict[fx.Node, int]:
    """Return each value's number of axes after the batch, by running a sample through; empty without one."""
    if sample is None:
        return {}
    tensors = [torch.as_tensor(array) for array in (sample if isinstance(sample, (tuple, list)) else (sample,))]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            ShapeProp(fx.GraphModule(model, graph)).propagate(*tensors)
    except Exception as error:
        raise PortError(f"the module can't be called with this sample: {type(error).__name__}: {error}") from error
    finally:
        model.train(training)
    ranks = {}
    for node in graph.nodes:
        shape = getattr(node.meta.get("tensor_meta"), "shape", None)
        if shape is not None:
            ranks[node] = len(shape) - 1
    return ranks
