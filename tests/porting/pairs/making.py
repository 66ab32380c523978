"""What a pair of models is, how its weights are made random, and how it is checked without xweights.

A pair is a function that returns `Twins`, declared with `@pair(...)`. Weights are random on both sides, statistics,
biases, tables and tokens among them: what is left at one or at zero by an initializer would hide a mistake.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch

# A port is right if no output is further off than this, relative to the largest entry.
CLOSE = 2e-3
# Tried one after another, as a user would who reads the refusal.
ATTEMPTS: tuple[dict[str, Any], ...] = ({}, {"attributes": "fix"}, {"attributes": "fix", "fold": True})


@dataclass
class Twins:
    """Two models, what each is called with, and which of their outputs are the same.

    `to_torch` and `to_keras` are arguments of port in that direction; `convert(keras_model, torch_model)` writes
    torch's weights into the Keras model without xweights, to prove that the pair can be right.
    """

    keras: Any
    torch: Any
    keras_x: Any
    torch_x: Any = None
    keras_outputs: Callable[[list[np.ndarray]], list[np.ndarray]] = list
    torch_outputs: Callable[[list[np.ndarray]], list[np.ndarray]] = list
    to_torch: Mapping[str, Any] = field(default_factory=dict)
    to_keras: Mapping[str, Any] = field(default_factory=dict)
    attempts: tuple[Mapping[str, Any], ...] = ATTEMPTS
    convert: Callable[[Any, Any], None] | None = None

    def __post_init__(self):
        self.given = self.torch_x is not None
        if not self.given:
            image = isinstance(self.keras_x, np.ndarray) and self.keras_x.ndim > 3
            self.torch_x = channels_first(self.keras_x) if image else self.keras_x

    def arguments(self, direction):
        """What port is given besides the models."""
        there, here = (self.torch_x, self.keras_x) if direction == "to_torch" else (self.keras_x, self.torch_x)
        more = self.to_torch if direction == "to_torch" else self.to_keras
        return {"sample": here, **({"sample_target": there} if self.given else {}), **more}

    def outputs(self):
        """Run both models and return their outputs: Keras', torch's."""
        return (
            self.keras_outputs(arrays(self.keras(self.keras_x, training=False))),
            self.torch_outputs(run_torch(self.torch, self.torch_x)),
        )


@dataclass(frozen=True)
class Pair:
    """A declared pair; `different` is the true cause (a pattern) where it can't be right, "" where it can."""

    name: str
    family: str
    build: Callable[[], Twins]
    keras_side: str
    torch_side: str
    different: str = ""
    needs: tuple[str, ...] = ()
    only: str = ""

    @property
    def directions(self):
        return (self.only,) if self.only else ("to_torch", "to_keras")


PAIRS: dict[str, Pair] = {}


def pair(keras_side, torch_side, *, different="", needs=(), only=""):
    """Declare a pair: what stands on each side, and the true cause where the two really differ."""

    def declare(build):
        family = build.__module__.rpartition(".")[2].replace("_", " ")
        if build.__name__ in PAIRS:
            raise ValueError(f"there are two pairs called {build.__name__}")
        PAIRS[build.__name__] = Pair(
            build.__name__, family, build, keras_side, torch_side, different, tuple(needs), only
        )
        return build

    return declare


# Samples.


def rng(seed=0):
    return np.random.default_rng(seed)


def image(size, n=2, channels=3):
    return rng(5).normal(size=(n, size, size, channels)).astype("float32")


def floats(*shape, seed=5):
    return rng(seed).normal(size=shape).astype("float32")


def numbers(limit, *shape, seed=3, low=1):
    return rng(seed).integers(low, limit, shape).astype("int32")


def channels_first(x):
    # Copied: the strides of one channel may say that it is the last axis, and `view` then fails.
    return np.moveaxis(x, -1, 1).copy()


# Random weights.


