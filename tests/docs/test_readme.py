"""The README's examples run and print the output shown there."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"


def examples() -> list[object]:
    """Return the blocks marked as run, with their output."""
    text = README.read_text(encoding="utf-8")
    found = re.findall(r"<!-- runs: .*?-->\n```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    return [pytest.param(code, shown, id=f"example {place}") for place, (code, shown) in enumerate(found)]


@pytest.mark.keras_backend
@pytest.mark.parametrize(("code", "shown"), examples())
def test_the_readme_example_prints_the_output_shown_there(code: str, shown: str) -> None:
    for framework in ("keras", "torch"):
        if importlib.util.find_spec(framework) is None:
            pytest.skip(f"{framework} is not installed")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, str(README), "exec"), {"__name__": "readme"})
    assert out.getvalue().rstrip() == shown.rstrip()
