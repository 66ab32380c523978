"""Files of training runs go into a plain model: whatever stands beside the weights, and whatever wrapped the model."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime as dt
import enum
import pathlib
import random
from typing import Any

import numpy as np
import pytest

import xweights as xw

torch: Any = pytest.importorskip("torch")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(7, 4)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
        self.bn = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 2)


class Phase(enum.Enum):
    TRAIN = 1


@dataclasses.dataclass
class Settings:
    lr: float = 0.1
    inner: Any = None


class Attributes(dict):  # type: ignore[type-arg]
    """A dict of a class of its own, as settings often are."""


def make_net(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Net()


SOURCE = make_net()
STATE = SOURCE.state_dict()
OTHER = {key: value + 1 for key, value in STATE.items()}


def under(prefix: str, state: Any = STATE) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


def optimizer_state() -> Any:
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def runs() -> dict[str, Any]:
    """What training scripts and trainers save, by who does so."""
    optimizer = optimizer_state()
    return {
        "a state dict": STATE,
        "a module": SOURCE,
        "a module beside an optimizer": {"model": SOURCE, "optimizer": optimizer, "ema": None, "epoch": 1},
        "a tutorial": {"model_state_dict": STATE, "optimizer_state_dict": optimizer, "loss": 0.3, "epoch": 3},
        "a word of one's own": {"bobby": STATE, "step": 1},
        "a tuple": (STATE, 3),
        "a list": [STATE, optimizer],
        "an epoch flat beside": {**STATE, "epoch": 3},
        "whisper": {"dims": {"n_mels": 80}, "model_state_dict": STATE},
        "mmcv": {"meta": {"epoch": 1}, "state_dict": under("module.")},
        "torchvision": {"model": STATE, "optimizer": optimizer, "lr_scheduler": {"last_epoch": 3}, "epoch": 3,
                        "args": argparse.Namespace(lr=0.1), "scaler": {"scale": 65536.0}},
        "fairseq": {"args": argparse.Namespace(), "model": STATE, "optimizer_history": [{"lr": 1}],
                    "extra_state": {"best": torch.tensor(3.0)}, "last_optimizer_state": optimizer},
        "lightning": {"epoch": 1, "state_dict": under("model."), "optimizer_states": [optimizer], "loops": {},
                      "callbacks": {"c": {"best_model_score": torch.tensor(0.3)}},
                      "hyper_parameters": Attributes(weight=torch.ones(3))},
        "lightning, compiled, on several devices": {"state_dict": under("model._orig_mod.module.")},
        "deepspeed": {"module": STATE, "buffer_names": ["a"], "optimizer": None, "ds_config": {"a": 1}},
        "an averaged model": torch.optim.swa_utils.AveragedModel(SOURCE).state_dict(),
        "fsdp": {key.replace("blocks.0.", "blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module."): value
                 for key, value in STATE.items()},
        "a wrapper inside": {key.replace("blocks.", "blocks.module."): value for key, value in STATE.items()},
        "detectron2": {"model": {key: value.numpy() for key, value in STATE.items()}, "__author__": "x"},
        "random states": {"model": STATE, "rng_state": torch.get_rng_state(),
                          "numpy": np.random.RandomState(0).get_state(),
                          "python": random.getstate(), "generator": np.random.default_rng(0),
                          "best_loss": torch.tensor(3.0), "losses": torch.ones(10)},
        "settings": {"state_dict": STATE, "phase": Phase.TRAIN, "path": pathlib.Path("x"), "config": Settings(),
                     "time": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "best": np.float64(3), "set": {1, 2},
                     "big": 2**100,
                     "scores": collections.defaultdict(list, {"a": [1.0]}), "device": torch.device("cpu"),
                     "dtype": torch.float32, ("a", 1): None},
        "one level more": {"checkpoint": {"model_state_dict": STATE}, "step": 1},
        "two levels more": {"state": {"model": STATE, "optimizer": optimizer}, "step": 1},
        "a loss with weights": {"model": STATE, "criterion": {"weight": torch.ones(3)}},
    }  # fmt: skip


def is_filled(net: Any) -> bool:
    return all(torch.equal(value, net.state_dict()[key]) for key, value in STATE.items())


@pytest.mark.parametrize("who", list(runs()))
def test_a_file_of_a_training_run_fills_a_plain_model_bit_for_bit(who: str, tmp_path) -> None:
    torch.save(runs()[who], tmp_path / "run.ckpt")
    net = make_net(1)
    report = xw.set_params(net, tmp_path / "run.ckpt", layout="native")
    assert is_filled(net)
    assert len(report.taken) == len(STATE)
    assert len(str(report).splitlines()) <= 40
    assert xw.equal(net, tmp_path / "run.ckpt")
    assert not xw.diff(tmp_path / "run.ckpt", net)


@pytest.mark.parametrize("who", [name for name in runs() if not name.startswith("a module")])
def test_what_torch_load_returns_fills_it_as_the_file_does(who: str) -> None:
    saved = runs()[who]
    if isinstance(saved, (tuple, list)):
        saved = {"model": saved[0]}
    net = make_net(1)
    xw.set_params(net, saved, layout="native")
    assert is_filled(net)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_protocol_of_pickle_is_read(protocol: int, zipped: bool, tmp_path) -> None:
    run = {**runs()["random states"], **runs()["settings"]}
    del run["state_dict"]
    torch.save(run, tmp_path / "run.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    net = make_net(1)
    xw.set_params(net, tmp_path / "run.pt", layout="native")
    assert is_filled(net)


@pytest.mark.parametrize(
    ("run", "parts"),
    [
        ({"model": STATE, "ema": OTHER}, ["model", "ema"]),
        ({"params": STATE, "params_ema": OTHER}, ["params", "params_ema"]),
        ({"g": STATE, "g_ema": OTHER, "d": {"conv.weight": torch.ones(2, 2)}}, ["g", "g_ema"]),
        ({"student": under("module.backbone."), "teacher": under("module.", OTHER)}, ["student", "teacher"]),
        ({"model": STATE, "model_ema": {"module": OTHER, "decay": 0.9}}, ["model", "model_ema/module"]),
    ],
)
def test_several_parts_that_fit_are_refused_by_name_and_part_says_which(run: Any, parts: list[str], tmp_path) -> None:
    path = tmp_path / "run.ckpt"
    torch.save(run, path)
    net = make_net(1)
    before = xw.checksum(net)
    with pytest.raises(xw.SelectionError) as refused:
        xw.set_params(net, path, layout="native")
    assert all(repr(part) in str(refused.value) for part in parts)
    assert f"part={parts[0]!r}" in str(refused.value)
    assert xw.checksum(net) == before
    xw.set_params(net, path, layout="native", part=parts[0])
    assert is_filled(net)
    assert xw.equal(net, xw.load(path, part=parts[0]))
    assert not xw.equal(net, xw.load(path, part=parts[1]))


def test_a_file_with_several_parts_asks_for_one_wherever_it_is_used(tmp_path) -> None:
    path = tmp_path / "run.ckpt"
    torch.save({"model": STATE, "ema": OTHER, "optimizer": optimizer_state()}, path)
    assert [(part.name, part.kind) for part in xw.parts(path)] == [
        ("model", "weights"), ("ema", "weights"), ("optimizer", "optimizer")
    ]  # fmt: skip
    opened = xw.load(path)
    assert "3 parts, none chosen" in repr(opened)
    for call in (xw.parameters, xw.get_params, xw.stats, xw.checksum, lambda p: xw.edit_file(p, xw.Scale(0.5))):
        with pytest.raises(xw.SelectionError, match="2 parts that hold weights"):
            call(path)
    assert len(xw.parameters(xw.load(path, part="ema"))) == len(STATE)
    with pytest.raises(xw.RefusedFileError, match="no part of the name 'average'"):
        xw.load(path, part="average")


def test_a_file_without_weights_says_what_it_holds(tmp_path) -> None:
    torch.save(optimizer_state(), tmp_path / "optimizer.pt")
    with pytest.raises(xw.RefusedFileError, match=r"(?s)no part that holds weights.*optimizer"):
        xw.set_params(make_net(), tmp_path / "optimizer.pt")


def test_the_model_is_a_part_of_what_was_saved_or_contains_it(tmp_path) -> None:
    path = tmp_path / "run.ckpt"
    torch.save({"state_dict": {**under("encoder."), "head.weight": torch.ones(2, 2), "loss.w": torch.ones(1)}}, path)
    net = make_net(1)
    report = xw.set_params(net, path, layout="native")
    assert is_filled(net)
    assert set(report.left_in_file) == {"head.weight", "loss.w"}
    assert "'encoder.'" in report.reading
    torch.save(STATE, tmp_path / "part.pt")
    whole = torch.nn.ModuleDict({"encoder": make_net(1), "decoder": torch.nn.Linear(2, 2)})
    with pytest.raises(xw.SelectionError, match=r"no value for 2 of 14 parameters: 'decoder/kernel', 'decoder/bias'"):
        xw.set_params(whole, tmp_path / "part.pt", layout="native")
    report = xw.set_params(whole, tmp_path / "part.pt", layout="native", strict=False)
    assert set(report.left_in_model) == {"decoder/kernel", "decoder/bias"}
    assert is_filled(whole["encoder"])
    xw.set_params(whole, tmp_path / "part.pt", layout="native", where="encoder/*")


def test_separate_state_dicts_of_a_model_s_own_parts_are_one_model(tmp_path) -> None:
    torch.save({"encoder": STATE, "decoder": torch.nn.Linear(2, 2).state_dict(), "epoch": 1}, tmp_path / "run.pt")
    whole = torch.nn.ModuleDict({"encoder": make_net(1), "decoder": torch.nn.Linear(2, 2)})
    xw.set_params(whole, tmp_path / "run.pt", layout="native")
    assert is_filled(whole["encoder"])
    net = make_net(1)
    xw.set_params(net, tmp_path / "run.pt", layout="native")
    assert is_filled(net)


def test_two_prefixes_that_fit_are_refused_and_names_says_which(tmp_path) -> None:
    path = tmp_path / "run.pt"
    torch.save({"state_dict": {**under("encoder_q."), **under("encoder_k.", OTHER)}}, path)
    net = make_net(1)
    with pytest.raises(xw.SelectionError, match=r"(?s)fit the target in 2 ways.*encoder_q.*encoder_k"):
        xw.set_params(net, path, layout="native")
    xw.set_params(net, path, layout="native", names={"*": "encoder_q.*"})
    assert is_filled(net)


def test_a_file_of_another_model_says_how_many_names_agree(tmp_path) -> None:
    torch.save(torch.nn.TransformerEncoderLayer(8, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(xw.SelectionError, match="another model: 0 of 12 names agree"):
        xw.set_params(make_net(), tmp_path / "other.pt", layout="native")


def test_a_few_names_that_agree_by_chance_are_no_reading(tmp_path) -> None:
    torch.save({**{f"x.{i}.weight": torch.ones(2) for i in range(20)}, "y.bn.weight": torch.ones(4)}, tmp_path / "o.pt")
    net = make_net()
    with pytest.raises(xw.SelectionError, match="another model"):
        xw.set_params(net, tmp_path / "o.pt", layout="native", strict=False)


def test_other_shapes_are_listed_together_and_may_be_left_out(tmp_path) -> None:
    other = {**STATE, "head.weight": torch.ones(3, 4), "head.bias": torch.ones(3)}
    torch.save(other, tmp_path / "run.pt")
    net = make_net(1)
    before = xw.checksum(net)
    with pytest.raises(xw.ShapeError, match=r'(?s)head/kernel.*head/bias.*mismatched="skip"'):
        xw.set_params(net, tmp_path / "run.pt", layout="native")
    assert xw.checksum(net) == before
    report = xw.set_params(net, tmp_path / "run.pt", layout="native", mismatched="skip")
    assert report.mismatched == {"head/kernel": ((3, 4), (2, 4)), "head/bias": ((3,), (2,))}
    assert torch.equal(net.emb.weight, SOURCE.emb.weight)


def test_errors_about_large_models_fit_on_a_screen(tmp_path) -> None:
    big = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 12)
    state = {key: torch.ones(3) for key in big.state_dict()}
    torch.save(state, tmp_path / "run.pt")
    for values in (tmp_path / "run.pt", state, {"nothing": torch.ones(2)}, {key: torch.ones(2) for key in "abcdefgh"}):
        with pytest.raises(xw.XweightsError) as refused:
            xw.set_params(big, values, layout="native")
        assert len(str(refused.value).splitlines()) <= 40


def test_an_edit_changes_what_the_verb_changes_and_nothing_beside(tmp_path) -> None:
    path = tmp_path / "run.pt"
    run = {"model": STATE, "optimizer": optimizer_state(), "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(run, path)
    xw.edit_file(path, xw.Scale(0.5))
    net = make_net()
    xw.scale(net, 0.5)
    after = torch.load(path, weights_only=False)
    assert all(torch.equal(after["model"][key], value) for key, value in net.state_dict().items())
    assert (after["epoch"], after["args"].lr) == (3, 0.1)
    for number, slots in run["optimizer"]["state"].items():
        assert all(torch.equal(after["optimizer"]["state"][number][slot], value) for slot, value in slots.items())


def test_an_edit_of_one_part_leaves_the_other(tmp_path) -> None:
    path = tmp_path / "run.pt"
    torch.save({"model": STATE, "ema": OTHER}, path)
    xw.edit_file(path, xw.Fill(0.0), part="ema", where="head.*")
    after = torch.load(path)
    assert torch.equal(after["model"]["head.weight"], STATE["head.weight"])
    assert not after["ema"]["head.weight"].any()
    assert after["ema"]["emb.weight"].any()


def test_an_edit_that_would_change_another_part_too_is_refused(tmp_path) -> None:
    path = tmp_path / "run.pt"
    torch.save({"model": STATE, "best": dict(STATE)}, path)
    before = path.read_bytes()
    for rule in (xw.Scale(0.5), xw.SetEntries(0, 1.0)):
        with pytest.raises(xw.RefusedFileError, match="shares its bytes"):
            xw.edit_file(path, rule, part="model", where="head.bias")
    assert path.read_bytes() == before


def test_a_part_is_converted_alone_under_its_own_names(tmp_path) -> None:
    torch.save({"model": STATE, "optimizer": optimizer_state()}, tmp_path / "run.pt")
    xw.convert(tmp_path / "run.pt", tmp_path / "w.safetensors")
    assert set(xw.get_params(tmp_path / "w.safetensors")) == set(STATE)
    assert xw.equal(SOURCE, tmp_path / "w.safetensors")


def test_a_training_run_in_memory_is_a_target_too() -> None:
    run = {"model": {key: value.clone() for key, value in STATE.items()}, "optimizer": optimizer_state(), "epoch": 1}
    assert {p.name for p in xw.parameters(run)} == set(STATE)
    with pytest.raises(xw.SelectionError, match="2 parts that hold weights"):
        xw.parameters({"model": STATE, "ema": OTHER, "epoch": 1})


def test_a_nested_mapping_of_arrays_alone_keeps_its_names() -> None:
    pair = {"G": {"0.weight": np.ones(2)}, "D": {"0.weight": np.ones(2)}}
    assert [p.name for p in xw.parameters(pair)] == ["G/0.weight", "D/0.weight"]
    xw.set_params(pair, {"G": {"0.weight": np.zeros(2)}, "D": {"0.weight": np.full(2, 3.0)}})
    assert (pair["G"]["0.weight"][0], pair["D"]["0.weight"][0]) == (0.0, 3.0)


def test_a_part_that_is_named_counts_more_than_the_one_a_file_was_opened_for(tmp_path) -> None:
    torch.save({"model": OTHER, "ema": {"module": STATE}}, tmp_path / "run.pt")
    net = make_net(1)
    report = xw.set_params(net, xw.load(tmp_path / "run.pt", part="model"), part="ema", layout="native")
    assert report.part == "ema/module"
    assert is_filled(net)
    again = make_net(1)
    xw.set_params(again, {"model": OTHER, "ema": {"module": STATE}}, part="ema", layout="native")
    assert is_filled(again)


def test_names_that_send_two_parameters_to_one_value_of_a_file_are_refused(tmp_path) -> None:
    xw.save({"1/kernel": np.ones(2)}, tmp_path / "w.npz")
    into = {"0/kernel": np.zeros(2), "1/kernel": np.zeros(2)}
    with pytest.raises(xw.SelectionError, match="could mean 2 parameters"):
        xw.set_params(into, tmp_path / "w.npz", names={"0/*": "1/*"}, strict=False)
    assert not into["0/kernel"].any()


def test_what_where_leaves_out_is_never_written_however_many_it_selects(tmp_path) -> None:
    net = torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2)), torch.nn.Linear(2, 2))
    torch.save(net.state_dict(), tmp_path / "w.pt")
    before = net[1].bias.detach().clone()
    with torch.no_grad():
        net[1].bias.add_(1.0)
    hidden = "0.parametrizations.weight.original1"
    chosen = ["0/kernel", "0/bias", "1/kernel", hidden]
    xw.set_params(net, tmp_path / "w.pt", where=chosen, layout="native")
    assert torch.equal(net[1].bias, before + 1.0)


@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_texts_and_empty_ones_are_left_out_of_the_weights(protocol: int, tmp_path) -> None:
    beside = {"classes": np.array(["cat", "dog"]), "dates": np.array(["2026-01-01"], "M8[D]"), "none": np.array([])}
    torch.save({"model": STATE, **beside}, tmp_path / "run.pt", pickle_protocol=protocol)
    net = make_net(1)
    xw.set_params(net, tmp_path / "run.pt", layout="native")
    assert is_filled(net)


def test_many_modules_beside_each_other_are_read_and_one_that_contains_itself_is_not(tmp_path) -> None:
    torch.save({f"net_{i}": torch.nn.Linear(1, 1) for i in range(150)}, tmp_path / "many.pt")
    assert len(xw.parts(tmp_path / "many.pt")) == 150
    knot: Any = torch.nn.Module()
    for _ in range(40):
        above = torch.nn.Module()
        above.a = above.b = knot
        knot = above
    knot.weight = torch.nn.Parameter(torch.ones(2))
    torch.save(knot, tmp_path / "knot.pt")
    with pytest.raises(xw.RefusedFileError, match="over and over"):
        xw.load(tmp_path / "knot.pt")


def test_an_unknown_name_of_a_mapping_stays_an_error() -> None:
    net = make_net()
    few = {"head.bias": torch.ones(2)}
    for wrong in ({**STATE, "head.wieght": torch.ones(2, 4)}, {**few, "bais": 0.5}, {**few, "bn2.running_mean": few}):
        with pytest.raises(xw.SelectionError, match=r"wieght|bais|bn2"):
            xw.set_params(net, wrong, layout="native", strict=False)
