"""Lightning: holds are reapplied at every step of a Trainer, in automatic and in manual optimization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learners import X, Y

import xweights as xw

torch = pytest.importorskip("torch", reason="Lightning trains torch modules")
lightning = pytest.importorskip("lightning", reason="Lightning is not installed: nox -s tests has it")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

HALF = np.arange(20).reshape(4, 5) % 2 == 0
BATCHES, ACCUMULATED = 8, 2


class Network(lightning.LightningModule):
    """The small network of the tests beside this one, as a LightningModule; ``automatic``: who calls the optimizer."""

    def __init__(self, optimizer: str, automatic: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.last = torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)
        self.kind = optimizer
        self.automatic_optimization = automatic

    def configure_optimizers(self) -> Any:
        if self.kind == "SGD":
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1)
        return torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.1)

    def training_step(self, batch: Any, index: int) -> Any:
        x, y = batch
        loss = ((self.last(torch.tanh(self.hidden(x))) - y) ** 2).mean()
        if not self.automatic_optimization:
            self.manual_backward(loss)
            if (index + 1) % ACCUMULATED == 0:
                optimizer = self.optimizers()
                optimizer.step()
                optimizer.zero_grad()
        return loss


class Watch(lightning.Callback):
    """A callback that attaches holds once there is an optimizer, then checks the weights after every batch."""

    def __init__(self, given: str) -> None:
        self.given = given
        self.zeros_broken = self.row_broken = self.moved = 0

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        optimizer = {
            "the trainer's": lambda: trainer.optimizers[0],
            "Lightning's wrapper": lambda: module.optimizers(),
            "none": lambda: None,
        }[self.given]()
        self.held = xw.hold(module, xw.Mask(HALF), where="hidden/kernel", optimizer=optimizer)
        self.frozen = xw.freeze(module, where="last/kernel", entries={"out": 1}, optimizer=optimizer)
        self.averages = xw.average(module, decay="swa", optimizer=optimizer)
        self.before = xw.get_params(module)
        self.row = self.before["last/kernel"][:, 1].tobytes()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = xw.get_params(module)
        self.zeros_broken += bool(now["hidden/kernel"][~HALF].any())
        self.row_broken += now["last/kernel"][:, 1].tobytes() != self.row
        both = [(now[name] != self.before[name]).any() for name in ("hidden/kernel", "last/kernel")]
        self.moved += all(both)
        self.before = now


def fit(module: Any, watch: Watch, folder: Path, *, automatic: bool) -> None:
    data = torch.utils.data.TensorDataset(*(torch.from_numpy(np.repeat(array, BATCHES, 0)) for array in (X, Y)))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        accumulate_grad_batches=ACCUMULATED if automatic else 1,
        callbacks=[watch],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=len(X)))


@pytest.mark.parametrize("given", ["the trainer's", "Lightning's wrapper", "none"])
@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_under_lightning_a_held_mask_and_a_frozen_row_are_true_after_every_batch(
    optimizer: str, automatic: bool, given: str, tmp_path: Path
) -> None:
    module, watch = Network(optimizer, automatic), Watch(given)
    fit(module, watch, tmp_path, automatic=automatic)
    assert watch.zeros_broken == 0
    assert watch.row_broken == 0
    assert watch.moved == watch.averages.updates == 2 * BATCHES // ACCUMULATED
    watch.held.check()
    watch.frozen.check()
    for one in (watch.held, watch.frozen, watch.averages):
        one.release()


def test_under_lightning_a_hold_that_began_before_fit_is_true_after_every_batch(tmp_path: Path) -> None:
    module = Network("AdamW", automatic=True)
    with xw.hold(module, xw.Clip(-0.1, 0.1), where="*/kernel") as held:
        watch = Watch("none")
        fit(module, watch, tmp_path, automatic=True)
        assert watch.moved == 2 * BATCHES // ACCUMULATED
        for value in xw.get_params(module, where="*/kernel").values():
            assert np.abs(value).max() <= np.float32(0.1)
        held.check()
        for one in (watch.held, watch.frozen, watch.averages):
            one.release()
