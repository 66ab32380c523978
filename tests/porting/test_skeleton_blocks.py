"""Equal runs of a skeleton's lines become a class and a loop, and only where that computes the same."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw
from xweights.porting.skeletons.blocks import BlockFinder, read_line

LAYERS = {f"net_{n}_{name}": code for n in range(3) for name, code in (("fc", "Dense(4)"), ("norm", "Norm()"))}
LAYERS |= {"head": "Dense(2)"}


def lines(*, count=3, mask="mask"):
    made, x = [], "x"
    for n in range(count):
        made += [f"fc_{n} = self.net_{n}_fc({x})", f"norm_{n} = self.net_{n}_norm(fc_{n}, scale=0.5)"]
        made += [f"add_{n} = {x} + ops.where({mask}, norm_{n}, 0)"]
        x = f"add_{n}"
    return [*made, f"head = self.head({x})"]


def find(lines, result="head", layers=None):
    finder = BlockFinder(
        lines, result, LAYERS if layers is None else layers, ["x", "mask"], lambda name: name == "call"
    )
    return finder.find()


def test_blocks_in_a_row_are_a_class_and_a_loop():
    found = find(lines())
    assert found is not None
    first, length, block = found
    assert (first, length, block.count) == (0, 9, 3)
    assert block.made == {"fc": "Dense(4)", "norm": "Norm()"}
    assert block.arguments == ("x", "mask")
    assert block.lines == (
        "fc = self.fc(x)",
        "norm = self.norm(fc, scale=0.5)",
        "add = x + ops.where(mask, norm, 0)",
    )
    assert block.results == ("add",)
    assert block.loop == ("add_2 = x", "for block in self.net:", "    add_2 = block(add_2, mask=mask)")
    assert block.moved["net_1_norm"] == "net.1.norm"


@pytest.mark.parametrize(
    ("changed", "result"),
    [
        ([*lines()[:-1], "head = self.head(add_2 + add_0)"], "head"),  # an earlier block's value is used
        (lines(), "(head, norm_1)"),  # it is returned
        (lines(count=1), "head"),
        ([*lines()[:-1], "head = self.net_0_fc(add_2)"], "head"),  # a layer of a block is used again
    ],
)
def test_runs_that_others_look_into_stay_lines(changed, result):
    found = find(changed, result)
    assert found is None or found[2].count < 3


def test_layers_of_other_sizes_are_other_blocks():
    found = find(lines(), layers={**LAYERS, "net_2_fc": "Dense(8)"})
    assert found is not None
    assert found[2].count == 2


def test_names_of_arguments_and_text_are_no_names_of_values():
    line = read_line('y = f(x, x=1, mode="x", z=self.x.y)')
    assert [(word.name, word.attribute) for word in line.words] == [("f", False), ("x", False), ("x", True)]


@pytest.mark.keras_backend
def test_a_network_of_equal_blocks_is_written_as_a_loop_and_proved():
    keras = pytest.importorskip("keras")
    torch = pytest.importorskip("torch")

    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = torch.nn.LayerNorm(6), torch.nn.Linear(6, 6)

        def forward(self, x):
            return x + torch.sin(self.fc(self.norm(x)))  # no layer: it is recorded

    torch.manual_seed(0)
    module = torch.nn.Sequential(*(Residual() for _ in range(4)), torch.nn.Linear(6, 2))
    x = np.random.default_rng(0).normal(size=(2, 6)).astype("float32")
    code = xw.skeleton(module, "keras", sample=x)
    assert "for block in self" in code
    assert code.count("layers.Dense") == 2
    space = {}
    exec(code, space)
    twin = space["Twin"]()
    twin(x)
    assert xw.port(module, twin, sample=x).ok
    with torch.no_grad():
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(twin(x)), module(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5
        )
