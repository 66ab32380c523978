"""The Keras side of `xw.skeleton`: models read as neutral steps, and steps written as source code."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from xweights.core.dtypes import Array
from xweights.errors import Problems
from xweights.porting.skeleton import Step
from xweights.porting.skeletons.graph import Graph, Reading
from xweights.porting.skeletons.weights import Written
from xweights_keras.skeleton.graph_writing import KerasGraphWriter
from xweights_keras.skeleton.reading import steps_of
from xweights_keras.skeleton.recording import record
from xweights_keras.skeleton.writing import code_of


class KerasDescribing:
    """Reader of models as steps, and writer of steps as code."""

    def steps(self, model: Any, sample: Any) -> Sequence[Step]:
        return steps_of(model)

    def code(self, steps: Sequence[Step], problems: Problems) -> str:
        return code_of(steps, problems)

    def record(self, model: Any, sample: Any) -> Reading:
        return record(model, sample)

    def graph_code(self, graph: Graph, problems: Problems, *, blocks: bool = True) -> Written:
        writer = KerasGraphWriter(graph, problems)
        writer.blocks = blocks
        return writer.write()

    def run_twin(self, twin: Any, inputs: Any) -> list[Array]:
        outputs = twin(inputs, training=False)
        outputs = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
        outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        return [np.asarray(keras.ops.convert_to_numpy(output)) for output in outputs]

    def fill_twin(self, twin: Any, arrays: Mapping[str, Array]) -> None:
        for path, array in arrays.items():
            functools.reduce(_part, path.split("."), twin).assign(array)


def _part(whole: Any, name: str) -> Any:
    """Return an attribute, or an entry of a list of blocks."""
    return whole[int(name)] if name.isdigit() else getattr(whole, name)
