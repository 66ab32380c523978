"""The commands port and skeleton, on models from factories, .keras files and .pt2 programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")

Run = Callable[..., Any]
pytestmark = pytest.mark.keras_backend


def build(name: str) -> Any:
    """Build a model by a factory of nets.py."""
    from xweights.cli.targets import load_model

    return load_model(f"nets:{name}")


def test_a_port_is_proved_saved_and_reported(run: Run, place: Path) -> None:
    ran = run("port", "nets:in_keras", "nets:in_torch", "--sample", "x.npy", "--out", "t.safetensors",
              "--report", "report.md")  # fmt: skip
    assert ran.exit_code == 0, ran.stderr
    assert "ported: 2 layers, largest error" in ran.stdout
    assert "flattened in another order" in ran.stdout
    assert ran.stdout.rstrip().endswith("saved: t.safetensors")
    assert (place / "report.md").read_text().startswith("# Ported: 2 layers, largest error")
    module = build("in_torch")
    xw.set_params(module, xw.get_params("t.safetensors"))
    assert xw.verify(build("in_keras"), module, sample=np.load("x.npy")).ok


def test_the_saved_file_is_the_state_dict_of_the_target(run: Run) -> None:
    from safetensors.torch import load_file

    assert run("port", "nets:in_keras", "nets:in_torch", "--sample", "x.npy", "--out", "t.safetensors").exit_code == 0
    module = build("in_torch")
    module.load_state_dict(load_file("t.safetensors"))
    assert xw.verify(build("in_keras"), module, sample=np.load("x.npy")).ok


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_state_dict_is_a_source_when_a_factory_is_named(run: Run, suffix: str) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(7)
    other = type(build("in_torch"))()
    save = save_file if suffix == "safetensors" else torch.save
    save(other.state_dict(), f"state.{suffix}")
    np.save("c.npy", np.load("x.npy").transpose(0, 3, 1, 2))
    ran = run("port", f"nets:in_torch@state.{suffix}", "nets:in_keras", "--sample", "c.npy", "--out", "k.npz")
    assert ran.exit_code == 0, ran.stderr
    model = build("in_keras")
    xw.set_params(model, xw.get_params("k.npz"))
    assert xw.verify(other, model, sample=np.load("c.npy")).ok


def test_a_plan_is_printed_and_touches_nothing(run: Run, place: Path) -> None:
    before = sorted(path.name for path in place.iterdir() if path.name != "__pycache__")
    ran = run("port", "nets:in_keras", "nets:in_torch", "--plan", "--json")
    plan = json.loads(ran.stdout)
    assert [entry["target"] for entry in plan["entries"]] == ["conv", "dense"]
    assert "flattened image" in plan["ambiguous"][0]
    assert not plan["ok"]
    assert ran.exit_code == 1
    assert sorted(path.name for path in place.iterdir() if path.name != "__pycache__") == before


def test_a_port_that_is_refused_writes_no_file(run: Run, place: Path) -> None:
    ran = run("port", "nets:in_keras", "nets:in_torch", "--out", "t.safetensors", "--report", "report.md")
    assert ran.exit_code == 2
    assert "without a sample" in ran.stderr
    assert "pass sample=" in ran.stderr
    np.save("small.npy", np.zeros((3, 4, 4, 2), "float32"))
    ran = run("port", "nets:in_keras", "nets:in_torch", "--out", "t.safetensors", "--sample", "small.npy")
    assert ran.exit_code == 2
    assert "can't be called with this sample" in ran.stderr
    assert not (place / "t.safetensors").exists()
    assert not (place / "report.md").exists()


def test_without_out_a_port_says_that_nothing_was_saved(run: Run) -> None:
    ran = run("port", "nets:in_keras", "nets:in_torch", "--sample", "x.npy")
    assert ran.exit_code == 0
    assert "nothing was saved" in ran.stdout


def test_a_part_is_ported_with_pinned_names(run: Run) -> None:
    words = ["--where", "conv/*", "--names", "conv/*=conv/*", "--sample", "x.npy", "--json"]
    ran = run("port", "nets:in_keras", "nets:in_torch", *words)
    report = json.loads(ran.stdout)
    assert [entry["target"] for entry in report["entries"]] == ["conv"]
    assert report["remains"] == ["dense/kernel", "dense/bias"]


def test_a_part_of_the_source_is_ported(run: Run) -> None:
    words = ["port", "nets:in_keras", "nets:in_torch", "--where", "conv/*", "--where-source", "conv/*"]
    assert json.loads(run(*words, "--sample", "x.npy", "--json").stdout)["unused"] == ["out/kernel", "out/bias"]
    assert "--plan takes no --where-source" in run(*words, "--plan").stderr
    wrong = run(*words[:-1], "cnov/*", "--sample", "x.npy")
    assert (wrong.exit_code, "where_source='cnov/*' selects nothing" in wrong.stderr) == (2, True)


def test_samples_of_several_inputs_are_positional_or_named(place: Path) -> None:
    from xweights.cli.targets import load_sample

    first, second = np.zeros((1, 2)), np.ones((1, 3))
    np.savez("both.npz", first, second)
    np.savez("named.npz", left=first, right=second)
    positional = load_sample(Path("both.npz"))
    assert isinstance(positional, tuple)
    assert [array.shape for array in positional] == [(1, 2), (1, 3)]
    assert list(load_sample(Path("named.npz"))) == ["left", "right"]


def test_skeleton_prints_code_that_runs_and_that_can_be_ported_into(run: Run, place: Path) -> None:
    ran = run("skeleton", "nets:in_keras", "--to", "torch")
    assert ran.exit_code == 0
    (place / "twin.py").write_text(ran.stdout)
    assert run("skeleton", "nets:in_keras", "--to", "torch", "--out", "same.py").stdout == ""
    assert (place / "same.py").read_text() == ran.stdout
    moved = run("port", "nets:in_keras", "twin:Twin", "--sample", "x.npy")
    assert moved.exit_code == 0, moved.stderr
    assert "ported: 2 layers" in moved.stdout


@pytest.mark.usefixtures("openers")
def test_keras_files_are_models_opened_in_safe_mode(run: Run, place: Path) -> None:
    build("in_keras").save("net.keras")
    ran = run("port", "net.keras", "nets:in_torch", "--sample", "x.npy")
    assert ran.exit_code == 0, ran.stderr
    layers = [keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1), keras.layers.Dense(2)]
    keras.Sequential(layers).save("code.keras")
    ran = run("port", "code.keras", "nets:in_torch", "--sample", "x.npy")
    assert ran.exit_code == 2
    assert "can't be made a model" in ran.stderr
    assert "ambda" in ran.stderr
    (place / "broken.keras").write_bytes(b"no zip file")
    assert run("port", "broken.keras", "nets:in_torch", "--sample", "x.npy").exit_code == 2


@pytest.mark.usefixtures("openers")
def test_programs_of_torch_export_are_models(run: Run, place: Path) -> None:
    np.save("c.npy", np.load("x.npy").transpose(0, 3, 1, 2))
    module = build("in_torch")
    torch.export.save(torch.export.export(module, (torch.from_numpy(np.load("c.npy")),)), "net.pt2")
    there = run("port", "net.pt2", "nets:in_keras", "--sample", "c.npy", "--out", "k.npz")
    assert there.exit_code == 0, there.stderr
    back = run("port", "nets:in_keras@k.npz", "net.pt2", "--sample", "x.npy", "--out", "t.safetensors")
    assert back.exit_code == 0, back.stderr
    from safetensors.torch import load_file

    assert all(torch.equal(load_file("t.safetensors")[name], value) for name, value in module.state_dict().items())
    (place / "broken.pt2").write_bytes(b"no zip file")
    ran = run("port", "broken.pt2", "nets:in_keras", "--sample", "c.npy")
    assert ran.exit_code == 2
    assert "'broken.pt2' can't be made a model" in ran.stderr
