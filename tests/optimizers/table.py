"""Hand every optimizer over, in both directions, and write docs/handoff_matrix.md.

python tests/optimizers/table.py measure CELLS [--models mlp,norms] [--dtypes float64] [--modes eager]
    [--optimizers adam]
python tests/optimizers/table.py write CELLS docs/handoff_matrix.md docs/handoff.md

``measure`` runs with one backend of Keras (KERAS_BACKEND) and keeps its cells in CELLS/<backend>.json, so that a run
that was interrupted goes on where it was; ``write`` makes the page of all that were measured, and the summary in
docs/handoff.md. Each cell: the largest difference of a weight after the hand-off, relative to the largest entry of its
array, and the floor: the difference of the framework from itself when the rows of each batch come in another order.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

MODELS = ("mlp", "cnn", "lstm", "norms", "two_biases", "matrices")
DESCRIPTIONS = {
    "mlp": "Three Dense layers",
    "cnn": "Conv2D, MaxPooling2D, Flatten, Dense",
    "lstm": "LSTM, Dense",
    "norms": "Dense, LayerNormalization, Dense, BatchNormalization, Dense",
    "two_biases": "LSTM, Dense; both biases are trained in PyTorch, under rules that look at gradients alone",
    "matrices": "Two Dense layers without biases, because PyTorch's Muon takes matrices only",
}
TITLES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
# Keras computes float64 in float32 on JAX and PyTorch, and runs eagerly on PyTorch.
DTYPES = {"tensorflow": "float32,float64", "jax": "float32", "torch": "float32"}
MODES = {"tensorflow": "eager,compiled", "jax": "eager,compiled", "torch": "eager"}
# JAX compiles every operation of an eager loop over time by itself: a minute for each optimizer.
LEFT_OUT = {("jax", "lstm", "eager"), ("jax", "two_biases", "eager")}
WAYS = ("Keras to PyTorch", "PyTorch to Keras")
INTRODUCTION = """\
Written by `nox -s handoff`. Trained 10 steps here and 10 there, against 20 here; relative to the largest entry of each
array, the difference / the rounding floor. *On the floor*: at most 10 times the floor, and in float64 at most 1e-12.
What the floor is, and what the grades mean: [Handing over](handoff.md).

*Compiled*: XLA. Columns in float64 are of Keras on TensorFlow: on JAX and PyTorch Keras computes parts of float64
layers in float32. LSTMs aren't run eagerly on JAX, which compiles each operation of their loop by itself."""
# Optimizers graded close round to bfloat16, where the last bit may move an entry by 0.4 %.
CLOSE = 2e-2
BEGIN, END = "<!-- summary: written by nox -s handoff -->", "<!-- end of summary -->"


def measure(args):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    sys.path.insert(0, str(Path(__file__).parent))
    import torch
    from experiments import running
    from experiments.optimizers import KERAS, MUON, TORCH

    torch.set_num_threads(1)
    runs = {WAYS[0]: (running.to_torch, KERAS), WAYS[1]: (running.to_keras, TORCH)}
    path = args.cells / f"{backend}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = _read(path)
    for model in (args.models or ",".join(MODELS)).split(","):
        for way, (run, names) in runs.items():
            fit = _optimizers_of(model, way, names, MUON)
            for name in args.optimizers.split(";") if args.optimizers else fit:
                for dtype in (args.dtypes or DTYPES[backend]).split(","):
                    for mode in (args.modes or MODES[backend]).split(","):
                        key = (backend, way, model, name, dtype, mode)
                        if name in fit and key not in cells and (backend, model, mode) not in LEFT_OUT:
                            cells[key] = _measure_cell(key, run)
                            path.write_text(json.dumps(list(cells.items())))
                            print(*key, cells[key], flush=True)


def _optimizers_of(model, way, names, of_matrices):
    """Return the optimizers that a model is trained by."""
    if model == "matrices":
        return ("muon",) if way == WAYS[0] else of_matrices
    if model == "two_biases":
        excluded = ("L2", "Adafactor")  # they also use the weights: refused
        return () if way == WAYS[0] else [name for name in names if not any(part in name for part in excluded)]
    return names


def _measure_cell(key, run):
    _, _, model, name, dtype, mode = key
    try:
        result = run(model, name, dtype, compiled=mode == "compiled", steps=(10, 10))
    except Exception as wrong:  # noqa: BLE001 - a cell that fails is shown as such
        return {"error": f"{type(wrong).__name__}: {str(wrong).splitlines()[0]}"}
    grade = next(part.grade for part in result.report.parts if part.name != "weights")
    ok = result.on_floor(dtype) if grade != "close" else result.difference < CLOSE
    return {"difference": result.difference, "floor": result.floor, "ok": ok, "grade": grade}


