"""torch modules as steps in neutral words, and steps as the source code of a torch module.

Owns :func:`steps_of` and :func:`code_of`. Imports torch and the core's Step.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from xweights.errors import PortError
from xweights.porting.skeletons import Step
from xweights_torch.porting_layers import attributes_of, kind_of

_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.ELU: "elu",
    nn.SELU: "selu",
    nn.Softmax: "softmax",
}
_FUNCTIONS: dict[Any, tuple[str, dict[str, Any]]] = {
    operator.add: ("add", {}),
    torch.add: ("add", {}),
    operator.mul: ("multiply", {}),
    torch.mul: ("multiply", {}),
    torch.relu: ("activation", {"does": "relu"}),
    functional.relu: ("activation", {"does": "relu"}),
    functional.silu: ("activation", {"does": "silu"}),
    torch.tanh: ("activation", {"does": "tanh"}),
    torch.sigmoid: ("activation", {"does": "sigmoid"}),
    torch.flatten: ("flatten", {}),
    torch.cat: ("concatenate", {}),
}


def steps_of(model: nn.Module) -> list[Step]:
    """Return what a module does. Raise PortError where it can't be traced symbolically."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception as wrong:
        raise PortError(f"this module can't be traced: {type(wrong).__name__}: {wrong}") from wrong
    modules = dict(model.named_modules())
    names: dict[Any, str] = {}
    found: list[Step] = []
    for node in graph.nodes:
        if node.op == "output":
            break
        inputs = tuple(names[one] for one in node.all_input_nodes if one in names)
        if node.op == "placeholder":
            step = Step(node.name, "input")
        elif node.op == "call_module":
            step = _module_step(str(node.target), modules[str(node.target)], inputs)
        else:
            step = _call_step(node, inputs)
        names[node] = step.name
        if step.kind != "identity":
            found.append(step)
        elif inputs:
            names[node] = inputs[0]
    return found


def _module_step(path: str, module: Any, inputs: tuple[str, ...]) -> Step:
    name = path.replace(".", "_")
    name = f"layer_{name}" if name[0].isdigit() else name
    kind = kind_of(module)
    settings = attributes_of(module, kind)
    options: dict[str, Any] = {}
    if kind == "dense":
        options = {"inputs": module.in_features, "units": module.out_features, "bias": module.bias is not None}
    elif kind in ("conv", "conv_transpose"):
        options = {name: settings[name] for name in ("strides", "dilation", "groups", "padding")}
        options |= {"size": tuple(module.kernel_size), "bias": module.bias is not None, "space": ()}
        options |= {"channels": module.in_channels, "filters": module.out_channels}
        if "output_padding" in settings or "padding_mode" in settings:
            kind = f"{kind} with output_padding or padding_mode"
    elif kind == "embedding":
        options = {"vocab": module.num_embeddings, "width": module.embedding_dim}
    elif kind == "batch_norm" and module.affine and module.track_running_stats:
        options = {"channels": module.num_features, **settings, "rank": int(type(module).__name__[-2])}
    elif kind == "group_norm":
        channels = getattr(module, "num_channels", getattr(module, "num_features", 0))
        options = {"channels": channels, **settings}
    elif kind in ("layer_norm", "rms_norm") and len(module.normalized_shape) == 1:
        options = {"width": module.normalized_shape[0], **settings}
    elif kind == "other":
        return _plain_step(name, module, inputs)
    else:
        kind = f"{type(module).__name__}, which has no recipe for code"
    return Step(name, kind, inputs, options)


