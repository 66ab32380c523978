"""Every command on files as they are found: of Keras, of torch, of Lightning, and a folder as a hub has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import xweights as xw
from xweights.cli.app import app
from xweights.cli.exit_codes import INTERRUPTED
from xweights.cli.output import show_table

FILES = ["m.keras", "m.weights.h5", "t.pt", "light.ckpt", "hub", "hub/model.safetensors.index.json"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files."""
    keras = pytest.importorskip("keras", reason="keras isn't installed")
    torch = pytest.importorskip("torch", reason="torch isn't installed")
    folder = tmp_path_factory.mktemp("found")
    dense = keras.layers.Dense(8, name="a_rather_long_name_of_a_layer")
    model = keras.Sequential([keras.Input((4,)), dense, keras.layers.Dense(2)])
    model.save(folder / "m.keras")
    model.save_weights(folder / "m.weights.h5")
    net = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    torch.save(net.state_dict(), folder / "t.pt")
    state = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.parameters()).state_dict()
    run = {"epoch": 1, "pytorch-lightning_version": "2.5", "state_dict": state, "optimizer_states": [optimizer]}
    torch.save(run, folder / "light.ckpt")
    (folder / "hub").mkdir()
    xw.save(net, folder / "hub" / "model.safetensors.index.json", shard_bytes=2000)
    (folder / "hub" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def at(found: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a command in that folder."""
    monkeypatch.chdir(found)
    return lambda *words: CliRunner().invoke(app, list(words), catch_exceptions=False)


COMMANDS = {
    "show": ["show", "FILE", "--quick"],
    "show as JSON": ["show", "FILE", "--json"],
    "stats": ["stats", "FILE"],
    "parts": ["parts", "FILE", "--json"],
    "checksum": ["checksum", "FILE"],
    "diff": ["diff", "FILE", "FILE"],
    "edit": ["edit", "FILE", "--scale", "0.5", "--where", "*", "--dry-run"],
    "prune": ["prune", "FILE", "--fraction", "0.5", "--where", "*", "--dry-run", "--json"],
    "cast": ["cast", "FILE", "o.npz", "--dtype", "bfloat16"],
    "extract": ["extract", "FILE", "o.npz"],
    "rename": ["rename", "FILE", "o.npz", "--names", "*=net/*"],
    "convert": ["convert", "FILE", "o.safetensors"],
    "merge": ["merge", "FILE", "FILE", "-o", "o.safetensors"],
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_works_on_a_file_as_it_is_found(at: Callable[..., Any], file: str, name: str) -> None:
    ran = at(*[file if word == "FILE" else word for word in COMMANDS[name]])
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("words", [["stats", "-w", "nowhere/*"], ["checksum", "-w", "layer:99"]])
def test_a_selection_of_nothing_is_refused_in_the_same_words(
    at: Callable[..., Any], file: str, words: list[str]
) -> None:
    ran = at(words[0], file, *words[1:], "--json")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert json.loads(ran.stderr)["error"]["type"] == "SelectionError"


def test_an_option_that_does_not_exist_is_json_too(at: Callable[..., Any]) -> None:
    ran = at("stats", "t.pt", "--json", "--wher", "*")
    assert ran.exit_code == 2
    assert json.loads(ran.stderr)["error"]["type"] == "UsageError"


@pytest.mark.parametrize("command", ["cast", "rename", "extract", "merge"])
def test_ctrl_c_in_the_middle_of_a_write_leaves_the_old_file(
    at: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "o.npz"
    out.write_bytes(b"what was there before")
    words = [str(out) if word.startswith("o.") else word for word in COMMANDS[command]]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    ran = at(*["t.pt" if word == "FILE" else word for word in words])
    assert ran.exit_code == INTERRUPTED
    assert ran.stderr == "interrupted: no file was changed\n"
    assert out.read_bytes() == b"what was there before"
    assert [path.name for path in tmp_path.iterdir()] == ["o.npz"]


@pytest.mark.parametrize("width", [80, 120])
def test_a_table_of_a_deep_model_keeps_the_ends_of_names_and_the_nan(
    capsys: pytest.CaptureFixture[str], width: int
) -> None:
    names = [f"model/language_model/encoder/layers/{i}/self_attention/query/kernel" for i in range(12)]
    table = xw.stats({name: np.full((2, 2), np.nan) for name in names}).table()
    show_table(*table, width=width, keep=("NaN", "sparsity"))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if "kernel" in line]
    assert len(rows) == 12
    assert len({line.split()[0] for line in rows}) == 12
    assert all(line.split()[0].endswith("query/kernel") and line.split()[-1] == "4" for line in rows)
