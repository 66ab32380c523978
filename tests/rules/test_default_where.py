"""A rule's default selection is the same for its verb, for files and in the README's table."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw
from xweights.core.selection import DEFAULT_EDITED, DEFAULT_KERNELS
from xweights.edit import verbs

README = Path(__file__).resolve().parents[2] / "README.md"
WORDS = {
    "trainable floating-point parameters": DEFAULT_EDITED,
    "roles ending in `kernel`, and `embeddings`": DEFAULT_KERNELS,
    "you say it": None,
}
RULE_OF = {
    "fill": xw.Fill, "scale": xw.Scale, "add": xw.Add, "noise": xw.Noise, "clip": xw.Clip, "clip_norm": xw.ClipNorm,
    "non_negative": xw.NonNegative, "prune": xw.Prune, "mask": xw.Mask, "max_norm": xw.MaxNorm,
    "unit_norm": xw.UnitNorm, "spectral_norm": xw.SpectralNorm, "init": xw.Init, "set_entries": xw.SetEntries,
}  # fmt: skip
ON_KERNELS = [xw.Pattern(2, 4, "in"), xw.SumToOne(per="in"), xw.Symmetric(), xw.MaxNorm(1.0, per="out")]


def table() -> dict[str, Any]:
    """Return the README's table: verb -> default."""
    rows = re.findall(r"^\| `([a-z_ ]+)` \| (.+) \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    return {verb: WORDS[default] for names, default in rows if default in WORDS for verb in names.split()}


@pytest.mark.skipif(not README.exists(), reason="only a checkout has the README")
@pytest.mark.parametrize("verb", sorted(RULE_OF))
def test_the_readme_agrees_with_the_rule_of_each_verb(verb: str) -> None:
    assert table()[verb] == RULE_OF[verb].default_where


def test_every_editing_verb_has_its_rule_here() -> None:
    edits = {name for name in xw.__all__ if inspect.isfunction(getattr(verbs, name, None))}
    assert edits | {"prune"} == set(RULE_OF)


def weights() -> dict[str, Any]:
    kernel = np.arange(16.0).reshape(4, 4) + 1
    return xw.Params({"d/kernel": kernel, "d/bias": np.ones(4)}, axes={"d/kernel": ("in", "out"), "d/bias": ("out",)})


@pytest.mark.parametrize("rule", ON_KERNELS, ids=repr)
def test_a_file_is_edited_where_the_verb_would_edit(rule: xw.Rule, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    xw.save(weights(), path)
    xw.edit_file(path, rule)
    expected = weights()
    xw.apply(expected, rule, where=["d/kernel"])
    assert xw.equal(xw.load(path), expected)


class Halve(xw.Rule):
    def operands(self, parameter: xw.Parameter) -> tuple[Any, ...]:
        return (np.asarray(0.5, parameter.dtype),)

    def __call__(self, w: Any, ops: Any, parameter: xw.Parameter, half: Any, shared: Any = None) -> Any:
        return ops.multiply(w, half)


class HalveKernels(Halve):
    default_where = DEFAULT_KERNELS


def test_a_file_is_edited_by_a_users_rule_where_the_rule_selects(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    xw.save(weights(), path)
    with pytest.raises(xw.ArgumentError, match="where= is required"):
        xw.edit_file(path, Halve())
    xw.edit_file(path, HalveKernels())
    assert np.array_equal(xw.load(path)["d/kernel"], weights()["d/kernel"] / 2)
    assert np.array_equal(xw.load(path)["d/bias"], weights()["d/bias"])


@pytest.mark.parametrize("rule", [xw.SetEntries((0,), 1.0), lambda w: w], ids=["SetEntries", "a function"])
def test_a_rule_without_a_default_needs_where(rule: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    xw.save(weights(), path)
    with pytest.raises(xw.ArgumentError, match="where= is required"):
        xw.edit_file(path, rule)
