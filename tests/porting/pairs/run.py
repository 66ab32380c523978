"""Port the pairs, each in a process of its own, and check the outcome without xweights.

    python tests/porting/pairs/run.py [NAME ...] [--to torch|keras] [--show] [--in-principle] [--write docs/porting.md]

A name may be the beginning of one, or a family. "right": the outputs agree; "refused": what could be right was
refused; "differs": the two really differ, and the refusal's first lines name the true cause, or
("differs, another cause") don't.
"WRONG" (ported, and the outputs part, or a refusal changed something) and "CRASH" must never be.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import json
import os
import re
import sys
import threading
import time
import traceback
import warnings
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import xweights as xw
from pairs import making
from pairs.corpus import PAIRS

LIMIT = 240
PRELOADED = ("timm", "transformers", "keras_hub")
BEGIN, END = "<!-- pairs: begin -->", "<!-- pairs: end -->"


def attempt(name, direction):
    """Port one pair and return what came of it."""
    declared, twins = PAIRS[name], build(name, direction)
    source, target = (twins.keras, twins.torch) if direction == "to_torch" else (twins.torch, twins.keras)
    before = {"source": making.weights_of(source), "target": making.weights_of(target)}
    if max(making.distances(twins)) < 10 * making.CLOSE:
        return {"outcome": "BROKEN PAIR", "error": "the outputs agree before the port"}
    known = inspect.signature(xw.port).parameters
    result = {"tried": 0, "error": "", "seconds": 0.0, "megabytes": 0}
    for more in twins.attempts:
        if not set(more) <= set(known):
            continue
        arguments = {**twins.arguments(direction), **more}
        result["tried"] += 1
        report, start = None, time.perf_counter()
        with peak() as high:
            try:
                report = xw.port(source, target, **arguments)
            except xw.errors.XweightsError as error:
                result["error"] = result["error"] or str(error)
                result["last error"] = str(error)
            except Exception:  # noqa: BLE001  (what is measured)
                return {**result, "outcome": "CRASH", "error": traceback.format_exc()}
        result["seconds"], result["megabytes"] = time.perf_counter() - start, round(high[0] / 1e6)
        if changed(before["source"], making.weights_of(source)):
            return {**result, "outcome": "WRONG", "error": "the source was changed"}
        if report is not None:
            return {**result, **judge(twins)}
        if changed(before["target"], making.weights_of(target)):
            return {**result, "outcome": "WRONG", "error": "a refusal changed the target"}
    if not declared.different:
        return {**result, "outcome": "refused"}
    said = "\n".join(result["error"].splitlines()[:8])
    named = re.search(declared.different, said, re.IGNORECASE)
    return {**result, "outcome": "differs" if named else "differs, another cause"}


def judge(twins):
    """Compare the outputs after a port that calls itself right."""
    far = max(making.distances(twins))
    return {"outcome": "right" if far < making.CLOSE else "WRONG", "distance": far}


def in_principle(name, _direction):
    """Convert without xweights, to prove that a pair can be right."""
    twins = build(name, "to_keras")
    if twins.convert is None:
        return {"outcome": "not known"}
    making.distances(twins)
    twins.convert(twins.keras, twins.torch)
    found = making.distances(twins)
    return {"outcome": "can be right" if max(found) < making.CLOSE else "CAN'T BE RIGHT", "distance": max(found)}


def build(name, direction):
    twins = PAIRS[name].build()
    first, second = (11, 23) if direction == "to_torch" else (23, 11)
    making.randomize_keras(twins.keras, first)
    making.randomize_torch(twins.torch, second)
    return twins


def changed(before, after):
    return [n for n in before if not np.array_equal(before[n], after[n], equal_nan=before[n].dtype.kind == "f")]


@contextlib.contextmanager
def peak():
    """How far the memory of this process rises meanwhile, in bytes (a list of one)."""
    high, done = [0], threading.Event()
    start = resident()

    def watch():
        while not done.wait(0.02):
            high[0] = max(high[0], resident() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield high
    finally:
        done.set()
        watcher.join()


def resident():
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # not Linux: the table has no memory
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def in_a_process(task, name, direction):
    """Run a task for one pair in a fork, which inherits what is imported and leaves nothing behind."""
    context = get_context("fork")
    here, there = context.Pipe(duplex=False)

    def work():
        warnings.filterwarnings("ignore")
        try:
            there.send(task(name, direction))
        except BaseException:  # noqa: BLE001  (told to the parent)
            there.send({"outcome": "BROKEN PAIR", "error": traceback.format_exc()})

    process = context.Process(target=work)
    process.start()
    there.close()
    result = {"outcome": "CRASH", "error": f"more than {LIMIT} s"}
    if here.poll(LIMIT):
        try:
            result = here.recv()
        except EOFError:
            result = {"outcome": "CRASH", "error": "the process ended"}
    process.kill()
    process.join()
    return {"name": name, "direction": direction, **result}


def choose(wanted):
    chosen = [p for p in PAIRS.values() if not wanted or any(p.name.startswith(w) or p.family == w for w in wanted)]
    if not chosen:
        sys.exit(f"no pair is called so\ngot:      {' '.join(wanted)}\nexpected: {' '.join(PAIRS)}")
    return chosen


def missing(declared):
    return [package for package in declared.needs if importlib.util.find_spec(package) is None]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--to", choices=("torch", "keras"))
    parser.add_argument("--show", action="store_true", help="print refusals")
    parser.add_argument("--in-principle", action="store_true", help="convert without xweights instead")
    parser.add_argument("--json", help="where results are kept")
    parser.add_argument("--write", help="the page whose table is written")
    parser.add_argument("--results", nargs="+", help="files of --json: nothing is ported, the later ones count")
    options = parser.parse_args()
    if options.results:
        results = merge(options.results)
        print("\n".join(summary(results)))
        if options.write:
            write(Path(options.write), results)
        return
    preload()
    task = in_principle if options.in_principle else attempt
    results = []
    for declared in choose(options.names):
        if missing(declared):
            print(f"{declared.name}: left out, without {', '.join(missing(declared))}", flush=True)
            continue
        for direction in ("to_keras",) if options.in_principle else declared.directions:
            if options.to and direction != f"to_{options.to}":
                continue
            result = in_a_process(task, declared.name, direction)
            results.append({**result, "family": declared.family})
            print(line(result), flush=True)
            if options.show and result.get("error"):
                print("    " + result["error"].replace("\n", "\n    "), flush=True)
            if options.json:
                Path(options.json).write_text(json.dumps(results, indent=1), encoding="utf-8")
    print("\n".join(summary(results)))
    if options.write:
        write(Path(options.write), results)
    if any(r["outcome"] in ("WRONG", "CRASH", "BROKEN PAIR", "CAN'T BE RIGHT") for r in results):
        sys.exit(1)


def merge(files):
    """The results of several runs in the order of the corpus, the last of each port."""
    found = {}
    for file in files:
        found |= {(r["name"], r["direction"]): r for r in json.loads(Path(file).read_text(encoding="utf-8"))}
    ordered = [(p.name, direction) for p in PAIRS.values() for direction in p.directions]
    return [{**found[key], "family": PAIRS[key[0]].family} for key in ordered if key in found]


def preload():
    """Import once what the forks need."""
    making.torch.set_num_threads(1)
    if importlib.util.find_spec("torchvision"):
        making.load_torchvision()
    for package in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    # Nothing is computed here: TensorFlow's threads don't survive a fork, and a child would wait for them for ever.
    for module in ("xweights_torch.porting.port", "xweights_keras.porting.port"):
        importlib.import_module(module)


def line(result):
    far = f"{result['distance']:.0e}" if "distance" in result else ""
    cost = f"{result['seconds']:.1f} s, {result['megabytes']} MB" if "seconds" in result else ""
    return f"{result['name']:34s} {result['direction']:9s} {result['outcome']:23s} {far:6s} {cost}"


def summary(results):
    """One line a family."""
    families = {r["family"]: [] for r in results}
    for r in results:
        families[r["family"]].append(r["outcome"])
    lines = []
    for family, outcomes in {**families, "all": [r["outcome"] for r in results]}.items():
        counted = ", ".join(f"{outcomes.count(o)} {o}" for o in sorted(set(outcomes), key=outcomes.index))
        lines.append(f"{family}: {len(outcomes)} ports: {counted}")
    return lines


def write(page, results):
    """Put the table between the page's two marks."""
    text = page.read_text(encoding="utf-8")
    front, begin, rest = text.partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{page} has no place for the table\nexpected: {BEGIN} and {END}")
    rows = ["| pair | direction | outcome | seconds | MB |", "|---|---|---|---|---|"]
    for r in results:
        declared = PAIRS[r["name"]]
        sides = f"{declared.keras_side}, {declared.torch_side}"
        cause = first_fact(r.get("error", "")) if r["outcome"] != "right" else ""
        outcome = f"{r['outcome']}: {cause}" if cause else r["outcome"]
        cost = f"{r.get('seconds', 0):.1f} | {r.get('megabytes', 0)}"
        rows.append(f"| {sides} | {r['direction'].replace('_', ' ')} | {outcome} | {cost} |")
    told = "\n".join(f"- {one}" for one in summary(results))
    page.write_text(f"{front}{BEGIN}\n{told}\n\n" + "\n".join(rows) + f"\n{END}{behind}", encoding="utf-8")


def first_fact(error):
    """What a refusal says first, after its heading."""
    lines = [one.strip() for one in error.splitlines() if one.strip()]
    said = lines[1] if len(lines) > 1 else " ".join(lines)
    return re.sub(r"[|<>]", " ", said)[:160]


if __name__ == "__main__":
    main()
