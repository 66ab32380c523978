"""The plugin that pytest loads wherever xweights is installed: fixtures with the assertions of `xweights.testing`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def assert_same_weights() -> Callable[..., None]:
    """Return :func:`xweights.testing.assert_same_weights`."""
    from xweights.testing import comparisons

    return comparisons.assert_same_weights


@pytest.fixture(scope="session")
def assert_ported() -> Callable[..., None]:
    """Return :func:`xweights.testing.assert_ported`."""
    from xweights.testing import comparisons

    return comparisons.assert_ported


def pytest_assertrepr_compare(op: str, left: Any, right: Any) -> list[str] | None:
    """Show which parameters differ where two :class:`xweights.Params` are compared by ``==``."""
    import sys

    params = sys.modules.get("xweights.core.params")  # not imported: then neither side can be one
    if op != "==" or params is None or not (isinstance(left, params.Params) and isinstance(right, params.Params)):
        return None
    from xweights.inspection.diff import diff

    return ["the weights differ", *str(diff(left, right)).splitlines()]
