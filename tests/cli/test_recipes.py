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

EDITS = """
edits:
  - scale: 0.5
    where: conv/*
  - clip: [-0.2, 0.2]
  - prune: {fraction: 0.5, scope: global}
  - set: "[0,0]=3"
    where: dense/kernel
  - noise: {std: 0.1, seed: 0}
    where: [role:bias, ~conv/*]
"""


def test_a_recipe_of_edits_is_the_verbs_in_their_order(run: Run, place: Path) -> None:
    pytest.importorskip("yaml", reason="PyYAML isn't installed")
    (place / "edits.yaml").write_text(EDITS)
    expected = xw.get_params("a.npz")
    xw.scale(expected, 0.5, where="conv/*")
    xw.clip(expected, -0.2, 0.2)
    xw.prune(expected, fraction=0.5, scope="global")
    xw.set_entries(expected, (0, 0), 3.0, where="dense/kernel")
    xw.noise(expected, 0.1, seed=0, where="dense/bias")
    ran = run("edit", "a.npz", "--recipe", "edits.yaml", "--out", "edited.npz")
    assert ran.exit_code == 0, ran.stderr
    assert xw.equal("edited.npz", expected)


MERGE = """
dtype: float32
models:
  - model: start.npz
  - model: a.npz
    parameters: {weight: 0.7, density: 0.5}
  - model: b.npz
    parameters:
      weight: [{filter: conv, value: 0.1}, {value: 0.9}]
      density: 0.5
merge_method: ties
base_model: start.npz
parameters: {normalize: true, int8_mask: true, lambda: 0.9}
"""


def test_a_recipe_of_mergekit_is_the_merge_that_it_says(run: Run, place: Path) -> None:
    pytest.importorskip("yaml", reason="PyYAML isn't installed")
    start = xw.get_params("a.npz")
    xw.noise(start, 0.1, seed=5)
    xw.save(start, "start.npz")
    (place / "merge.yaml").write_text(MERGE)
    ran = run("merge", "--recipe", "merge.yaml", "--out", "merged.npz")
    assert ran.exit_code == 0, ran.stderr
    weights = {"*": (0.7, 0.9), "conv/*": (0.7, 0.1)}
    expected = xw.merge(
        ["a.npz", "b.npz"], "ties", base="start.npz", weights=weights, density=(0.5, 0.5), normalize=True, scale=0.9
    )
    assert xw.equal("merged.npz", expected)


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
    "no models": ("merge_method: linear", "models: is a list"),
    "a method of another kind": ("models: [a.npz, b.npz]\nmerge_method: passthrough", "isn't among the methods"),
    "a gradient over no layers": (
        "models: [a.npz, b.npz]\nmerge_method: slerp\nparameters: {t: [0, 1]}", "none with a number in its name"
    ),
    "a dtype": ("models: [a.npz, b.npz]\ndtype: bfloat16", "xweights cast"),
    "a misspelt key": ("model: [a.npz]", "Near names: 'models'"),
    "a misspelt setting": ("models: [a.npz, b.npz]\nparameters: {wieght: 1}", "'weight'"),
    "half of the weights": ("models: [{model: a.npz, parameters: {weight: 1}}, b.npz]", "missing in some"),
    "a list": ("- a", "is no recipe"),
    "no YAML": ("a: [", "is no YAML"),
    "code": ("models: !!python/object/apply:os.system ['touch ran']", "is no YAML"),
    "a billion laughs": ("\n".join(["a: &a [x,x,x,x,x,x,x,x,x,x]", *(
        f"{name}: &{name} [{','.join(['*' + chr(ord(name) - 1)] * 10)}]" for name in "bcdefghi"
    )]), "more than 20,000 values"),
    "a file that isn't there": ("models: [a.npz, nowhere.npz]", "there is no file 'nowhere.npz'"),
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


