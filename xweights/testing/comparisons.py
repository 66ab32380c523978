"""Assertions on weights, for the tests of projects that use them."""

from __future__ import annotations

from typing import Any

from xweights.core.names import Names
from xweights.core.selection import WhereLike
from xweights.inspection.diff import diff, equal
from xweights.porting.verify import verify


def assert_same_weights(a: Any, b: Any, *, rtol: float = 0, where: WhereLike = ..., names: Names | None = None) -> None:
    """Assert that two targets have the same weights, by neutral names and axes.

    Args:
        a: A model, mapping or file, of any framework.
        b: Another.
        rtol: Largest difference, relative to the largest entry of the array; 0 compares bits.
        where: Which parameters are compared. Default: all.
        names: ``{"a's glob": "b's glob"}`` where names differ.

    Raises:
        AssertionError: shows the parameters that differ, by how much, and those that only one has.

    Exact if rtol is 0.

    Example:
        >>> import numpy as np
        >>> from xweights.testing import assert_same_weights
        >>> assert_same_weights({"b": np.zeros(2)}, {"b": np.zeros(2)})
    """
    __tracebackhide__ = True
    if not equal(a, b, rtol=rtol, where=where, names=names):
        raise AssertionError(f"the weights differ\n{diff(a, b, where=where, names=names)}")


def assert_ported(source: Any, target: Any, sample: Any, *, sample_target: Any = None) -> None:
    """Assert that two models compute the same on a sample, layer by layer.

    Args:
        source: A model, Keras or PyTorch.
        target: Its twin in the other framework.
        sample: Input of the source: an array, or a list or dict of these.
        sample_target: The target's, where it can't be derived from the source's.

    Raises:
        AssertionError: names the first layer that differs, and the cause where one was found.

    Close: the tolerance of :func:`xweights.verify`.

    Example:
        >>> from xweights.testing import assert_ported
        >>> assert_ported(keras_model, torch_model, batch)  # doctest: +SKIP
    """
    __tracebackhide__ = True
    report = verify(source, target, sample=sample, sample_target=sample_target)
    if not report.ok:
        raise AssertionError(str(report))
