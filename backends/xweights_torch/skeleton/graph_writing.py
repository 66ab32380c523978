"""A graph of neutral operations written as the source code of a torch module."""

from __future__ import annotations

from typing import Any

from torch import nn

from xweights.errors import PortError
from xweights.porting.skeletons.blocks import Block
from xweights.porting.skeletons.graph import Operation
from xweights.porting.skeletons.orders import plain
from xweights.porting.skeletons.weights import Stored, store
from xweights_torch.skeleton.graph_functions import TorchFunctions

_SPACE = "dhw"
_CALL = "\0"  # marks a line of __init__ that is a call, not an assignment


class TorchGraphWriter(TorchFunctions):
    """Writer of one graph as torch code: its layers."""

    channels_last = False

    @staticmethod
    def reserved(name: str) -> bool:
        """Return whether a module needs an attribute of this name for itself."""
        return hasattr(nn.Module, name) or name in ("training", "forward")

    def write_dense(self, operation: Operation) -> None:
        options = operation.options
        kernel, bias = options["weights"]["kernel"], options["weights"]["bias"]
        name = operation.inputs[0]
        rank = self.rank(name)
        kept = self.orders[str(name)]
        order = kept if kept[-1] == rank - 1 else plain(rank)
        x = self.take(name, order)
        shape = options.get("split", {}).get("kernel", self.graph.parameters[kernel])
        if self.is_taken(operation, "kernel"):
            view = self.take(self.weight(kernel))
            if shape != self.graph.parameters[kernel]:
                view = self.reshape(view, shape)
            code = f"functional.linear({x}, {self.transpose(view, (1, 0)) if options['axes'] == 'io' else view}"
            more = "" if bias is None else f", {self.reshape(self.take(self.weight(bias)), (options['units'],))}"
            self.let(operation, f"{code}{more})", order)
            return
        stored = {"kernel": self.kernel("weight", operation, "oi")}
        stored |= {} if bias is None else {"bias": self.vector("bias", bias)}
        inputs = shape[options["axes"].index("i")]
        layer = self.layer(operation, f"nn.Linear({inputs}, {options['units']}{_bias(bias)})", stored)
        self.let(operation, f"{layer}({x})", order)

    def write_embedding(self, operation: Operation) -> None:
        name = operation.options["weights"]["table"]
        index = operation.inputs[0]
        order = (*self.orders[str(index)], self.rank(index))
        x = self.take(index, order[:-1])
        dtype = self.dtypes[str(index)]
        if dtype not in ("int32", "int64"):
            x = f"{x}.long()"
        if self.is_taken(operation, "table"):
            self.let(operation, f"functional.embedding({x}, {self.take(self.weight(name))})", order)
            return
        vocab, width = self.graph.parameters[name]
        layer = self.layer(operation, f"nn.Embedding({vocab}, {width})", {"table": store("weight", (vocab, width))})
        self.let(operation, f"{layer}({x})", order)

    def write_conv(self, operation: Operation) -> None:
        options = operation.options
        rank = len(options["size"])
        order = self.channels(rank + 2, options["axis"])
        bias = options["weights"]["bias"]
        x, padding = self.padded(self.take(operation.inputs[0], order), options["padding"])
        channels = self.shapes[str(operation.inputs[0])][options["axis"]]
        more = f", stride={options['strides']}" if any(s != 1 for s in options["strides"]) else ""
        more += f", padding={padding}" if any(padding) else ""
        more += f", dilation={options['dilation']}" if any(d != 1 for d in options["dilation"]) else ""
        more += f", groups={options['groups']}" if options["groups"] > 1 else ""
        code = f"nn.Conv{rank}d({channels}, {options['filters']}, {options['size']}{more}{_bias(bias)})"
        if "g" in options["axes"]:
            name = options["weights"]["kernel"]
            shape = self.graph.parameters[name]
            turned = tuple(options["axes"].index(letter) for letter in f"gm{_SPACE[-rank:]}")
            kernel = Stored("weight", shape, shape, turned, (options["filters"], 1, *options["size"]))
        else:
            kernel = self.kernel("weight", operation, f"oi{_SPACE[-rank:]}")
        stored = {"kernel": kernel} | ({} if bias is None else {"bias": self.vector("bias", bias)})
        layer = self.layer(operation, code, stored)
        self.let(operation, f"{layer}({x})", order, image=True)

    def write_conv_transpose(self, operation: Operation) -> None:
        options = operation.options
        rank = len(options["size"])
        order = self.channels(rank + 2, options["axis"])
        bias = options["weights"]["bias"]
        channels = self.shapes[str(operation.inputs[0])][options["axis"]]
        padding = tuple(max(min(front, front if behind < 0 else behind), 0) for front, behind in options["crop"])
        extra, cut = [], []
        for side, (front, behind) in zip(padding, options["crop"], strict=True):
            extra.append(max(side - behind, 0))
            cut.append((front - side, max(behind - side, 0)))
        more = f", stride={options['strides']}" if any(s != 1 for s in options["strides"]) else ""
        more += f", padding={padding}" if any(padding) else ""
        more += f", output_padding={tuple(extra)}" if any(extra) else ""
        more += f", dilation={options['dilation']}" if any(d != 1 for d in options["dilation"]) else ""
        code = f"nn.ConvTranspose{rank}d({channels}, {options['filters']}, {options['size']}{more}{_bias(bias)})"
        stored = {"kernel": self.kernel("weight", operation, f"io{_SPACE[-rank:]}")}
        stored |= {} if bias is None else {"bias": self.vector("bias", bias)}
        layer = self.layer(operation, code, stored)
        made = f"{layer}({self.take(operation.inputs[0], order)})"
        if any(front or behind for front, behind in cut):
            made += f"[:, :, {', '.join(f'{front}:{-behind if behind else None}' for front, behind in cut)}]".replace(
                "None", ""
            )
        self.let(operation, made, order, image=True)

    def write_batch_norm(self, operation: Operation) -> None:
        options, weights = operation.options, operation.options["weights"]
        rank = len(operation.shape)
        channels = operation.shape[options["axis"]]
        affine = weights["scale"] is not None or weights["offset"] is not None
        kind = {2: 1, 3: 1, 4: 2, 5: 3}.get(rank)
        if kind is None:
            raise PortError(f"{operation.layer!r} is a batch norm of {rank} axes")
        code = f"nn.BatchNorm{kind}d({channels}, eps={options['eps']}, momentum={options['momentum']}"
        code += ")" if affine else ", affine=False)"
        names = {"scale": "weight", "offset": "bias", "mean": "running_mean", "variance": "running_var"}
        self.norm_of_channels(operation, code, names)

    def write_group_norm(self, operation: Operation) -> None:
        options = operation.options
        channels = operation.shape[options["axis"]]
        code = f"nn.GroupNorm({options['groups']}, {channels}, eps={options['eps']})"
        self.norm_of_channels(operation, code, {"scale": "weight", "offset": "bias"})

    def write_layer_norm(self, operation: Operation) -> None:
        options, weights = operation.options, operation.options["weights"]
        normalized = tuple(operation.shape[axis] for axis in options["axes"])
        shape = str(normalized[0]) if len(normalized) == 1 else str(normalized)
        more = "" if weights["offset"] is not None else ", bias=False"
        code = f"nn.LayerNorm({shape}, eps={options['eps']}{more})"
        self.norm_of_last_axes(operation, code, {"scale": "weight", "offset": "bias"})

    def write_rms_norm(self, operation: Operation) -> None:
        name = operation.options["weights"]["scale"]
        order = self.with_last(operation, (len(operation.shape) - 1,))
        code = f"nn.RMSNorm({operation.shape[-1]}, eps={operation.options['eps']})"
        layer = self.layer(operation, code, {"scale": store("weight", self.graph.parameters[name])})
        self.let(operation, f"{layer}({self.take(operation.inputs[0], order)})", order)

    # The whole.

    def free_parameter(self, path: str, shape: tuple[int, ...], *, trainable: bool) -> str:
        """Return the code that makes a parameter that belongs to no layer."""
        if trainable:
            return f"nn.Parameter(torch.zeros({shape}))"
        return f'{_CALL}self.register_buffer("{path}", torch.zeros({shape}))'

    def constant_layer(self, path: str, code: str) -> str:
        """Return the code that makes a constant."""
        return self.buffer(path, f"torch.tensor({code})")

    def buffer(self, path: str, code: str) -> str:
        """Return the code that makes a constant that moves with the module."""
        return f'{_CALL}self.register_buffer("{path}", {code}, persistent=False)'

    def block_class(self, block: Block) -> str:
        """Return the class of a block."""
        return (
            f"class {block.name}(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            + "".join(f"        {_line(name, code)}\n" for name, code in block.made.items())
            + f"\n    def forward(self, {', '.join(block.arguments)}):\n"
            + "".join(f"        {line}\n" for line in block.lines)
            + f"        return {', '.join(block.results)}"
        )

    def block_list(self, block: Block) -> str:
        """Return the code that makes all blocks of a class."""
        return f"nn.ModuleList([{block.name}() for _ in range({block.count})])"

    def source(self) -> str:
        """Return the source code of the module."""
        imports = ["import torch", "from torch import nn", "from torch.nn import functional"]
        batch = self.needs_batch()
        self.find_blocks()
        made = [_line(name, code) for name, code in self.layers.items()] or ["pass"]
        names = [name for name, _ in self.input_names]
        lines = []
        if batch:
            lines.append(f"batch = {names[0]}.shape[0]")
        lines += [*self.lines, f"return {self.result}"]
        body = (
            "class Twin(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            + "".join(f"        {line}\n" for line in made)
            + f"\n    def forward(self, {', '.join(names)}):\n"
            + "".join(f"        {line}\n" for line in lines)
        )
        return self.whole(imports, made, body)


def _line(name: str, code: str) -> str:
    return code.removeprefix(_CALL) if code.startswith(_CALL) else f"self.{name} = {code}"


def _bias(name: Any) -> str:
    return "" if name is not None else ", bias=False"
