"""Writing of a graph as source code: what is the same in every framework.

Each value is kept in an order of axes (see ``orders``); a framework's writer adds the code of its layers and functions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from xweights.core.dtypes import Array
from xweights.errors import PortError
from xweights.porting.skeletons.blocks import Block, BlockFinder
from xweights.porting.skeletons.constants import TABLE, code_of_array
from xweights.porting.skeletons.graph import Operation
from xweights.porting.skeletons.orders import Order, permuted, plain, reshaped, without
from xweights.porting.skeletons.values import ValueWriter
from xweights.porting.skeletons.weights import Stored, Written, store


class GraphWriter(ValueWriter):
    """Writer of one graph. Subclasses have the code of a framework, in methods ``write_<kind>``."""

    module: str  # where the functions are
    axis_word: str  # what their axis is called
    dropout: str
    blocks = True  # whether equal runs of lines are a class and a loop

    def write(self) -> Written:
        """Return the source code; add what can't be written to the problems."""
        for operation in self.graph.operations:
            if any(isinstance(name, str) and name not in self.orders for name in operation.inputs):
                continue  # what makes it couldn't be written, and was reported
            try:
                getattr(self, f"write_{operation.kind}")(operation)
            except PortError as error:
                self.problems.add(PortError, str(error).partition("\nFix:")[0], fix="write that part by hand")
        return Written(self.source(), self.stored, self.input_orders, self.output_orders)

    def source(self) -> str:
        """Return the source code of the whole."""
        raise NotImplementedError

    def find_blocks(self) -> None:
        """Write runs of equal lines as classes and loops."""
        taken = {
            *self.layers,
            "Twin",
            *re.findall(r"^(?:class|def) (\w+)", "\n".join(self.helpers.values()), re.MULTILINE),
        }
        inputs = [name for name, _ in self.input_names]
        while self.blocks:
            found = BlockFinder(self.lines, self.result, self.layers, inputs, self.reserved).find()
            if found is None:
                return
            first, count, block = found
            number = 1
            name, attribute = block.name, block.attribute
            while {name, attribute} & taken or self.reserved(attribute):
                number += 1
                name, attribute = f"{block.name}{number}", f"{block.attribute}_{number}"
            taken |= {name, attribute}
            block = block.called(name, attribute)
            self.lines[first : first + count] = block.loop
            old = self.layers
            self.layers = {}
            for layer, code in old.items():
                if layer in block.moved:
                    self.layers.setdefault(attribute, self.block_list(block))
                else:
                    self.layers[layer] = code
            for places in self.stored.values():
                for place, one in enumerate(places):
                    layer, dot, rest = one.path.partition(".")
                    if layer in block.moved:
                        places[place] = replace(one, path=f"{block.moved[layer]}{dot}{rest}")
            self.helpers[name] = self.block_class(block)

    def block_class(self, block: Block) -> str:
        """Return the source code of a block's class."""
        raise NotImplementedError

    def block_list(self, block: Block) -> str:
        """Return the code that makes all blocks of a class."""
        raise NotImplementedError

    def whole(self, imports: Sequence[str], made: Sequence[str], body: str) -> str:
        """Return the source code, with what the lines of ``made`` and of the forward need besides ``imports``."""
        lines = list(imports)
        if "np." in "".join([*made, *self.lines, *self.helpers.values()]):
            lines.insert(0, "import numpy as np")
        if "table" in self.helpers:
            lines = ["import base64", "import zlib", "", *lines]
        return "\n\n\n".join(["\n".join(lines), *self.helpers.values(), body])

    def needs_batch(self) -> bool:
        """Return whether a line uses the number of examples."""
        return any(re.search(r"(?<![.\w])batch\b", line) for line in [*self.lines, self.result])

    # Layers.

    def layer(self, operation: Operation, code: str, stored: Mapping[str, Stored], key: Any = ()) -> str:
        """Add the layer of an operation, and return its attribute; a layer that is called twice is kept once."""
        weights = operation.options.get("weights", {})
        whole = (operation.kind, operation.layer, tuple(weights.items()), code, key)
        new = whole not in self.attributes
        path = self.attribute(operation.layer or operation.name, whole)
        if new:
            self.layers[path] = code
            for role, place in stored.items():
                name = weights[role]
                self.stored.setdefault(name, []).append(replace(place, path=f"{path}.{place.path}"))
        return f"self.{path}"

    def is_taken(self, operation: Operation, role: str) -> bool:
        """Return whether a weight belongs to another layer, or is a parameter by itself."""
        name = operation.options["weights"][role]
        owner = self.owners.setdefault(name, (operation.kind, operation.options["weights"]))
        return name in self.free or owner != (operation.kind, operation.options["weights"])

    def weight(self, name: str) -> str:
        """Return the code of a parameter as the original has it."""
        shape = self.graph.parameters[name]
        operation = Operation(f"{name}_", "parameter", (), {"name": name}, shape)
        self.shapes[operation.name] = shape
        self.write_parameter(operation)
        return operation.name

    def kernel(self, path: str, operation: Operation, wanted: str) -> Stored:
        """Return the place of a kernel whose axes are put into the order ``wanted``."""
        name, axes = operation.options["weights"]["kernel"], operation.options["axes"]
        shape = operation.options.get("split", {}).get("kernel", self.graph.parameters[name])
        place = store(path, shape, axes, wanted)
        return replace(place, original=self.graph.parameters[name])

    def vector(self, path: str, name: str) -> Stored:
        """Return the place of a parameter that is flat in the twin."""
        shape = self.graph.parameters[name]
        return Stored(path, shape, shape, plain(len(shape)), (math.prod(shape),))

    def with_last(self, operation: Operation, axes: Sequence[int]) -> Order:
        """Return the order in which a value is kept, if these axes are the last of it, or else the plain order."""
        kept = self.orders[str(operation.inputs[0])]
        return kept if kept[-len(axes) :] == tuple(axes) else plain(len(kept))

    def norm_of_channels(self, operation: Operation, code: str, paths: Mapping[str, str]) -> None:
        """Write a norm whose parameters, at ``paths`` by their roles, have an entry for each channel."""
        rank = len(operation.shape)
        order = self.channels(rank, operation.options["axis"]) if rank > 2 else plain(rank)
        weights = operation.options["weights"]
        stored = {role: self.vector(paths[role], name) for role, name in weights.items() if name is not None}
        layer = self.layer(operation, code, stored)
        image = rank > 3 or operation.inputs[0] in self.images
        self.let(operation, f"{layer}({self.take(operation.inputs[0], order)})", order, image=image)

    def norm_of_last_axes(self, operation: Operation, code: str, paths: Mapping[str, str]) -> None:
        """Write a norm over its last axes, whose parameters have the same axes."""
        order = self.with_last(operation, operation.options["axes"])
        weights = operation.options["weights"]
        stored = {
            role: store(paths[role], self.graph.parameters[name]) for role, name in weights.items() if name is not None
        }
        layer = self.layer(operation, code, stored)
        x = self.take(operation.inputs[0], order)
        self.let(operation, f"{layer}({x})", order, image=operation.inputs[0] in self.images)

    def write_dropout(self, operation: Operation) -> None:
        layer = self.layer(operation, f"{self.dropout}({operation.options['rate']})", {}, key=operation.name)
        self.entrywise(operation, f"{layer}({{x}})")

    # Inputs, parameters and constants.

    def write_input(self, operation: Operation) -> None:
        rank = len(operation.shape)
        axis = next(
            (user.options["axis"] for user in self.users.get(operation.name, []) if user.kind in _OF_IMAGES), None
        )
        order = plain(rank)
        channels = axis if axis is not None else (-1 if self.channels_last is False else 1)
        if rank > 3 or (rank == 3 and axis is not None):
            order = self.channels(rank, channels)
        name = self.variable(operation.name)
        self.input_names.append((name, operation.options.get("key")))
        self.input_orders.append(order)
        self.alias(operation, name, order, image=rank > 3 or axis is not None)

    def write_output(self, operation: Operation) -> None:
        codes = []
        for name in operation.inputs:
            assert isinstance(name, str)
            rank = self.rank(name)
            order = self.orders[name] if name in self.images else plain(rank)
            if rank > 3:
                order = self.channels(rank, -1 if self.channels_last is False else 1)
            self.output_orders.append(order)
            codes.append(self.take(name, order))
        keys = operation.options["keys"]
        if keys is not None:
            other = next((key for key in keys if type(key) not in (str, int)), None)
            if other is not None:
                raise PortError(f"the model returns a mapping with {other!r}, which is neither a string nor an integer")
            named = [f"{key!r}: {code}" for key, code in zip(keys, codes, strict=True)]
            self.result = f"{{{', '.join(named)}}}"
        else:
            self.result = ", ".join(codes)

    def write_parameter(self, operation: Operation) -> None:
        name = operation.options["name"]
        shape = self.graph.parameters[name]
        if name not in self.stored:
            self.free.add(name)
            path = self.attribute(name)
            self.layers[path] = self.free_parameter(path, shape, trainable=name in self.graph.trainable)
            self.stored[name] = [Stored(self.free_path(path), shape, shape, plain(len(shape)), shape)]
        place = self.stored[name][0]
        code = self.parameter_code(place.path)
        if place.turned != place.shape:
            code = self.reshape(code, place.turned)
        if place.back != plain(len(place.back)):
            code = self.transpose(code, place.back)
        if place.original != place.split:
            code = self.reshape(code, place.original)
        self.alias(operation, code, plain(len(shape)))

    def free_parameter(self, path: str, shape: tuple[int, ...], *, trainable: bool) -> str:
        """Return the code that makes a parameter that belongs to no layer."""
        raise NotImplementedError

    def free_path(self, path: str) -> str:
        """Return the path of such a parameter."""
        return path

    def parameter_code(self, path: str) -> str:
        """Return the code of a parameter inside of the forward."""
        return f"self.{path}"

    def write_constant(self, operation: Operation) -> None:
        value: Array = operation.options["value"]
        if value.ndim == 0:
            self.alias(operation, self.number(value.item()), ())
            return
        code = code_of_array(value)
        if code is None:
            raise PortError(f"{operation.name!r} is a table of {value.shape} numbers that the forward makes")
        if code.startswith("table("):
            self.helpers["table"] = TABLE
        # Positions and masks are made anew in each block: one of them is kept.
        path = self.attribute(operation.name, ("constant", code))
        self.layers[path] = self.constant_layer(path, code)
        self.alias(operation, f"self.{path}", plain(value.ndim))

    def constant_layer(self, path: str, code: str) -> str:
        """Return the code that makes a constant."""
        return code

    # Functions that frameworks call alike.

    def write_where(self, operation: Operation) -> None:
        self.combined(operation, f"{self.module}.where({{}}, {{}}, {{}})")

    def write_range(self, operation: Operation) -> None:
        self.let(operation, f"{self.module}.arange({self.length(operation.shape[0])})", (0,))

    def write_softmax(self, operation: Operation) -> None:
        function = "log_softmax" if operation.options["log"] else "softmax"
        self.along(operation, operation.options["axis"], f"{self.module}.{function}({{x}}, {self.axis_word}={{axis}})")

    def write_cumsum(self, operation: Operation) -> None:
        self.along(operation, operation.options["axis"], f"{self.module}.cumsum({{x}}, {self.axis_word}={{axis}})")

    def write_matmul(self, operation: Operation) -> None:
        self.plainly(operation, f"{self.module}.matmul({{}}, {{}})")

    def write_einsum(self, operation: Operation) -> None:
        codes = [self.take(name) for name in operation.inputs]
        code = f"{self.module}.einsum({operation.options['equation']!r}, {', '.join(codes)})"
        self.let(operation, code, plain(len(operation.shape)))

    # Functions that move numbers.

    def write_permute(self, operation: Operation) -> None:
        name = operation.inputs[0]
        assert isinstance(name, str)
        self.alias(operation, self.code_of[name], permuted(self.orders[name], operation.options["order"]))

    def write_reshape(self, operation: Operation) -> None:
        name = operation.inputs[0]
        assert isinstance(name, str)
        order = reshaped(self.orders[name], self.shapes[name], operation.shape)
        if order is None:
            order, here = plain(len(operation.shape)), self.take(name)
        else:
            here = self.code_of[name]
        self.let(operation, self.reshape(here, tuple(operation.shape[axis] for axis in order)), order)

    def write_slice(self, operation: Operation) -> None:
        name = operation.inputs[0]
        assert isinstance(name, str)
        index = operation.options["index"]
        kept = self.orders[name]
        parts = [self.part(index[axis]) for axis in kept]
        while parts and parts[-1] == ":":
            parts.pop()
        chosen = [axis for axis, part in enumerate(index) if isinstance(part, int)]
        self.let(
            operation,
            f"{self.code_of[name]}[{', '.join(parts)}]" if parts else self.code_of[name],
            without(kept, chosen),
            image=name in self.images and not chosen,
        )

    def part(self, index: Any) -> str:
        """Return the code of one index."""
        if isinstance(index, int):
            return str(index)
        start, stop, step = index
        end = "" if stop is None else self.length(stop)
        begin = "" if start == 0 else self.length(start)
        return f"{begin}:{end}" + ("" if step == 1 else f":{step}")

    def write_concatenate(self, operation: Operation) -> None:
        codes, order = self.aligned(operation.inputs)
        axis = order.index(operation.options["axis"] % len(order))
        image = any(name in self.images for name in operation.inputs)
        self.let(operation, self.joined(codes, axis), order, image=image)

    def joined(self, codes: list[str], axis: int) -> str:
        """Return the code of a concatenation."""
        raise NotImplementedError

    # Entry by entry, and along axes.

    def entrywise(self, operation: Operation, template: str) -> None:
        """Write a function of one value entry by entry."""
        name = operation.inputs[0]
        assert isinstance(name, str)
        self.let(operation, template.format(x=self.code_of[name]), self.orders[name], image=name in self.images)

    def combined(self, operation: Operation, template: str) -> None:
        """Write a function of several values entry by entry."""
        codes, order = self.aligned(operation.inputs)
        image = any(name in self.images for name in operation.inputs)
        self.let(operation, template.format(*codes), order, image=image)

    def along(self, operation: Operation, axis: int, template: str) -> None:
        """Write a function along one axis that keeps the shape."""
        name = operation.inputs[0]
        assert isinstance(name, str)
        order = self.orders[name]
        place = order.index(axis % len(order))
        place = -1 if place == len(order) - 1 else place
        code = template.format(x=self.code_of[name], axis=place)
        self.let(operation, code, order, image=name in self.images)

    def reduced(self, operation: Operation, template: str) -> None:
        """Write a reduction over axes; the template takes x, axes and keepdims."""
        name = operation.inputs[0]
        assert isinstance(name, str)
        kept, keepdims = self.orders[name], operation.options["keepdims"]
        axes = [axis % len(kept) for axis in operation.options["axes"]]
        places = tuple(sorted(kept.index(axis) for axis in axes))
        code = template.format(x=self.code_of[name], axes=places, keepdims=keepdims)
        order = kept if keepdims else without(kept, axes)
        self.let(operation, code, order, image=keepdims and name in self.images)

    def plainly(self, operation: Operation, template: str, **more: Any) -> None:
        """Write a function whose inputs and output have their axes as they are."""
        codes = [self.take(name) for name in operation.inputs]
        self.let(operation, template.format(*codes, **more), plain(len(operation.shape)))


_OF_IMAGES = frozenset({"conv", "conv_transpose", "convolve", "max_pool", "average_pool", "resize", "batch_norm"})
