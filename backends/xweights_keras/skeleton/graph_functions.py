"""Neutral operations without weights as the code of Keras' functions."""

from __future__ import annotations

from xweights.errors import PortError
from xweights.porting.skeletons.graph import Operation, Shape
from xweights.porting.skeletons.orders import Order, plain
from xweights.porting.skeletons.writing import GraphWriter

_UNARY = {"rsqrt": "ops.rsqrt", "negative": "ops.negative"}
_INFIX = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
_ACTIVATIONS = {
    "relu": "ops.relu({x})", "relu6": "ops.relu6({x})", "silu": "ops.silu({x})", "sigmoid": "ops.sigmoid({x})",
    "tanh": "ops.tanh({x})", "hard_silu": "ops.hard_silu({x})", "hard_sigmoid": "ops.hard_sigmoid({x})",
    "selu": "ops.selu({x})", "mish": "keras.activations.mish({x})", "log_sigmoid": "ops.log_sigmoid({x})",
    "gelu": "ops.gelu({x}, approximate=False)", "gelu_tanh": "ops.gelu({x}, approximate=True)",
    "leaky_relu": "ops.leaky_relu({x}, negative_slope={slope})", "elu": "ops.elu({x}, alpha={alpha})",
    "softplus": "ops.softplus({x})", "softsign": "ops.softsign({x})", "linear": "{x}",
}  # fmt: skip
_ATTENTION = '''def attention(query, key, value, mask=None, *, scale, causal=False):
    """Return the values, averaged by how well their keys fit the query."""
    scores = ops.matmul(query, ops.swapaxes(key, -1, -2)) * scale
    if causal:
        rows, columns = scores.shape[-2:]
        scores = ops.where(np.tril(np.ones((rows, columns), bool)), scores, -np.inf)
    if mask is not None:
        scores = ops.where(mask, scores, -np.inf) if ops.dtype(mask) == "bool" else scores + mask
    return ops.matmul(ops.softmax(scores), value)'''
_RESIZE = '''def resizing(size, new, mode, align):
    """Return the matrix that changes an axis to another size by interpolation."""
    places = np.arange(new)
    places = places * (size - 1) / max(new - 1, 1) if align else (places + 0.5) * size / new - 0.5
    places = np.maximum(places, 0) if mode == "linear" else places
    start = np.floor(places).astype(int)
    matrix = np.zeros((new, size))
    for offset in range(2) if mode == "linear" else range(-1, 3):
        far = np.abs(places - start - offset)
        near = (1.25 * far - 2.25) * far * far + 1
        beyond = ((-0.75 * far + 3.75) * far - 6) * far + 3
        weight = 1 - far if mode == "linear" else np.where(far <= 1, near, beyond)
        np.add.at(matrix, (np.arange(new), np.clip(start + offset, 0, size - 1)), weight)
    return matrix.astype("float32")'''


