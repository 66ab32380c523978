"""The published table: its contents, and the reasons for which `--check` fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import report

Records = list[dict[str, Any]]


def records(**changes: Any) -> Records:
    """Return a run of two rows, passed in every column and dtype; ``changes`` apply to the torch cell of the first."""
    made = [
        {"row": row, "order": order, "rtol": rtol, "values": "plain", "column": column, "dtype": dtype}
        | {"outcome": "passed", "ulps": ulps, "relative": ulps * 1e-7, "entries": ulps}
        for order, (row, rtol, ulps) in enumerate([("clip(low, high)", 0.0, 0), ("max_norm(per='out')", 1e-6, 1)])
        for column in report.COLUMNS
        for dtype in report.DTYPES
    ]
    for record in made:
        if (record["order"], record["column"], record["dtype"]) == (0, "torch-eager", "bfloat16"):
            record.update(changes)
    return made


def trainings(**changes: Any) -> Records:
    """Return a run of two rules, passed in every kind of training; ``changes`` apply to one of the first on torch."""
    made = [
        {"rule": rule, "order": order, "tolerance": tolerance, "kind": kind, "optimizer": optimizer, "steps": 50}
        | {"outcome": "passed", "broken": broken}
        for order, (rule, tolerance, broken) in enumerate([("Clip(-1, 1)", 0.0, 0.0), ("MaxNorm(1)", 1e-6, 6e-8)])
        for kind in report.KINDS
        for optimizer in ("SGD", "Adam")
    ]
    for one in made:
        if (one["order"], one["kind"], one["optimizer"]) == (0, "torch-eager", "Adam"):
            one.update(changes)
    return [record for record in made if record["kind"] != "gone"]


def run(folder: Path, page: Path, these: Records, *, check: bool) -> int:
    for old in folder.glob("*.json"):
        old.unlink()
    if not any("kind" in record for record in these):
        these = these + trainings()
    (folder / "tensorflow-gw0-1.json").write_text(json.dumps(these[::2]))
    (folder / "jax-gw1-2.json").write_text(json.dumps(these[1::2]))
    return report.main([str(folder), *(["--check"] if check else []), str(page)])


def test_the_table_shows_bitwise_equal_cells_as_0_and_the_others_in_ulp(tmp_path: Path) -> None:
    page = tmp_path / "matrix.md"
    assert run(tmp_path, page, records(), check=False) == 0
    rows = [line for line in page.read_text().partition(report.TRAINING)[0].splitlines() if line.startswith("| `")]
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
    these = [record for record in records(**changes) if record["row"] != "another"]
    assert run(tmp_path, page, these, check=True) == 1
    assert f"clip(low, high) | torch: the table has 0, this run: {told}" in capsys.readouterr().out


def test_what_is_left_for_a_thorough_run_passes_the_check_and_is_not_published(tmp_path: Path) -> None:
    page = tmp_path / "matrix.md"
    assert run(tmp_path, page, records(), check=False) == 0
    before = page.read_text()
    these = records(outcome="later")
    assert run(tmp_path, page, these, check=True) == 0
    with pytest.raises(SystemExit, match=r"not measured: clip\(low, high\) in torch-eager"):
        run(tmp_path, page, these, check=False)
    assert page.read_text() == before
    assert run(tmp_path, page, [*these, *records()], check=False) == 0  # what was measured counts
    assert page.read_text() == before


def test_a_cell_of_which_every_dtype_is_left_for_a_thorough_run_passes_the_check_unless_it_failed(
    tmp_path: Path,
) -> None:
    page = tmp_path / "matrix.md"
    assert run(tmp_path, page, records(), check=False) == 0
    these = records()
    cell = [record for record in these if (record["order"], record["column"]) == (0, "torch-compiled")]
    for one in cell:
        one["outcome"] = "later"
    assert run(tmp_path, page, these, check=True) == 0
    cell[0]["outcome"] = "failed"
    assert run(tmp_path, page, these, check=True) == 1
    assert run(tmp_path, page, [record for record in these if record is not cell[0]], check=True) == 1


def test_a_row_that_is_gone_fails_the_check(tmp_path: Path) -> None:
    page = tmp_path / "matrix.md"
    run(tmp_path, page, records(), check=False)
    assert run(tmp_path, page, [record for record in records() if record["order"]], check=True) == 1


def test_a_run_without_measurements_fails(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no measurements"):
        report.main([str(tmp_path), str(tmp_path / "matrix.md")])


# Holds while training


def test_the_table_of_holds_shows_the_worst_over_all_optimizers(tmp_path: Path) -> None:
    page = tmp_path / "matrix.md"
    assert run(tmp_path, page, records() + trainings(), check=False) == 0
    rows = [line for line in page.read_text().partition(report.TRAINING)[2].splitlines() if line.startswith("| `")]
    assert rows == [
        "| `Clip(-1, 1)` | exact | " + " | ".join(["0"] * 7) + " |",
        "| `MaxNorm(1)` | close, 1e-06 | " + " | ".join(["6.0e-08"] * 7) + " |",
    ]
    assert "- torch, 50 steps: Adam, SGD.\n" in page.read_text()


def test_a_kind_of_training_that_refuses_a_rule_says_why_and_optimizers_that_it_lacks_are_listed(
    tmp_path: Path,
) -> None:
    page = tmp_path / "matrix.md"
    these = [record for record in trainings() if (record["kind"], record["order"]) != ("tf_module-function", 0)]
    refused = {"rule": "Clip(-1, 1)", "order": 0, "tolerance": 0.0, "kind": "tf_module-function"}
    these += [
        refused | {"outcome": "unsupported", "reason": "it has no axes"},
        {"kind": "torch-eager", "optimizer": "Lion", "outcome": "unmeasured", "reason": "torch has none"},
    ]
    run(tmp_path, page, records() + these, check=False)
    assert "| `Clip(-1, 1)` | exact | 0 | 0 | [1] | 0 |" in page.read_text()
    assert "[1] it has no axes." in page.read_text()
    assert "- Left out: Lion: torch has none.\n" in page.read_text()
    assert run(tmp_path, page, records() + these, check=True) == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"outcome": "failed", "broken": 0.5}, "Clip(-1, 1) | torch: the table has 0, this run: failed under Adam"),
        ({"outcome": "failed", "broken": None}, "Clip(-1, 1) | torch: the table has 0, this run: failed under Adam"),
        ({"broken": 1e-9}, "Clip(-1, 1) | torch: the table has 0, this run: 1.0e-09"),
        ({"kind": "gone"}, "Clip(-1, 1) | torch: the table has 0, this run: not run under Adam"),
        ({"outcome": "skipped", "reason": "no compiler"}, "this run: skipped under Adam, skipped: no compiler"),
    ],
)
def test_a_rule_that_was_kept_and_no_longer_is_fails_the_check(
    changes: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "matrix.md"
    run(tmp_path, page, records() + trainings(), check=False)
    assert run(tmp_path, page, records() + trainings(), check=True) == 0
    assert run(tmp_path, page, records() + trainings(**changes), check=True) == 1
    assert told in capsys.readouterr().out


def test_an_optimizer_that_is_gone_from_a_whole_kind_of_training_fails_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "matrix.md"
    run(tmp_path, page, records() + trainings(), check=False)
    these = [record for record in trainings() if (record["kind"], record["optimizer"]) != ("keras_jax-jit", "Adam")]
    assert run(tmp_path, page, records() + these, check=True) == 1
    assert "- Keras on JAX, jit, 50 steps: Adam, SGD." in capsys.readouterr().out


def test_the_longest_training_is_published_and_a_shorter_one_can_be_checked_and_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "matrix.md"
    short = [{**record, "steps": 20} for record in trainings()]
    assert run(tmp_path, page, [*records(), *trainings(), *short], check=False) == 0
    assert "- torch, 50 steps: Adam, SGD.\n" in page.read_text()
    assert run(tmp_path, page, records() + short, check=True) == 0
    short[0]["outcome"] = "failed"
    assert run(tmp_path, page, [*records(), *short, *trainings()], check=True) == 1


def test_a_page_is_written_from_both_parts_of_a_run_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "main.json").write_text(json.dumps(records()))
    with pytest.raises(SystemExit, match="one of the two tables only"):
        report.main([str(tmp_path), str(tmp_path / "matrix.md")])
    assert not (tmp_path / "matrix.md").exists()
