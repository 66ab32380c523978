"""Statistics are plain numbers, which loggers take as they are: proved with those that are installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw

KEYS = ("norm", "mean", "std", "sparsity")


def rows() -> list[dict[str, Any]]:
    weights = {"a/kernel": np.array([[3.0, 0.0], [0.0, 4.0]], "f4"), "b": np.array([1 + 2j])}
    return xw.stats(weights).as_dicts()


def test_statistics_are_python_s_own_numbers_which_json_takes() -> None:
    again = json.loads(json.dumps(rows()))
    assert [row["name"] for row in again] == ["a/kernel", "b"]
    assert (again[0]["norm"], again[0]["sparsity"], again[0]["zeros"]) == (5.0, 0.5, 2)
    assert all(type(rows()[0][key]) is float for key in KEYS)


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard isn't installed"
    )
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="torch isn't installed")
    with tensorboard.SummaryWriter(tmp_path) as writer:
        for key in KEYS:
            writer.add_scalar(f"a/kernel/{key}", rows()[0][key], 7)
    read = reader.EventAccumulator(str(tmp_path)).Reload()
    for key in KEYS:
        (event,) = read.Scalars(f"a/kernel/{key}")
        assert (event.step, event.value) == (7, pytest.approx(rows()[0][key]))


def test_weights_and_biases_takes_them_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb isn't installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with wandb.init(project="p", dir=tmp_path, settings={"console": "off"}) as run:
        run.log({f"a/kernel/{key}": rows()[0][key] for key in KEYS})
        assert run.summary["a/kernel/norm"] == 5.0