# What follows from the configuration, and is no weight.
COMPUTED = re.compile("inv_freq|rope|periods|^mean$|^std$|seed|/normalization[_0-9]*/")


def randomize_torch(model, seed):
    """Draw every floating-point parameter and statistic of a torch module anew."""
    generator = torch.Generator().manual_seed(seed)
    kept = model.state_dict().keys()  # a buffer that isn't saved is computed, as frequencies and masks are
    with torch.no_grad():
        for name, p in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
            last = name.rpartition(".")[2]
            if not p.is_floating_point() or name not in kept or COMPUTED.search(last):
                continue
            if "var" in last or (p.ndim == 1 and "bias" not in last and last not in ("running_mean", "b", "beta")):
                p.copy_(torch.rand(p.shape, generator=generator) * 0.4 + 0.8)
            elif p.ndim < 2:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
            else:
                fan_in = max(p[0].numel(), 2)
                p.copy_(torch.randn(p.shape, generator=generator) * 1.2 / fan_in**0.5)
    return model.eval()


def randomize_keras(model, seed):
    """Draw every floating-point variable of a Keras model anew, but for kernels that are random and not small."""
    random = rng(seed)
    for v in model.variables:
        last = v.path.rpartition("/")[2]
        if not keras.backend.is_float_dtype(v.dtype) or COMPUTED.search("/" + v.path):
            continue
        values = keras.ops.convert_to_numpy(v)
        if v.ndim <= 1 or values.std() == 0 or "layer_scale" in v.path:
            scale = re.search(r"gamma|scale|variance|lambda", v.path.rpartition("/")[2]) and "bias" not in last
            v.assign(random.uniform(0.8, 1.2, v.shape) if scale else random.normal(0, 0.1, v.shape))
        elif v.ndim < 4 and values.std() < 0.06:
            v.assign(random.normal(0, max(2, values.size) ** -0.25, v.shape))
    return model


# Running and comparing.


def arrays(output):
    """Every array of an output, in order."""
    if output is None or isinstance(output, bool | int | float | str):
        return []
    if hasattr(output, "items"):
        return [a for _, one in output.items() for a in arrays(one)]
    if isinstance(output, tuple | list):
        return [a for one in output for a in arrays(one)]
    if isinstance(output, torch.Tensor):
        return [output.detach().numpy()]
    return [np.asarray(keras.ops.convert_to_numpy(output))] if hasattr(output, "shape") else []


def as_tensors(x):
    if isinstance(x, Mapping):
        return {name: as_tensors(value) for name, value in x.items()}
    if isinstance(x, tuple | list):
        return [as_tensors(value) for value in x]
    return torch.tensor(x)


def run_torch(model, x):
    tensors = as_tensors(x)
    with torch.no_grad():
        if isinstance(tensors, dict):
            return arrays(model(**tensors))
        return arrays(model(*tensors) if isinstance(tensors, list) else model(tensors))


def distance(a, b):
    """Largest difference relative to the largest entry; channels and time may be on other axes."""
    views = [b, *((np.moveaxis(b, 1, -1), np.moveaxis(b, -1, 1), b.swapaxes(0, 1)) if b.ndim > 2 else ())]
    fitting = [v for v in views if v.shape == a.shape] or ([b.reshape(a.shape)] if a.size == b.size else [])
    return min((float(np.abs(a - v).max() / (np.abs(a).max() + 1e-12)) for v in fitting), default=float("inf"))


def distances(twins):
    """The distance of each pair of outputs; none is an error of the pair."""
    found = [distance(a, b) for a, b in zip(*twins.outputs(), strict=False)]
    if not found:
        raise ValueError("the two have no outputs to compare")
    return found


def weights_of(model):
    """A copy of every weight and buffer by name."""
    if isinstance(model, torch.nn.Module):
        return {name: value.numpy(force=True).copy() for name, value in model.state_dict().items()}
    return {f"{v.path}#{n}": np.array(keras.ops.convert_to_numpy(v)) for n, v in enumerate(model.variables)}


