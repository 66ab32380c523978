"""The Keras 3 backend: models, layers and variables on any Keras backend (tensorflow, jax, torch).

Importing it imports Keras, and with it only the framework that Keras runs on.

- ``layers``: the table of layer types, their variables, roles and axes
- ``naming``, ``walk``: from a model to named weights
- ``adapter``: from named weights to parameters
- ``storage``: reading and writing of ``keras.Variable`` objects
- ``ops``: the array math of the framework below Keras
- ``training``: holds, freezing and penalties in a model's own training
- ``optimizers``: optimizers and LR schedules, read and written
- ``porting``, ``skeleton``: ports, and source code of twins
- ``h5_layout``, ``archive``, ``open``: the places of weights in HDF5 files, writing and opening of ``.keras`` files
- ``entries``: :class:`SetEntries` and :class:`EntriesInitializer`, for models that are saved with them
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import keras
import numpy as np

from xweights.core import former_paths
from xweights.core.backend import Adapter, Attachment, HeldChain, HoldAttachment, Tracing
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops, Storage
from xweights.core.registry import backend_for, load
from xweights.errors import TraceError
from xweights_keras.adapter import KerasAdapter
from xweights_keras.entries import EntriesInitializer, SetEntries
from xweights_keras.ops import ops_of
from xweights_keras.storage.choose import storage_for
from xweights_keras.training.holds import attach
from xweights_keras.training.hooks import KerasTraining
from xweights_keras.training.penalties import regularize

if TYPE_CHECKING:
    from xweights.optimizers.protocol import Optimizing
    from xweights.porting.protocol import Porting
    from xweights_keras.skeleton.describe import KerasDescribing

__all__ = ["EntriesInitializer", "KerasBackend", "SetEntries", "backend"]

# Saved models name the modules of their optimizers and schedules.
former_paths.register("xweights_keras.optimizers_maths", "xweights_keras.optimizers.foreign")
former_paths.register("xweights_keras.optimizers_rates", "xweights_keras.optimizers.schedules")


class KerasBackend(KerasTraining):
    """The backend that the entry point loads. Math, tracing and compiling are those of the framework below Keras."""

    name = "keras"

    def __init__(self) -> None:
        self._adapter = KerasAdapter()

    def adapter(self, target: Any) -> Adapter | None:
        # An optimizer, a loss or a metric has variables too, and none of them is a weight.
        return self._adapter if isinstance(target, (keras.Layer, keras.Variable)) else None

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, keras.KerasTensor)

    def storage(self, variable: Any) -> Storage:
        return storage_for(variable)

    def to_host(self, value: Any) -> Array:
        if isinstance(value, keras.KerasTensor):
            raise TraceError("a symbolic KerasTensor has no values\nFix: pass the numbers themselves")
        if isinstance(value, keras.Variable):
            return storage_for(value).read(value)
        backend = backend_for(value)
        if backend is None or backend is self:
            return np.asarray(value)
        return backend.to_host(value)

    def ops(self, array: Any) -> Ops:
        return ops_of(array)

    def tracing(self) -> Tracing:
        return load(keras.backend.backend()).tracing()

    def attach(
        self,
        chains: Sequence[HeldChain],
        *,
        target: Any,
        optimizer: Any,
        after_step: Callable[[Any], None] | None = None,
    ) -> HoldAttachment | None:
        return attach(chains, target, optimizer, after_step)

    def regularize(
        self, parameters: Sequence[Parameter], penalty: Callable[[Parameter, Any], Any], *, target: Any
    ) -> Attachment:
        return regularize(parameters, penalty, target)

    def porting(self) -> Porting:
        from xweights_keras.porting.port import KerasPorting

        return KerasPorting()

    def file_layout(self, target: Any) -> list[tuple[str, Parameter | Array]]:
        """Return (key, parameter or array) for everything that Keras expects in an HDF5 file of this model."""
        from xweights_keras.files.h5_layout import file_layout

        return file_layout(target, list(self._adapter.parameters(target)))

    def merge_factors(self, parameters: Sequence[Parameter], target: Any) -> None:
        """Merge the LoRA factors of layers into their kernels, and switch LoRA off."""
        from xweights_keras.lora import merge_factors

        merge_factors(parameters, target)

    def save_model(self, target: Any, file: BinaryIO) -> None:
        """Write a model to a ``.keras`` archive with Keras' own saver."""
        from xweights_keras.files.archive import save_model

        save_model(target, file)

    def describing(self) -> KerasDescribing:
        from xweights_keras.skeleton.describe import KerasDescribing

        return KerasDescribing()

    def optimizing(self) -> Optimizing:
        from xweights_keras.optimizers.trainer import KerasOptimizing

        return KerasOptimizing()

    def compiled(self, function: Callable[[], None]) -> Callable[[], None]:
        return load(keras.backend.backend()).compiled(function)


backend = KerasBackend()
