"""Modules under PEFT's adapters: what rules do to a weight that an adapter changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import xweights as xw

peft = pytest.importorskip("peft", reason="peft isn't installed")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(7, 4)
        self.fc = nn.Linear(4, 4)
        self.mid = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.mid(self.fc(self.emb(x))))
        return out


CONFIGS = {
    "LoRA": lambda: peft.LoraConfig(target_modules=["fc"], init_lora_weights=False),
    "IA3": lambda: peft.IA3Config(target_modules=["fc"], feedforward_modules=[]),
    "LoHa": lambda: peft.LoHaConfig(target_modules=["fc"]),
}
BASE = xw.native("*fc.base_layer.weight")


@pytest.mark.parametrize("config", CONFIGS)
def test_a_rule_on_the_base_of_an_adapter_is_refused_until_it_is_merged(config):
    model = peft.get_peft_model(Net(), CONFIGS[config]())
    before = xw.get_params(model)
    for edit in (
        lambda: xw.fill(model, 0.0, where=BASE),
        lambda: xw.prune(model, fraction=0.5, where=BASE),
        lambda: xw.hold(model, xw.Clip(-0.1, 0.1), where=BASE),
    ):
        with pytest.raises(xw.WriteError, match="the adapter 'default' of PEFT") as caught:
            edit()
    assert "model.merge_adapter()" in str(caught.value)
    for name, value in xw.get_params(model).items():
        np.testing.assert_array_equal(value, before[name])
    model.merge_adapter()
    xw.fill(model, 0.0, where=BASE)


def test_an_adapter_that_is_switched_off_is_none():
    model = peft.get_peft_model(Net(), CONFIGS["LoRA"]())
    with model.disable_adapter():
        xw.scale(model, 0.5, where=BASE)
    with pytest.raises(xw.WriteError):
        xw.scale(model, 0.5, where=BASE)


def test_the_lines_of_the_refusal_edit_the_adapter():
    model = peft.get_peft_model(Net(), CONFIGS["LoRA"]())
    with pytest.raises(xw.WriteError, match=r"native\('\*\.lora_A\.\*'\), xweights\.native\('\*\.lora_B\.\*'\)"):
        xw.fill(model, 0.0, where=BASE)
    xw.fill(model, 0.0, where=[xw.native("*.lora_A.*"), xw.native("*.lora_B.*")])


def test_a_module_whose_copy_is_in_use_is_edited_there():
    model = peft.get_peft_model(Net(), peft.LoraConfig(target_modules=["fc"], modules_to_save=["head"]))
    with pytest.raises(xw.WriteError, match="PEFT computes with the copy"):
        xw.fill(model, 0.0, where=xw.native("*original_module.bias"))
    xw.fill(model, 0.0, where=xw.native("*.modules_to_save.default.*"))


def test_the_rest_of_the_model_and_biases_obey_as_ever():
    model = peft.get_peft_model(Net(), CONFIGS["LoRA"]())
    xw.fill(model, 0.0, where=xw.native("*mid.weight"))
    xw.fill(model, 0.0, where=xw.native("*fc.base_layer.bias"))
    xw.fill(model, 0.5)  # the default is what is trained: the factors
    assert not torch.equal(model.base_model.model.fc.base_layer.weight, torch.full((4, 4), 0.5))


def test_values_of_the_base_are_read_and_written_as_they_are():
    model = peft.get_peft_model(Net(), CONFIGS["LoRA"]())
    values = xw.get_params(model)
    ones = {name: np.ones_like(value) for name, value in values.items() if "base_layer" in name}
    xw.set_params(model, ones, strict=False)
    assert torch.equal(model.base_model.model.fc.base_layer.weight, torch.ones(4, 4))


def test_a_tied_base_is_refused_by_either_of_its_places():
    net = Net()
    net.mid.weight = net.fc.weight
    model = peft.get_peft_model(net, CONFIGS["LoRA"]())
    with pytest.raises(xw.WriteError, match="the adapter 'default'"):
        xw.scale(model, 0.5, where=xw.native("*fc.base_layer.weight"))
