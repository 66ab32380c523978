"""Run the benchmarks: one call of xweights against the best loop that an expert would write, in the same process.

    python benchmarks/run.py                the whole table, about eight minutes
    python benchmarks/run.py --quick        small shapes: shows that it runs, not how fast
    python benchmarks/run.py --only torch   one part, here torch; --help lists them
    python benchmarks/run.py --save         also write the complete tables to benchmarks/RESULTS.md

Each part runs in a process of its own, because Keras has one backend per process. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from timing import Memory, Timing

HERE = Path(__file__).parent
PARTS = {
    "imports": {},
    "torch": {},
    "drawing": {},
    "keras_tensorflow": {"KERAS_BACKEND": "tensorflow"},
    "keras_jax": {"KERAS_BACKEND": "jax"},
    "keras_torch": {"KERAS_BACKEND": "torch"},
    "holds_torch": {},
    "holds_keras": {"KERAS_BACKEND": "tensorflow"},
    "porting": {"KERAS_BACKEND": "tensorflow"},
    "files": {"MALLOC_MMAP_THRESHOLD_": "65536"},
    "merging": {},
    "handoff": {"KERAS_BACKEND": "tensorflow"},
    "memory": {"KERAS_BACKEND": "tensorflow", "MALLOC_MMAP_THRESHOLD_": "65536"},
}
# The tables of RESULTS.md, each with its parts.
TABLES = {
    "tables": ("imports", "torch", "drawing", "keras_tensorflow", "keras_jax", "keras_torch", "memory"),
    "holds": ("holds_torch", "holds_keras"),
    "porting": ("porting",),
    "files": ("files",),
    "merging": ("merging",),
    "handoff": ("handoff",),
}


def main() -> None:
    """Run the parts and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--threads", type=int, default=1, help="of torch and BLAS; TensorFlow keeps its own")
    parser.add_argument("--processor", action="store_true", help="processor time, for a machine that does other work")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        _run_part(options.part, options.quick)
        return
    if options.processor:
        os.environ["XWEIGHTS_CLOCK"] = "processor"
    parts_to_run = options.only or list(PARTS)
    rows_by_part = {name: _in_process(name, options.quick, options.threads) for name in parts_to_run}
    for title, parts in TABLES.items():
        rows = [row for name in parts for row in rows_by_part.get(name, [])]
        if rows:
            text = f"{machine(options.threads)}\n\n{tables(rows)}\n"
            print("\n" + text)
            if options.save and set(parts) <= rows_by_part.keys():
                _save(title, text)


def _save(title: str, text: str) -> None:
    results = HERE / "RESULTS.md"
    before, begin, rest = results.read_text(encoding="utf-8").partition(f"<!-- {title} -->\n")
    _, end, after = rest.partition(f"<!-- end of {title} -->")
    results.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")


def _run_part(name: str, quick: bool) -> None:
    module = importlib.import_module(f"on_{name}")
    for row in module.rows(quick):
        print(json.dumps({"kind": type(row).__name__, **asdict(row)}), flush=True)


def _in_process(name: str, quick: bool, threads: int) -> list[Timing | Memory]:
    env = {**os.environ, **PARTS[name], "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    env |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    command = [sys.executable, str(HERE / "run.py"), "--part", name, *(["--quick"] if quick else [])]
    rows: list[Timing | Memory] = []
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith('{"kind"'):
                continue
            fields = json.loads(line)
            kind = {"Timing": Timing, "Memory": Memory}[fields.pop("kind")]
            rows.append(kind(**fields))
            print(_progress(rows[-1]), file=sys.stderr, flush=True)
    if process.returncode:
        raise SystemExit(f"the part {name!r} failed")
    return rows


def _progress(row: Timing | Memory) -> str:
    value = f"{row.ratio:.2f}x of {row.peer}" if isinstance(row, Timing) else f"{row.extra:.1f} MiB"
    return f"{row.backend:16} {row.shape:5} {row.operation:40} {value}{'' if row.met else '   NOT MET'}"


def machine(threads: int) -> str:
    """Return the machine and versions on which the numbers depend."""
    from importlib.metadata import version

    names = ("numpy", "torch", "tensorflow-cpu", "keras", "jax")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{os.cpu_count()} cores, OMP_NUM_THREADS={threads}, Python {sys.version.split()[0]}, {versions}."


def tables(rows: Sequence[Timing | Memory]) -> str:
    """Return the rows as Markdown."""
    lines = [
        ["operation", "backend", "shape", "ours, ms", "fastest peer", "peer, ms", "ratio (quartiles)", "goal", "met",
         "idiom", "times faster"],
    ]  # fmt: skip
    for row in rows:
        if isinstance(row, Timing):
            low, high = row.quartiles
            faster = "" if row.faster is None else f"{row.faster:.1f}"
            lines.append([
                row.operation, row.backend, row.shape, f"{row.ours:.2f}", row.peer, f"{row.peer_ms:.2f}",
                f"{row.ratio:.2f} ({low:.2f}-{high:.2f})", "-" if row.goal is None else f"{row.goal:g}",
                "yes" if row.met else "**no**", row.idiom,
                faster + ("" if row.idiom_goal is None else f" (goal {row.idiom_goal:g})"),
            ])  # fmt: skip
    used = [["operation", "backend", "shape", "extra, MiB", "goal", "met"]]
    used += [
        [row.operation, row.backend, row.shape, f"{row.extra:.1f}", f"{row.goal:.1f}", "yes" if row.met else "**no**"]
        for row in rows
        if isinstance(row, Memory)
    ]
    return "\n\n".join(_markdown(table) for table in (lines, used) if len(table) > 1)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])


if __name__ == "__main__":
    main()
