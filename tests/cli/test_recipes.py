"""What recipes of merges mean in mergekit is what is done, and what can't be done so is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw

Run = Callable[..., Any]
Refused = Callable[[Sequence[str], str], None]

OVERLAPPING = """
models:
  - model: a.npz
    parameters: {weight: [{filter: conv, value: 0.5}, {value: 0.25}]}
  - model: b.npz
    parameters: {weight: [{filter: kernel, value: 4}]}
merge_method: linear
parameters: {normalize: false, weight: [{filter: "*", value: 2}]}
"""


def test_each_model_follows_its_own_filters_and_what_they_leave_open_is_shared(run: Run, place: Path) -> None:
    pytest.importorskip("yaml", reason="PyYAML isn't installed")
    (place / "merge.yaml").write_text(OVERLAPPING)
    ran = run("merge", "--recipe", "merge.yaml", "--out", "merged.npz")
    assert ran.exit_code == 0, ran.stderr
    weights = {
        "conv/kernel": (0.5, 4.0), "conv/bias": (0.5, 2.0), "dense/kernel": (0.25, 4.0), "dense/bias": (0.25, 2.0)
    }  # fmt: skip
    assert xw.equal("merged.npz", xw.merge(["a.npz", "b.npz"], weights=weights, normalize=False))


def test_a_recipe_that_draws_takes_its_seed_from_the_command_line_and_rescales_as_mergekit(
    run: Run, place: Path
) -> None:
    pytest.importorskip("yaml", reason="PyYAML isn't installed")
    start = xw.get_params("a.npz")
    xw.noise(start, 0.1, seed=5)
    xw.save(start, "start.npz")
    (place / "merge.yaml").write_text(
        "models: [a.npz, b.npz]\nmerge_method: dare_linear\nbase_model: start.npz\n"
        "parameters: {weight: 0.5, density: 0.5}"
    )
    ran = run("merge", "--recipe", "merge.yaml", "--seed", "7", "--out", "merged.npz")
    assert ran.exit_code == 0, ran.stderr
    options: dict[str, Any] = {"base": "start.npz", "weights": 0.5, "density": 0.5, "seed": 7, "rescale": "l1"}
    assert xw.equal("merged.npz", xw.merge(["a.npz", "b.npz"], "dare_linear", **options))


UNCLEAR = {
    "code of Python": ("models: ['nets:arrays', a.npz]", "a recipe names files, and runs no code"),
    "a switch of one model": (
        "models: [{model: a.npz, parameters: {normalize: true}}, b.npz]", "normalize is one for all models"
    ),
    "a factor of one model": (
        "models: [a.npz, {model: b.npz, parameters: {lambda: 2}}]", "lambda is one for all models"
    ),
    "a word for a switch": ("models: [a.npz, b.npz]\nparameters: {normalize: 'false'}", "normalize is true or false"),
    "a number of 400 digits": (f"models: [a.npz, b.npz]\nparameters: {{weight: 1{'0' * 400}}}", "can't be understood"),
    "a filter for some": (
        """
models:
  - {model: a.npz, parameters: {weight: [{filter: conv, value: 1}]}}
  - {model: b.npz, parameters: {weight: 1}}
