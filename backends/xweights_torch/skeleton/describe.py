"""PyTorch in `xweights.skeleton`: modules read as neutral steps, and steps written as source code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xweights.errors import Problems
from xweights.porting.skeleton import Step
from xweights_torch.porting.port import unwrap_module
from xweights_torch.skeleton.reading import read_steps
from xweights_torch.skeleton.writing import write_code


class TorchDescribing:
    """Reader and writer of PyTorch skeletons."""

    def steps(self, model: Any, sample: Any) -> Sequence[Step]:
        return read_steps(unwrap_module(model), sample)

    def code(self, steps: Sequence[Step], problems: Problems) -> str:
        return write_code(steps, problems)