LAYERS = 5
SLICES = """
slices:
  - sources:
      - {model: one.npz, layer_range: [0, 5]}
      - {model: two.npz, layer_range: [0, 5]}
    parameters:
      t: [{filter: attn, value: [0, 0.5, 1]}]
merge_method: slerp
base_model: one.npz
parameters:
  t: [{filter: mlp, value: [1, 0]}, {value: 0.25}]
"""


def save_stacks(place: Path, layers: int = LAYERS) -> None:
    """Save one.npz and two.npz with numbered layers."""
    names = ["embed.weight", *(f"layers.{i}.{part}.weight" for i in range(layers) for part in ("attn", "mlp"))]
    for seed, name in enumerate(("one", "two")):
        rng = np.random.default_rng(seed)
        xw.save({one: rng.normal(size=(3, 4)) for one in (*names, "head.weight")}, place / f"{name}.npz")


def test_a_slice_with_all_layers_is_a_merge_whose_numbers_go_from_layer_to_layer(run: Run, place: Path) -> None:
    pytest.importorskip("yaml", reason="PyYAML isn't installed")
    save_stacks(place)
    (place / "merge.yaml").write_text(SLICES)
    ran = run("merge", "--recipe", "merge.yaml", "--out", "merged.npz")
    assert ran.exit_code == 0, ran.stderr
    t = {"*": 0.25}
    t |= {f"layers.{i}.attn.weight": i / (LAYERS - 1) for i in range(LAYERS)}
    t |= {f"layers.{i}.mlp.weight": 1 - i / (LAYERS - 1) for i in range(LAYERS)}
    assert xw.equal("merged.npz", xw.merge(["one.npz", "two.npz"], "slerp", t=t))


STACKED = {
    "another order": (SLICES.replace("slices:", "slices:\n  - sources: [{model: one.npz, layer_range: [0, 5]}]"),
                      "2 slices put layers into another order"),
    "layers of other places": (SLICES.replace("two.npz, layer_range: [0, 5]", "two.npz, layer_range: [5, 10]"),
                               "each layer keeps its place"),
    "some of the layers": (SLICES.replace("[0, 5]", "[0, 4]"), "isn't all of the model's layers"),
    "no sources": ("slices: [a.npz]", "slices: is a list of - sources:"),
    "models, too": (SLICES + "models: [one.npz]", "models: and slices: exclude each other"),
    "a gradient outside of layers": (SLICES.replace("{value: 0.25}", "{value: [0, 1]}"), "'embed.weight' is in none"),
    "a residual": (SLICES.replace("    parameters:", "    residual_weight: 1\n    parameters:"), "residual_weight"),
    "modules": ("modules: {text: {models: [one.npz]}}", "modules: are models in one"),
}  # fmt: skip


@pytest.mark.parametrize("name", STACKED)
def test_slices_that_move_layers_are_refused_by_name(refused: Refused, place: Path, name: str) -> None:
    pytest.importorskip("yaml", reason="PyYAML isn't installed")
    save_stacks(place)
    text, fact = STACKED[name]
    (place / "bad.yaml").write_text(text)
    refused(["merge", "--recipe", "bad.yaml", "--out", "c.npz"], fact)


def test_a_gradient_over_two_stacks_or_over_layers_without_a_first_is_refused(refused: Refused, place: Path) -> None:
    pytest.importorskip("yaml", reason="PyYAML isn't installed")
    (place / "merge.yaml").write_text("models: [u.npz, u.npz]\nmerge_method: slerp\nparameters: {t: [0, 1]}")
    xw.save({"encoder.0.w": np.ones(2), "decoder.0.w": np.ones(2)}, "u.npz")
    refused(["merge", "--recipe", "merge.yaml", "--out", "c.npz"], "decoder.*, encoder.*")
    xw.save({"layers.1.w": np.ones(2)}, "u.npz")
    refused(["merge", "--recipe", "merge.yaml", "--out", "c.npz"], "aren't numbered from 0 on")