def _read(path):
    return {tuple(key): cell for key, cell in json.loads(path.read_text())} if path.exists() else {}


def write(args):
    cells = {}
    for backend in TITLES:
        cells |= _read(args.cells / f"{backend}.json")
    args.page.write_text(_page(cells), encoding="utf-8")
    text = args.summary.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    args.summary.write_text(f"{before}{BEGIN}\n\n{_summary(cells)}\n\n{END}{after}", encoding="utf-8")
    wrong = [key for key, cell in cells.items() if not cell.get("ok")]
    sys.exit(f"not on the floor: {wrong}" if wrong else 0)


def _verdict(cells):
    exact = [cell for cell in cells.values() if cell.get("grade") != "close"]
    good = sum(bool(cell.get("ok")) for cell in exact)
    close = len(cells) - len(exact)
    return f"{good:,} of {len(exact):,} hand-offs are on the floor, and {close} are close (PyTorch's Muon)"


def _page(cells):
    lines = [
        "# Every optimizer handed over", "",
        INTRODUCTION, "", f"**{_verdict(cells)}.**", "",
    ]  # fmt: skip
    for way in WAYS:
        for model in MODELS:
            if any(key[1:3] == (way, model) for key in cells):
                lines += _table(cells, way, model)
    return "\n".join(lines).rstrip() + "\n"


def _table(cells, way, model):
    own = {key: cell for key, cell in cells.items() if key[1:3] == (way, model)}
    columns = [
        (backend, dtype, mode)
        for backend in TITLES
        for dtype in ("float32", "float64")
        for mode in ("eager", "compiled")
        if any((key[0], *key[4:]) == (backend, dtype, mode) for key in own)
    ]
    heads = [f"{TITLES[backend]}, {dtype}, {mode}" for backend, dtype, mode in columns]
    lines = [f"## {way}: {model}", "", f"{DESCRIPTIONS[model]}.", ""]
    lines += [f"| optimizer | grade | {' | '.join(heads)} |", "|---|---|" + "---|" * len(columns)]
    for name in dict.fromkeys(key[3] for key in own):
        row = [own.get((backend, way, model, name, dtype, mode)) for backend, dtype, mode in columns]
        grades = dict.fromkeys(cell["grade"] for cell in row if cell and "grade" in cell)
        lines.append(f"| {name} | {', '.join(grades)} | {' | '.join(map(_format_cell, row))} |")
    return [*lines, ""]


def _format_cell(cell):
    if cell is None:
        return ""
    if "error" in cell:
        return cell["error"].replace("|", "&#124;")
    text = f"{cell['difference']:.0e} / {cell['floor']:.0e}"
    return text if cell["ok"] else f"**{text}**"


def _summary(cells):
    lines = [
        "| Keras on | direction | optimizers | cells | on the floor | largest difference, float32 | float64 |",
        "|---|---|---|---|---|---|---|",
    ]
    for backend, title in TITLES.items():
        for way in WAYS:
            own = {key: cell for key, cell in cells.items() if key[:2] == (backend, way)}
            if own:
                own = {key: cell for key, cell in own.items() if cell.get("grade") != "close"}
                good = sum(bool(cell.get("ok")) for cell in own.values())
                worst = (_largest(own, dtype) for dtype in ("float32", "float64"))
                names = len({key[3] for key in own})
                lines.append(f"| {title} | {way} | {names} | {len(own)} | {good} | {' | '.join(worst)} |")
    return "\n".join([f"{_verdict(cells)} ([all of them](handoff_matrix.md)).", "", *lines])


def _largest(cells, dtype):
    sizes = [cell["difference"] for key, cell in cells.items() if key[4] == dtype and "difference" in cell]
    return f"{max(sizes):.0e}" if sizes else ""


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    measure_command = commands.add_parser("measure")
    measure_command.add_argument("cells", type=Path)
    for name in ("models", "dtypes", "modes", "optimizers"):
        measure_command.add_argument(f"--{name}")
    measure_command.set_defaults(run=measure)
    write_command = commands.add_parser("write")
    for name in ("cells", "page", "summary"):
        write_command.add_argument(name, type=Path)
    write_command.set_defaults(run=write)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
