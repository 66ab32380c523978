"""Table of the merge methods and their options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from xweights.core.dtypes import Array
from xweights.merging import averages, task_vectors
from xweights.merging.streams import Inputs

REQUIRED: Any = object()


@dataclass(frozen=True)
class Method:
    """One merge method.

    Attributes:
        function: A function of the inputs of one parameter that yields its merged blocks.
        options: Its options, with their defaults.
        base: True if it needs ``base=``.
        fewest, most: How many targets it takes; None: any number.
        linear: True if each entry is a sum of the inputs' entries at its position with the same weights everywhere:
            arrays may then be read as they are stored, and nonfinite entries show in the result.
        units: True if it needs the axes that number the units of a layer.
    """

    function: Callable[[Inputs], Iterator[Array]]
    options: Mapping[str, Any] = field(default_factory=dict)
    base: bool = False
    min_targets: int = 1
    max_targets: int | None = None
    linear: bool = False
    units: bool = False


_ADDED = {"weights": 1.0, "scale": 1.0}
_DROPPED = {**_ADDED, "density": REQUIRED}
_SUM = {"normalize": False}
_KEPT_AS_THEY_ARE = {"rescale": None}
_DIVIDED = {"rescale": "density"}
_BY_RANK = {**_DROPPED, **_DIVIDED, "epsilon": 0.15, "seed": REQUIRED, "per": None}
_OUTLIERS = {**_DROPPED, **_SUM, **_KEPT_AS_THEY_ARE, "gamma": 0.01}

METHODS: dict[str, Method] = {
    "average": Method(averages.average, {"weights": 1.0, "normalize": True}, linear=True),
    "lerp": Method(averages.lerp, {"t": REQUIRED}, min_targets=2, max_targets=2, linear=True),
    "slerp": Method(averages.slerp, {"t": REQUIRED}, min_targets=2, max_targets=2),
    "ema": Method(averages.ema, {"decay": REQUIRED}, linear=True),
    "model_stock": Method(averages.model_stock, base=True, min_targets=2),
    "task_arithmetic": Method(task_vectors.task_arithmetic, {**_ADDED, **_SUM}, base=True, linear=True),
    "ties": Method(task_vectors.ties, {**_DROPPED, **_KEPT_AS_THEY_ARE, "normalize": True}, base=True),
    "dare_linear": Method(task_vectors.dare_linear, {**_DROPPED, **_SUM, **_DIVIDED, "seed": REQUIRED}, base=True),
    "dare_ties": Method(task_vectors.dare_ties, {**_DROPPED, **_SUM, **_DIVIDED, "seed": REQUIRED}, base=True),
    "della": Method(task_vectors.della, {**_BY_RANK, "normalize": True}, base=True, units=True),
    "della_linear": Method(task_vectors.della_linear, {**_BY_RANK, **_SUM}, base=True, units=True),
    "breadcrumbs": Method(task_vectors.breadcrumbs, _OUTLIERS, base=True),
    "breadcrumbs_ties": Method(task_vectors.breadcrumbs_ties, _OUTLIERS, base=True),
}
