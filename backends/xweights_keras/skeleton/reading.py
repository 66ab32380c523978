"""Conversion of Keras models to neutral steps: the walk through the graph."""

from __future__ import annotations

from typing import Any

import keras

from xweights.errors import PortError
from xweights.porting.skeleton import Shape, Step
from xweights.porting.skeletons.naming import check_names, to_identifier
from xweights_keras.naming import name_layers
from xweights_keras.skeleton.functions import operation_step
from xweights_keras.skeleton.layers import layer_steps
from xweights_keras.walk import is_graph


def steps_of(model: Any) -> list[Step]:
    """Return the steps of a Sequential or functional model. Raise PortError for any other."""
    if not is_graph(model):
        raise PortError(
            f"the order of calls of a {type(model).__name__} isn't known without a run\n"
            "Fix: write the twin by hand, or make the model with the functional API"
        )
    reader = _Reader()
    graph = graph_of(model)
    for position, tensor in enumerate(graph.inputs):
        name = f"x{position}" if len(graph.inputs) > 1 else "x"
        reader.names[id(tensor)] = name
        reader.steps.append(Step(name, "input", shape=tuple(tensor.shape[1:])))
    reader.walk(graph, "")
    outputs = [reader.names[id(tensor)] for tensor in graph.outputs]
    reader.steps.append(Step("results", "output", tuple(outputs)))
    return reader.steps


def graph_of(model: Any) -> Any:
    """Return the functional model inside a Sequential one."""
    return model._functional if type(model).__name__ == "Sequential" else model


class _Reader:
    """Collector of steps; ``names`` has the step that makes each symbolic tensor."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.names: dict[int, str] = {}
        self.taken = {"x", "results", "self", "inputs"}

    def walk(self, graph: Any, prefix: str) -> None:
        """Walk through a graph whose inputs are named."""
        paths = {id(layer): path for path, layer in name_layers(graph.layers)}
        check_names(paths.values())
        for _, nodes in sorted(graph._nodes_by_depth.items(), reverse=True):
            for node in nodes:
                if node.is_input:
                    continue
                layer = node.operation
                path = prefix + to_identifier(paths.get(id(layer), layer.name))
                inputs = [self.names[id(tensor)] for tensor in node.input_tensors]
                if isinstance(layer, keras.Layer) and is_graph(layer):
                    self._inside(layer, node, inputs, path)
                    continue
                name = self._read(layer, node, path, inputs)
                for tensor in node.outputs:
                    self.names[id(tensor)] = name

    def _inside(self, layer: Any, node: Any, inputs: list[str], path: str) -> None:
        graph = graph_of(layer)
        for tensor, name in zip(graph.inputs, inputs, strict=True):
            self.names[id(tensor)] = name
        self.walk(graph, f"{path}_")
        for outer, inner in zip(node.outputs, graph.outputs, strict=True):
            self.names[id(outer)] = self.names[id(inner)]

    def _read(self, layer: Any, node: Any, path: str, inputs: list[str]) -> str:
        shapes: list[Shape] = [tuple(tensor.shape[1:]) for tensor in node.input_tensors]
        shape: Shape = tuple(node.outputs[0].shape[1:])
        if len(node.outputs) > 1:
            step = Step(self._fresh(path), f"{type(layer).__name__} with several outputs", shape=shape)
            self.steps.append(step)
            return step.name
        if isinstance(layer, keras.Layer):
            steps = layer_steps(layer, node.arguments, path, tuple(inputs), shapes, shape)
        else:
            named = {id(tensor): name for tensor, name in zip(node.input_tensors, inputs, strict=True)}
            steps = [operation_step(layer, node.arguments, path, tuple(inputs), named, shape)]
        renamed: dict[str, str] = {}
        for step in steps:
            fresh = self._fresh(step.name)
            step_inputs = tuple(renamed.get(name, name) for name in step.inputs)
            renamed[step.name] = fresh
            self.steps.append(Step(fresh, step.kind, step_inputs, step.options, step.fused, step.layer, step.shape))
        return self.steps[-1].name

    def _fresh(self, name: str) -> str:
        """Return an unused name: a layer called again makes another value."""
        fresh, number = name, 1
        while fresh in self.taken:
            number += 1
            fresh = f"{name}_{number}"
        self.taken.add(fresh)
        return fresh
