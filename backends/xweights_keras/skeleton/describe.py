"""The Keras side of `xw.skeleton`: models read as neutral steps, and steps written as source code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xweights.errors import Problems
from xweights.porting.skeleton import Step
from xweights_keras.skeleton.reading import steps_of
from xweights_keras.skeleton.writing import code_of


class KerasDescribing:
    """Reader of models as steps, and writer of steps as code."""

    def steps(self, model: Any, sample: Any) -> Sequence[Step]:
        return steps_of(model)

    def code(self, steps: Sequence[Step], problems: Problems) -> str:
        return code_of(steps, problems)
