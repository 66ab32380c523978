"""Wrappers around a module: its parameters have the names, roles and axes that they have without."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("lightning", reason="Lightning is not installed: nox -s tests has it")

from lightning.fabric import Fabric  # noqa: E402
from torch import nn  # noqa: E402

import xweights as xw  # noqa: E402


class Task(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 3)
        self.second = self.head  # a second name

    def forward(self, x):
        return self.head(self.body(x))


def fabric(module):
    return Fabric(accelerator="cpu", devices=1).setup_module(module)


def compiled(module):
    return torch.compile(module, backend="eager")


WRAPPERS = {
    "Fabric": fabric,
    "Fabric of a compiled module": lambda module: fabric(compiled(module)),
    "Fabric of a DataParallel module": lambda module: fabric(nn.DataParallel(module)),
    "compiled Fabric": lambda module: compiled(fabric(module)),
    "compiled": compiled,
}


def known(module):
    return [(p.name, p.role, p.axes, p.layer, p.aliases) for p in xw.parameters(module)]


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
def test_the_parameters_inside_have_their_names_roles_axes_and_aliases(wrap):
    assert known(wrap(Task())) == known(Task())


@pytest.mark.parametrize("wrap", [fabric, WRAPPERS["Fabric of a compiled module"]], ids=["Fabric", "compiled"])
def test_a_module_of_fabric_takes_its_own_state_and_that_of_the_module_inside(wrap, tmp_path):
    task, wrapped = Task(), wrap(Task())
    xw.set_params(wrapped, task.state_dict(), layout="native")
    assert xw.equal(wrapped, task)
    xw.scale(wrapped, 2.0, where="body/*")
    xw.save(wrapped, tmp_path / "w.safetensors")
    xw.set_params(task, tmp_path / "w.safetensors")
    assert xw.equal(wrapped, task)
    xw.set_params(wrapped, wrapped.state_dict(), layout="native")
    assert xw.equal(wrapped, task)
