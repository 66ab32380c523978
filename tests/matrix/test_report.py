"""The published table: what it shows, and what makes `--check` fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import report

Records = list[dict[str, Any]]


def records(**changes: Any) -> Records:
    """A run of two rows, passed in every column and dtype; ``changes`` are made to the torch cell of the first."""
    made = [
        {"row": row, "order": order, "rtol": rtol, "values": "plain", "column": column, "dtype": dtype}
        | {"outcome": "passed", "ulps": ulps, "relative": ulps * 1e-7, "entries": ulps}
        for order, (row, rtol, ulps) in enumerate([("clip(low, high)", 0.0, 0), ("max_norm(per='out')", 1e-6, 1)])
        for column in report.COLUMNS
        for dtype in report.DTYPES
    ]
    for one in made:
        if (one["order"], one["column"], one["dtype"]) == (0, "torch-eager", "bfloat16"):
            one.update(changes)
    return made


def run(folder: Path, page: Path, these: Records, *, check: bool) -> int:
    for old in folder.glob("*.json"):
        old.unlink()
    (folder / "tensorflow-gw0-1.json").write_text(json.dumps(these[::2]))
    (folder / "jax-gw1-2.json").write_text(json.dumps(these[1::2]))
    return report.main([str(folder), *(["--check"] if check else []), str(page)])


def test_the_table_shows_bitwise_equal_cells_as_0_and_the_others_in_ulp(tmp_path: Path) -> None:
    page = tmp_path / "matrix.md"
    assert run(tmp_path, page, records(), check=False) == 0
    rows = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    assert rows == [
        "| `clip(low, high)` | exact | plain | " + " | ".join(["0"] * 13) + " |",
        "| `max_norm(per='out')` | close, 1e-06 | plain | " + " | ".join(["1 ulp"] * 13) + " |",
    ]


def test_a_reason_is_said_once_below_the_table_and_pointed_to(tmp_path: Path) -> None:
    page = tmp_path / "matrix.md"
    these = records(outcome="unsupported", reason="it has no axes")
    assert run(tmp_path, page, these, check=False) == 0
    assert "| 0 | 0 [1] | 0 |" in page.read_text()
    assert "[1] it has no axes." in page.read_text()
    assert run(tmp_path, page, these, check=True) == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"outcome": "skipped", "reason": "no C++ compiler"}, "skipped in bfloat16"),
        ({"outcome": "failed", "ulps": 3, "entries": 2}, "failed in bfloat16"),
        ({"ulps": 1, "entries": 1}, "1 ulp"),
        ({"column": "none of the table's", "row": "another"}, "not run in bfloat16"),
    ],
)
def test_a_cell_that_was_passed_and_no_longer_is_fails_the_check(
    changes: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "matrix.md"
    run(tmp_path, page, records(), check=False)
    assert run(tmp_path, page, records(), check=True) == 0
    these = [one for one in records(**changes) if one["row"] != "another"]
    assert run(tmp_path, page, these, check=True) == 1
    assert f"clip(low, high) | torch: the table has 0, this run: {told}" in capsys.readouterr().out


def test_a_row_that_is_gone_fails_the_check(tmp_path: Path) -> None:
    page = tmp_path / "matrix.md"
    run(tmp_path, page, records(), check=False)
    assert run(tmp_path, page, [one for one in records() if one["order"]], check=True) == 1


def test_a_run_without_measurements_fails(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no measurements"):
        report.main([str(tmp_path), str(tmp_path / "matrix.md")])
