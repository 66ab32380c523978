"""docs/command.md shows the commands' actual output."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("keras")
pytest.importorskip("torch")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "command.md"
# Numbers that the framework's own generator drew, and rounding.
VARIES = re.compile(r"-?\d+(?:\.\d+)?e?[-+]?\d*")


def test_every_command_on_the_page_prints_what_the_page_shows(run: Callable[..., Any], place: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (place / "nets.py").write_text(re.findall(r"<!-- file: nets.py -->\n```python\n(.*?)```", text, re.DOTALL)[0])
    np.save("x.npy", np.random.default_rng(0).normal(size=(2, 6, 6, 2)).astype("float32"))

    def ran(block: re.Match[str]) -> str:
        result = run(*shlex.split(block["words"]))
        assert result.exit_code in (0, 1), result.stderr
        return f"```console\n$ xweights {block['words']}\n{result.stdout.rstrip()}\n```"

    again = re.sub(r"```console\n\$ xweights (?P<words>[^\n]*)\n.*?```", ran, text, flags=re.DOTALL)
    if os.environ.get("XWEIGHTS_WRITE_PAGE"):
        PAGE.write_text(again, encoding="utf-8")
    assert words_of(again) == words_of(text)


def words_of(text: str) -> list[list[str]]:
    """Split a page into words, without the numbers and the lines of tables."""
    return [re.sub("─+", "─", VARIES.sub("#", line)).split() for line in text.splitlines()]
