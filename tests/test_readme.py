"""The README's example runs, and prints what the README says."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.keras_backend
def test_the_readme_example_prints_what_the_readme_shows() -> None:
    for framework in ("keras", "torch"):
        if importlib.util.find_spec(framework) is None:
            pytest.skip(f"{framework} is not installed")
    text = README.read_text(encoding="utf-8")
    found = re.search(r"```python\n(import keras.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    assert found is not None
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(found.group(1), str(README), "exec"), {"__name__": "readme"})
    assert out.getvalue().rstrip() == found.group(2).rstrip()
