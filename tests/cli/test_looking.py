"""The commands show, stats, diff and convert, on files and on models from factories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw
from xweights.cli.output import show_table

Run = Callable[..., Any]


def test_show_is_a_tree_with_shapes_dtypes_and_shares_of_zeros(run: Run) -> None:
    shown = run("show", "b.npz")
    assert shown.exit_code == 0
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["conv/"] in lines
    assert ["kernel", "h,", "w,", "in,", "out", "3", "x", "3", "x", "2", "x", "4", "float32", "72", "50.0%"] in lines
    assert ["bias", "?", "5", "float32", "5", "100.0%"] in lines
    assert shown.stdout.splitlines()[-1].startswith("4 parameters, 261 entries, 1.0 kB, ")


def test_show_in_json_has_every_fact_of_a_parameter(run: Run) -> None:
    shown = json.loads(run("show", "a.npz", "--json", "--where", "dense/kernel").stdout)
    assert shown == [
        {"name": "dense/kernel", "native_name": "dense/kernel", "role": "kernel", "axes": ["in", "out"],
         "shape": [36, 5], "dtype": "float32", "entries": 180, "trainable": True, "gates": None, "aliases": [],
         "zeros": 0}
    ]  # fmt: skip


def test_show_quick_reads_no_values(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("values were read")

    monkeypatch.setattr("xweights.inspection.histograms.zeros_in", never)
    shown = run("show", "a.npz", "--quick")
    assert shown.exit_code == 0
    assert "%" not in shown.stdout


@pytest.mark.parametrize("target", ["nets:arrays", "nets:ready", "nets:Inside.arrays", "nets:arrays@a.npz"])
def test_a_factory_is_a_target_like_a_file(run: Run, target: str) -> None:
    assert run("diff", "a.npz", target).exit_code == 0
    assert run("diff", "b.npz", "nets:arrays@b.npz").exit_code == 0


def test_stats_agree_with_the_library(run: Run) -> None:
    shown = json.loads(run("stats", "b.npz", "--json").stdout)
    assert shown == json.loads(json.dumps(xw.stats("b.npz").as_dicts()))
    assert run("stats", "b.npz").stdout.rstrip() == str(xw.stats("b.npz"))


def test_numbers_that_json_lacks_become_strings(run: Run) -> None:
    xw.save({"w": np.array([np.nan, np.inf])}, "odd.npz")
    (row,) = json.loads(run("stats", "odd.npz", "--json").stdout)
    assert (row["max"], row["std"], row["nan"]) == ("inf", "nan", 1)


def test_diff_names_the_changed_parameters_and_the_entries_that_changed_most(run: Run) -> None:
    shown = run("diff", "a.npz", "b.npz", "--top", "2")
    assert shown.exit_code == 1
    text = shown.stdout
    assert "36 of 72" in text
    assert "1 of 180" in text
    assert "2 parameters are equal" in text
    first = text.partition("differ most")[2].splitlines()[3]
    a = float(xw.get_params("a.npz")["dense/kernel"][0, 1])
    assert first.split()[:5] == ["dense/kernel", "[0,", "1]", f"{a:.6g}", "7.5"]


def test_diff_of_equals_exits_with_0(run: Run) -> None:
    shown = run("diff", "a.npz", "a.npz")
    assert (shown.exit_code, shown.stdout) == (0, "no difference in 4 parameters\n")


def test_diff_in_json_can_be_read_back(run: Run) -> None:
    shown = run("diff", "a.npz", "b.npz", "--json", "--top", "1")
    found = json.loads(shown.stdout)
    assert shown.exit_code == 1
    assert [entry["name"] for entry in found["changes"]] == ["conv/kernel", "dense/kernel"]
    assert found["same"] == 2
    assert found["top"][0]["index"] == [0, 1]
    assert found["top"][0]["b"] == 7.5


def test_diff_meets_names_that_differ(run: Run) -> None:
    values = xw.get_params("a.npz")
    xw.save({f"net/{name}": array for name, array in values.items()}, "c.npz")
    assert run("diff", "a.npz", "c.npz").exit_code == 1
    assert run("diff", "a.npz", "c.npz", "--names", "*=net/*").exit_code == 0


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--where", "*/kernel"], ["conv/kernel", "dense/kernel"]),
        (["-w", "conv/*", "-w", "dense/bias"], ["conv/kernel", "conv/bias", "dense/bias"]),
        (["-w", "role:bias"], ["conv/bias", "dense/bias"]),
        (["-w", "role:bias,kernel", "-w", "~conv/*"], ["dense/kernel", "dense/bias"]),
        (["-w", "~layer:0"], ["dense/kernel", "dense/bias"]),
        (["-w", "layer:-1"], ["dense/kernel", "dense/bias"]),
        (["-w", "layer:co*"], ["conv/kernel", "conv/bias"]),
        (["-w", "native:dense/b*"], ["dense/bias"]),
        (["-w", "trainable:yes"], ["conv/kernel", "conv/bias", "dense/kernel", "dense/bias"]),
    ],
)
def test_where_selects_as_it_does_in_the_library(run: Run, words: list[str], names: list[str]) -> None:
    shown = run("show", "a.npz", "--json", *words)
    assert [entry["name"] for entry in json.loads(shown.stdout)] == names


def test_convert_keeps_every_bit_and_takes_models_too(run: Run, place: Path) -> None:
    assert run("convert", "a.npz", "a.safetensors").exit_code == 0
    assert xw.equal("a.npz", "a.safetensors")
    assert run("convert", "nets:arrays", "part.npz", "--where", "dense/*").exit_code == 0
    assert list(xw.load("part.npz")) == ["dense/kernel", "dense/bias"]


HEAD = ["name", "count", "norm", "mean", "std", "min", "max", "sparsity", "NaN"]
ROW = [
    "a/name/that/is/so/long/that/it/has/to/be/folded/kernel",
    "1,440",
    "1.515",
    "-0.007537",
    "0.1028",
    "-0.192",
    "0.1913",
    "50.0%",
    "0",
]


def test_a_table_fits_into_80_columns_and_names_the_columns_it_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(HEAD, [ROW], width=80, keep=("NaN",))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    left_out = lines[-1].removeprefix("(no room for: ").partition(";")[0].split(", ")
    shown = " ".join(lines[:-1])
    for title, cell in zip(HEAD[1:], ROW[1:], strict=True):
        assert (title in left_out) != (cell in shown.split())
    assert left_out == ["min", "max"] or "NaN" not in left_out
    assert lines[2].split()[0].endswith("/kernel")


def test_a_wide_terminal_shows_everything(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(HEAD, [ROW], width=160)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ROW
    assert len(lines) == 3


def test_in_a_pipe_a_row_is_a_line_whatever_its_length(run: Run) -> None:
    long = "/".join(["block"] * 60) + "/kernel"
    xw.save({long: np.ones(3)}, "long.npz")
    rows = [line for line in run("stats", "long.npz").stdout.splitlines() if line.startswith(long)]
    assert len(rows) == 1
    assert rows[0].split()[-1] == "0"


def test_a_name_cannot_control_the_terminal(run: Run) -> None:
    xw.save({"red\x1b[31m": np.ones(2)}, "evil.npz")
    for words in (["stats", "evil.npz"], ["show", "evil.npz"], ["diff", "evil.npz", "a.npz"]):
        assert "\x1b" not in run(*words).stdout
