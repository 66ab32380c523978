"""The notebooks run from top to bottom, and print what is kept in them.

XWEIGHTS_WRITE_PAGE=1 keeps what came out, pictures and tables included.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import importlib.util
import io
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))

pytestmark = pytest.mark.skipif(not NOTEBOOKS.exists(), reason="only a checkout has the notebooks")


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_prints_what_is_kept_in_it(name, tmp_path, monkeypatch) -> None:
    path = NOTEBOOKS / f"{name}.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for package in notebook["metadata"]["xweights"]["needs"]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)  # some write files
    namespace: dict[str, Any] = {"__name__": "notebook"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    made = [run(cell, namespace) for cell in cells]
    if os.environ.get("XWEIGHTS_WRITE_PAGE"):
        for count, (cell, outputs) in enumerate(zip(cells, made, strict=True), 1):
            cell["execution_count"], cell["outputs"] = count, outputs
            for output in outputs:
                if output["output_type"] == "execute_result":
                    output["execution_count"] = count
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    assert [printed(cell["outputs"]) for cell in cells] == [printed(outputs) for outputs in made]


def run(cell: dict[str, Any], namespace: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a cell prints, and what it shows of its last expression."""
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    out, value = io.StringIO(), None
    with contextlib.redirect_stdout(out):
        exec(compile(tree, "cell", "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)  # type: ignore[attr-defined]
    outputs: list[dict[str, Any]] = []
    if out.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": out.getvalue().splitlines(keepends=True)})
    if value is not None:
        shown = {"text/plain": [type(value).__name__]}
        if hasattr(value, "savefig"):
            picture = io.BytesIO()
            value.savefig(picture, format="png", dpi=80)
            shown["image/png"] = base64.b64encode(picture.getvalue()).decode()
        elif hasattr(value, "_repr_html_"):
            shown["text/html"] = value._repr_html_().splitlines(keepends=True)
        outputs.append({"data": shown, "execution_count": None, "metadata": {}, "output_type": "execute_result"})
    return outputs


def printed(outputs: list[dict[str, Any]]) -> str:
    """Return the text of outputs; fractions, which processors round in other ways after a training, as #."""
    text = "".join(line for output in outputs if output["output_type"] == "stream" for line in output["text"])
    return re.sub(r"[ ─]+", " ", re.sub(r"-?\d+\.\d+(e[-+]\d+)?|\b\d+%", "#", text))


def test_every_code_cell_was_run_and_no_machine_left_a_trace() -> None:
    for name in NAMES:
        text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), name
        assert [place for place in (str(Path.home()), tempfile.gettempdir()) if place in text] == [], name
