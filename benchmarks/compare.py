"""Print what changed between two tables of results, beyond the noise: `python benchmarks/compare.py OLD NEW`.

OLD and NEW are copies of RESULTS.md, or revisions of git that have one. A row has changed if the ranges between its
quartiles don't meet; rows without quartiles, as of memory, if they differ by more than a tenth. Ratios are compared, no
milliseconds, which say more about the machine.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RESULTS = "benchmarks/RESULTS.md"
_RATIO = re.compile(r"([\d.]+) \(([\d.]+)-([\d.]+)\)")
# What rows without quartiles may differ by, as a part of the larger one; differences below 1 MiB are noise as well.
_TOLERANCE = 0.1


@dataclass(frozen=True)
class Value:
    """A ratio with its quartiles, or an amount of memory."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:g} ({self.low:g}-{self.high:g})" if self.low < self.high else f"{self.middle:g}"


Key = tuple[str, str, str, str]


def read(text: str) -> dict[Key, Value]:
    """Return the rows of all tables of a Markdown file: (operation, backend, shape, peer) and the value."""
    rows: dict[Key, Value] = {}
    head: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells or set(line) <= set("|-"):
            head = head if cells else []
            continue
        if not head:
            head = cells
            continue
        row = dict(zip(head, cells, strict=False))
        key = (row.get("operation", ""), row.get("backend", ""), row.get("shape", ""), row.get("fastest peer", ""))
        ratio = _RATIO.fullmatch(row.get("ratio (quartiles)", ""))
        if ratio is not None:
            middle, low, high = map(float, ratio.groups())
            rows[key] = Value(middle, low, high)
        elif "extra, MiB" in row:
            extra = float(row["extra, MiB"])
            rows[key] = Value(extra, *sorted((extra - 1, extra + 1)))
    return rows


def differences(old: dict[Key, Value], new: dict[Key, Value]) -> Iterator[str]:
    """Yield a line for each row that changed beyond the noise, appeared or went; one with another best peer is new."""
    for key in [*old, *(key for key in new if key not in old)]:
        name = " | ".join(part for part in key if part)
        if key not in new:
            yield f"gone     {name}: {old[key]}"
        elif key not in old:
            yield f"new      {name}: {new[key]}"
        else:
            before, after = old[key], new[key]
            apart = abs(before.middle - after.middle) > _TOLERANCE * max(before.middle, after.middle)
            if apart and (after.low > before.high or before.low > after.high):
                yield f"{'worse' if after.middle > before.middle else 'better':8} {name}: {before} -> {after}"


def load(source: str) -> str:
    """Return the text of a file, or of RESULTS.md in a revision of git."""
    if Path(source).is_file():
        return Path(source).read_text(encoding="utf-8")
    here = Path(__file__).parent
    command = ["git", "-C", str(here.parent), "show", f"{source}:{RESULTS}"]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(f"{source!r} is no file, and no revision of git with {RESULTS}\n{found.stderr.strip()}")
    return found.stdout


def main() -> None:
    """Print the differences; exit with 1 if anything is slower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    options = parser.parse_args()
    lines = list(differences(read(load(options.old)), read(load(options.new))))
    print("\n".join(lines) or "nothing changed beyond the noise")
    if any(line.startswith("worse") for line in lines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
