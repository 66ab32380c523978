"""`merge_lora` and `extract_lora` against PEFT itself: the same bits, or a folder that PEFT reads."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import xweights as xw

torch = pytest.importorskip("torch", reason="torch isn't installed")
peft = pytest.importorskip("peft", reason="peft isn't installed")
nn = torch.nn

ALL = ["emb", "fc", "square", "conv", "one"]


class Net(nn.Module):
    """Layers of 16 rows and columns or more: below that torch adds up in another order than its libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(70, 32)
        self.fc = nn.Linear(32, 48)
        self.square = nn.Linear(48, 48)
        self.conv = nn.Conv2d(16, 24, 3)
        self.one = nn.Conv1d(16, 24, 1)
        self.head = nn.Linear(48, 30)


CONFIGS = {
    "plain": {},
    "rank and alpha by pattern": {"use_rslora": True, "rank_pattern": {"square": 3}, "alpha_pattern": {"fc": 5}},
    "a module saved whole": {"modules_to_save": ["head"]},
    "biases trained": {"bias": "all"},
    "a bias of its own": {"lora_bias": True, "target_modules": ["fc", "conv"]},
}


def make_wrapped(base: nn.Module, **config) -> nn.Module:
    """Return the base under an adapter whose arrays are random."""
    settings = {"target_modules": ALL, "r": 8, "lora_alpha": 12, "init_lora_weights": False} | config
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings), autocast_adapter_dtype=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def assert_same_bits(got, wanted) -> None:
    assert got.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if not torch.equal(got[name], value)] == []


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", CONFIGS)
def test_model_file_and_wrapped_model_have_the_bits_of_merge_and_unload(tmp_path, config, dtype):
    base = Net().to(dtype)
    wrapped = make_wrapped(base, **CONFIGS[config])
    wrapped.save_pretrained(tmp_path / "adapter")
    wanted = copy.deepcopy(wrapped).merge_and_unload().state_dict()
    live = copy.deepcopy(base)
    xw.merge_lora(live, tmp_path / "adapter")
    assert_same_bits(live.state_dict(), wanted)
    torch.save(base.state_dict(), tmp_path / "base.pt")
    xw.merge_lora(tmp_path / "base.pt", tmp_path / "adapter", out=tmp_path / "merged.pt")
    assert_same_bits(torch.load(tmp_path / "merged.pt"), wanted)
    effective = xw.effective_params(wrapped)
    plain = Net().to(dtype)
    xw.set_params(plain, effective)
    assert_same_bits(plain.state_dict(), wanted)
    report = xw.merge_lora(wrapped)
    assert all("base_layer" in name for name in report.merged)
    assert_same_bits(wrapped.unload().state_dict(), wanted)


