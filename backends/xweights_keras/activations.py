"""Activations in Keras: the neutral names of layers, operations and functions."""

from __future__ import annotations

from typing import Any

# Layers that are an activation, and the settings that tell two of them apart: Keras' attribute -> the neutral name.
LAYERS: dict[str, tuple[str, dict[str, str]]] = {
    "ReLU": ("relu", {"negative_slope": "slope"}),
    "LeakyReLU": ("leaky_relu", {"negative_slope": "slope"}),
    "ELU": ("elu", {"alpha": "alpha"}),
    "Softmax": ("softmax", {}),
}
# Operations of a functional model that have no settings.
OPERATIONS: dict[str, str] = {
    "Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "Tanh": "tanh", "Silu": "silu", "Softplus": "softplus",
    "Softsign": "softsign", "HardSigmoid": "hard_sigmoid", "HardSilu": "hard_silu", "Selu": "selu", "Mish": "mish",
}  # fmt: skip


def name_of(activation: Any) -> str:
    """Return the name of an activation function; "linear" for none."""
    if activation is None:
        return "linear"
    return str(getattr(activation, "__name__", None) or getattr(activation, "name", type(activation).__name__))
