"""A user's mistake gives a message on stderr and exit status 2, without a traceback and without writing a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw

Run = Callable[..., Any]

MISTAKES = {
    "missing file": (["show", "c.npz"], "there is no file 'c.npz'", "'a.npz'"),
    "missing folder": (["show", "nowhere/c.npz"], "there is no file", "there is no folder 'nowhere'"),
    "a folder": (["show", "."], "error: ", ""),
    "an ending that says nothing": (["show", "nets.py"], "its ending names no format", ".safetensors"),
    "a file that lies about its format": (["stats", "lie.npz"], "'lie.npz'", ""),
    "a glob that matches nothing": (["stats", "a.npz", "--where", "*/kernels"], "selects nothing", "kernel"),
    "a layer that isn't there": (["stats", "a.npz", "--where", "layer:9"], "there are 2 layers", ""),
    "half a selection": (["stats", "a.npz", "-w", "conv/*", "-w", "none"], "selects nothing", "'none'"),
    "a word after trainable": (["stats", "a.npz", "-w", "trainable:maybe"], "yes or no", ""),
    "names without =": (["diff", "a.npz", "b.npz", "--names", "x"], "GLOB=GLOB", ""),
    "names with more *": (["diff", "a.npz", "b.npz", "--names", "*=x"], "as many *", ""),
    "no such module": (["show", "nest:arrays"], "there is no module 'nest'", "'nets'"),
    "no such module inside": (["show", "nets.inner:arrays"], "there is no module 'nets.inner'", ""),
    "a module by its file": (["show", "nets.py:arrays"], "named as in an import", "Fix: nets:arrays"),
    "no such factory": (["show", "nets:array"], "'nets' has no 'array'", "'arrays'"),
    "no such factory inside": (["show", "nets:Inside.array"], "has no 'Inside.array'", ""),
    "a constant": (["show", "nets:constant"], "is no factory", "int"),
    "a factory that raises": (["show", "nets:broken"], "no such card", "nets.py:"),
    "a factory that exits": (["show", "nets:leaving"], "SystemExit: bye", "nets.py:"),
    "a factory of nothing": (["show", "nets:nothing"], "built nothing", "Fix: return it"),
    "a factory of something else": (["stats", "nets:number"], "can't reach weights", "builtins.int"),
    "a module that can't be imported": (["show", "wrong:arrays"], "'wrong' can't be imported", "ZeroDivisionError"),
    "a module with a missing import": (["show", "needy:arrays"], "'needy' can't be imported", "no_such_package"),
    "a module that is no Python": (["show", "grammar:arrays"], "'grammar' can't be imported", "grammar.py:1"),
    "weights that aren't there": (["show", "nets:arrays@c.npz"], "there is no file 'c.npz'", ""),
    "weights of another model": (["show", "nets:arrays@other.npz"], "'conv/kernel'", "(4, 4)"),
    "a picture of no kind": (["plot", "a.npz", "-o", "p.jpeg"], "ends in .png", "p.jpeg"),
    "a picture in no folder": (["plot", "a.npz", "-o", "no/p.png"], "no folder 'no'", "mkdir"),
    "a kind of two": (["plot", "a.npz", "b.npz", "--kind", "spectra", "-o", "p.png"], "one target", ""),
    "names of one": (["plot", "a.npz", "--names", "*=*", "-o", "p.png"], "two targets", ""),
    "spectra of vectors": (["plot", "a.npz", "--kind", "spectra", "-w", "*/bias", "-o", "p.png"], "singular", ""),
    "a report of no kind": (["report", "a.npz", "-o", "p.pdf"], "ends in .html", ""),
    "a converted file of no format": (["convert", "a.npz", "a.what"], "its ending names no format", ""),
    "a port without a model": (
        ["port", "a.npz", "nets:arrays"],
        "a model can't be made of this file",
        "module:factory@a",
    ),
    "a port of arrays": (["port", "nets:arrays", "nets:arrays"], "a model whose layers are known", ""),
    "a sample of no kind": (["port", "nets:arrays", "nets:arrays", "--sample", "nets.py"], ".npy or .npz", ""),
    "a sample that isn't there": (["port", "nets:arrays", "nets:arrays", "--sample", "y.npy"], "'y.npy'", "'x.npy'"),
    "a sample that is broken": (["port", "nets:arrays", "nets:arrays", "--sample", "lie.npy"], "holds no sample", ""),
    "a sample that runs code": (["port", "nets:arrays", "nets:arrays", "--sample", "code.npy"], "no sample", "pickle"),
    "a plan with a file": (["port", "nets:arrays", "nets:arrays", "--plan", "--out", "c.npz"], "touches nothing", ""),
    "a report of a port of no kind": (["port", "nets:arrays", "nets:arrays", "--report", "c.pdf"], ".md or .json", ""),
    "a port into no folder": (["port", "nets:arrays", "nets:arrays", "--out", "no/c.npz"], "no folder", ""),
    "no such framework": (["skeleton", "nets:arrays", "--to", "caffe"], "no backend is called 'caffe'", "installed"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_message_with_a_fix_and_nothing_else(run: Run, place: Path, name: str) -> None:
    (place / "lie.npz").write_bytes(b"no zip file at all")
    (place / "lie.npy").write_bytes(b"no array")
    (place / "wrong.py").write_text("1 / 0")
    (place / "needy.py").write_text("import no_such_package")
    (place / "grammar.py").write_text("def def")
    np.save("code.npy", np.array([print], dtype=object), allow_pickle=True)
    xw.save({"conv/kernel": np.ones((4, 4))}, "other.npz")
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    words, fact, more = MISTAKES[name]
    shown = run(*words)
    assert shown.exit_code == 2
    assert shown.stdout == ""
    assert shown.stderr.startswith("error: ")
    assert fact in shown.stderr
    assert more in shown.stderr
    assert "Traceback" not in shown.stderr
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    "words", [["shew", "a.npz"], ["diff", "a.npz"], ["show", "a.npz", "--wear", "x"], ["plot", "a.npz"],
              ["plot", "a.npz", "-o", "p.png", "--kind", "pie"], ["diff", "a.npz", "b.npz", "--top", "-1"]]
)  # fmt: skip
def test_a_command_that_can_not_be_understood_shows_how_it_is_used(run: Run, words: list[str]) -> None:
    shown = run(*words)
    assert shown.exit_code == 2
    assert "Usage: " in shown.stderr
    assert "-h" in shown.stderr


def test_an_error_of_our_own_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("xweights.inspection.diff.diff", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("diff", "a.npz", "b.npz")
