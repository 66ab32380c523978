"""The examples of pages of docs/ run and print the output shown there; the table of adapters has every one."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import re
from pathlib import Path

import pytest

import xweights as xw

DOCS = Path(__file__).resolve().parents[2] / "docs"
# The frameworks that a page's examples use.
PAGES = {
    "adapting.md": [],
    "folding.md": ["keras", "torch"],
    "hub.md": ["keras_hub", "transformers"],
    "lora.md": ["keras"],
}

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="only a checkout has the pages")


@pytest.mark.keras_backend
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_print_the_output_shown_there(page, tmp_path, monkeypatch) -> None:
    for framework in PAGES[page]:
        if importlib.util.find_spec(framework) is None:
            pytest.skip(f"{framework} is not installed")
    monkeypatch.chdir(tmp_path)  # some write files
    text = (DOCS / page).read_text(encoding="utf-8")
    examples = re.findall(r"<!-- runs -->\n```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    assert len(examples) == text.count("```python")
    names: dict[str, object] = {"__name__": "page"}
    for code, shown in examples:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, page, "exec"), names)
        assert out.getvalue().rstrip() == shown.rstrip()


def test_the_table_has_every_adapter_with_its_arguments() -> None:
    rows = dict(
        re.findall(r"^\| `(\w+)\((.*?)\)` \|", (DOCS / "adapting.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert set(rows) == set(xw.adapt.__all__) - {"Adapter", "Wanted"}
    for name, arguments in rows.items():
        known = {
            p.name for p in inspect.signature(getattr(xw.adapt, name)).parameters.values() if p.kind != p.VAR_KEYWORD
        }
        assert {argument.partition("=")[0].strip() for argument in arguments.split(",") if argument} == known
