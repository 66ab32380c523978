"""Fixtures that run the command line in a temporary folder with small models and files."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import xweights as xw
from xweights.cli.app import app

NETS = """
import sys
import numpy as np
import xweights

SHAPES = {"conv/kernel": (3, 3, 2, 4), "conv/bias": (4,), "dense/kernel": (36, 5), "dense/bias": (5,)}
AXES = {"conv/kernel": ("h", "w", "in", "out"), "dense/kernel": ("in", "out")}


def arrays():
    weights = xweights.Params({name: np.zeros(shape, "float32") for name, shape in SHAPES.items()}, axes=AXES)
    xweights.init(weights, "glorot_uniform", seed=0)
    return weights


def broken():
    raise RuntimeError("no such card")


def leaving():
    sys.exit("bye")


def nothing():
    return None


def number():
    return 5


def slow():
    import pathlib, time
    pathlib.Path("started").touch()
    # Ctrl-C just before a sleep begins doesn't end it: Python looks for it between two of them.
    while True:
        time.sleep(0.05)


ready = arrays()
constant = 5


class Inside:
    @staticmethod
    def arrays():
        return arrays()


def in_keras():
    import keras
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Flatten(), keras.layers.Dense(5, name="out")]
    return keras.Sequential([keras.Input((5, 5, 2)), *layers])


def in_torch():
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(2, 4, 3)
            self.dense = torch.nn.Linear(36, 5)

        def forward(self, x):
            return self.dense(self.conv(x).flatten(1))

    torch.manual_seed(0)
    return Net().eval()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with nets.py, a.npz, and b.npz in which some of a's entries differ; commands run in it."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    sys.modules.pop("nets", None)
    spec = importlib.util.spec_from_file_location("made_for_files", tmp_path / "nets.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    weights = module.arrays()
    xw.save(weights, "a.npz")
    xw.set_entries(weights, (0, 1), 7.5, where="dense/kernel")
    xw.prune(weights, fraction=0.5, where="conv/kernel")
    xw.save(weights, "b.npz")
    np.save("x.npy", np.random.default_rng(0).normal(size=(3, 5, 5, 2)).astype("float32"))
    yield tmp_path
    sys.modules.pop("nets", None)


@pytest.fixture
def run(place: Path) -> Callable[..., Any]:
    """Run the command line in this process; an exception that isn't an exit is raised here."""

    def command(*words: str) -> Any:
        return CliRunner().invoke(app, list(words), catch_exceptions=False)

    return command


@pytest.fixture
def contents(place: Path) -> Callable[[], dict[str, bytes]]:
    """Return what is in the files of the folder now."""
    return lambda: {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}


@pytest.fixture
def refused(run: Callable[..., Any], contents: Callable[[], dict[str, bytes]]) -> Callable[[Sequence[str], str], None]:
    """Run a command that is refused with a message that holds a fact, and leaves every file as it is."""

    def check(words: Sequence[str], fact: str) -> None:
        before = contents()
        shown = run(*words)
        assert shown.exit_code == 2
        assert fact in shown.stderr, shown.stderr
        assert contents() == before

    return check


@pytest.fixture
def shell(place: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line as a process of its own."""

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "xweights", *words]
        return subprocess.run(program, capture_output=True, text=True, check=False, env=environment())

    return command


def environment() -> dict[str, str]:
    """The environment of a process that finds what this one finds."""
    unsafe = {"COLUMNS", "FORCE_COLOR"}
    return {name: value for name, value in os.environ.items() if name not in unsafe}


@pytest.fixture
def openers() -> None:
    """Skip where the checkout was installed before it could open model files."""
    known = {point.name for point in metadata.entry_points(group="xweights.models")}
    if not known and "XWEIGHTS_TEST_WHEEL" not in os.environ:
        pytest.skip("this checkout was installed before it had openers of model files: install it again")
    assert {"keras", "pt2"} <= known