def _plain_step(name: str, module: Any, inputs: tuple[str, ...]) -> Step:
    if type(module) in _ACTIVATIONS:
        return Step(name, "activation", inputs, {"does": _ACTIVATIONS[type(module)]})
    if isinstance(module, nn.GELU):
        return Step(name, "activation", inputs, {"does": "gelu" if module.approximate == "none" else "gelu_tanh"})
    if isinstance(module, nn.LeakyReLU):
        return Step(name, "activation", inputs, {"does": "leaky_relu", "slope": module.negative_slope})
    if isinstance(module, nn.Identity):
        return Step(name, "identity", inputs)
    if isinstance(module, nn.Dropout):
        return Step(name, "dropout", inputs, {"rate": module.p})
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        return Step(name, "flatten", inputs)
    if isinstance(module, (nn.MaxPool1d, nn.MaxPool2d)) and not module.padding and not module.ceil_mode:
        rank = int(type(module).__name__[-2])
        return Step(
            name, "max_pool", inputs, {"size": _each(module.kernel_size, rank), "strides": _each(module.stride, rank)}
        )
    if isinstance(module, (nn.AvgPool1d, nn.AvgPool2d)) and not any(_each(module.padding, 1)):
        rank = int(type(module).__name__[-2])
        size, strides = _each(module.kernel_size, rank), _each(module.stride, rank)
        return Step(name, "average_pool", inputs, {"size": size, "strides": strides})
    if isinstance(module, nn.AdaptiveAvgPool2d) and _each(module.output_size, 2) == (1, 1):
        return Step(name, "global_average", inputs, {"rank": 2, "keeps": True})
    if isinstance(module, nn.ZeroPad2d):
        left, right, top, bottom = module.padding
        return Step(name, "zero_padding", inputs, {"padding": ((top, bottom), (left, right))})
    return Step(name, f"{type(module).__name__}, which has no recipe for code", inputs)


