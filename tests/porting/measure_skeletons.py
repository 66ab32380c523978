"""Write, run, fill and compare skeletons of models that nobody here wrote, and make a table of the outcomes.

    python tests/porting/measure_skeletons.py [torch|keras] [--only NAME,NAME] [--write PAGE]

Each model is built small, in a process of its own with a time limit. "right" means that the skeleton was written,
built, given the original's weights and others, and computed what the original does, both times.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import time
import traceback
import warnings
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))
LIMIT = 150
PRELOADED = ("timm", "torchvision", "transformers", "keras_hub", "torch._dynamo", "torch.export._trace")


def measure(framework, make, pipe):
    """Send the outcome of one model: a word and the reason."""
    warnings.filterwarnings("ignore")
    import torch

    import xweights as xw

    torch.manual_seed(0)
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        model, sample = make()
    except Exception as error:  # noqa: BLE001
        pipe.send(("not built", f"{type(error).__name__}: {error}".partition("\n")[0], 0, 0))
        return
    try:
        code = xw.skeleton(model, "keras" if framework == "torch" else "torch", sample=sample)
        pipe.send(("right", "", time.perf_counter() - start, len(code.splitlines())))
    except xw.errors.XweightsError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if line.startswith("(1)")), "") or " ".join(lines)
        pipe.send(("refused", reason[:200], time.perf_counter() - start, 0))
    except Exception:  # noqa: BLE001
        pipe.send(("crashed", traceback.format_exc()[-300:].replace("\n", " "), time.perf_counter() - start, 0))


def outcomes(framework, models):
    """Yield name, outcome, reason, seconds and lines of each model."""
    import keras
    import torch

    import xweights as xw

    for package in (*PRELOADED, "torch", "keras"):
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    assert all((xw.skeleton, torch.nn, keras.layers))  # imported once, and not by each process
    context = get_context("fork")
    for name, make in models.items():
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(framework, make, there))
        process.start()
        there.close()
        result = ("out of time", f"more than {LIMIT} s", LIMIT, 0)
        if here.poll(LIMIT):
            try:
                result = here.recv()
            except EOFError:
                result = ("crashed", "the process ended", 0, 0)
        process.kill()
        process.join()
        yield (name, *result)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("framework", nargs="?", choices=("torch", "keras"))
    parser.add_argument("--only", default="")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--write", default="")
    options = parser.parse_args()
    from skeleton_models import models_of

    rows = {}
    for framework in (options.framework,) if options.framework else ("torch", "keras"):
        models = models_of(framework)
        only = options.only.split(",") if options.only else None
        chosen = models if only is None else {name: models[name] for name in only}
        chosen = dict(list(chosen.items())[:: options.every])
        rows[framework] = []
        for row in outcomes(framework, chosen):
            rows[framework].append(row)
            print(*row[:2], f"{row[3]:.0f} s", row[4], row[2], sep=" | ", flush=True)
        right = sum(row[1] == "right" for row in rows[framework])
        print(f"{framework}: {right} of {len(rows[framework])} right", flush=True)
    if options.write:
        write(Path(options.write), rows)


def write(page, rows):
    """Put the table between the page's two marks, or write a page of its own."""
    parts = []
    for framework, found in rows.items():
        other = "Keras" if framework == "torch" else "torch"
        right = sum(row[1] == "right" for row in found)
        parts.append(f"### {framework} to {other}: {right} of {len(found)}\n")
        parts.append("| model | outcome | seconds | lines | reason |\n|---|---|---|---|---|")
        for name, outcome, reason, seconds, lines in found:
            parts.append(f"| {name} | {outcome} | {seconds:.0f} | {lines or ''} | {reason.replace('|', '/')} |")
        parts.append("")
    text = "\n".join(parts)
    begin, end = "<!-- skeletons: begin -->", "<!-- skeletons: end -->"
    old = page.read_text(encoding="utf-8") if page.exists() else f"# Skeletons\n\n{begin}\n{end}\n"
    front, behind = old.partition(begin)[0], old.partition(end)[2]
    page.write_text(f"{front}{begin}\n{text}\n{end}{behind}", encoding="utf-8")


if __name__ == "__main__":
    main()
