"""Layers that a model wrote by hand, found in its graph: products with a kernel of its own, and RMS norms.

As layers they are readable, and ``port`` pairs them like any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from xweights.porting.skeletons.graph import Graph, Operand, Operation, prune

# What a parameter is called inside the layer that it belongs to.
_ROLES = ("weight", "kernel", "scale", "gamma", "bias", "beta")


def find_layers(graph: Graph) -> Graph:
    """Return the graph with these layers in the place of the operations that they are made of."""
    finder = _Finder(graph.operations)
    operations = [finder.replaced(operation) for operation in graph.operations]
    return replace(graph, operations=tuple(prune(operations)))


class _Finder:
    def __init__(self, operations: Sequence[Operation]) -> None:
        self.by_name: Mapping[str, Operation] = {operation.name: operation for operation in operations}
        self.uses: dict[str, int] = {}
        for operation in operations:
            for name in operation.inputs:
                if isinstance(name, str):
                    self.uses[name] = self.uses.get(name, 0) + 1

    def replaced(self, operation: Operation) -> Operation:
        """Return the layer that ends with an operation, or that operation."""
        return self._norm(operation) or self._product(operation) or operation

    def _made(self, name: Operand, kind: str, function: str = "") -> Operation | None:
        made = self.by_name.get(name) if isinstance(name, str) else None
        if made is None or made.kind != kind or made.options.get("function", "") != function:
            return None
        return made

    def _own(self, name: Operand, rank: int) -> Operation | None:
        """Return a parameter that nothing else uses."""
        made = self._made(name, "parameter")
        return made if made is not None and self.uses[made.name] == 1 and len(made.shape) == rank else None

    def _norm(self, operation: Operation) -> Operation | None:
        if operation.kind != "binary" or operation.options["function"] != "multiply":
            return None
        for scale, normal in (operation.inputs, operation.inputs[::-1]):
            weight, found = self._own(scale, 1), self._normalized(normal)
            if weight is None or found is None or weight.shape != operation.shape[-1:]:
                continue
            name = str(weight.options["name"])
            options = {"weights": {"scale": name}, "eps": found[1]}
            return replace(operation, kind="rms_norm", inputs=(found[0],), options=options, layer=_owner(name))
        return None

    def _normalized(self, name: Operand) -> tuple[Operand, float] | None:
        """Return the value that was divided by the root of its mean square along the last axis, and the eps."""
        whole = self._made(name, "binary", "multiply") or self._made(name, "binary", "divide")
        if whole is None:
            return None
        function = "rsqrt" if whole.options["function"] == "multiply" else "sqrt"
        for x, divisor in (whole.inputs, whole.inputs[::-1])[: 2 if function == "rsqrt" else 1]:
            root = self._made(divisor, "unary", function)
            added = None if root is None else self._made(root.inputs[0], "binary", "add")
            if added is None:
                continue
            for mean, eps in (added.inputs, added.inputs[::-1]):
                reduced = self._made(mean, "reduce", "mean")
                if reduced is None or not isinstance(eps, float) or not reduced.options["keepdims"]:
                    continue
                squares = self.by_name.get(str(reduced.inputs[0]))
                last = len(whole.shape) - 1
                axes = tuple(axis % len(whole.shape) for axis in reduced.options["axes"])
                if squares is not None and axes == (last,) and _is_square(squares, x):
                    return x, eps
        return None

    def _product(self, operation: Operation) -> Operation | None:
        found = self._dense(operation)
        if found is not None or operation.kind != "binary" or operation.options["function"] != "add":
            return found
        for product, added in (operation.inputs, operation.inputs[::-1]):
            made, bias = self.by_name.get(str(product)), self._own(added, 1)
            dense = None if made is None or self.uses[made.name] > 1 else self._dense(made)
            if dense is not None and bias is not None and bias.shape == operation.shape[-1:]:
                weights = {"kernel": dense.options["weights"]["kernel"], "bias": bias.options["name"]}
                return replace(dense, name=operation.name, options={**dense.options, "weights": weights})
        return None

    def _dense(self, operation: Operation) -> Operation | None:
        if operation.kind != "matmul" or len(operation.shape) < 2:
            return None
        x, kernel = operation.inputs
        axes = "io"
        turned = self._made(kernel, "permute")
        if turned is not None and self.uses[turned.name] == 1 and tuple(turned.options["order"]) == (1, 0):
            kernel, axes = turned.inputs[0], "oi"
        weight = self._own(kernel, 2)
        if weight is None or self._made(x, "parameter") is not None:
            return None
        name = str(weight.options["name"])
        options = {"weights": {"kernel": name, "bias": None}, "axes": axes, "units": operation.shape[-1]}
        return replace(operation, kind="dense", inputs=(x,), options=options, layer=_owner(name))


def _is_square(operation: Operation, of: Operand) -> bool:
    if operation.kind == "unary":
        return operation.options["function"] == "square" and operation.inputs == (of,)
    forms = {"multiply": (of, of), "power": (of, 2)}
    return operation.kind == "binary" and operation.inputs == forms.get(operation.options["function"], ())


def _owner(name: str) -> str:
    *owner, role = re.split(r"[./]", name)
    return name[: -len(role) - 1] if owner and role in _ROLES else name
