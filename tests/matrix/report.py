"""Write docs/matrix.md from what the cells of the test matrix measured, or compare a new run with it.

    python tests/matrix/report.py DIR docs/matrix.md            writes both tables
    python tests/matrix/report.py DIR --check docs/matrix.md    fails if a cell that a table shows as passed
                                                                 was skipped, failed or not run, or is exact no more

DIR has the files that the tests leave in $XWEIGHTS_MATRIX_OUT. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

DTYPES = ("float32", "float64", "float16", "bfloat16")
COLUMNS = {
    "numpy-eager": "NumPy",
    "torch-eager": "torch",
    "torch-compiled": "torch, compile",
    "tf_module-eager": "tf.Module",
    "tf_module-function": "tf.Module, function",
    "tf_module-jit": "tf.Module, jit",
    "keras_tensorflow-eager": "Keras on TF",
    "keras_tensorflow-function": "Keras on TF, function",
    "keras_tensorflow-jit": "Keras on TF, jit",
    "keras_torch-eager": "Keras on torch",
    "keras_torch-compiled": "Keras on torch, compile",
    "keras_jax-eager": "Keras on JAX",
    "keras_jax-jit": "Keras on JAX, jit",
}
KINDS = {
    "torch-eager": "torch",
    "torch-compiled": "torch, compile",
    "tf_module-function": "tf.Module, function",
    "keras_tensorflow-function": "Keras on TF, function",
    "keras_tensorflow-jit": "Keras on TF, jit",
    "keras_torch-eager": "Keras on torch",
    "keras_jax-jit": "Keras on JAX, jit",
}
PACKAGES = ("numpy", "ml-dtypes", "torch", "tensorflow-cpu", "keras", "jax")
FOUND = ("passed", "failed")
HEADER = """# The test matrix

Every verb, on every kind of target, in every mode, in float32, float64, float16 and bfloat16: what the tests measured.
This page is written by `nox -s matrix`; `nox -s nightly` fails if a cell that passed here doesn't any more, and so does
`nox -s tests` for all cells of eager code and, in float32, for some of each kind of row in the compiled columns.

How to read it:

- A cell has the worst entry of all four dtypes, compared with a referee in plain NumPy that shares no code with
  xweights (`tests/matrix/harness/naive.py`). **0** means bit for bit the same. *n* ulp means that *n* - 1 other numbers
  of the dtype lie between.
- `exact` rows promise 0. `close` rows promise the relative error that is given, or the dtype's own eps if larger.
- A number in brackets points to a reason at the end of the page: why a cell is not supported, or was measured in
  fewer dtypes.
- *values*: `special` has both zeros, both infinities and NaN among its numbers, `bits` any bit pattern at all
  (subnormals, NaN of every payload), `plain` neither, but many ties. After arithmetic, any NaN equals any NaN.
- Columns: eager code; *compile* is `torch.compile(fullgraph=True)` with inductor, its rules bound first, on some of the
  arrays; *function* is `tf.function`, *jit* is `tf.function(jit_compile=True)`, the verbs called inside; on JAX
  *jit* is `jax.jit` through a `keras.StatelessScope`, its rules bound first. Rows of one kind run in one compiled step.
  JAX runs float64 in its 64-bit mode. The NumPy arrays have axis names (`Params`), those of a `tf.Module` have none.
"""
TRAINING = "## Holds while training"
TRAINING_HEADER = f"""{TRAINING}

Every rule, held in every kind of training under every optimizer: how far it was from true, the worst after any step.

- All rules are held on one model, each on another layer, after two steps of training: there is momentum by then, and
  compiled steps have been traced. After each step every rule is worked out by hand, in NumPy
  (`tests/matrix/harness/held.py`), and what isn't held has to go on moving.
- **0** means that nothing was off by a bit. `close` rows promise the relative error that is given; a sum is measured
  against that of its magnitudes.
