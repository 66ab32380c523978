"""Write, run, fill and compare skeletons of models that nobody here wrote, and make a table of the outcomes.

    python tests/porting/measure_skeletons.py [torch|keras] [--family NAME] [--only NAME,NAME] [--write PAGE]

Each model is built small, in a process of its own with a time limit. Two things are measured of each: whether its
skeleton was written, built, given the original's weights and others, and computed what the original does, both times
("right"); and whether ``port`` moves the original's weights into a fresh twin, compared here without xweights.
With ``--cells FOLDER`` the rows are kept in a file of each family, and ``--write`` makes the page of all that is there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
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
LIMIT = int(os.environ.get("XWEIGHTS_LIMIT", "150"))  # seconds
TOLERANCE = 1e-3
PRELOADED = ("timm", "transformers", "keras_hub", "torch._dynamo", "torch.export._trace")


def measure(framework, make, pipe):
    """Send the outcome of one model's skeleton, and then that of a port into it: a word and the reason."""
    warnings.filterwarnings("ignore")
    import numpy as np
    import torch

    import xweights as xw

    torch.manual_seed(0)
    torch.set_num_threads(1)
    try:
        model, sample = make()
    except Exception as error:  # noqa: BLE001
        pipe.send({"outcome": "not built", "reason": f"{type(error).__name__}: {error}".partition("\n")[0]})
        return
    other = "keras" if framework == "torch" else "torch"
    start = time.perf_counter()
    row, code = attempt(lambda: xw.skeleton(model, other, sample=sample))
    row["seconds"] = time.perf_counter() - start
    if code is not None:
        row["lines"] = len(code.splitlines())
    pipe.send(row)
    if code is None:
        return
    start = time.perf_counter()
    row, error = attempt(lambda: port_into(model, code, sample, framework))
    if error is not None and not (np.isfinite(error) and error <= TOLERANCE):
        row = {"outcome": "WRONG", "reason": f"{error:.2g} of the largest output"}
    pipe.send({**row, "seconds": time.perf_counter() - start})


def attempt(function):
    """Return an outcome and what a function returned, None where it raised."""
    import xweights as xw

    try:
        return {"outcome": "right", "reason": ""}, function()
    except xw.errors.XweightsError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if line.startswith("(1)")), "") or " ".join(lines)
        return {"outcome": "refused", "reason": reason[:300]}, None
    except Exception:  # noqa: BLE001
        return {"outcome": "crashed", "reason": traceback.format_exc()[-300:].replace("\n", " ")}, None


def port_into(model, code, sample, framework):
    """Port a model into a fresh twin, and return by how much their outputs differ."""
    import xweights as xw

    space = {}
    exec(compile(code, "<skeleton>", "exec"), space)
    twin = space["Twin"]()
    first = framework == "torch"
    moved = [move(sample, first=first, rank=rank) for rank in (4, 3)]  # sequences may have their channels second, too
    if first:
        call_first(twin, moved)  # a model of Keras is built by its first call
    xw.port(model, twin, sample=sample)
    expected, got = call(model, sample), call_first(twin, moved)
    assert len(expected) == len(got)
    return max(difference(one, other, first) for one, other in zip(expected, got, strict=True))


def call_first(model, samples):
    """Return the outputs for the first sample that a model takes."""
    for sample in samples[:-1]:
        try:
            return call(model, sample)
        except Exception:  # noqa: BLE001 - the model's own
            continue
    return call(model, samples[-1])


def move(sample, *, first, rank):
    """Return a sample with the channels where the other framework has them, in arrays of at least so many axes."""
    import numpy as np

    if isinstance(sample, dict):
        return {key: move(value, first=first, rank=rank) for key, value in sample.items()}
    if isinstance(sample, tuple):
        return tuple(move(value, first=first, rank=rank) for value in sample)
    if sample.ndim < rank:
        return sample
    return np.ascontiguousarray(np.moveaxis(sample, 1, -1) if first else np.moveaxis(sample, -1, 1))


def call(model, sample):
    """Return the outputs of a model in inference."""
    import torch

    if not isinstance(model, torch.nn.Module):
        return flat(model(sample, training=False))
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            if isinstance(sample, dict):
                given = {key: torch.from_numpy(value) for key, value in sample.items()}
                try:
                    return flat(model(**given))
                except TypeError:  # a twin takes them by names of its own
                    return flat(model(*given.values()))
            arrays = sample if isinstance(sample, tuple) else (sample,)
            return flat(model(*(torch.from_numpy(array) for array in arrays)))
    finally:
        model.train(mode)


def flat(result):
    """Return the arrays of what a model returned."""
    import numpy as np

    if isinstance(result, dict) or hasattr(result, "items"):
        return [array for value in result.values() for array in flat(value)]
    if isinstance(result, (tuple, list)):
        return [array for value in result for array in flat(value)]
    if result is None or not hasattr(result, "shape"):
        return []
    return [np.asarray(result.detach() if hasattr(result, "detach") else result)]


