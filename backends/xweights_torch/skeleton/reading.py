"""torch modules as steps in neutral words: the walk through the traced graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from xweights.errors import PortError
from xweights.porting.skeleton import Step, check_names, identifier
from xweights_torch.skeleton.calls import call_steps
from xweights_torch.skeleton.modules import module_steps
from xweights_torch.skeleton.values import Pending, Reading, Value


class _Whole(nn.Module):
    """A layer that is a model by itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        return self.layer(x)


def steps_of(model: nn.Module, sample: Any) -> list[Step]:
    """Return what a module does. Raise PortError where it can't be traced symbolically."""
    if type(model).__module__.startswith("torch.nn.modules") and not isinstance(model, nn.Sequential):
        model = _Whole(model)
    try:
        graph = fx.Tracer().trace(model)
    except Exception as wrong:
        raise PortError(
            f"this module can't be traced: {type(wrong).__name__}: {wrong}\n"
            "Fix: write the twin by hand, and port into it"
        ) from wrong
    _refuse_tied(model)
    ranks = _ranks(model, graph, sample)
    modules = dict(model.named_modules())
    check_names(path for path in modules if path)
    reading = Reading()
    values: dict[fx.Node, Value | Pending] = {}
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in graph.nodes:
        if node.op == "placeholder":
            name = identifier("x" if len(inputs) == 1 else str(node.name))
            reading.steps.append(Step(name, "input"))
            values[node] = Value(name, ranks.get(node), None)
        elif node.op == "output":
            made = node.args[0] if isinstance(node.args[0], (tuple, list)) else [node.args[0]]
            names = [_result(reading, values, one) for one in made]
            reading.steps.append(Step("results", "output", tuple(names)))
        elif node.op == "call_module":
            path = str(node.target)
            values[node] = module_steps(reading, path, modules[path], _given(values, node), node.kwargs)
        else:
            values[node] = call_steps(reading, node, values)
        value = values.get(node)
        if isinstance(value, Value) and value.rank is None and node in ranks:
            values[node] = Value(value.name, ranks[node], value.first, value.time_first)
    return reading.steps


def _given(values: Mapping[Any, Any], node: Any) -> list[Any]:
    return [values[one] if isinstance(one, fx.Node) else one for one in node.args]


def _result(reading: Reading, values: Mapping[Any, Any], node: Any) -> str:
    value = values.get(node)
    if isinstance(value, Value):
        return value.name
    name = reading.fresh("result")
    reading.steps.append(Step(name, "a result that is no output of a layer, which has no recipe for code"))
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
    """Return the number of axes after the batch of every value, by running a sample through; empty without one."""
    if sample is None:
        return {}
    tensors = [torch.as_tensor(one) for one in (sample if isinstance(sample, (tuple, list)) else (sample,))]
    was = model.training
    try:
        model.eval()
        with torch.no_grad():
            ShapeProp(fx.GraphModule(model, graph)).propagate(*tensors)
    except Exception as wrong:
        raise PortError(f"the module can't be called with this sample: {type(wrong).__name__}: {wrong}") from wrong
    finally:
        model.train(was)
    found = {}
    for node in graph.nodes:
        shape = getattr(node.meta.get("tensor_meta"), "shape", None)
        if shape is not None:
            found[node] = len(shape) - 1
    return found
