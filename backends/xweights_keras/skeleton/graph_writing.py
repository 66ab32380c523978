"""A graph of neutral operations written as the source code of a Keras model."""

from __future__ import annotations

from typing import Any

import keras

from xweights.errors import PortError, Problems
from xweights.porting.skeletons.blocks import Block
from xweights.porting.skeletons.graph import Graph, Operation
from xweights.porting.skeletons.orders import plain
from xweights.porting.skeletons.weights import Stored, store
from xweights_keras.skeleton.graph_functions import KerasFunctions

_SPACE = "dhw"
_SCALE = '''class Scale(layers.Layer):
    """Multiply by a learned scale."""

    def __init__(self, shape, **options):
        super().__init__(**options)
        self.scale = self.add_weight(name="scale", shape=shape, initializer="ones")

    def call(self, x):
        return x * self.scale'''


class KerasGraphWriter(KerasFunctions):
    """Writer of one graph as Keras code: its layers."""

    channels_last = True

    def __init__(self, graph: Graph, problems: Problems) -> None:
        super().__init__(graph, problems)
        self.scales: dict[Any, Operation] = {}
        self.taken.add("Scale")

    @staticmethod
    def reserved(name: str) -> bool:
        """Return whether a Keras model needs an attribute of this name for itself."""
        return hasattr(keras.Model, name) or name in ("inputs", "outputs", "built", "layers")

    def write_dense(self, operation: Operation) -> None:
        options = operation.options
        kernel, bias = options["weights"]["kernel"], options["weights"]["bias"]
        name = operation.inputs[0]
        rank = self.rank(name)
        kept = self.orders[str(name)]
        order = kept if kept[-1] == rank - 1 else plain(rank)
        x = self.take(name, order)
        if self.is_taken(operation, "kernel"):
            view = self.weight(kernel)
            code = f"ops.matmul({x}, {self.take(view, (1, 0) if options['axes'] == 'oi' else (0, 1))})"
            self.let(operation, code if bias is None else f"{code} + {self.take(self.weight(bias))}", order)
            return
        stored = {"kernel": self.kernel("kernel", operation, "io")}
        stored |= {} if bias is None else {"bias": self.vector("bias", bias)}
        layer = self.layer(operation, f"layers.Dense({options['units']}, use_bias={bias is not None})", stored)
        self.let(operation, f"{layer}({x})", order)

    def write_embedding(self, operation: Operation) -> None:
        name = operation.options["weights"]["table"]
        index = operation.inputs[0]
        order = (*self.orders[str(index)], self.rank(index))
        x = self.take(index, order[:-1])
        if self.is_taken(operation, "table"):
            self.let(operation, f"ops.take({self.take(self.weight(name))}, {x}, axis=0)", order)
            return
        vocab, width = self.graph.parameters[name]
        stored = {"table": store("embeddings", (vocab, width))}
        layer = self.layer(operation, f"layers.Embedding({vocab}, {width})", stored)
        self.let(operation, f"{layer}({x})", order)

    def write_conv(self, operation: Operation) -> None:
        options = operation.options
        rank = len(options["size"])
        order = self.channels(rank + 2, options["axis"])
        x = self.take(operation.inputs[0], order)
        bias = options["weights"]["bias"]
        space = _SPACE[-rank:]
        # Keras has no strides with dilation: every entry is computed, and some are taken.
        strided = any(s != 1 for s in options["strides"]) and any(d != 1 for d in options["dilation"])
        strides = (1,) * rank if strided else options["strides"]
        padding = self._padding({**options, "strides": strides})
        common = f"{options['size']}, strides={strides}, padding={padding or 'valid'!r}"
        if any(d != 1 for d in options["dilation"]):
            common += f", dilation_rate={options['dilation']}"
        channels = self.shapes[str(operation.inputs[0])][options["axis"]]
        assert isinstance(channels, int)
        if options["groups"] == channels > 1 and rank < 3:
            code = f"layers.DepthwiseConv{rank}D({common}, use_bias={bias is not None}"
            times = options["filters"] // channels
            code += f", depth_multiplier={times})" if times > 1 else ")"
            name = options["weights"]["kernel"]
            shape = self.graph.parameters[name]
            split = (channels, times, *options["size"])
            turned = (*range(2, rank + 2), 0, 1)
            kernel = Stored("kernel", shape, split, turned, tuple(split[axis] for axis in turned))
        else:
            groups = f", groups={options['groups']}" if options["groups"] > 1 else ""
            code = f"layers.Conv{rank}D({options['filters']}, {common}{groups}, use_bias={bias is not None})"
            kernel = self.kernel("kernel", operation, f"{space}io")
        stored = {"kernel": kernel} | ({} if bias is None else {"bias": self.vector("bias", bias)})
        layer = self.layer(operation, code, stored)
        if padding is None:
            sides = options["padding"]
            around = self.attribute(f"{operation.layer or operation.name}_pad", (operation.layer, sides))
            self.layers[around] = f"layers.ZeroPadding{rank}D({sides[0] if rank == 1 else sides})"
            x = f"self.{around}({x})"
        taken = f"[:, {', '.join(f'::{s}' for s in options['strides'])}]" if strided else ""
        self.let(operation, f"{layer}({x}){taken}", order, image=True)

    def _padding(self, options: Any) -> str | None:
        sides = options["padding"]
        if not any(front or behind for front, behind in sides):
            return "valid"
        whole = [(n - 1) * d for n, d in zip(options["size"], options["dilation"], strict=True)]
        same = tuple((n // 2, n - n // 2) for n in whole)
        return "same" if tuple(sides) == same and all(s == 1 for s in options["strides"]) else None

    def write_conv_transpose(self, operation: Operation) -> None:
        options = operation.options
        rank = len(options["size"])
        order = self.channels(rank + 2, options["axis"])
        bias = options["weights"]["bias"]
        dilated = f", dilation_rate={options['dilation']}" if any(d != 1 for d in options["dilation"]) else ""
        code = (
            f"layers.Conv{rank}DTranspose({options['filters']}, {options['size']}, strides={options['strides']}"
            f"{dilated}, use_bias={bias is not None})"
        )
        stored = {"kernel": self.kernel("kernel", operation, f"{_SPACE[-rank:]}oi")}
        stored |= {} if bias is None else {"bias": self.vector("bias", bias)}
        layer = self.layer(operation, code, stored)
        crop = []
        for size, spread, stride, (front, behind) in zip(
            options["size"], options["dilation"], options["strides"], options["crop"], strict=True
        ):
            # Keras makes at least a stride for each entry, torch only as far as the kernel reaches.
            crop.append((front, behind + max(stride - ((size - 1) * spread + 1), 0)))
        if any(behind < 0 for _, behind in crop):
            raise PortError(f"{operation.layer!r} is a transposed convolution with output_padding beyond its kernel")
        made = f"{layer}({self.take(operation.inputs[0], order)})"
        if any(front or behind for front, behind in crop):
            around = self.attribute(f"{operation.layer or operation.name}_crop", (operation.layer, "crop"))
            self.layers[around] = f"layers.Cropping{rank}D({crop[0] if rank == 1 else tuple(crop)})"
            made = f"self.{around}({made})"
        self.let(operation, made, order, image=True)

    def write_batch_norm(self, operation: Operation) -> None:
        options, weights = operation.options, operation.options["weights"]
        momentum = options["momentum"]
        code = (
            f"layers.BatchNormalization(momentum={round(1 - momentum, 9)}, epsilon={options['eps']}"
            f"{self._scale_and_offset(weights)})"
        )
        names = {"scale": "gamma", "offset": "beta", "mean": "moving_mean", "variance": "moving_variance"}
        self.norm_of_channels(operation, code, names)

    def write_group_norm(self, operation: Operation) -> None:
        options = operation.options
        more = self._scale_and_offset(options["weights"])
        code = f"layers.GroupNormalization({options['groups']}, epsilon={options['eps']}{more})"
        self.norm_of_channels(operation, code, {"scale": "gamma", "offset": "beta"})

    def _scale_and_offset(self, weights: Any) -> str:
        scale = "" if weights["scale"] is not None else ", scale=False"
        return scale + ("" if weights["offset"] is not None else ", center=False")

    def write_layer_norm(self, operation: Operation) -> None:
        options, weights = operation.options, operation.options["weights"]
        axes = list(range(-len(options["axes"]), 0))
        where = f"axis={axes}, " if len(axes) > 1 else ""
        code = f"layers.LayerNormalization({where}epsilon={options['eps']}{self._scale_and_offset(weights)})"
        self.norm_of_last_axes(operation, code, {"scale": "gamma", "offset": "beta"})

    def write_rms_norm(self, operation: Operation) -> None:
        name = operation.options["weights"]["scale"]
        order = self.with_last(operation, (len(operation.shape) - 1,))
        stored = {"scale": store("scale", self.graph.parameters[name])}
        layer = self.layer(operation, f"layers.RMSNormalization(epsilon={operation.options['eps']})", stored)
        self.let(operation, f"{layer}({self.take(operation.inputs[0], order)})", order)

    # Parameters that belong to no layer.

    def write_parameter(self, operation: Operation) -> None:
        """Write a parameter; a scale that is used once is a layer, which ``port`` can watch."""
        users = self.users.get(operation.name, [])
        name = operation.options["name"]
        if len(users) == 1 and name in self.graph.trainable and name not in self.stored:
            other = [one for one in users[0].inputs if one != operation.name]
            scales = users[0].kind == "binary" and users[0].options["function"] == "multiply"
            if scales and len(other) == 1 and self.rank(other[0]) == len(users[0].shape) > 1:
                self.scales[operation.name] = operation
                self.alias(operation, "", plain(len(operation.shape)))
                return
        super().write_parameter(operation)

    def write_binary(self, operation: Operation) -> None:
        """Write a function of two values."""
        scale = next((self.scales[name] for name in operation.inputs if name in self.scales), None)
        if scale is None:
            super().write_binary(operation)
            return
        name = next(name for name in operation.inputs if name != scale.name)
        order = self.orders[str(name)]
        shape = self.graph.parameters[scale.options["name"]]
        split = (*(1,) * (len(order) - len(shape)), *shape)
        kept = tuple(split[axis] for axis in order)
        while kept[:1] == (1,) and len(kept) > 1:
            kept = kept[1:]
        path = self.attribute(scale.options["name"])
        self.helpers["scale"] = _SCALE
        self.layers[path] = f"Scale({kept})"
        self.stored[scale.options["name"]] = [Stored(f"{path}.scale", shape, split, order, kept)]
        self.let(operation, f"self.{path}({self.take(name, order)})", order, image=name in self.images)

    # The whole.

    def free_parameter(self, path: str, shape: tuple[int, ...], *, trainable: bool) -> str:
        """Return the code that makes a parameter that belongs to no layer."""
        more = "" if trainable else ", trainable=False"
        return f'self.add_weight(name="{path}", shape={shape}, initializer="zeros"{more})'

    def block_class(self, block: Block) -> str:
        """Return the class of a block."""
        return (
            f"class {block.name}(layers.Layer):\n    def __init__(self, **options):\n"
            "        super().__init__(**options)\n"
            + "".join(f"        self.{name} = {code}\n" for name, code in block.made.items())
            + f"\n    def call(self, {', '.join(block.arguments)}):\n"
            + "".join(f"        {line}\n" for line in block.lines)
            + f"        return {', '.join(block.results)}"
        )

    def block_list(self, block: Block) -> str:
        """Return the code that makes all blocks of a class."""
        return f"[{block.name}() for _ in range({block.count})]"

    def source(self) -> str:
        """Return the source code of the model."""
        imports = ["import keras", "from keras import layers, ops"]
        names = [name for name, _ in self.input_names]
        if self.input_names and isinstance(self.input_names[0][1], str):
            lines = [f"{name} = inputs[{key!r}]" for name, key in self.input_names]
        else:
            lines = [f"{', '.join(names)} = inputs"]
        if self.needs_batch():
            lines.append(f"batch = ops.shape({names[0]})[0]")
        self.find_blocks()
        lines += [*self.lines, f"return {self.result}"]
        made = [f"self.{name} = {code}" for name, code in self.layers.items()] or ["pass"]
        body = (
            # Keras passes options of its own when it loads a model.
            "class Twin(keras.Model):\n    def __init__(self, **options):\n        super().__init__(**options)\n"
            + "".join(f"        {line}\n" for line in made)
            + "\n    def call(self, inputs):\n"
            + "".join(f"        {line}\n" for line in lines)
        )
        return self.whole(imports, made, body)
