"""Measure how many arrays of models that are made with Keras have a role and axes: one object of JSON for each package.

``python tests/backends/keras/measure_keras_layers.py keras_hub``: in a process of its own, since it chooses Keras'
backend. On the meta device of torch the models need no memory. ``tests/backends/torch/measure_layers.py`` writes the
page.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import contextlib
import io
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import hub_models
import keras

from xweights.core.layer_rows import is_known_role
from xweights.core.parameter import Parameter
from xweights_keras import backend

APPLICATIONS = (
    "ConvNeXtTiny DenseNet121 EfficientNetB0 EfficientNetV2B0 InceptionResNetV2 InceptionV3 MobileNet MobileNetV2 "
    "MobileNetV3Small MobileNetV3Large ResNet50 ResNet50V2 VGG16 Xception"
)


def applications_models() -> dict[str, Callable[[], Any]]:
    """Return a builder for one model of each architecture of keras.applications."""
    return {name: lambda name=name: getattr(keras.applications, name)(weights=None) for name in APPLICATIONS.split()}


PACKAGES: dict[str, Callable[[], dict[str, Callable[[], Any]]]] = {
    "keras": applications_models,
    "keras_hub": lambda: hub_models.MODELS,
}


def weights_of(model: Any) -> Iterator[Parameter]:
    """Yield what counts: everything that isn't hidden, and no counters and indices."""
    for p in backend.adapter(model).parameters(model):
        if not p.hidden and p.floating:
            yield p


def measure(package: str, builders: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Build each model, and count its arrays, those that are known, and the others by layer, name and shape."""
    models: list[str] = []
    failed: dict[str, str] = {}
    unknown: Counter[str] = Counter()
    arrays = known = 0
    for name, build in builders.items():
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                weights = list(weights_of(make(build)))
        except Exception as cause:  # noqa: BLE001 - whatever a package's constructor raises
            failed[name] = f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"[:300]
            continue
        models.append(name)
        arrays += len(weights)
        for p in weights:
            if p.axes is not None and is_known_role(p.role):
                known += 1
            else:
                role = "" if is_known_role(p.role) else ", role unknown"
                unknown[f"{'/'.join(p.native_name.split('/')[-2:])} {p.layout.stored}{role}"] += 1
    return {
        "package": package, "arrays": arrays, "known": known, "models": models, "unknown": unknown, "failed": failed,
    }  # fmt: skip


def make(build: Callable[[], Any]) -> Any:
    """Build a model, where Keras runs on torch and the model reads no values in doing so without memory for them."""
    if keras.backend.backend() == "torch":
        import torch

        with contextlib.suppress(Exception), torch.device("meta"), keras.device("meta"):
            return build()
    return build()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    json.dump([measure(name, PACKAGES[name]()) for name in sys.argv[1:] or PACKAGES], sys.stdout)