# Converting without xweights.


class StateDict:
    """What keras_hub's converters call a loader, over the weights of a module that is in memory."""

    def __init__(self, module):
        self.tensors = {name: value.numpy(force=True) for name, value in module.state_dict().items()}

    def get_tensor(self, key):
        if key in self.tensors:
            return self.tensors[key]
        behind = [name for name in self.tensors if key.endswith("." + name) or name.endswith("." + key)]
        if not behind:
            raise KeyError(key)
        return self.tensors[max(behind, key=len)]

    def get_prefixed_key(self, key, _names):
        return key

    def port_weight(self, keras_variable, hf_weight_key, hook_fn=None):
        value = self.get_tensor(hf_weight_key)
        keras_variable.assign(hook_fn(value, list(keras_variable.shape)) if hook_fn else value)


def converter(module, config):
    """keras_hub's own converter, as `Twins.convert`."""

    def convert(keras_model, torch_model):
        importlib.import_module(module).convert_weights(keras_model, StateDict(torch_model), config)

    return convert


def in_order(keras_model, torch_model):
    """Convert where both models define the same layers in the same order."""
    ours = [a for a in keras_model._flatten_layers(include_self=False) if a.weights and not children(a)]
    theirs = [m for m in torch_model.modules() if not [*m.children()] and [*m.parameters()]]
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} layers against {len(theirs)}")
    for layer, module in zip(ours, theirs, strict=True):
        layer.set_weights(values_for(layer, module))
        if hasattr(module, "eps") and hasattr(layer, "epsilon"):
            layer.epsilon = module.eps


def children(layer):
    return [a for a in layer._flatten_layers(include_self=False) if a.weights]


def values_for(layer, module):
    """The values of a leaf layer's weights, of its torch twin."""
    values = {name: value.numpy(force=True) for name, value in module.state_dict().items()}
    kind = type(layer).__name__
    if kind in ("GRUCell", "LSTMCell"):
        return recurrent_values(values, kind)
    if kind == "BatchNormalization":
        return [values[n] for n in ("weight", "bias", "running_mean", "running_var")]
    if kind.startswith("Depthwise"):
        values["weight"] = np.moveaxis(values["weight"], (0, 1), (-2, -1))
    elif kind.startswith("Conv"):
        kernel = values["weight"]
        values["weight"] = np.moveaxis(kernel, (0, 1), (-1, -2))
    elif kind == "Dense":
        values["weight"] = values["weight"].T
    return [values[n] for n in ("weight", "bias") if n in values]


def recurrent_values(values, kind):
    """Kernels and biases of one layer in one direction; Keras has the GRU's update gate first, torch its reset gate."""

    def gates(value):
        parts = np.split(value, len(value) // (values["weight_hh_l0"].shape[1]))
        return np.concatenate([parts[1], parts[0], *parts[2:]] if kind == "GRUCell" else parts)

    kernels = [gates(values[f"weight_{n}_l0"]).T for n in ("ih", "hh")]
    biases = np.stack([gates(values[f"bias_{n}_l0"]) for n in ("ih", "hh")])
    return [*kernels, biases if kind == "GRUCell" else biases.sum(0)]


# Packages.


def load_torchvision():
    """Import torchvision; beside a torch of another build its operators are only declared: no model here runs them."""
    if "torchvision::nms" not in torch._C._dispatch_get_all_op_names():
        try:
            import torchvision
        except RuntimeError:
            declare_operators()
            import torchvision  # noqa: F401
    return importlib.import_module("torchvision")


def declare_operators():
    [folder] = importlib.util.find_spec("torchvision").submodule_search_locations
    text = (Path(folder) / "_meta_registrations.py").read_text(encoding="utf-8")
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted(set(re.findall(r'register_fake\("torchvision::(\w+)"\)', text))):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    DECLARED.append(library)


DECLARED: list[Any] = []  # an operator is there for as long as its library is
