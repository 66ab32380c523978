"""benchmarks/compare.py: what changed between two tables of results, beyond the noise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMPARE = Path(__file__).parents[2] / "benchmarks" / "compare.py"

TABLE = """\
| operation | backend | shape | ours, ms | fastest peer | peer, ms | ratio (quartiles) | goal | met | idiom | times |
|---|---|---|---|---|---|---|---|---|---|---|
| clip | torch | many | 42.17 | p.clamp_ | 13.50 | {clip} | 1.5 | **no** |  |  |
| scale | torch | many | 35.57 | _foreach_mul_ | 13.70 | {scale} | 1.5 | **no** |  |  |

| operation | backend | shape | extra, MiB | goal | met |
|---|---|---|---|---|---|
| clip | torch | mid | {extra} | 2.0 | yes |
"""


def compare(tmp_path: Path, old: dict[str, str], new: dict[str, str]) -> tuple[int, str]:
    paths = []
    for name, values in (("old.md", old), ("new.md", new)):
        paths.append(tmp_path / name)
        paths[-1].write_text(TABLE.format(**values), encoding="utf-8")
    done = subprocess.run([sys.executable, COMPARE, *paths], check=False, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_a_row_that_became_slower_beyond_its_quartiles_is_printed_and_fails(tmp_path: Path) -> None:
    old = {"clip": "1.10 (1.05-1.20)", "scale": "2.58 (2.47-2.68)", "extra": "0.3"}
    new = {"clip": "1.40 (1.30-1.50)", "scale": "1.10 (1.00-1.20)", "extra": "0.4"}
    code, text = compare(tmp_path, old, new)
    assert code == 1
    assert text.splitlines() == [
        "worse    clip | torch | many | p.clamp_: 1.1 (1.05-1.2) -> 1.4 (1.3-1.5)",
        "better   scale | torch | many | _foreach_mul_: 2.58 (2.47-2.68) -> 1.1 (1-1.2)",
    ]


def test_what_is_within_the_noise_is_not_printed(tmp_path: Path) -> None:
    old = {"clip": "1.10 (1.05-1.20)", "scale": "2.58 (2.47-2.68)", "extra": "0.3"}
    new = {"clip": "1.22 (1.15-1.30)", "scale": "2.70 (2.69-2.71)", "extra": "0.9"}
    assert compare(tmp_path, old, new) == (0, "nothing changed beyond the noise\n")


def test_memory_that_rose_is_printed(tmp_path: Path) -> None:
    old = {"clip": "1.10 (1.05-1.20)", "scale": "2.58 (2.47-2.68)", "extra": "0.3"}
    code, text = compare(tmp_path, old, old | {"extra": "32.2"})
    assert code == 1
    assert text.startswith("worse    clip | torch | mid: 0.3")
