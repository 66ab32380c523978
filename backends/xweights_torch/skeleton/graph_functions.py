"""Neutral operations without weights as the code of torch's functions."""

from __future__ import annotations

from xweights.errors import PortError
from xweights.porting.skeletons.graph import Operation, Shape
from xweights.porting.skeletons.orders import Order, plain
from xweights.porting.skeletons.writing import GraphWriter
from xweights_torch.activations import code_of as activation_code

_INFIX = {
    "add": "+", "subtract": "-", "multiply": "*", "divide": "/", "equal": "==", "not_equal": "!=", "less": "<",
    "less_equal": "<=", "greater": ">", "greater_equal": ">=", "power": "**", "mod": "%", "floor_divide": "//",
}  # fmt: skip
_REDUCTIONS = {"max": "amax", "min": "amin"}
_RESIZE = '''def resizing(size, new, mode, align):
    """Return the matrix that changes an axis to another size by interpolation."""
    rows = torch.eye(size)[:, None, :, None].expand(-1, 1, -1, 2)
    names = {"linear": "bilinear", "cubic": "bicubic"}
    made = functional.interpolate(rows, size=(new, 2), mode=names[mode], align_corners=align)
    return made[:, 0, :, 0].T.contiguous()'''


class TorchFunctions(GraphWriter):
    """Writer of torch's functions."""

    module, axis_word, dropout = "torch", "dim", "nn.Dropout"

    def reshape(self, code: str, shape: Shape) -> str:
        """Return the code of a reshape."""
        return f"{code}.reshape{self.dims(shape, free=True)}" if shape else f"{code}.reshape(())"

    def transpose(self, code: str, axes: Order) -> str:
        """Return the code of a permutation of axes."""
        return f"{code}.permute{axes}"

    def joined(self, codes: list[str], axis: int) -> str:
        """Return the code of a concatenation."""
        return f"torch.cat([{', '.join(codes)}], {axis})"

    def write_activation(self, operation: Operation) -> None:
        does, options = operation.options["does"], operation.options
        codes = {"log_sigmoid": "functional.logsigmoid({x})", "linear": "{x}"}
        self.entrywise(operation, codes.get(does) or activation_code(does, "{x}", -1, options))

    def write_unary(self, operation: Operation) -> None:
        self.entrywise(operation, f"torch.{operation.options['function']}({{x}})")

    def write_binary(self, operation: Operation) -> None:
        function = operation.options["function"]
        a = operation.inputs[0]
        if function in _INFIX:
            self.combined(operation, f"{{}} {_INFIX[function]} {{}}")
        elif any(not isinstance(name, str) for name in operation.inputs):
            number = next(name for name in operation.inputs if not isinstance(name, str))
            if function in ("maximum", "minimum"):
                bound = "min" if function == "maximum" else "max"
                array = next(name for name in operation.inputs if isinstance(name, str))
                code = f"torch.clamp({self.code_of[array]}, {bound}={self.number(number)})"
                self.let(operation, code, self.orders[array], image=array in self.images)
            else:
                raise PortError(f"{operation.name!r} is {function} of {a!r} and a number")
        else:
            self.combined(operation, f"torch.{function}({{}}, {{}})")

    def write_clip(self, operation: Operation) -> None:
        low, high = operation.options["low"], operation.options["high"]
        bounds = [f"{name}={self.number(value)}" for name, value in (("min", low), ("max", high)) if value is not None]
        self.entrywise(operation, f"torch.clamp({{x}}, {', '.join(bounds)})")

    def write_cast(self, operation: Operation) -> None:
        self.entrywise(operation, f"{{x}}.to(torch.{operation.dtype})")

    def write_full(self, operation: Operation) -> None:
        value = self.number(operation.options["value"])
        code = f"torch.full({self.dims(operation.shape)}, {value}, dtype=torch.{operation.dtype})"
        self.let(operation, code, plain(len(operation.shape)))

    def write_reduce(self, operation: Operation) -> None:
        function = operation.options["function"]
        axes = "{axes}"
        if function in ("argmax", "any", "all", "prod"):
            if len(operation.options["axes"]) != 1:
                raise PortError(f"{operation.name!r} is {function} over several axes")
            axes = "{axes[0]}"
        keeps = ", keepdim=True" if operation.options["keepdims"] else ""
        name = str(operation.inputs[0])
        # torch has no mean of integers
        x = "{x}.float()" if function == "mean" and not self.dtypes[name].startswith(("float", "bf")) else "{x}"
        self.reduced(operation, f"torch.{_REDUCTIONS.get(function, function)}({x}, {axes}{keeps})")

    def write_attention(self, operation: Operation) -> None:
        query, key, value, *mask = (self.take(name) for name in operation.inputs)
        code = f"functional.scaled_dot_product_attention({query}, {key}, {value}"
        code += f", attn_mask={mask[0]}" if mask else ""
        code += ", is_causal=True" if operation.options["causal"] else ""
        self.let(operation, f"{code}, scale={operation.options['scale']!r})", plain(len(operation.shape)))

    # Functions that move numbers.

    def write_broadcast(self, operation: Operation) -> None:
        name = str(operation.inputs[0])
        rank = len(operation.shape)
        same = self.rank(name) == rank
        order, here = (self.orders[name], self.code_of[name]) if same else (plain(rank), self.take(name))
        dims = self.dims(tuple(operation.shape[axis] for axis in order))
        self.let(operation, f"{here}.expand{dims}", order, image=name in self.images)

    def write_pad(self, operation: Operation) -> None:
        name = str(operation.inputs[0])
        order, options = self.orders[name], operation.options
        mode = {"edge": "replicate"}.get(options["mode"], options["mode"])
        if mode != "constant":  # torch pads at most three axes at the end with other numbers
            channel = next((axis for axis, side in enumerate(options["padding"]) if axis and side == (0, 0)), None)
            if channel is None:
                raise PortError(f"{operation.name!r} is a padding of channels by {mode}")
            order = self.channels(len(order), channel)
        sides = [options["padding"][axis] for axis in order]
        while sides and sides[0] == (0, 0):
            sides = sides[1:]
        flat = tuple(side for pair in reversed(sides) for side in pair)
        more = (
            f', mode="{mode}"'
            if mode != "constant"
            else (f", value={self.number(options['value'])}" if options["value"] else "")
        )
        self.let(operation, f"functional.pad({self.take(name, order)}, {flat}{more})", order, image=name in self.images)

    def write_flip(self, operation: Operation) -> None:
        name = str(operation.inputs[0])
        places = tuple(sorted(self.orders[name].index(axis) for axis in operation.options["axes"]))
        self.entrywise(operation, f"torch.flip({{x}}, {places})")

    def write_repeat(self, operation: Operation) -> None:
        template = f"torch.repeat_interleave({{x}}, {operation.options['times']}, dim={{axis}})"
        self.along(operation, operation.options["axis"], template)

    def write_take(self, operation: Operation) -> None:
        x, index = (str(name) for name in operation.inputs)
        order = self.orders[x] if self.rank(index) == 1 else plain(self.rank(x))
        place = order.index(operation.options["axis"])
        parts = [":"] * place + [f"{self.take(index)}.long()"]
        code = f"{self.take(x, order)}[{', '.join(parts)}]"
        one = self.rank(index) == 1
        self.let(operation, code, order if one else plain(len(operation.shape)), image=one and x in self.images)

    def write_take_along(self, operation: Operation) -> None:
        codes, order = self.aligned(operation.inputs)
        place = order.index(operation.options["axis"])
        self.let(operation, f"torch.take_along_dim({codes[0]}, {codes[1]}.long(), {place})", order)

    # Functions of images.

    def write_convolve(self, operation: Operation) -> None:
        options = operation.options
        rank = len(options["strides"])
        order = self.channels(rank + 2, options["axis"])
        letters = options["axes"]
        wanted = "oi" + "dhw"[-rank:]
        kernel = self.take(operation.inputs[1], tuple(letters.index(letter) for letter in wanted))
        x = self.take(operation.inputs[0], order)
        x, padding = self.padded(x, options["padding"])
        code = (
            f"functional.conv{rank}d({x}, {kernel}, stride={options['strides']}, padding={padding}, "
            f"dilation={options['dilation']}, groups={options['groups']})"
        )
        self.let(operation, code, order, image=True)

    def padded(self, x: str, sides: tuple[tuple[int, int], ...], value: str = "") -> tuple[str, tuple[int, ...]]:
        """Return the code of a value and the padding that its layer can do: the same on both sides."""
        if all(front == behind for front, behind in sides) and not value:
            return x, tuple(front for front, _ in sides)
        if any(front or behind for front, behind in sides):
            x = f"functional.pad({x}, {tuple(side for pair in reversed(sides) for side in pair)}{value})"
        return x, (0,) * len(sides)

    def write_max_pool(self, operation: Operation) -> None:
        options = operation.options
        rank = len(options["size"])
        order = self.channels(rank + 2, options["axis"])
        x = self.take(operation.inputs[0], order)
        # torch pads at most half a window
        half = all(
            front == behind <= size // 2
            for (front, behind), size in zip(options["padding"], options["size"], strict=True)
        )
        x, padding = self.padded(x, options["padding"], "" if half else ', value=float("-inf")')
        code = f"functional.max_pool{rank}d({x}, {options['size']}, {options['strides']}, padding={padding})"
        self.let(operation, code, order, image=True)

    def write_average_pool(self, operation: Operation) -> None:
        options = operation.options
        rank = len(options["size"])
        order = self.channels(rank + 2, options["axis"])
        x = self.take(operation.inputs[0], order)
        code = f"functional.avg_pool{rank}d({x}, {options['size']}, {options['strides']})"
        self.let(operation, code, order, image=True)

    def write_resize(self, operation: Operation) -> None:
        name, options = str(operation.inputs[0]), operation.options
        order = self.channels(self.rank(name), options["axis"])
        self.helpers["resizing"] = _RESIZE
        code = self.take(name, order)
        old = [self.shapes[name][axis] for axis in order[2:]]
        letters = "bc" + "xyz"[: len(order) - 2]
        for place, (before, after) in enumerate(zip(old, options["size"], strict=True), start=2):
            if before != after:
                path = self.attribute(f"resizing_{before}_{after}_{options['mode']}_{options['align']}")
                made = f"resizing({before}, {after}, {options['mode']!r}, {options['align']})"
                self.layers[path] = self.buffer(path, made)
                changed = letters.replace(letters[place], "n")
                code = f'torch.einsum("{letters},n{letters[place]}->{changed}", {code}, self.{path})'
        self.let(operation, code, order, image=True)

    def buffer(self, path: str, code: str) -> str:
        """Return the code that makes a constant that moves with the module."""
        raise NotImplementedError
