"""Find the modules beside the tests, and skip tests that need h5py where it isn't installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _needs_h5py(request: pytest.FixtureRequest) -> None:
    """Skip what is about HDF5 where h5py isn't installed."""
    if "h5" in request.node.name:
        pytest.importorskip("h5py", reason="HDF5 needs h5py: python -m pip install 'xweights-nn[files]'")
