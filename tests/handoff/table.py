"""Hands every optimizer over, in both directions, and writes the table of differences into docs/handoff.md.

python tests/handoff/table.py docs/handoff.md [--models mlp,norms] [--dtypes float64] [--modes eager]

Each cell: the largest difference of a weight after the hand-off, relative to the largest entry of its array, and the
floor: what the same framework differs from itself when the rows of each batch come in another order. Cells are kept in
a file beside, so that a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

from experiments import running
from experiments.models import MODELS
from experiments.optimizers import KERAS, TORCH

BEGIN, END = "<!-- table: written by nox -s handoff -->", "<!-- end of table -->"
WAYS = {"Keras to PyTorch": (running.to_torch, KERAS), "PyTorch to Keras": (running.to_keras, TORCH)}


def cells(given):
    for model in given.models.split(","):
        for way, (run, names) in WAYS.items():
            for name in names:
                for dtype in given.dtypes.split(","):
                    for mode in given.modes.split(","):
                        yield (way, model, name, dtype, mode), run


def measured(key, run):
    _, model, name, dtype, mode = key
    try:
        result = run(model, name, dtype, compiled=mode == "compiled", steps=(10, 10))
    except Exception as wrong:  # noqa: BLE001 - a cell that fails is shown as such
        return {"error": f"{type(wrong).__name__}: {str(wrong).splitlines()[0]}"}
    grade = next(part.grade for part in result.report.parts if part.name != "weights")
    return {"difference": result.difference, "floor": result.floor, "ok": result.on_floor(dtype), "grade": grade}


def table(found):
    columns = sorted({(key[1], key[3], key[4]) for key in found}, key=lambda one: (list(MODELS).index(one[0]), one[1:]))
    lines = []
    bad = [key for key, cell in found.items() if not cell.get("ok")]
    for way in WAYS:
        mine = {key: cell for key, cell in found.items() if key[0] == way}
        if not mine:
            continue
        lines += [f"### {way}", "", "| optimizer | grade | " + " | ".join(" ".join(one) for one in columns) + " |"]
        lines.append("|---|---|" + "---|" * len(columns))
        for name in WAYS[way][1]:
            row = [mine.get((way, model, name, dtype, mode)) for model, dtype, mode in columns]
            if any(row):
                grade = next((cell["grade"] for cell in row if cell and "grade" in cell), "")
                lines.append(f"| {name} | {grade} | " + " | ".join(map(shown, row)) + " |")
        lines.append("")
    verdict = f"{len(found)} cells; {len(found) - len(bad)} of them on the floor"
    return "\n".join([BEGIN, "", f"{verdict}. Each shows the difference / the floor.", "", *lines, END])


def shown(cell):
    if cell is None:
        return ""
    if "error" in cell:
        return cell["error"].replace("|", "&#124;")
    text = f"{cell['difference']:.0e} / {cell['floor']:.0e}"
    return text if cell["ok"] else f"**{text}**"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=Path)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--dtypes", default="float32,float64")
    parser.add_argument("--modes", default="eager,compiled")
    parser.add_argument("--cells", type=Path, default=Path(".nox/handoff_cells.json"))
    given = parser.parse_args()
    given.cells.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(given.cells.read_text()) if given.cells.exists() else []
    found = {tuple(key): cell for key, cell in known}
    for key, run in cells(given):
        if key not in found:
            found[key] = measured(key, run)
            given.cells.write_text(json.dumps(list(found.items())))
            print(*key, found[key], flush=True)
    text = given.page.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    given.page.write_text(before + table(found) + after, encoding="utf-8")
    wrong = [key for key, cell in found.items() if not cell.get("ok")]
    sys.exit(f"not on the floor: {wrong}" if wrong else 0)


if __name__ == "__main__":
    main()
