"""The commands edit, prune and merge write the expected bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw

Run = Callable[..., Any]
ONE = np.float32(1)


def run_on_a_copy(words: list[str], run: Run) -> xw.Params:
    """Run a command on a.npz, and return the file that it wrote."""
    ran = run("edit", "a.npz", *words, "--out", "edited.npz")
    assert ran.exit_code == 0, ran.stderr
    return xw.get_params("edited.npz")


def test_edits_are_applied_in_the_order_of_the_options(run: Run) -> None:
    before = xw.get_params("a.npz")["conv/kernel"]
    first = run_on_a_copy(["--scale", "2", "--add", "1"], run)["conv/kernel"]
    other = run_on_a_copy(["--add", "1", "--scale", "2"], run)["conv/kernel"]
    assert np.array_equal(first, before * np.float32(2) + ONE)
    assert np.array_equal(other, (before + ONE) * np.float32(2))
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("words", "verb"),
    [
        (["--set", "0.5"], lambda w: xw.fill(w, 0.5)),
        (["--clip", "-0.1,0.1"], lambda w: xw.clip(w, -0.1, 0.1)),
        (["--clip", ",0.1"], lambda w: xw.clip(w, high=0.1)),
        (["--clip", "0,"], lambda w: xw.clip(w, 0.0)),
        (["--max-norm", "0.5"], lambda w: xw.max_norm(w, 0.5, per="out", where="*/kernel")),
        (["--max-norm", "0.5", "--per", "h,w"], lambda w: xw.max_norm(w, 0.5, per=("h", "w"), where="conv/kernel")),
        (["--noise", "0.1", "--seed", "3"], lambda w: xw.noise(w, 0.1, seed=3)),
        (["--prune", "0.25"], lambda w: xw.prune(w, fraction=0.25)),
        (["--prune", "0.25", "--scope", "global"], lambda w: xw.prune(w, fraction=0.25, scope="global")),
    ],
)
def test_an_edit_is_the_verb_of_its_name(run: Run, words: list[str], verb: Callable[[Any], None]) -> None:
    expected = xw.get_params("a.npz")
    verb(expected)
    where = ["--where", "conv/kernel"] if "h,w" in words else []
    assert xw.equal(run_on_a_copy([*words, *where], run), expected)
    assert not xw.equal(expected, "a.npz")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("[0,:3]=1.5", (0, slice(3))),
        ("[-1, 2]= 1.5", (-1, 2)),
        ("[in=0,out=1:4:2]=1.5", {"in": 0, "out": slice(1, 4, 2)}),
        ("[out=::2]=1.5", {"out": slice(None, None, 2)}),
    ],
)
def test_entries_are_set_by_position_or_by_axis(run: Run, text: str, index: Any) -> None:
    expected = xw.get_params("a.npz")
    xw.set_entries(expected, index, 1.5, where="dense/kernel")
    assert xw.equal(run_on_a_copy(["--set", text, "--where", "dense/kernel"], run), expected)


def test_without_out_the_file_itself_is_replaced_and_the_count_is_printed(run: Run) -> None:
    xw.save(xw.get_params("a.npz"), "own.safetensors")
    ran = run("edit", "own.safetensors", "--set", "[0,0]=9", "--where", "dense/kernel", "--json")
    assert json.loads(ran.stdout) == {"path": "own.safetensors", "in_place": True, "changed": {"dense/kernel": 1}}
    assert xw.get_params("own.safetensors")["dense/kernel"][0, 0] == 9
    shown = run("edit", "own.safetensors", "--scale", "2").stdout
    assert shown.splitlines()[-1] == "saved: own.safetensors"
    assert "dense/kernel   180" in " ".join(shown.split("\n")).replace("               ", "   ")


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--fraction", "0.5"], {"fraction": 0.5}),
        (["--count", "7", "--scope", "global"], {"count": 7, "scope": "global"}),
        (["--threshold", "0.1"], {"threshold": 0.1}),
        (["--fraction", "0.5", "--per", "out"], {"fraction": 0.5, "per": "out"}),
        (["--pattern", "2:4:in", "-w", "dense/kernel"], {"pattern": (2, 4, "in"), "where": "dense/kernel"}),
    ],
)
def test_prune_drops_the_same_entries_as_the_verb(run: Run, words: list[str], options: dict[str, Any]) -> None:
    expected = xw.get_params("a.npz")
    xw.prune(expected, **options)
    assert run("prune", "a.npz", *words, "--out", "sparse.npz").exit_code == 0
    assert xw.equal("sparse.npz", expected)
    assert not xw.equal("sparse.npz", "a.npz")


@pytest.mark.parametrize(
    ("words", "method", "options"),
    [
        ([], "average", {}),
        (["--weights", "3,1"], "average", {"weights": (3.0, 1.0)}),
        (["--weights", "1,1", "--weights", "conv/*=0,1"], "average", {"weights": {"*": (1, 1), "conv/*": (0, 1)}}),
        (["--weights", "1,1", "--no-normalize"], "average", {"weights": (1, 1), "normalize": False}),
        (["--method", "slerp", "--t", "0.25"], "slerp", {"t": 0.25}),
        (["--method", "ties", "--base", "base.npz", "--density", "0.5"], "ties", {"base": "base.npz", "density": 0.5}),
        (
            ["--method", "dare_linear", "--base", "base.npz", "--density", "0.5", "--seed", "3", "--rescale", "none"],
            "dare_linear",
            {"base": "base.npz", "density": 0.5, "seed": 3, "rescale": None},
        ),
    ],
)
def test_merge_is_the_function_of_its_name(run: Run, words: list[str], method: str, options: dict[str, Any]) -> None:
    base = xw.get_params("a.npz")
    xw.noise(base, 0.1, seed=1)
    xw.save(base, "base.npz")
    ran = run("merge", "a.npz", "b.npz", *words, "--out", "merged.npz")
    assert ran.exit_code == 0, ran.stderr
    expected = xw.merge(["a.npz", "b.npz"], method, **options)
    assert expected is not None
    assert xw.equal("merged.npz", expected)
    assert not xw.equal("merged.npz", "a.npz")


def test_models_and_files_are_merged_alike(run: Run, place: Path) -> None:
    assert run("merge", "nets:arrays", "b.npz", "--out", "merged.npz").exit_code == 0
    assert xw.equal("merged.npz", xw.merge(["a.npz", "b.npz"]))


CHANGES = {
    "nothing to do": (["edit", "a.npz"], "nothing is to be done"),
    "an edit twice": (["edit", "a.npz", "--scale", "1", "--scale", "2"], "given once"),
    "entries of everything": (["edit", "a.npz", "--set", "[0]=1"], "where= is required"),
    "entries outside": (["edit", "a.npz", "--set", "[99,0]=1", "-w", "dense/kernel"], "99"),
    "entries of an axis that isn't there": (["edit", "a.npz", "--set", "[up=0]=1", "-w", "dense/kernel"], "up"),
    "entries by place and axis": (["edit", "a.npz", "--set", "[0,in=1]=1", "-w", "*"], "not both"),
    "entries of words": (["edit", "a.npz", "--set", "[a,b]=1", "-w", "*"], "whole numbers and slices"),
    "entries without a value": (["edit", "a.npz", "--set", "[0]", "-w", "*"], "[INDEX]=VALUE"),
    "a scale of words": (["edit", "a.npz", "--scale", "much"], "expected: a number"),
    "a clip of one number": (["edit", "a.npz", "--clip", "1"], "LOW,HIGH"),
    "a clip upside down": (["edit", "a.npz", "--clip", "1,-1"], "low"),
    "noise without a seed": (["edit", "a.npz", "--noise", "1"], "Fix: --seed 0"),
    "a scale that can't be held": (["edit", "a.npz", "--scale", "1e60"], "1e+60"),
    "a fraction above 1": (["prune", "a.npz", "--fraction", "1.5"], "between 0.0 and 1.0"),
    "two ways to prune": (["prune", "a.npz", "--fraction", "0.5", "--count", "3"], "exactly one of"),
    "a pattern of words": (["prune", "a.npz", "--pattern", "two of four"], "N:M:AXIS"),
    "more than there is": (["prune", "a.npz", "--count", "100000"], "more than"),
    "a model in code": (["edit", "nets:arrays", "--scale", "2"], "what is edited is a file"),
    "a file that isn't there": (["prune", "c.npz", "--fraction", "0.5"], "there is no file 'c.npz'"),
    "a folder that isn't there": (["edit", "a.npz", "--scale", "2", "-o", "no/a.npz"], "no folder 'no'"),
    "a merge without its base": (["merge", "a.npz", "b.npz", "--method", "ties", "-o", "c.npz"], "needs base="),
    "a merge of strangers": (["merge", "a.npz", "d.npz", "-o", "c.npz"], "'conv/kernel'"),
    "a weight too many": (["merge", "a.npz", "b.npz", "--weights", "1,2,3", "-o", "c.npz"], "weights"),
    "weights twice": (["merge", "a.npz", "b.npz", "--weights", "1", "--weights", "2", "-o", "c.npz"], "one value per"),
    "weights of words": (["merge", "a.npz", "b.npz", "--weights", "all", "-o", "c.npz"], "expected: a number"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_can_not_be_made_leaves_every_file_as_it_is(run: Run, place: Path, name: str) -> None:
    xw.save({"other/kernel": np.ones(3)}, "d.npz")
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    words, fact = CHANGES[name]
    shown = run(*words)
    assert shown.exit_code == 2
    assert (shown.stdout, shown.stderr[:7]) == ("", "error: ")
    assert fact in shown.stderr
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == before