- *compile* is `torch.compile` of the whole step, the optimizer's inside, with the backend aot_eager; *function* and
  *jit* are the train functions of Keras with `jit_compile` False and True; the step of a `tf.Module` is a
  `tf.function` of the user's own, which calls `held.apply()` after its update (masks that grow by a schedule are
  selected on the host: that `apply()` stands after the step).
"""


class Cell:
    """The records of one row in one column, brought together over the dtypes."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        # What was left for another run gives way to what was measured.
        by_dtype = {one["dtype"]: one for one in sorted(records, key=lambda one: one["outcome"] != "later")}
        self.missing = [dtype for dtype in DTYPES if dtype not in by_dtype]
        self.later = [dtype for dtype, one in by_dtype.items() if one["outcome"] == "later"]
        self.found = [one for one in by_dtype.values() if one["outcome"] in FOUND]
        self.bad = [
            f"{one['outcome']} in {one['dtype']}"
            for one in by_dtype.values()
            if one["outcome"] in ("failed", "skipped")
        ]
        self.reasons = sorted({one["reason"] for one in by_dtype.values() if "reason" in one})

    @property
    def problem(self) -> str | None:
        """What keeps it from counting as passed although it is supported, or None."""
        if self.missing:
            return f"not run in {', '.join(self.missing)}"
        return ", ".join(self.bad) or None

    @property
    def text(self) -> str:
        """The number, or nothing if there is none."""
        if not self.found:
            return ""
        worst = max(self.found, key=lambda one: one["ulps"])
        if any(one["outcome"] == "failed" for one in self.found):
            return "FAILED"
        return "0" if not any(one["entries"] for one in self.found) else f"{worst['ulps']} ulp"


class HeldCell:
    """The records of one rule in one kind of training, brought together over the optimizers."""

    def __init__(self, records: list[dict[str, Any]], optimizers: Iterable[str]) -> None:
        # The longest run counts, and a failure more than any.
        ran = sorted(
            (record for record in records if "optimizer" in record),
            key=lambda one: (one["outcome"] == "failed", one.get("steps", 0)),
        )
        by_optimizer = {record["optimizer"]: record for record in ran}
        self.reasons = sorted({one["reason"] for one in records if one["outcome"] == "unsupported"})
        self.missing = [] if self.reasons else [one for one in optimizers if one not in by_optimizer]
        self.found = [one for one in by_optimizer.values() if one["outcome"] in FOUND]
        self.bad = [
            f"{one['outcome']} under {name}" for name, one in by_optimizer.items() if one["outcome"] != "passed"
        ]
        self.bad += [f"skipped: {one['reason']}" for one in records if one["outcome"] == "skipped"]

    @property
    def problem(self) -> str | None:
        """What keeps it from counting as passed although it is supported, or None."""
        if self.bad:
            return ", ".join(self.bad)
        return f"not run under {', '.join(self.missing)}" if self.missing else None

    @property
    def text(self) -> str:
        """The number, or nothing if there is none."""
        if not self.found:
            return ""
        if any(one["outcome"] == "failed" for one in self.found):
            return "FAILED"
        worst = max(one["broken"] for one in self.found)
        return f"{worst:.1e}" if worst else "0"


def read(folder: Path) -> list[dict[str, Any]]:
    """All records of a run."""
    records = [record for path in sorted(folder.glob("*.json")) for record in json.loads(path.read_text())]
    if not records:
        sys.exit(f"no measurements in {folder}: run the matrix with XWEIGHTS_MATRIX_OUT={folder}")
    return records