class Embeds(nn.Module):
    """A model whose embedding PEFT finds as it does a language model's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(70, 32)
        self.fc = nn.Linear(32, 48)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def get_output_embeddings(self) -> None:
        return None


def test_an_embedding_that_peft_saves_with_its_factors_has_both(tmp_path):
    base = Embeds()
    wrapped = make_wrapped(base, target_modules=["embed_tokens", "fc"])
    with torch.no_grad():
        wrapped.base_model.model.embed_tokens.base_layer.weight += 1.0  # as new tokens were trained
    wrapped.save_pretrained(tmp_path, save_embedding_layers=True)
    assert "embed_tokens" in xw.merge_lora(base, tmp_path).replaced[0]
    assert_same_bits(base.state_dict(), wrapped.merge_and_unload().state_dict())


def test_dora_agrees_within_rounding_and_exactly_where_peft_merges_it(tmp_path):
    base = Net()
    wrapped = make_wrapped(base, use_dora=True, target_modules=["fc", "square"])
    wrapped.save_pretrained(tmp_path)
    wanted = copy.deepcopy(wrapped).merge_and_unload().state_dict()
    xw.merge_lora(base, tmp_path)
    for name, value in base.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-6, atol=1e-7)
    plain = Net()
    xw.set_params(plain, xw.effective_params(wrapped))
    assert_same_bits(plain.state_dict(), wanted)


def test_conv1d_of_transformers_is_known_by_its_axes(tmp_path):
    pytest.importorskip("transformers", reason="transformers isn't installed")
    from transformers.pytorch_utils import Conv1D

    base = nn.Sequential(Conv1D(32, 32), Conv1D(64, 32))
    config = peft.LoraConfig(target_modules=["0", "1"], r=4, init_lora_weights=False, fan_in_fan_out=True)
    wrapped = peft.get_peft_model(copy.deepcopy(base), config)
    wrapped.save_pretrained(tmp_path)
    xw.merge_lora(base, tmp_path)
    assert_same_bits(base.state_dict(), wrapped.merge_and_unload().state_dict())


def test_a_target_under_an_active_adapter_is_refused(tmp_path):
    wrapped = make_wrapped(Net())
    wrapped.save_pretrained(tmp_path)
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    with pytest.raises(xw.WriteError, match="the adapter 'default' of PEFT"):
        xw.merge_lora(wrapped, tmp_path)
    assert_same_bits(wrapped.state_dict(), before)
    with wrapped.disable_adapter():
        xw.merge_lora(wrapped, tmp_path)


def test_what_peft_merged_it_also_takes_back():
    wrapped = make_wrapped(Net(), target_modules=["fc"])
    base = wrapped.base_model.model.fc.base_layer.weight
    before = base.clone()
    xw.merge_lora(wrapped)
    assert not torch.equal(base, before)
    with pytest.raises(xw.SelectionError, match="no selected weight has LoRA factors"):
        xw.merge_lora(wrapped)
    wrapped.unmerge_adapter()
    torch.testing.assert_close(base, before)


def test_an_array_that_peft_merges_along_is_not_merged_behind_where():
    wrapped = make_wrapped(Net(), lora_bias=True, target_modules=["fc", "conv"])
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    with pytest.raises(xw.WriteError, match="PEFT merges the bias of its layer with it"):
        xw.merge_lora(wrapped, where=xw.role("kernel"))
    assert_same_bits(wrapped.state_dict(), before)
    report = xw.merge_lora(wrapped, where="*/fc/*")
    assert [name.rpartition("/")[2] for name in report.merged] == ["kernel", "bias"]


def test_values_that_are_not_finite_merge_nothing():
    wrapped = make_wrapped(Net())
    with torch.no_grad():
        wrapped.base_model.model.square.lora_A.default.weight[0, 0] = float("nan")
    before = wrapped.base_model.model.fc.base_layer.weight.clone()
    with pytest.raises(xw.NonfiniteError, match="square"):
        xw.merge_lora(wrapped)
    assert torch.equal(wrapped.base_model.model.fc.base_layer.weight, before)


def test_a_bases_checkpoint_goes_into_the_wrapped_model_and_back(tmp_path):
    base = Net()
    torch.save(base.state_dict(), tmp_path / "base.pt")
    fresh = peft.get_peft_model(Net(), peft.LoraConfig(target_modules=ALL, r=4))
    report = xw.set_params(fresh, tmp_path / "base.pt", layout="native")
    assert "a part of an adapter that changes no weight" in str(report)
    assert torch.equal(fresh.base_model.model.fc.base_layer.weight, base.fc.weight)
    back = Net()
    xw.set_params(back, xw.effective_params(fresh))
    assert_same_bits(back.state_dict(), base.state_dict())
    xw.save(fresh, tmp_path / "wrapped.safetensors")
    xw.set_params(back, tmp_path / "wrapped.safetensors")
    assert_same_bits(back.state_dict(), base.state_dict())


def test_a_trained_adapter_makes_a_plain_checkpoint_incomplete(tmp_path):
    base, wrapped = Net(), make_wrapped(Net())
    xw.save(base, tmp_path / "base.safetensors")
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    with pytest.raises(xw.SelectionError, match="the layers wouldn't compute with the values that were passed"):
        xw.set_params(wrapped, tmp_path / "base.safetensors")
    assert_same_bits(wrapped.state_dict(), before)
    xw.set_params(wrapped, tmp_path / "base.safetensors", strict=False)
    assert torch.equal(wrapped.base_model.model.fc.base_layer.weight, base.fc.weight)
    key = "base_model.model.fc.lora_A.default.weight"
    assert torch.equal(wrapped.state_dict()[key], before[key])


@pytest.mark.parametrize("kind", ["live", "pt"])
def test_peft_reads_what_is_extracted_and_merges_it_to_the_trained_weights(tmp_path, kind):
    before, after = Net(), Net()
    after.load_state_dict(before.state_dict())
    with torch.no_grad():
        for layer in (after.emb, after.fc, after.conv, after.one, after.head):
            rows, columns = layer.weight.flatten(1).shape
            layer.weight += 0.01 * (torch.randn(rows, 4) @ torch.randn(4, columns)).view_as(layer.weight)
    sources = [after, before]
    if kind == "pt":
        for name, model in (("after", after), ("before", before)):
            torch.save(model.state_dict(), tmp_path / f"{name}.pt")
        sources = [tmp_path / "after.pt", tmp_path / "before.pt"]
    lora = xw.extract_lora(*sources, rank=4)
    assert max(lora.errors.values()) < 1e-5
    assert len(lora.errors) == 5
    lora.save(tmp_path / "adapter")
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(before), tmp_path / "adapter").merge_and_unload()
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, after.state_dict()[name], rtol=0, atol=1e-6)
    xw.merge_lora(before, tmp_path / "adapter")
    assert_same_bits(before.state_dict(), merged.state_dict())


def test_effective_weights_leave_out_factors_and_originals_and_those_in_doubt_are_refused():
    wrapped = make_wrapped(Net(), target_modules=["fc"], modules_to_save=["head"])
    names = list(xw.effective_params(wrapped))
    assert not [name for name in names if "lora" in name or "original" in name]
    assert {"fc/kernel", "fc/bias", "head/kernel", "emb/embeddings"} <= set(names)
    net = Net()
    net.fc = nn.Linear(48, 48)
    net.fc.weight = net.square.weight
    tied = make_wrapped(net, target_modules=["fc", "square"])
    with pytest.raises(xw.WriteError, match="what these layers compute with can't be read"):
        xw.effective_params(tied)


def test_penalties_and_averages_of_a_base_under_an_adapter_are_refused():
    wrapped = make_wrapped(Net(), target_modules=["fc"])
    base = xw.native("*fc.base_layer.weight")
    for call in (
        lambda: xw.penalty(wrapped, l2=0.1, where=base),
        lambda: xw.average(wrapped, decay=0.9, where=base),
        lambda: xw.hold(wrapped, xw.Clip(-1, 1), where=base),
    ):
        with pytest.raises(xw.WriteError, match=r"xweights\.merge_lora\(model\)"):
            call()
    assert float(xw.penalty(wrapped, l2=0.1, where=xw.native("*lora_A*"))) > 0
    assert np.isfinite(float(xw.penalty(wrapped, l2=0.1, where=xw.native("*square.weight"))))
