"""The commands that write and look at whole files, pipes, dry runs, and streams that can't show everything."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xweights as xw
from xweights.cli.adapters import parse_adapters
from xweights.cli.completion import complete_where

Run = Callable[..., Any]
Refused = Callable[[Sequence[str], str], None]
SHARDS = "model.safetensors.index.json"


def test_the_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version").stdout == f"xweights {xw.__version__}\n"


def test_several_targets_are_shown_one_below_the_other(run: Run) -> None:
    shown = run("show", "a.npz", "b.npz").stdout
    assert shown.startswith("a.npz:\n")
    assert "\nb.npz:\n" in shown
    assert set(json.loads(run("stats", "a.npz", "b.npz", "--json").stdout)) == {"a.npz", "b.npz"}


def test_checksums_are_the_library_s_and_agree_across_formats(run: Run) -> None:
    assert run("convert", "a.npz", "a.safetensors").exit_code == 0
    sums = json.loads(run("checksum", "a.npz", "a.safetensors", "b.npz", "nets:arrays", "--json").stdout)
    assert sums["a.npz"] == sums["a.safetensors"] == sums["nets:arrays"] == xw.checksum("a.npz")
    assert sums["b.npz"] != sums["a.npz"]
    assert run("checksum", "a.npz").stdout == f"{xw.checksum('a.npz')}  a.npz\n"


def test_a_part_of_a_run_becomes_a_file_of_its_own(run: Run) -> None:
    torch = pytest.importorskip("torch", reason="torch isn't installed")
    model, average = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    torch.save({"model": model.state_dict(), "ema": average.state_dict(), "epoch": 3}, "run.ckpt")
    assert {row["part"]: row["kind"] for row in json.loads(run("parts", "run.ckpt", "--json").stdout)} == {
        "model": "weights", "ema": "weights"
    }  # fmt: skip
    numbers = {"kind": "weights", "arrays": 2, "entries": 9}
    assert json.loads(run("show", "run.ckpt", "--json").stdout) == [{"part": p, **numbers} for p in ("model", "ema")]
    assert run("extract", "run.ckpt#ema", "ema.pt").exit_code == 0
    assert torch.equal(torch.load("ema.pt")["weight"], average.weight)
    assert run("extract", "run.ckpt", "both.pt").exit_code == 2


def test_extract_takes_some_parameters_with_their_axes(run: Run) -> None:
    assert run("extract", "a.npz", "dense.safetensors", "--where", "dense/*").exit_code == 0
    taken = xw.get_params("dense.safetensors")
    assert xw.equal(taken, xw.get_params("a.npz", where="dense/*"))
    assert taken.axes["dense/kernel"] == ("in", "out")


def test_cast_rounds_once_and_leaves_the_rest(run: Run) -> None:
    import ml_dtypes

    assert run("cast", "a.npz", "half.npz", "--dtype", "bfloat16", "--where", "*/kernel").exit_code == 0
    half, full = xw.get_params("half.npz"), xw.get_params("a.npz")
    assert half["dense/kernel"].tobytes() == full["dense/kernel"].astype(ml_dtypes.bfloat16).tobytes()
    assert half["dense/bias"].dtype == np.float32


def test_cast_refuses_what_would_become_infinite(refused: Refused, place: Path) -> None:
    xw.save({"w/kernel": np.array([1e30], "f4")}, "large.npz")
    refused(["cast", "large.npz", "half.npz", "--dtype", "float16"], "'w/kernel'")


def test_rename_carries_over_what_the_star_matched(run: Run) -> None:
    assert run("rename", "a.npz", "r.npz", "--names", "conv/*=stem/*").exit_code == 0
    renamed = xw.get_params("r.npz")
    assert list(renamed) == ["stem/kernel", "stem/bias", "dense/kernel", "dense/bias"]
    assert renamed.axes["stem/kernel"] == ("h", "w", "in", "out")
    assert xw.equal(renamed, "a.npz", names={"stem/*": "conv/*"})


def test_adapted_arrays_are_converted_and_merged(run: Run) -> None:
    assert run("convert", "a.npz", "gray.npz", "--adapt", "conv/kernel=sum(in)").exit_code == 0
    assert xw.get_params("gray.npz")["conv/kernel"].shape == (3, 3, 1, 4)
    merged = run("merge", "gray.npz", "a.npz", "--adapt", "conv/kernel=sum(in)", "-o", "m.npz")
    assert merged.exit_code == 0, merged.stderr
    assert xw.equal("m.npz", xw.merge(["gray.npz", "a.npz"], adapt={"conv/kernel": xw.adapt.Sum("in")}))


def test_adapters_are_parsed_as_they_are_written_in_python() -> None:
    parsed = parse_adapters(
        ["a=take(in, 0:3)", "b=take(in, 0, 2)", "c=resample(2x2, 4x4, skip=1)", "d=leave", "a=sum(0)"]
    )
    assert parsed == {
        "a": [xw.adapt.Take("in", slice(0, 3)), xw.adapt.Sum(0)],
        "b": xw.adapt.Take("in", [0, 2]),
        "c": xw.adapt.Resample((2, 2), (4, 4), skip=1),
        "d": xw.adapt.Leave(),
    }


VOCABULARIES = {
    "old.txt": "<s>\ncat\ndog\n",
    "old.json": '["<s>", "cat", "dog"]',
    "rows.json": '{"cat": 1, "dog": 2, "<s>": 0}',
    "tokenizer.json": '{"model": {"vocab": {"<s>": 0, "cat": 1}}, "added_tokens": [{"id": 2, "content": "dog"}]}',
    "unigram.json": '{"model": {"vocab": [["<s>", 0.0], ["cat", -2.5], ["dog", -3.5]]}}',
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_rows_of_a_vocabulary_go_where_their_tokens_are(run: Run, place: Path, name: str) -> None:
    (place / name).write_text(VOCABULARIES[name])
    (place / "new.txt").write_text("<s>\na\ndog\ncat")
    table = xw.Params({"embed/embeddings": np.arange(6.0).reshape(3, 2)}, axes={"embed/embeddings": ("vocab", "dim")})
    xw.save(table, "table.npz")
    words = f"embed/*=rows({name}, new=new.txt, init=normal, std=0.5, seed=3)"
    ran = run("convert", "table.npz", "grown.npz", "--adapt", words if "txt" not in name else words.replace("new=", ""))
    assert ran.exit_code == 0, ran.stderr
    rows = xw.adapt.Rows(["<s>", "cat", "dog"], ["<s>", "a", "dog", "cat"], init="normal", std=0.5, seed=3)
    xw.convert("table.npz", "expected.npz", adapt={"embed/*": rows})
    assert xw.equal("grown.npz", "expected.npz")


@pytest.mark.parametrize(
    ("name", "text", "cause"),
    [
        ("v.json", "{", "JSONDecodeError"),
        ("v.json", '{"a": "b"}', "a row is a whole number"),
        ("v.json", "[]", "it has no tokens"),
        ("v.json", "[[1]]", "is no text"),
        ("v.json", '{"model": {}}', "'vocab'"),
        ("v.json", "3", "neither a list"),
        ("v.txt", "a\nb\na", "a token comes twice"),
        ("v.model", "", "its ending is .model"),
    ],
)
def test_what_is_no_vocabulary_is_refused(refused: Refused, place: Path, name: str, text: str, cause: str) -> None:
    (place / name).write_text(text)
    refused(["convert", "a.npz", "c.npz", "--adapt", f"dense/*=rows({name}, {name})"], cause)
    refused(["convert", "a.npz", "c.npz", "--adapt", f"dense/*=rows({name}, {name})"], f"'{name}' is no vocabulary")


WRITING = {
    "edit": ["edit", "a.npz", "--scale", "2"],
    "prune": ["prune", "a.npz", "--fraction", "0.5"],
    "merge": ["merge", "a.npz", "b.npz", "-o", "new.npz"],
    "convert": ["convert", "a.npz", "new.safetensors"],
    "cast": ["cast", "a.npz", "new.npz", "--dtype", "float16"],
    "rename": ["rename", "a.npz", "new.npz", "--names", "conv/*=stem/*"],
    "extract": ["extract", "a.npz", "new.npz", "-w", "conv/*"],
}


@pytest.mark.parametrize("name", WRITING)
def test_a_dry_run_does_everything_but_keeps_nothing(
    run: Run, contents: Callable[[], dict[str, bytes]], name: str
) -> None:
    before = contents()
    shown = run(*WRITING[name], "--dry-run")
    assert shown.exit_code == 0, shown.stderr
    assert "dry run: nothing was written" in shown.stdout
    assert contents() == before
    assert run(*WRITING[name]).exit_code == 0
    assert contents() != before


def shell(words: list[str], place: Path, given: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    import os

    quiet = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    program = [sys.executable, "-m", "xweights", *words]
    return subprocess.run(program, input=given, capture_output=True, check=False, cwd=place, env=quiet | environment)


def test_weights_go_through_pipes(place: Path) -> None:
    written = shell(["extract", "a.npz", "-", "--format", "safetensors", "-w", "dense/*"], place)
    assert written.stderr == b"saved: -\n"
    (place / "piped.safetensors").write_bytes(written.stdout)
    assert xw.equal("piped.safetensors", xw.get_params("a.npz", where="dense/*"))
    shown = shell(["checksum", "-"], place, written.stdout)
    assert shown.stdout.split()[0].decode() == xw.checksum("piped.safetensors")
    assert shell(["show", "-"], place).returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize(
    "words", [["show", "odd.npz"], ["stats", "odd.npz"], ["stats", "odd.npz", "--json"], ["show", "no.npz"]]
)
def test_no_stream_is_too_narrow_for_a_name(place: Path, encoding: str, words: list[str]) -> None:
    xw.save({"блок/kernel": np.array([[1.0, np.inf], [2.0, np.nan]]), "blok/bias": np.ones(2)}, "odd.npz")
    shown = shell(words, place, PYTHONIOENCODING=encoding, NO_COLOR="1")
    assert b"Traceback" not in shown.stderr
    assert shown.returncode == (2 if "no.npz" in words else 0)
    text = shown.stdout.decode(encoding)
    if words == ["stats", "odd.npz"]:
        assert ("блок" in text) == (encoding == "utf-8")
        assert ("\u2500" in text) == (encoding == "utf-8")
    if "--json" in words:
        assert {row["name"] for row in json.loads(text)} == {"блок/kernel", "blok/bias"}


def test_tables_that_are_printed_by_the_library_fit_the_stream(place: Path) -> None:
    code = "import xweights as xw; print(xw.stats('a.npz')); print(xw.summary('a.npz'))"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, cwd=place, env=_env(PYTHONIOENCODING="cp1252")
    )
    assert b"dense/kernel" in shown.stdout


def _env(**more: str) -> dict[str, str]:
    import os

    return {**os.environ, **more}


def test_an_error_is_json_where_json_was_asked_for(run: Run) -> None:
    shown = run("stats", "a.npz", "--where", "*/kernels", "--json")
    assert (shown.exit_code, shown.stdout) == (2, "")
    wrong = json.loads(shown.stderr)["error"]
    assert wrong["type"] == "SelectionError"
    assert wrong["fact"].startswith("where='*/kernels' selects nothing")
    assert wrong["status"] == 2
    refused = json.loads(run("edit", "a.npz", "--noise", "1", "--json").stderr)["error"]
    assert refused["fix"] == ["--seed 0, so that the same is drawn again"]


def test_the_names_in_a_file_are_completed(place: Path) -> None:
    def offered(file: str, typed: str) -> list[str]:
        return complete_where(SimpleNamespace(params={"targets": [file], "json": False, "out": None}), typed)

    assert offered("a.npz", "con") == ["conv/*", "conv/kernel", "conv/bias"]
    assert offered("a.npz", "~dense/k") == ["~dense/kernel"]
    assert offered("a.npz", "role:") == ["role:kernel", "role:bias"]
    (place / "lie.npz").write_bytes(b"no zip")
    assert offered("lie.npz", "con") == []


WRONG = {
    "a dtype that isn't": (["cast", "a.npz", "c.npz", "--dtype", "float17"], "Near names: 'float16'"),
    "names that match nothing": (["rename", "a.npz", "c.npz", "--names", "x/*=y/*"], "'x/*' matches no name"),
    "two under one name": (["rename", "a.npz", "c.npz", "--names", "*/bias=bias"], "as many *"),
    "one name for two": (
        ["rename", "a.npz", "c.npz", "--names", "conv/bias=b", "--names", "dense/bias=b"], "would both be 'b'"
    ),
    "nothing to rename": (["rename", "a.npz", "c.npz"], "Fix: --names"),
    "standard output of no format": (["convert", "a.npz", "-"], "Fix: --format safetensors"),
    "a format beside an ending": (["convert", "a.npz", "c.npz", "--format", "npz"], "for standard output"),
    "an adapter that isn't": (["convert", "a.npz", "c.npz", "--adapt", "*=summ(in)"], "'sum'"),
    "an adapter without a glob": (["convert", "a.npz", "c.npz", "--adapt", "sum(in)"], "GLOB=HOW"),
    "an adapter of no axis": (["convert", "a.npz", "c.npz", "--adapt", "conv/kernel=sum(up)"], "up"),
    "entries that aren't there": (
        ["convert", "a.npz", "c.npz", "--adapt", "conv/bias=take(0, 5:9)"], "takes none of the 4 entries"
    ),
    "an adapted model": (["convert", "nets:arrays", "c.npz", "--adapt", "*=sum(in)"], "what is edited is a file"),
    "a recipe beside options": (
        ["merge", "a.npz", "--recipe", "m.json", "--weights", "1", "-o", "c.npz"], "a recipe says this itself"
    ),
    "no recipe and nothing else": (["merge", "-o", "c.npz"], "nothing is to be merged"),
    "a recipe that isn't there": (["edit", "a.npz", "--recipe", "no.yaml"], "there is no file 'no.yaml'"),
    "a recipe of edits without edits": (["edit", "a.npz", "--recipe", "m.json"], "lists no edits"),
    "an edit that isn't": (["edit", "a.npz", "--recipe", "e.json"], "edit 1 is none of"),
    "a part of no file": (["parts", "c.npz"], "there is no file"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_can_not_be_done_is_refused_and_every_file_stays(refused: Refused, place: Path, name: str) -> None:
    (place / "m.json").write_text('{"models": ["a.npz", "b.npz"]}')
    (place / "e.json").write_text('{"edits": [{"scael": 2}]}')
    refused(*WRONG[name])


def test_verify_is_the_library_s(run: Run) -> None:
    pytest.importorskip("torch", reason="torch isn't installed")
    assert run("verify", "nets:in_torch", "nets:in_torch", "--sample", "x.npy").exit_code == 2  # channels last
    np.save("c.npy", np.ones((1, 2, 5, 5), "f4"))
    shown = run("verify", "nets:in_torch", "nets:in_torch", "--sample", "c.npy", "--json")
    assert shown.exit_code == 0, shown.stderr
    assert json.loads(shown.stdout)["ok"]
