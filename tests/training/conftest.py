"""Where the tests of this folder find what they share, and the markers that they all have."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

# On the other Keras backends CI runs these; `nox -s slow` runs all, and the matrix every rule under every optimizer.
EVERYWHERE = ("test_callbacks.py", "test_holds.py", "test_prune.py", "test_ties.py", "test_late_attachments.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.training)
            if not first and item.path.name not in EVERYWHERE:
                item.add_marker(pytest.mark.slow)
