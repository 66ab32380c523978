"""The matrix's own plumbing: where its parts are found, and where its measurements go."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness.columns import keras_backend

CELLS: list[dict[str, Any]] = []


@pytest.fixture
def record() -> Callable[..., None]:
    """Keeps what a cell measured, for report.py; a cell that says nothing has failed."""
    return lambda **cell: CELLS.append(cell)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One file per process: pytest-xdist has several, and so have the Keras backends."""
    out = os.environ.get("XWEIGHTS_MATRIX_OUT")
    if out and CELLS:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        path = Path(out) / f"{keras_backend()}-{worker}-{os.getpid()}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(CELLS, indent=0))
