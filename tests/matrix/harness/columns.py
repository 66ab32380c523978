"""Columns of the matrix: a target, the mode it runs in, and whether a cell can run here."""

from __future__ import annotations

import importlib.util
import os
import shutil
from enum import Enum
from typing import Any

import ml_dtypes
import numpy as np

from harness import twins

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
KERAS_BACKENDS = ("tensorflow", "jax", "torch")


def keras_backend() -> str:
    """Return the Keras backend of this process."""
    return os.environ.get("KERAS_BACKEND", KERAS_BACKENDS[0])


class Column(Enum):
    """A target and a mode: ``(twin, framework, mode)``. Keras columns belong to one Keras backend each."""

    NUMPY = ("numpy", "numpy", "eager")
    TORCH = ("torch", "torch", "eager")
    TORCH_COMPILED = ("torch", "torch", "compiled")
    TF_MODULE = ("tf_module", "tensorflow", "eager")
    TF_MODULE_FUNCTION = ("tf_module", "tensorflow", "function")
    TF_MODULE_JIT = ("tf_module", "tensorflow", "jit")
    KERAS_TF = ("keras_tensorflow", "tensorflow", "eager")
    KERAS_TF_FUNCTION = ("keras_tensorflow", "tensorflow", "function")
    KERAS_TF_JIT = ("keras_tensorflow", "tensorflow", "jit")
    KERAS_TORCH = ("keras_torch", "torch", "eager")
    KERAS_TORCH_COMPILED = ("keras_torch", "torch", "compiled")
    KERAS_JAX = ("keras_jax", "jax", "eager")
    KERAS_JAX_JIT = ("keras_jax", "jax", "jit")

    @property
    def twin_name(self) -> str:
        return self.value[0]

    @property
    def framework(self) -> str:
        return self.value[1]

    @property
    def mode(self) -> str:
        return self.value[2]

    @property
    def id(self) -> str:
        """Return the column's name, as in ``torch-compiled``."""
        return f"{self.twin_name}-{self.mode}"

    @property
    def keras(self) -> str | None:
        """Return the Keras backend that this column needs, if it needs one."""
        return self.framework if self.twin_name.startswith("keras") else None

    @property
    def here(self) -> bool:
        """Return whether this process runs it: Keras has one backend per process, the first run takes the rest."""
        return keras_backend() == (self.keras or KERAS_BACKENDS[0])

    def obstacle(self) -> str | None:
        """Return what this machine lacks, or None."""
        wanted = [self.framework] + (["keras"] if self.keras else [])
        absent = [package for package in wanted if importlib.util.find_spec(package) is None]
        if absent:
            return f"{' and '.join(absent)} not installed"
        if self.mode == "compiled" and compiler() is None:
            return "torch.compile needs a C++ compiler (g++ or clang++, or $CXX)"
        return None

    def twin(self, dtype: np.dtype[Any]) -> twins.Twin:
        """Build a new model."""
        trained = twins.FEW if self.mode == "compiled" else twins.TRAINABLE
        if self.keras:
            return twins.KerasTwin(dtype, trained)
        kinds = {"numpy": twins.NumpyTwin, "torch": twins.TorchTwin, "tf_module": twins.TfModuleTwin}
        return kinds[self.twin_name](dtype, trained)


def compiler() -> str | None:
    """Return the C++ compiler that torch.compile would find."""
    return next(
        (path for name in (os.environ.get("CXX"), "g++", "clang++") if name and (path := shutil.which(name))), None
    )


def columns_here() -> list[Column]:
    """Return the columns that this process runs."""
    return [column for column in Column if column.here]
