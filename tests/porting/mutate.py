"""Inject faults into ported twins and count verify's findings.

    python tests/porting/mutate.py [--public | --zoo] [--only NAME,NAME] [--cells FOLDER] [--write docs/porting.md]

Half of the faults go into the twins of the tests' zoo, half into public models: the torch side of the pairs of
tests/porting/pairs, whose Keras side was ported into it. Those whose packages aren't installed are left out.
With ``--cells`` the rows of each pair are kept in a folder, and a pair that is there isn't run again.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import warnings
from collections import Counter, defaultdict
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

from zoo.all import PAIRS, sides
from zoo.faults import faults_in

import xweights as xw

COUNT = 200  # of the zoo, and as many of public models
HEAD = ("fault", "injected", "detected", "layer right", "cause right")
# The source has no scale, so one is what it has to be.
HARMLESS = {("gamma left at one", "batch_norm_without_scale")}
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
# Where a gelu by tanh changes outputs by less, in float32 there is nothing to see.
VISIBLE = 1e-5
# Seconds for all faults of one pair.
LIMIT = 300
# Large ones of keras.applications take a minute a fault.
SMALL = ("keras hub both", "keras hub decoders", "keras hub encoders", "keras hub images")
SMALL_ONES = ("mobilenet", "resnet50")


def choose(count=COUNT):
    """Return how many faults of each kind to take from each pair: all kinds in turn, until there are enough."""
    available = []
    for name, pair in PAIRS.items():
        if "to_torch" in pair.directions:
            module = sides(pair, "to_torch")[1]
            faults = [(fault.kind, name, number) for number, fault in enumerate(faults_in(module))]
            available += [entry for entry in faults if entry[:2] not in HARMLESS]
    by_kind = defaultdict(list)
    for kind, name, number in available:
        by_kind[kind].append((name, number))
    taken = defaultdict(set)
    total = 0
    while total < count and any(by_kind.values()):
        for kind in sorted(by_kind):
            if by_kind[kind] and total < count:
                # From all over the zoo, not the first pair's only.
                name, number = by_kind[kind].pop(len(by_kind[kind]) * 7 // 13)
                taken[name].add(number)
                total += 1
    return taken


def kept(cells, name, make):
    """Return the rows of a pair from the folder, or make them and keep them there."""
    path = Path(cells, f"{name}.json") if cells else None
    if path is not None and path.exists():
        return [tuple(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    rows = make()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows), encoding="utf-8")
    return rows


def judge(taken, cells=None):
    """Yield (kind, pair, detected, layer right, cause right, report) for each fault; alarms on right ports."""
    for name, numbers in taken.items():
        yield from kept(cells, name, lambda name=name, numbers=numbers: list(judge_pair(name, numbers)))


def judge_pair(name, numbers):
    """Yield the rows of one pair of the zoo."""
    source, target, sample, _, options = sides(PAIRS[name], "to_torch")
    xw.port(source, target, sample=sample, **options)
    options = {**options, "sample": sample}
    if not xw.verify(source, target, **options).ok:
        yield "no fault", name, True, False, False, "a false alarm"
    faults = list(faults_in(target))
    for number in sorted(numbers):
        yield judge_fault(faults[number], name, source, target, options)


def judge_fault(fault, name, source, target, options):
    """Inject a fault, and return what verify says of it."""
    with fault.injecting(target):
        report = xw.verify(source, target, **options)
    divergence = report.first_divergence
    layer = divergence is not None and fault.shows_at(divergence.layer)
    cause = divergence is not None and divergence.word in fault.words
    said = f"{divergence.layer}: {divergence.word}: {divergence.cause}" if divergence is not None else "nothing"
    return fault.kind, name, not report.ok, layer, cause, f"{said} (at {', '.join(fault.layers[:2])})"


# Public models.


def public_pairs(only=()):
    """Return the names of the pairs of public models that are injected, in turn by family."""
    from pairs import corpus, run

    families = defaultdict(list)
    for name, pair in corpus.PAIRS.items():
        wanted = name in only if only else pair.family in SMALL or name in SMALL_ONES
        if wanted and not pair.different and "to_torch" in pair.directions and not run.missing(pair):
            families[pair.family].append(name)
    ordered = []
    while any(families.values()):
        ordered += [names.pop(0) for names in families.values() if names]
    return ordered


def judge_public(count=COUNT, only=(), cells=None):
    """Yield a row for each fault in public models: each pair in a process of its own, rare kinds first."""
    from pairs import run

    run.preload()
    names = public_pairs(only)
    kinds = Counter()
    left = count
    for place, name in enumerate(names):
        quota = -(-left // (len(names) - place))
        rows = kept(cells, name, lambda name=name, quota=quota: in_a_process(name, dict(kinds), quota))
        kinds.update(row[0] for row in rows if row[0] not in ("no fault", "not ported"))
        left -= sum(row[0] not in ("no fault", "not ported") for row in rows)
        yield from rows
        if left <= 0:
            return


def in_a_process(name, kinds, quota):
    """Return the rows of one pair, which a fork makes."""
    context = get_context("fork")
    here, there = context.Pipe(duplex=False)

    def work():
        warnings.filterwarnings("ignore")
        for row in of_public(name, kinds, quota):
            there.send(row)
        there.send(None)

    process = context.Process(target=work)
    process.start()
    there.close()
    rows = []
    try:
        while here.poll(LIMIT) and (row := here.recv()) is not None:
            rows.append(tuple(row))
            print(*row, sep=" | ", flush=True)
    except EOFError:
        rows.append(("not ported", name, False, False, False, "the process ended"))
    process.kill()
    process.join()
    return rows


def of_public(name, kinds, quota):
    """Yield the rows of one pair: as many faults as the quota says, of the kinds that were injected least."""
    from pairs import making, run
    from pairs.faults import public_faults

    twins = run.build(name, "to_torch")
    source, target = twins.keras, twins.torch
    arguments = twins.arguments("to_torch")
    for more in twins.attempts:
        try:
            xw.port(source, target, **arguments, **more)
            break
        except xw.errors.XweightsError as error:
            said = str(error).splitlines()[:2]
    else:
        yield "not ported", name, False, False, False, " ".join(said)
        return
    known = inspect.signature(xw.verify).parameters
    options = {key: value for key, value in arguments.items() if key in known}
    report = xw.verify(source, target, **options)
    if not report.ok:
        yield "no fault", name, True, False, False, f"a false alarm: {report.first_divergence}"
        return
    by_kind = defaultdict(list)
    for fault in public_faults(target, lambda: making.run_torch(target, twins.torch_x)):
        by_kind[fault.kind].append(fault)
    counts = Counter(kinds)
    wanted = sum(counts.values()) + quota
    while sum(counts.values()) < wanted:
        if not any(by_kind.values()):
            return
        kind = min((kind for kind in by_kind if by_kind[kind]), key=lambda kind: (counts[kind], kind))
        counts[kind] += 1
        # From all over the model, not its first layers only.
        fault = by_kind[kind].pop(len(by_kind[kind]) * 7 // 13)
        if shows(fault, target, twins.torch_x):
            yield judge_fault(fault, name, source, target, options)
        else:
            counts[kind] -= 1


def shows(fault, target, x):
    """Whether a fault changes the outputs by more than rounding does: a row that no token uses isn't seen by anyone."""
    from pairs import making

    before = [array.copy() for array in making.run_torch(target, x)]
    with fault.injecting(target):
        after = making.run_torch(target, x)
    return max(making.distance(one, other) for one, other in zip(before, after, strict=True)) > VISIBLE


