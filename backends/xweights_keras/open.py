"""Open a ``.keras`` file as a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from xweights.errors import ArgumentError


def open_model(path: Path) -> Any:
    """Return the model of a ``.keras`` file, in safe mode: code in the file isn't run."""
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError, OSError, AttributeError, ImportError) as error:
        raise ArgumentError(
            f"{str(path)!r} can't be made a model\ncause: {type(error).__name__}: {_summarize(error)}\n"
            f"Fix: build it in Python code, and give its weights: package.module:factory@{path}"
        ) from None


def _summarize(error: Exception) -> str:
    """Return Keras' message without the configuration of the layer that it repeats."""
    lines = str(error).strip().splitlines() or ["(no message)"]
    return lines[0] if len(lines[0]) <= 400 else lines[0][:400] + " ..."
