"""Declare a pair of twins, fill it with random weights and call it, independently of the code under test."""

from __future__ import annotations

import contextlib
import zlib
from dataclasses import dataclass, field

import keras
import numpy as np
import torch

import xweights as xw

PAIRS: dict[str, Pair] = {}


@dataclass(frozen=True)
class Pair:
    """Two twins, the sample that they are called with, and the options of their port."""

    name: str
    make: object
    sample: object
    to_torch: object = None  # the torch sample from Keras'; None: port's default
    to_keras: object = None
    directions: tuple = ("to_torch", "to_keras")
    bitwise: bool = True  # back and forth gives the same bits
    options: dict = field(default_factory=dict)
    backends: tuple = ("tensorflow", "jax", "torch")


def pair(sample, **options):
    """Declare the decorated function, which makes (Keras model, torch module), as a pair."""

    def declare(make):
        PAIRS[make.__name__] = Pair(make.__name__, make, sample, **options)
        return make

    return declare


def images(channels=3, size=8, batch=3):
    return lambda: rng("images").normal(size=(batch, size, size, channels)).astype("float32")


def vectors(*shape):
    return lambda: rng("vectors").normal(size=shape).astype("float32")


def tokens(vocab, *shape):
    return lambda: rng("tokens").integers(0, vocab, size=shape).astype("int32")


def rng(name):
    return np.random.default_rng(zlib.crc32(name.encode()))


def fill(model, seed):
    """Give every weight plausible random values."""
    generator = np.random.default_rng(seed)
    for p in xw.parameters(model):
        if not p.floating or p.role == "vector_u":
            continue
        if p.role in ("gamma", "scale", "moving_variance", "variance"):
            value = generator.uniform(0.5, 1.5, p.shape)
        else:
            value = generator.normal(0, 0.4, p.shape)
        with contextlib.suppress(xw.WriteError):  # a weight that is computed and has no inverse
            p.assign(value.astype(p.dtype))


@contextlib.contextmanager
def floats(name):
    """Make models of this dtype."""
    former = keras.config.dtype_policy()
    former_torch = torch.get_default_dtype()
    keras.config.set_dtype_policy(name)
    keras.config.set_floatx(name)
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(former)
        keras.config.set_floatx("float32")
        torch.set_default_dtype(former_torch)


def outputs(model, sample, dtype="float32"):
    """Return the outputs of a model on the host, each of them with channels last."""
    if isinstance(model, torch.nn.Module) and not isinstance(model, keras.Layer):
        model.eval()
        with torch.no_grad():
            args = [_tensor(item, dtype) for item in (sample if isinstance(sample, tuple) else (sample,))]
            result = model(*args)
        result = result if isinstance(result, (tuple, list)) else [result]
        arrays = [item.numpy() for item in result]
    else:
        several = isinstance(sample, tuple)
        inputs = [_cast(item, dtype) for item in sample] if several else _cast(sample, dtype)
        result = model(inputs, training=False)
        result = result if isinstance(result, (tuple, list)) else [result]
        arrays = [np.asarray(keras.ops.convert_to_numpy(item)) for item in result]
    return arrays


def _cast(array, dtype):
    return array.astype(dtype) if array.dtype.kind == "f" else array


def _tensor(array, dtype):
    return torch.from_numpy(np.ascontiguousarray(_cast(array, dtype)))


def distance(got, expected):
    """Return the largest difference relative to the largest entry, over all outputs, channels moved where need be."""
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        best = a
        if a.shape != b.shape or a.ndim > 3:
            views = [a, np.moveaxis(a, 1, -1), np.moveaxis(a, -1, 1), a.swapaxes(0, 1)]
            best = min((v for v in views if v.shape == b.shape), key=lambda v: np.abs(v - b).max())
        worst = max(worst, float(np.abs(best - b).max() / np.abs(b).max()))
    return worst


def arrays(model):
    """Return the bytes of every weight."""
    return {p.name: p.numpy().tobytes() for p in xw.parameters(model) if p.floating and p.role != "vector_u"}


def sides(pair, direction):
    """Return source, target, the sample of each, and the options of a port, for one direction of a pair."""
    keras_model, module = pair.make()
    for seed, model in enumerate((keras_model, module)):
        fill(model, seed)
    for_keras = pair.sample()
    for_torch = pair.to_torch(for_keras) if pair.to_torch else _channels_second(for_keras, module)
    options = {}
    if pair.to_torch is not None:
        options["sample_target"] = for_torch if direction == "to_torch" else for_keras
    if pair.options.get("outputs") == "frames":
        options["outputs"] = pair.to_keras if direction == "to_torch" else pair.to_torch
    if direction == "to_torch":
        return keras_model, module, for_keras, for_torch, options
    return module, keras_model, for_torch, for_keras, options


def _channels_second(sample, module):
    if isinstance(sample, tuple):
        return tuple(_channels_second(part, module) for part in sample)
    sequences = any(isinstance(part, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)) for part in module.modules())
    image = sample.dtype.kind == "f" and (sample.ndim > 3 or (sample.ndim == 3 and sequences))
    return np.moveaxis(sample, -1, 1) if image else sample