# The table.


def table(rows):
    """Return the counts as lines of Markdown."""
    counts = defaultdict(Counter)
    for kind, _, detected, layer, cause, _ in rows:
        for where in (kind, "all"):
            counts[where].update(injected=1, detected=int(detected), layer=int(layer), cause=int(cause))
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    for kind in [*sorted(set(counts) - {"all"}), "all"]:
        count = counts[kind]
        lines.append(f"| {kind} | {count['injected']} | {count['detected']} | {count['layer']} | {count['cause']} |")
    return lines


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--public", action="store_true", help="only public models")
    parser.add_argument("--zoo", action="store_true", help="only the zoo")
    parser.add_argument("--only", default="", help="these pairs of public models")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--cells", help="the folder where the rows of each pair are kept")
    parser.add_argument("--write", help="the page whose table is written")
    options = parser.parse_args()

    def folder(name):
        return options.cells and Path(options.cells, name)

    parts = {}
    if not options.zoo:  # first, as nothing may have been computed before the processes are forked
        only = tuple(filter(None, options.only.split(",")))
        parts["public models"] = list(judge_public(options.count, only, folder("public")))
    if not options.public:
        parts["the zoo"] = list(judge(choose(options.count), folder("zoo")))
    lines = []
    for name, rows in parts.items():
        faults = [row for row in rows if row[0] not in ("no fault", "not ported")]
        lines += [f"In {name}:", "", *table(faults), ""]
    print(*lines, sep="\n")
    for row in (row for rows in parts.values() for row in rows):
        if not all(row[2:5]):
            print("missed:", row)
    if options.write:
        page = Path(options.write)
        text = page.read_text(encoding="utf-8")
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        page.write_text("\n".join([f"{before}{BEGIN}", *lines, f"{END}{after}"]), encoding="utf-8")


if __name__ == "__main__":
    main()
