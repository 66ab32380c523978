"""Write a model to a ``.keras`` archive."""

from __future__ import annotations

from typing import Any, BinaryIO

import keras
from keras.src.saving import saving_lib

from xweights.errors import ArgumentError


def save_model(model: Any, file: BinaryIO) -> None:
    """Write a model with Keras' own saver; raise ArgumentError if Keras can't save it."""
    if not isinstance(model, keras.Model):
        raise ArgumentError(f"Keras saves models, and {model.name!r} is a {type(model).__name__}")
    try:
        # keras.saving.save_model() is this with a path, which has to end in .keras, as a temporary file's doesn't.
        saving_lib.save_model(model, file)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever the get_config() of a user's layer raises
        lines = str(error).strip().splitlines() or ["(no message)"]
        cause = f"{type(error).__name__}: {lines[0][:400]}"
        raise ArgumentError(f"Keras can't save the model\ncause: {cause}") from None