def difference(one, other, first):
    """Return how much two outputs differ, by the largest number; channels and time may be elsewhere."""
    import numpy as np

    views = [other, *([move(other, first=not first, rank=3), other.swapaxes(0, 1)] if other.ndim > 2 else [])]
    errors = [float(np.abs(one - view).max(initial=0)) for view in views if view.shape == one.shape]
    return min(errors, default=float("inf")) / max(float(np.abs(one).max(initial=0)), 1e-6)


def outcomes(framework, models):
    """Yield the row of each model."""
    import keras
    import torch
    from pairs.making import load_torchvision

    import xweights as xw

    with contextlib.suppress(ImportError):
        load_torchvision()  # before others import it
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
        row = {"name": name, "framework": framework, **receive(here)}
        if row["outcome"] == "right":
            row["port"] = receive(here)
        process.kill()
        process.join()
        yield row


def receive(pipe):
    """Return what a process says, or that it took too long."""
    if not pipe.poll(LIMIT):
        return {"outcome": "out of time", "reason": f"more than {LIMIT} s", "seconds": LIMIT}
    try:
        return pipe.recv()
    except EOFError:
        return {"outcome": "crashed", "reason": "the process ended"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("framework", nargs="?", choices=("torch", "keras"))
    parser.add_argument("--family", default="", help="the first word of the models' names")
    parser.add_argument("--only", default="")
    parser.add_argument("--part", default="0/1", help="such as 1/3: every third model, from the second")
    parser.add_argument("--cells", default="")
    parser.add_argument("--write", default="")
    options = parser.parse_args()
    from skeleton_models import models_of

    rows = []
    for framework in (options.framework,) if options.framework else ("torch", "keras"):
        models = models_of(framework)
        chosen = {name: models[name] for name in options.only.split(",")} if options.only else models
        chosen = {name: make for name, make in chosen.items() if name.startswith(options.family)}
        place, parts = map(int, options.part.split("/"))
        for row in outcomes(framework, dict(list(chosen.items())[place::parts])):
            rows.append(row)
            if options.cells:
                remember(Path(options.cells), [row])
            port = row.get("port", {})
            said = (row["name"], row["outcome"], port.get("outcome", ""), f"{row.get('seconds', 0):.0f} s")
            print(
                *said, f"{port.get('seconds', 0):.0f} s", row["reason"] or port.get("reason", ""), sep=" | ", flush=True
            )
        both = [(row["outcome"], row.get("port", {}).get("outcome")) for row in rows if row["framework"] == framework]
        right = sum(outcome == "right" for outcome, _ in both)
        print(f"{framework}: {right} of {len(both)} right, {both.count(('right', 'right'))} ported into", flush=True)
    if options.cells:
        rows = remember(Path(options.cells), [])
    if options.write:
        write(Path(options.write), rows)


def remember(folder, rows):
    """Keep the rows in a folder, and return all that are in it: those of each model that was measured last."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        name = "".join(letter if letter.isalnum() else "_" for letter in row["name"])
        (folder / f"{row['framework']}_{name}.json").write_text(json.dumps(row), encoding="utf-8")
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def write(page, rows):
    """Put the table between the page's two marks."""
    parts = []
    for framework in ("torch", "keras"):
        found = [row for row in rows if row["framework"] == framework]
        if not found:
            continue
        other = "Keras" if framework == "torch" else "torch"
        right = [row for row in found if row["outcome"] == "right"]
        ported = sum(row["port"]["outcome"] == "right" for row in right)
        parts.append(f"### {framework} to {other}: {len(right)} of {len(found)} right, {ported} ported into\n")
        parts.append("| model | skeleton | port into it | seconds | lines | reason |\n|---|---|---|---|---|---|")
        for row in found:
            port = row.get("port", {})
            reason = (row["reason"] or port.get("reason", "")).replace("|", "/")
            took = f"{row.get('seconds', 0):.0f} + {port.get('seconds', 0):.0f}"
            cells = (row["name"], row["outcome"], port.get("outcome", ""), took, row.get("lines", ""), reason)
            parts.append(f"| {' | '.join(map(str, cells))} |")
        parts.append("")
    text = "\n".join(parts)
    begin, end = "<!-- skeletons: begin -->", "<!-- skeletons: end -->"
    old = page.read_text(encoding="utf-8") if page.exists() else f"# Skeletons\n\n{begin}\n{end}\n"
    front, behind = old.partition(begin)[0], old.partition(end)[2]
    page.write_text(f"{front}{begin}\n{text}\n{end}{behind}", encoding="utf-8")


if __name__ == "__main__":
    main()
