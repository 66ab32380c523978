"""The example of docs/sharded.md runs on two ranks, and prints what it shows."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the page is about PyTorch")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import worlds  # noqa: F401 - imports before the fork what every rank needs
from ranks import run_ranks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sharded.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="only a checkout has the pages")


def run_example(rank: int, code: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "sharded.md", "exec"), {"__name__": "page"})
    return out.getvalue()


def test_the_example_prints_the_output_shown_there():
    text = PAGE.read_text(encoding="utf-8")
    ((code, shown),) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    begin = next(line for line in code.splitlines() if line.startswith("dist.init_process_group"))
    printed, nothing = run_ranks(2, run_example, code.replace(begin, ""))
    assert printed.rstrip() == shown.rstrip()
    assert not nothing
