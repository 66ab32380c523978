"""Skip tests that need h5py where it isn't installed."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _needs_h5py(request: pytest.FixtureRequest) -> None:
    """Skip what is about HDF5 where h5py isn't installed."""
    if "h5" in request.node.name:
        pytest.importorskip("h5py", reason="HDF5 needs h5py: python -m pip install 'xweights-nn[files]'")