def _each(value: Any, rank: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank


def _call_step(node: Any, inputs: tuple[str, ...]) -> Step:
    name = str(node.name)
    numbers = [one for one in node.args if not isinstance(one, (fx.Node, tuple, list))]
    if node.op == "call_method" and node.target in ("relu", "tanh", "sigmoid") and not numbers:
        return Step(name, "activation", inputs, {"does": node.target})
    if node.op == "call_method" and node.target == "flatten" and numbers == [1]:
        return Step(name, "flatten", inputs)
    if node.op == "call_method" and node.target == "mean" and tuple(node.args[1]) in ((2, 3), (-2, -1)):
        return Step(name, "global_average", inputs, {"rank": 2, "keeps": False})
    kind, options = _FUNCTIONS.get(node.target, (None, {}))
    merging = kind in ("add", "multiply")
    plain = not numbers or (kind in ("flatten", "concatenate") and numbers in ([1], [-1]))
    if kind is None or not plain or (merging and len(inputs) != 2):
        return Step(name, f"a call of {getattr(node.target, '__name__', node.target)}, which has no recipe for code")
    return Step(name, kind, inputs, options)


# Writing


def code_of(steps: Sequence[Step]) -> str:
    """Return the source code of a module that does these steps."""
    made: list[str] = []
    forward: list[str] = []
    for step in steps:
        if step.kind == "input":
            continue
        given = ", ".join(step.inputs)
        written = _WRITERS[step.kind](step.options)
        pad = _padding(step)
        if pad is not None:
            made.append(f"self.{step.name}_pad = {pad}")
            given = f"self.{step.name}_pad({given})"
        if written.startswith("nn."):
            made.append(f"self.{step.name} = {written}")
            call = f"self.{step.name}({given})"
        else:
            call = written.format(x=given, **{f"x{place}": one for place, one in enumerate(step.inputs)})
        if step.kind in ("lstm", "gru", "simple_rnn"):
            call += "[0]" if step.options["sequences"] else "[0][:, -1]"
        forward.append(f"{step.name} = {call}")
        if step.fused != "linear":
            forward.append(f"{step.name} = {_function(step.fused).format(x=step.name)}")
    taken = ", ".join(step.name for step in steps if step.kind == "input")
    body = "\n".join(f"        {line}" for line in made) or "        pass"
    run = "\n".join(f"        {line}" for line in forward)
    return (
        "import torch\nfrom torch import nn\nfrom torch.nn import functional\n\n\n"
        "class Twin(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"{body}\n\n    def forward(self, {taken}):\n{run}\n        return {_results(steps)}\n"
    )


def _results(steps: Sequence[Step]) -> str:
    used = {name for step in steps for name in step.inputs}
    return ", ".join(step.name for step in steps if step.name not in used)


def _function(word: str) -> str:
    special = {
        "gelu_tanh": 'functional.gelu({x}, approximate="tanh")',
        "softmax": "functional.softmax({x}, -1)",
        "sigmoid": "torch.sigmoid({x})",
        "tanh": "torch.tanh({x})",
        "linear": "{x}",
    }
    return special.get(word, f"functional.{word}({{x}})")


def _activation(options: Mapping[str, Any]) -> str:
    if options["does"] == "leaky_relu":
        return f"functional.leaky_relu({{x}}, {options['slope']})"
    return _function(options["does"])


def _padding(step: Step) -> str | None:
    """Return the layer that pads where Keras' "same" isn't symmetric."""
    options = step.options
    if options.get("padding") != "same" or step.kind not in ("conv", "max_pool"):
        return None
    if step.kind == "conv" and all(one == 1 for one in options["strides"]):
        return None
    sides: list[int] = []
    dilation = options.get("dilation", (1,) * len(options["size"]))
    for length, size, stride, spread in zip(
        options["space"], options["size"], options["strides"], dilation, strict=True
    ):
        reach = (size - 1) * spread + 1
        whole = max((-(-length // stride) - 1) * stride + reach - length, 0)
        sides = [whole // 2, whole - whole // 2, *sides]
    value = 'float("-inf")' if step.kind == "max_pool" else "0.0"
    return f"nn.ConstantPad{len(options['size'])}d({tuple(sides)}, {value})"


def _conv(options: Mapping[str, Any]) -> str:
    rank, padding = len(options["size"]), options["padding"]
    strided = any(one != 1 for one in options["strides"])
    inside: Any = 0 if padding == "valid" or (padding == "same" and strided) else padding
    return (
        f"nn.Conv{rank}d({options['channels']}, {options['filters']}, {options['size']}, stride={options['strides']}, "
        f"padding={inside!r}, dilation={options['dilation']}, groups={options['groups']}, bias={options['bias']})"
    )


def _conv_transpose(options: Mapping[str, Any]) -> str:
    return (
        f"nn.ConvTranspose{len(options['size'])}d({options['channels']}, {options['filters']}, {options['size']}, "
        f"stride={options['strides']}, bias={options['bias']})"
    )


def _recurrent(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda one: f"nn.{name}({one['inputs']}, {one['units']}, bias={one['bias']}, batch_first=True)"


def _pool(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda one: f"nn.{name}{len(one['size'])}d({one['size']}, stride={one['strides']})"


def _batch_norm(one: Mapping[str, Any]) -> str:
    return f"nn.BatchNorm{one['rank']}d({one['channels']}, eps={one['eps']}, momentum={round(1 - one['momentum'], 12)})"


def _zeros(one: Mapping[str, Any]) -> str:
    (top, bottom), (left, right) = one["padding"]
    return f"nn.ZeroPad2d(({left}, {right}, {top}, {bottom}))"


_WRITERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "dense": lambda one: f"nn.Linear({one['inputs']}, {one['units']}, bias={one['bias']})",
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "embedding": lambda one: f"nn.Embedding({one['vocab']}, {one['width']})",
    "batch_norm": _batch_norm,
    "layer_norm": lambda one: f"nn.LayerNorm({one['width']}, eps={one['eps']})",
    "rms_norm": lambda one: f"nn.RMSNorm({one['width']}, eps={one['eps']})",
    "group_norm": lambda one: f"nn.GroupNorm({one['groups']}, {one['channels']}, eps={one['eps']})",
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU"),
    "simple_rnn": _recurrent("RNN"),
    "activation": _activation,
    "dropout": lambda one: f"nn.Dropout({one['rate']})",
    "flatten": lambda one: "torch.flatten({x}, 1)",
    "max_pool": _pool("MaxPool"),
    "average_pool": _pool("AvgPool"),
    "global_average": lambda one: f"{{x}}.mean({tuple(range(2, 2 + one['rank']))}, keepdim={one['keeps']})",
    "zero_padding": _zeros,
    "add": lambda one: "{x0} + {x1}",
    "multiply": lambda one: "{x0} * {x1}",
    "concatenate": lambda one: "torch.cat([{x}], 1)",
}
