"""Several files in one command: each result goes under its own name, and all are written or none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw
from xweights.files.io.atomic import replace_together

Run = Callable[..., Any]
Refused = Callable[[Sequence[str], str], None]


def halved(path: str) -> xw.Params:
    values = xw.get_params(path)
    xw.scale(values, 0.5)
    return values


def test_every_file_is_edited(run: Run) -> None:
    expected = {name: halved(name) for name in ("a.npz", "b.npz")}
    shown = run("edit", "a.npz", "b.npz", "--scale", "0.5")
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.startswith("a.npz:\n")
    assert shown.stdout.endswith("saved: a.npz\nsaved: b.npz\n")
    assert all(xw.equal(name, values) for name, values in expected.items())


def test_a_file_that_can_not_be_edited_leaves_all_as_they_were(refused: Refused) -> None:
    large = xw.get_params("a.npz")
    xw.fill(large, 3e38)
    xw.save(large, "large.npz")
    refused(["edit", "a.npz", "large.npz", "--scale", "1e3", "--where", "lost/*"], "selects nothing")
    xw.save({"other/kernel": np.ones(3)}, "other.npz")
    refused(["edit", "a.npz", "other.npz", "--scale", "2", "--where", "dense/*"], "other.npz: where='dense/*'")
    refused(["prune", "a.npz", "b.npz", "gone.npz", "--fraction", "0.5"], "gone.npz")


def test_results_go_into_a_folder_under_their_own_names(run: Run, place: Path) -> None:
    (place / "out").mkdir()
    before = (place / "a.npz").read_bytes()
    shown = json.loads(run("prune", "a.npz", "b.npz", "--fraction", "0.5", "--out", "out", "--json").stdout)
    assert set(shown) == {"a.npz", "b.npz"}
    assert shown["a.npz"]["path"] == str(Path("out", "a.npz"))
    expected = xw.get_params("a.npz")
    xw.prune(expected, fraction=0.5)
    assert xw.equal("out/a.npz", expected)
    assert (place / "a.npz").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "a.npz", "b.npz", "out", "--format", "safetensors"],
        ["extract", "a.npz", "b.npz", "out", "--format", "safetensors"],
        ["cast", "a.npz", "b.npz", "out", "--format", "safetensors", "--dtype", "float32"],
        ["rename", "a.npz", "b.npz", "out", "--format", "safetensors", "--names", "*=*"],
    ],
)
def test_files_are_copied_into_a_folder_in_one_format(run: Run, place: Path, words: list[str]) -> None:
    (place / "out").mkdir()
    trial = run(*words, "--dry-run")
    assert (trial.exit_code, list((place / "out").iterdir())) == (0, []), trial.stderr
    shown = run(*words)
    assert shown.exit_code == 0, shown.stderr
    assert sorted(path.name for path in (place / "out").iterdir()) == ["a.safetensors", "b.safetensors"]
    assert all(xw.equal(f"out/{name}.safetensors", f"{name}.npz") for name in "ab")


def test_a_folder_and_a_quoted_glob_are_one_checkpoint(run: Run, place: Path) -> None:
    (place / "hub").mkdir()
    values = xw.get_params("a.npz")
    xw.save(values, place / "hub" / "model.safetensors.index.json", shard_bytes=400)
    xw.scale(values, 0.5)
    assert run("edit", "hub", "--scale", "0.5").exit_code == 0
    assert xw.equal("hub", values)
    xw.scale(values, 0.5)
    assert run("edit", "hub/model-*.safetensors", "--scale", "0.5", "--out", "one.npz").exit_code == 0
    assert xw.equal("one.npz", values)
    shown = run("edit", "hub/model-*.safetensors", "--scale", "0.5")
    assert "shards without an index are only read" in shown.stderr


UNCLEAR = {
    "twice the same": (["edit", "a.npz", "./a.npz", "--scale", "2"], "named twice"),
    "two of one name": (["cast", "a.npz", "in/a.npz", "out", "--dtype", "float16"], "both be"),
    "no folder": (["cast", "a.npz", "b.npz", "c.npz", "--dtype", "float16"], "several files go into a folder"),
    "a folder that isn't there": (["edit", "a.npz", "b.npz", "--scale", "2", "-o", "new"], "mkdir -p new"),
    "a file as the folder": (["edit", "a.npz", "b.npz", "--scale", "2", "-o", "b.npz"], "into a folder"),
    "a pipe": (["convert", "a.npz", "b.npz", "-", "--format", "npz"], "into a folder"),
    "a model": (["convert", "a.npz", "nets:arrays", "out"], "a model has no name of a file"),
    "itself": (["cast", "a.npz", "b.npz", ".", "--dtype", "float16"], "would be replaced by its own copy"),
    "shards": (["edit", "a.npz", "hub", "--scale", "2"], "a checkpoint of several files is changed by itself"),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_unclear_is_refused_and_every_file_stays(refused: Refused, place: Path, name: str) -> None:
    for folder in ("in", "out", "hub"):
        (place / folder).mkdir()
    xw.save("a.npz", "in/a.npz")
    xw.save("a.npz", place / "hub" / "model.safetensors.index.json", shard_bytes=400)
    hub = {path: path.read_bytes() for path in (place / "hub").iterdir()}
    words, fact = UNCLEAR[name]
    refused(words, fact)
    assert {path: path.read_bytes() for path in (place / "hub").iterdir()} == hub
    assert not list((place / "out").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_files_replaced_together_keep_their_permissions_and_links(place: Path) -> None:
    (place / "a.npz").chmod(0o640)
    (place / "link.npz").symlink_to("b.npz")
    before = (place / "a.npz").read_bytes()
    with replace_together():
        xw.edit_file("a.npz", xw.Scale(0.5))
        xw.edit_file("link.npz", xw.SetEntries((0, 0), 3.0), where="dense/kernel")
        assert (place / "a.npz").read_bytes() == before
    assert (place / "a.npz").stat().st_mode & 0o777 == 0o640
    assert (place / "link.npz").is_symlink()
    assert xw.load("b.npz")["dense/kernel"][0, 0] == 3.0
    assert not [path for path in place.iterdir() if path.name.startswith(".")]