""",
        "weight says nothing for",
    ),
    "a misspelt filter": (
        "models: [a.npz, b.npz]\nparameters: {weight: [{filter: cnov, value: 1}, {value: 1}]}",
        "filter: 'cnov' is in no name",
    ),
    "a setting in the wrong place": ("models: [a.npz, {model: b.npz, weight: 3}]", "models: weight: isn't known"),
    "names in a list": ("models: [a.npz, b.npz]\nnames: [x]", "names: are GLOB: GLOB"),
    "a selection by number": ("models: [a.npz, b.npz]\nwhere: [1]", "where: is one selection"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCLEAR)
def test_a_recipe_that_is_unclear_is_refused_and_nothing_is_written(refused: Refused, place: Path, name: str) -> None:
    pytest.importorskip("yaml", reason="PyYAML isn't installed")
    text, fact = UNCLEAR[name]
    (place / "bad.yaml").write_text(text)
    refused(["merge", "--recipe", "bad.yaml", "--out", "c.npz"], fact)


@pytest.mark.parametrize("noise", ["0.1", "{std: 0.1}", "[0.1]"])
def test_noise_in_a_recipe_needs_a_seed_as_it_does_everywhere(refused: Refused, place: Path, noise: str) -> None:
    pytest.importorskip("yaml", reason="PyYAML isn't installed")
    (place / "bad.yaml").write_text(f"edits: [{{noise: {noise}}}]")
    refused(["edit", "a.npz", "--recipe", "bad.yaml"], "edit 1: noise is drawn from a seed")


def test_units_of_several_axes_are_a_list_in_a_recipe(run: Run, place: Path) -> None:
    (place / "edits.json").write_text('{"edits": [{"max_norm": {"max": 0.1, "per": ["in", "out"]}}]}')
    assert run("edit", "a.npz", "--recipe", "edits.json", "-w", "conv/kernel", "-o", "c.npz").exit_code == 0
    expected = xw.get_params("a.npz")
    xw.max_norm(expected, 0.1, per=("in", "out"), where="conv/kernel")
    assert xw.equal("c.npz", expected)


@pytest.mark.parametrize("where", ["[]", "[3]", "3", "{conv: 1}", "''"])
def test_an_edit_whose_selection_is_none_is_refused(refused: Refused, place: Path, where: str) -> None:
    pytest.importorskip("yaml", reason="PyYAML isn't installed")
    (place / "bad.yaml").write_text(f"edits: [{{scale: 2, where: {where}}}]")
    refused(["edit", "a.npz", "--recipe", "bad.yaml"], "where: is one selection")


LONG = "1" * 5000
NUMBERS = {
    "an index": (["edit", "a.npz", "--set", f"[{LONG}]=1"], "--set can't be understood"),
    "a slice": (["edit", "a.npz", "--set", f"[:{LONG}]=1"], "--set can't be understood"),
    "a pattern": (["prune", "a.npz", "--pattern", f"{LONG}:4:in"], "--pattern can't be understood"),
    "an adapter": (["merge", "a.npz", "b.npz", "-o", "c.npz", "--adapt", f"conv/bias=take(0, :{LONG})"], "--adapt"),
    "more than any memory": (
        ["convert", "a.npz", "c.npz", "--adapt", "conv/bias=pad(0, 9999999999999999)"], "the memory isn't enough"
    ),
    "a layer": (["show", "a.npz", "--where", f"layer:{LONG}"], "selects nothing"),
    "no digit of ours": (["show", "a.npz", "--where", "layer:\u00b2"], "selects nothing"),
    "too large for a dtype that knows no infinity": (
        ["cast", "large.npz", "c.npz", "--dtype", "float4_e2m1fn"], "1 numbers that float4_e2m1fn can't hold"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_can_not_be_is_refused_and_nothing_is_written(refused: Refused, place: Path, name: str) -> None:
    np.savez(place / "large.npz", w=np.array([1.0, 100.0], "float32"))
    refused(*NUMBERS[name])


NOT_FINITE = {
    "a factor": (["--scale", "nan"], "edit 1: factor= isn't finite"),
    "a value": (["--set", "nan"], "edit 1: value= isn't finite"),
    "one entry": (["--scale", "2", "--set", "[0]=inf"], "edit 2: value= isn't finite"),
    "a number to add": (["--add=-inf"], "Fix: --allow-nonfinite"),
    "a recipe": (["--recipe", "edits.json"], "edit 1: value= isn't finite"),
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_an_edit_by_what_is_not_finite_is_refused_as_in_the_library(
    run: Run, refused: Refused, place: Path, name: str
) -> None:
    (place / "edits.json").write_text('{"edits": [{"fill": NaN}]}')
    words, fact = NOT_FINITE[name]
    edit = ["edit", "a.npz", *words, "--where", "conv/bias"]
    refused(edit, fact)
    assert run(*edit, "--allow-nonfinite").exit_code == 0
    assert not np.isfinite(xw.get_params("a.npz")["conv/bias"]).all()


def test_a_dry_run_into_a_pipe_writes_nothing(run: Run, place: Path) -> None:
    ran = run("extract", "a.npz", "-", "--format", "safetensors", "--dry-run")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout == ""
    assert "dry run: nothing was written" in ran.stderr
