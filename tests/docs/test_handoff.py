"""The examples of docs/handoff.md run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import xweights as xw

PAGE = Path(__file__).resolve().parents[2] / "docs" / "handoff.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="only a checkout has the page")


def test_the_examples_run(tmp_path, monkeypatch) -> None:
    keras, torch = pytest.importorskip("keras"), pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)  # one writes a file
    keras_model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    keras_model.compile(keras.optimizers.Adam(0.1), "mse")
    x, y = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)
    keras_model.train_on_batch(x, y)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2))
    batches = [(torch.from_numpy(x), torch.from_numpy(y))] * 2
    names = {
        "xw": xw, "x": x, "keras_model": keras_model, "torch_module": module, "batches": batches,
        "loss_of": torch.nn.functional.mse_loss,
    }  # fmt: skip
    first, *more = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    before = xw.get_params(module)
    exec(compile(first, str(PAGE), "exec"), names)
    assert not xw.equal(module, before)
    xw.hold(keras_model, xw.Clip(-1, 1), where="*/kernel")
    names |= {"model": keras_model, "optimizer": keras_model.optimizer}
    for code in more:
        exec(compile(code, str(PAGE), "exec"), names)
    assert len(names["report"].held) == 1
