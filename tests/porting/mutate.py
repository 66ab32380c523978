"""Inject faults into ported twins and count verify's findings: python tests/porting/mutate.py [docs/porting.md]."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

from zoo.all import PAIRS, sides
from zoo.faults import faults_in

import xweights as xw

COUNT = 200
HEAD = ("fault", "injected", "detected", "layer right", "cause right")
# The source has no scale, so one is what it has to be.
HARMLESS = {("gamma left at one", "batch_norm_without_scale")}
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


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


def judge(taken):
    """Yield (kind, pair, detected, layer right, cause right, report) for each fault; alarms on right ports."""
    for name, numbers in taken.items():
        source, target, sample, _, options = sides(PAIRS[name], "to_torch")
        xw.port(source, target, sample=sample, **options)
        if not xw.verify(source, target, sample=sample, **options).ok:
            yield "no fault", name, True, False, False, "a false alarm"
        faults = list(faults_in(target))
        for number in sorted(numbers):
            fault = faults[number]
            with fault.injecting(target):
                report = xw.verify(source, target, sample=sample, **options)
            divergence = report.first_divergence
            layer = divergence is not None and fault.shows_at(divergence.layer)
            yield (
                fault.kind,
                name,
                not report.ok,
                layer,
                divergence is not None and divergence.word in fault.words,
                str(divergence),
            )


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
    rows = list(judge(choose()))
    lines = table(rows)
    print(*lines, sep="\n")
    for row in rows:
        if not all(row[2:5]):
            print("missed:", row)
    if len(sys.argv) > 1:
        page = Path(sys.argv[1])
        text = page.read_text(encoding="utf-8")
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        page.write_text("\n".join([f"{before}{BEGIN}", *lines, f"{END}{after}"]), encoding="utf-8")


if __name__ == "__main__":
    main()