class KerasFunctions(GraphWriter):
    """Writer of functions of keras.ops."""

    module, axis_word, dropout = "ops", "axis", "layers.Dropout"

    def reshape(self, code: str, shape: Shape) -> str:
        """Return the code of a reshape."""
        return f"ops.reshape({code}, {self.dims(shape, free=True)})"

    def transpose(self, code: str, axes: Order) -> str:
        """Return the code of a permutation of axes."""
        return f"ops.transpose({code}, {axes})"

    def joined(self, codes: list[str], axis: int) -> str:
        """Return the code of a concatenation."""
        return f"ops.concatenate([{', '.join(codes)}], axis={axis})"

    def write_activation(self, operation: Operation) -> None:
        does, options = operation.options["does"], operation.options
        if does not in _ACTIVATIONS:
            raise PortError(f"{operation.name!r} has the activation {does}")
        code = (
            _ACTIVATIONS[does]
            .replace("{slope}", repr(options.get("slope")))
            .replace("{alpha}", repr(options.get("alpha", 1.0)))
        )
        self.entrywise(operation, code)

    def write_unary(self, operation: Operation) -> None:
        self.entrywise(operation, f"ops.{operation.options['function']}({{x}})")

    def write_binary(self, operation: Operation) -> None:
        function = operation.options["function"]
        floats = all(
            not isinstance(name, str) or self.dtypes[name].startswith(("float", "bfloat")) for name in operation.inputs
        )
        arrays = [name for name in operation.inputs if isinstance(name, str)]
        # NumPy's arrays would convert the tensor that is added to them
        numpy = any(self.code_of[name].startswith("self.constant") for name in arrays)
        if function in _INFIX and floats and not numpy and not operation.dtype.startswith("int"):
            self.combined(operation, f"{{}} {_INFIX[function]} {{}}")
        else:
            self.combined(operation, f"ops.{function}({{}}, {{}})")

    def write_clip(self, operation: Operation) -> None:
        low, high = operation.options["low"], operation.options["high"]
        if low is None or high is None:
            function = "minimum" if low is None else "maximum"
            self.entrywise(operation, f"ops.{function}({{x}}, {self.number(high if low is None else low)})")
        else:
            self.entrywise(operation, f"ops.clip({{x}}, {self.number(low)}, {self.number(high)})")

    def write_cast(self, operation: Operation) -> None:
        self.entrywise(operation, f'ops.cast({{x}}, "{operation.dtype}")')

    def write_full(self, operation: Operation) -> None:
        value = self.number(operation.options["value"])
        self.let(
            operation,
            f'ops.full({self.dims(operation.shape)}, {value}, dtype="{operation.dtype}")',
            plain(len(operation.shape)),
        )

    def write_reduce(self, operation: Operation) -> None:
        function = operation.options["function"]
        axes = "{axes[0]}" if function == "argmax" or len(operation.options["axes"]) == 1 else "{axes}"
        keeps = ", keepdims=True" if operation.options["keepdims"] else ""
        self.reduced(operation, f"ops.{function}({{x}}, axis={axes}{keeps})")

    def write_attention(self, operation: Operation) -> None:
        self.helpers["attention"] = _ATTENTION
        codes = ", ".join(self.take(name) for name in operation.inputs)
        causal = ", causal=True" if operation.options["causal"] else ""
        code = f"attention({codes}, scale={operation.options['scale']!r}{causal})"
        self.let(operation, code, plain(len(operation.shape)))

    # Functions that move numbers.

    def write_broadcast(self, operation: Operation) -> None:
        name = str(operation.inputs[0])
        rank = len(operation.shape)
        if self.rank(name) == rank:
            order, here = self.orders[name], self.code_of[name]
        else:
            order, here = plain(rank), self.take(name)
        dims = self.dims(tuple(operation.shape[axis] for axis in order))
        self.let(operation, f"ops.broadcast_to({here}, {dims})", order, image=name in self.images)

    def write_pad(self, operation: Operation) -> None:
        name = str(operation.inputs[0])
        order, options = self.orders[name], operation.options
        sides = [options["padding"][axis] for axis in order]
        if options["mode"] == "edge":
            code = self.code_of[name]
            for place, (front, behind) in enumerate(sides):
                if front or behind:
                    length = self.shapes[name][order[place]]
                    places = f"np.clip(np.arange({-front}, {length} + {behind}), 0, {length} - 1)"
                    code = f"ops.take({code}, {places}, axis={place})"
        else:
            mode = "" if options["mode"] == "constant" else f', mode="{options["mode"]}"'
            value = f", constant_values={self.number(options['value'])}" if options["value"] else ""
            code = f"ops.pad({self.code_of[name]}, {tuple(sides)}{mode}{value})"
        self.let(operation, code, order, image=name in self.images)

    def write_flip(self, operation: Operation) -> None:
        name = str(operation.inputs[0])
        places = tuple(sorted(self.orders[name].index(axis) for axis in operation.options["axes"]))
        self.entrywise(operation, f"ops.flip({{x}}, axis={places})")

    def write_repeat(self, operation: Operation) -> None:
        template = f"ops.repeat({{x}}, {operation.options['times']}, axis={{axis}})"
        self.along(operation, operation.options["axis"], template)

    def write_take(self, operation: Operation) -> None:
        x, index = (str(name) for name in operation.inputs)
        if self.rank(index) == 1:
            order = self.orders[x]
            place = order.index(operation.options["axis"])
            code = f"ops.take({self.code_of[x]}, {self.take(index)}, axis={place})"
            self.let(operation, code, order, image=x in self.images)
        else:
            self.plainly(operation, f"ops.take({{}}, {{}}, axis={operation.options['axis']})")

    def write_take_along(self, operation: Operation) -> None:
        codes, order = self.aligned(operation.inputs)
        place = order.index(operation.options["axis"])
        self.let(operation, f"ops.take_along_axis({codes[0]}, {codes[1]}, axis={place})", order)

    # Functions of images.

    def write_convolve(self, operation: Operation) -> None:
        options = operation.options
        rank = len(options["strides"])
        order = self.channels(rank + 2, options["axis"])
        letters = options["axes"]
        wanted = "dhw"[-rank:] + "io"
        kernel = self.take(operation.inputs[1], tuple(letters.index(letter) for letter in wanted))
        x = self.take(operation.inputs[0], order)
        if any(front or behind for front, behind in options["padding"]):
            x = f"ops.pad({x}, {((0, 0), *options['padding'], (0, 0))})"
        channels = self.shapes[str(operation.inputs[0])][options["axis"]]
        more = f"strides={options['strides']}, dilation_rate={options['dilation']}"
        if options["groups"] == channels and options["groups"] > 1:
            turned = "dhw"[-rank:] + "oi"
            kernel = self.take(operation.inputs[1], tuple(letters.index(letter) for letter in turned))
            code = f'ops.depthwise_conv({x}, {kernel}, {more}, data_format="channels_last")'
        else:
            code = f'ops.conv({x}, {kernel}, {more}, data_format="channels_last")'
        self.let(operation, code, order, image=True)

    def write_max_pool(self, operation: Operation) -> None:
        self._pool(operation, "max_pool", operation.options["padding"])

    def write_average_pool(self, operation: Operation) -> None:
        self._pool(operation, "average_pool", ())

    def _pool(self, operation: Operation, function: str, padding: tuple[tuple[int, int], ...]) -> None:
        options = operation.options
        order = self.channels(len(options["size"]) + 2, options["axis"])
        x = self.take(operation.inputs[0], order)
        if any(front or behind for front, behind in padding):
            x = f'ops.pad({x}, {((0, 0), *padding, (0, 0))}, constant_values=float("-inf"))'
        code = f'ops.{function}({x}, {options["size"]}, {options["strides"]}, data_format="channels_last")'
        self.let(operation, code, order, image=True)

    def write_resize(self, operation: Operation) -> None:
        name, options = str(operation.inputs[0]), operation.options
        order = self.channels(self.rank(name), options["axis"])
        self.helpers["resizing"] = _RESIZE
        code = self.take(name, order)
        old = [self.shapes[name][axis] for axis in order[1:-1]]
        letters = "bxyzc"[: len(order) - 1] + "c"
        for place, (before, after) in enumerate(zip(old, options["size"], strict=True), start=1):
            if before != after:
                path = self.attribute(f"resizing_{before}_{after}_{options['mode']}_{options['align']}")
                self.layers[path] = f"resizing({before}, {after}, {options['mode']!r}, {options['align']})"
                made = letters.replace(letters[place], "n")
                code = f'ops.einsum("{letters},n{letters[place]}->{made}", {code}, self.{path})'
        self.let(operation, code, order, image=True)