def parted(records: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the records of the verbs, and those of the holds."""
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for record in records:
        parts["kind" in record].append(record)
    return parts


def gathered(records: Iterable[dict[str, Any]]) -> dict[str, tuple[dict[str, Any], dict[str, Cell]]]:
    """Return {row: (its facts, {column: cell})} in the order of the rows."""
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    facts = {}
    for record in sorted(records, key=lambda one: (one["order"], one["row"])):
        facts[record["row"]] = record
        rows.setdefault(record["row"], {column: [] for column in COLUMNS})[record["column"]].append(record)
    return {row: (facts[row], {c: Cell(found) for c, found in columns.items()}) for row, columns in rows.items()}


def table(rows: dict[str, tuple[dict[str, Any], dict[str, Cell]]], notes: list[str]) -> list[str]:
    """The lines of the table; reasons are added to ``notes``."""
    lines = ["| verb | promise | values | " + " | ".join(COLUMNS.values()) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    for row, (facts, cells) in rows.items():
        promise = f"close, {facts['rtol']:g}" if facts["rtol"] else "exact"
        shown = []
        for cell in cells.values():
            for reason in cell.reasons + ([cell.problem] if cell.missing else []):
                if reason not in notes:
                    notes.append(reason)
            marks = [f"[{notes.index(reason) + 1}]" for reason in cell.reasons]
            marks += [f"[{notes.index(cell.problem) + 1}]"] if cell.missing and cell.problem else []
            shown.append(" ".join([cell.text, *marks]).strip())
        lines.append(f"| `{row}` | {promise} | {facts['values']} | " + " | ".join(shown) + " |")
    return lines


def trained(records: list[dict[str, Any]]) -> dict[str, tuple[dict[str, Any], dict[str, HeldCell]]]:
    """Return {rule: (its facts, {kind of training: cell})} in the order of the rules."""
    of_rules = sorted((one for one in records if "rule" in one), key=lambda one: (one["order"], one["rule"]))
    ran: dict[str, dict[str, None]] = {kind: {} for kind in KINDS}
    for one in of_rules:
        if "optimizer" in one:
            ran[one["kind"]][one["optimizer"]] = None
    rows = {}
    for facts in {one["rule"]: one for one in of_rules}.values():
        mine = [one for one in of_rules if one["rule"] == facts["rule"]]
        cells = {kind: HeldCell([one for one in mine if one["kind"] == kind], ran[kind]) for kind in KINDS}
        rows[facts["rule"]] = (facts, cells)
    return rows


def held_table(rows: dict[str, tuple[dict[str, Any], dict[str, HeldCell]]], notes: list[str]) -> list[str]:
    """The lines of the table of holds; reasons are added to ``notes``."""
    lines = ["| rule | promise | " + " | ".join(KINDS.values()) + " |", "|---" * (2 + len(KINDS)) + "|"]
    for rule, (facts, cells) in rows.items():
        promise = f"close, {facts['tolerance']:g}" if facts["tolerance"] else "exact"
        shown = []
        for cell in cells.values():
            reasons = cell.reasons or ([cell.problem] if cell.problem and cell.text != "FAILED" else [])
            notes += [reason for reason in reasons if reason not in notes]
            shown.append(" ".join([cell.text, *(f"[{notes.index(reason) + 1}]" for reason in reasons)]).strip())
        lines.append(f"| `{rule}` | {promise} | " + " | ".join(shown) + " |")
    return lines


def optimizers(records: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each kind of training: how many steps, and under which optimizers."""
    lines, records = [], list(records)
    for kind, title in KINDS.items():
        mine = [one for one in records if one["kind"] == kind and "optimizer" in one]
        ran = sorted({one["optimizer"] for one in mine if one["outcome"] in FOUND})
        if ran:
            steps = max(one.get("steps", 0) for one in mine if one["outcome"] in FOUND)
            lines.append(f"- {title}, {steps:,} steps: {', '.join(ran)}.")
    left_out: dict[str, set[str]] = {}
    for one in records:
        if one["outcome"] == "unmeasured":
            left_out.setdefault(one["reason"], set()).add(one["optimizer"])
    lines += [f"- Left out: {', '.join(sorted(names))}: {reason}." for reason, names in sorted(left_out.items())]
    return lines


def written(records: list[dict[str, Any]]) -> str:
    """The whole page."""
    verbs, holds = parted(records)
    rows, held, notes = gathered(verbs), trained(holds), list[str]()
    later = [f"{row} in {column}" for row, (_, cells) in rows.items() for column, cell in cells.items() if cell.later]
    if later:
        sys.exit(f"left for a thorough run, and not measured: {', '.join(later)}")
    lines = [*table(rows, notes), "", TRAINING_HEADER, *held_table(held, notes), "", *optimizers(holds)]
    versions = [f"{package} {metadata.version(package)}" for package in PACKAGES if _installed(package)]
    tested = f"Tested with Python {platform.python_version()}, {', '.join(versions)}, on {platform.machine()} (CPU)."
    count = sum(len(cell.found) for part in (rows, held) for _, cells in part.values() for cell in cells.values())
    foot = [f"[{number}] {note}.  " for number, note in enumerate(notes, 1)]
    return "\n".join([HEADER, f"{tested} {count:,} measurements.", "", *lines, "", *foot]).rstrip() + "\n"


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def published(page: str) -> dict[tuple[str, str], str]:
    """What a page shows as passed: {(row, column's title): "0", "n ulp" or "1.0e-07"}."""
    found = {}
    titles: list[str] | None = None
    for line in page.splitlines():
        parts = [part.strip() for part in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            titles = None
        elif titles is None:
            titles = parts
        elif not line.startswith("|---"):
            first = 3 if "values" in titles else 2
            for title, text in zip(titles[first:], parts[first:], strict=True):
                shown = text.partition("[")[0].strip()
                if shown:
                    found[parts[0].strip("`"), title] = shown
    return found


def worse(page: str, records: list[dict[str, Any]]) -> list[str]:
    """What the page shows as passed and this run does not bear out, and what failed."""
    verbs, holds = parted(records)
    now: dict[tuple[str, str], Cell | HeldCell] = {
        (row, title): cells[column]
        for part, titles in ((gathered(verbs), COLUMNS), (trained(holds), KINDS))
        for row, (_, cells) in part.items()
        for column, title in titles.items()
    }
    shown = published(page)
    problems = [
        f"{row} | {title}: failed, and the table has no number for it"
        for (row, title), cell in now.items()
        if cell.text == "FAILED" and (row, title) not in shown
    ]
    for (row, title), text in shown.items():
        cell = now.get((row, title))
        if isinstance(cell, Cell) and cell.later and not cell.found and cell.problem is None:
            continue  # all that this run would have to say is left for another one
        if cell is None or not cell.found:
            reasons = "not run" if cell is None else "; ".join(cell.reasons) or cell.problem or "not run"
            problems.append(f"{row} | {title}: the table has {text}, this run: {reasons}")
        elif cell.problem is not None:
            problems.append(f"{row} | {title}: the table has {text}, this run: {cell.problem}")
        elif text == "0" and cell.text != "0":
            problems.append(f"{row} | {title}: the table has 0, this run: {cell.text}")
    if TRAINING in page:
        # CI trains for fewer steps than the page tells of, and leaves some optimizers for later.
        ran = optimizers({**one, "outcome": "passed"} if one["outcome"] == "later" else one for one in holds)
        known = {_without_steps(line) for line in ran}
        problems += [
            f"the page says: {line}\nthis run doesn't"
            for line in page.splitlines()
            if line.startswith(tuple(f"- {title}, " for title in KINDS.values())) and _without_steps(line) not in known
        ]
    return problems


def _without_steps(line: str) -> str:
    return re.sub(r", [\d,]+ steps: ", ": ", line)


def main(arguments: list[str] | None = None) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("page", type=Path)
    options = parser.parse_args(arguments)
    records = read(options.folder)
    if not options.check:
        if not all(parted(records)):
            sys.exit(f"{options.folder} has measurements for one of the two tables only: run all of tests/matrix")
        options.page.write_text(written(records), encoding="utf-8")
        return 0
    problems = worse(options.page.read_text(encoding="utf-8"), records)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} cells are worse than {options.page} says" if problems else f"as {options.page} says")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
