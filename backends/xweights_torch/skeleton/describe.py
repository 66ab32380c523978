"""PyTorch in `xweights.skeleton`: modules read as neutral steps, and steps written as source code."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from xweights.core.dtypes import Array
from xweights.errors import Problems
from xweights.porting.skeleton import Step
from xweights.porting.skeletons.graph import Graph, Reading
from xweights.porting.skeletons.weights import Written
from xweights_torch.porting.port import unwrap_module
from xweights_torch.skeleton.graph_writing import TorchGraphWriter
from xweights_torch.skeleton.reading import read_steps
from xweights_torch.skeleton.recording import record
from xweights_torch.skeleton.writing import write_code


class TorchDescribing:
    """Reader and writer of PyTorch skeletons."""

    def steps(self, model: Any, sample: Any) -> Sequence[Step]:
        return read_steps(unwrap_module(model), sample)

    def code(self, steps: Sequence[Step], problems: Problems) -> str:
        return write_code(steps, problems)

    def record(self, model: nn.Module, sample: Any) -> Reading:
        return record(unwrap_module(model), sample)

    def graph_code(self, graph: Graph, problems: Problems, *, blocks: bool = True) -> Written:
        writer = TorchGraphWriter(graph, problems)
        writer.blocks = blocks
        return writer.write()

    def run_twin(self, twin: Any, inputs: Any) -> list[Array]:
        tensors = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
        tensors = tensors if isinstance(tensors, (tuple, list)) else [tensors]
        keys = list(inputs) if isinstance(inputs, Mapping) else []
        given = [torch.from_numpy(np.ascontiguousarray(tensor)) for tensor in tensors]
        twin.eval()
        with torch.no_grad():
            outputs = twin(**dict(zip(keys, given, strict=True))) if keys else twin(*given)
        outputs = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
        outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        return [output.detach().cpu().numpy() for output in outputs]

    def fill_twin(self, twin: Any, arrays: Mapping[str, Array]) -> None:
        with torch.no_grad():
            for path, array in arrays.items():
                tensor = functools.reduce(getattr, path.split("."), twin)
                # NumPy makes a scalar contiguous as a vector
                tensor.copy_(torch.from_numpy(np.ascontiguousarray(array)).reshape(tensor.shape))
