"""Time writes to Keras models on torch against hand-written loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from shapes import arrays, keras_model, name_values, shapes
from timing import Memory, Timing, compare

import xweights as xw


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    for shape in shapes(quick):
        model = keras_model(shape)
        values = arrays(shape)
        named = name_values(model, values)

        def foreach(model: Any = model, values: Any = values) -> None:
            with torch.no_grad():
                torch._foreach_copy_([v.value for v in model.weights], [torch.from_numpy(a) for a in values])

        def copyto(model: Any = model, values: Any = values) -> None:
            for v, value in zip(model.weights, values, strict=True):
                np.copyto(v.value.detach().numpy(), value)

        for options, goal in (({"allow_nonfinite": True}, 1.15), ({}, 1.7)):
            yield compare(
                f"set_params({'allow_nonfinite=True' if options else 'checked'})", "keras-torch", shape.name,
                lambda model=model, named=named, options=options: xw.set_params(model, named, **options),
                {"_foreach_copy_": foreach, "np.copyto": copyto}, goal,
                idiom=("set_weights", lambda model=model, values=values: model.set_weights(values)),
                idiom_goal=4.0 if options and shape.name == "many" else None,
            )  # fmt: skip
