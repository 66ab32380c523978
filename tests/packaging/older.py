"""What older releases of the frameworks lack: tests of it skip themselves there, and docs/versions.md has the table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any


@dataclass(frozen=True)
class Feature:
    """Something of a framework that the library knows, and that its oldest supported releases don't have yet."""

    framework: str
    since: str
    what: str
    there: str  # an expression that is true where it is there
    older: str  # what the library does where it isn't
    error: str  # what an older release answers to one who uses it


KERAS_HAS_NONE = "nothing to do: older models have none"
FEATURES = (
    Feature(
        "keras", "3.10", "`lora_alpha=` of `enable_lora`",
        "'lora_alpha' in parameters(keras.layers.Dense.enable_lora)", "factors add up with the scale 1",
        r"enable_lora\(\) got an unexpected keyword argument 'lora_alpha'",
    ),
    Feature(
        "keras", "3.11", "kernels in `int4`", "'int4' in keras.src.quantizers.QUANTIZATION_MODES"
        if False else "hasattr(keras.quantizers, 'pack_int4')", KERAS_HAS_NONE,
        r"Invalid quantization mode\. Expected one of .*Received: mode=int4",
    ),
    Feature(
        "keras", "3.12", "`ReversibleEmbedding`", "hasattr(keras.layers, 'ReversibleEmbedding')", KERAS_HAS_NONE,
        r"module 'keras.*layers' has no attribute 'ReversibleEmbedding'",
    ),
    Feature(
        "keras", "3.13", "`Muon`", "'rms_rate' in parameters(getattr(keras.optimizers, 'Muon', keras.optimizers.SGD))",
        "its rule goes on as an optimizer of this package; that of 3.10 to 3.12 is another rule, and refused",
        r"module 'keras.*optimizers' has no attribute 'Muon'|Muon.*unexpected keyword argument",
    ),
    Feature(
        "keras", "3.14", "`renorm=` of `BatchNormalization`",
        "'renorm' in parameters(keras.layers.BatchNormalization)", KERAS_HAS_NONE,
        r"Unrecognized keyword arguments passed to BatchNormalization: \{'renorm'",
    ),
    Feature(
        "keras", "3.14", "`use_gate=` of `MultiHeadAttention`",
        "'use_gate' in parameters(keras.layers.MultiHeadAttention)", KERAS_HAS_NONE,
        r"Unrecognized keyword arguments passed to MultiHeadAttention: \{'use_gate'",
    ),
    Feature(
        "keras", "3.15", "layers that are attributes of a functional model",
        "'self._layers = self.layers' not in inspect.getsource(keras.src.models.functional.Functional.__init__)",
        "Keras neither trains nor saves them, and they are no parameters of the model",
        r"'extra/kernel' matches no neutral name",
    ),
    Feature(
        "torch", "2.7", "tensors of `float8_e8m0fnu`", "hasattr(torch, 'float8_e8m0fnu')",
        "a file that holds one isn't read into a model", r"module 'torch' has no attribute 'float8_e8m0fnu'",
    ),
    Feature(
        "torch", "2.9", "`torch.optim.Muon`", "hasattr(torch.optim, 'Muon')",
        "its rule goes on as an optimizer of this package", r"module 'torch.optim' has no attribute 'Muon'",
    ),
)  # fmt: skip
# Names that `pytest --old-torch` takes away: of PyTorch only one release is tested.
NEW_IN_TORCH = {"optim.Muon": "2.9", "float8_e8m0fnu": "2.7"}
DISTRIBUTIONS = {
    "keras": ("keras",),
    "torch": ("torch",),
    "tensorflow": ("tensorflow-cpu", "tensorflow"),
    "jax": ("jax",),
}


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, to be compared."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def installed(framework: str) -> str | None:
    """Return the version of a framework that is installed, None if it isn't."""
    for name in DISTRIBUTIONS[framework]:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def absent_here(old_torch: bool) -> Iterator[Feature]:
    """Yield the features that what is installed lacks."""
    for feature in FEATURES:
        version = "2.6" if old_torch and feature.framework == "torch" else installed(feature.framework)
        if version is not None and release(version) < release(feature.since):
            yield feature


def reason_to_skip(error: BaseException | None, features: list[Feature]) -> str:
    """Return why a test that failed with this error can't run on these releases; "" if there is no reason."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for feature in features:
            if re.search(feature.error, str(error), re.DOTALL):
                return f"{feature.framework} has {feature.what} since {feature.since}"
        error = error.__cause__ or error.__context__
    return ""


def age_torch() -> None:
    """Take the names away from PyTorch that its oldest supported release lacks."""
    import torch

    for name in NEW_IN_TORCH:
        place, _, last = name.rpartition(".")
        home: Any = getattr(torch, place) if place else torch
        if place:
            delattr(home, last)
    # Its own compiler asks for the type, so only this package's list of newer names is made without it.
    kept = torch.float8_e8m0fnu
    del torch.float8_e8m0fnu
    try:
        import xweights_torch.tables.newer  # noqa: F401
    finally:
        torch.float8_e8m0fnu = kept
