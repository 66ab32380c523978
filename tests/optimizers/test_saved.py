"""Optimizers in files that the frameworks wrote are read as the live ones, and what doesn't fit is refused."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

import xweights as xw
from xweights.optimizers.placing import match

torch = pytest.importorskip("torch")
nn = torch.nn


def make_net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def train(module, optimizer, steps=2):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(8, 4, generator=generator)).pow(2).sum().backward()
        optimizer.step()


def save_run(path, module, optimizer, **more):
    torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1, **more}, path)
    return path


TORCH = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, torch.tensor(0.01), amsgrad=True),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01, decoupled_weight_decay=True, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, centered=True, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01, lr_decay=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, 0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
}


@pytest.mark.parametrize("name", TORCH)
def test_a_state_dict_in_a_file_is_read_as_the_live_optimizer(tmp_path, name):
    module = make_net()
    optimizer = TORCH[name](module.parameters())
    train(module, optimizer)
    step = 2 if name in ("sgd", "momentum") else None
    live = xw.get_optimizer(module, optimizer, step=step)
    path = save_run(tmp_path / "run.pt", module, optimizer)
    assert xw.get_optimizer(module, path, step=step).diff(live) == []
    if name != "sgd":  # a file without any array
        with xw.load(path, part="optimizer") as opened:
            assert xw.get_optimizer(module, opened, step=step).diff(live) == []
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
        assert xw.get_optimizer(module, tmp_path / "optimizer.bin", step=step).diff(live) == []
    other = make_net()
    report = xw.set_optimizer(other, None, xw.OptimizerState.load(path, step=step))
    assert xw.get_optimizer(other, report.optimizer).diff(live) == []


def test_layouts_that_differ_from_neutral_order_are_turned(tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    for kind in (torch.optim.Adam, torch.optim.Adafactor):
        optimizer = kind(module.parameters())
        module(torch.randn(4, 1, 4, 4)).pow(2).sum().backward()
        optimizer.step()
        live = xw.get_optimizer(module, optimizer)
        assert xw.get_optimizer(module, save_run(tmp_path / "run.pt", module, optimizer)).diff(live) == []


def test_more_frozen_parameters_than_when_it_was_saved(tmp_path):
    module, other = make_net(), make_net()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    train(module, optimizer)
    path = save_run(tmp_path / "run.pt", module, optimizer)
    other[0].requires_grad_(False)
    fresh = torch.optim.Adam(other[2].parameters())
    report = xw.set_optimizer(other, fresh, xw.OptimizerState.load(path))
    assert report.optimizer is fresh
    for name in ("weight", "bias"):
        theirs, mine = (o.state[getattr(m[2], name)] for m, o in ((module, optimizer), (other, fresh)))
        assert torch.equal(theirs["exp_avg"], mine["exp_avg"])
        assert torch.equal(theirs["step"], mine["step"])
    assert any("0 is 0/kernel, 1 is 0/bias" in note for note in report.notes)


def test_parameters_that_were_frozen_are_left_out_and_told(tmp_path):
    module = make_net()
    module[0].requires_grad_(False)
    optimizer = torch.optim.Adam(module.parameters())
    train(module, optimizer)
    path = save_run(tmp_path / "run.pt", module, optimizer)
    state = xw.get_optimizer(module, path)
    assert state.names == ["2/kernel", "2/bias"]
    assert "frozen, and never updated in the file: 0/kernel, 0/bias" in str(state)
    with pytest.raises(xw.HandoffError, match="2 trained parameters were never updated in the file") as refused:
        xw.get_optimizer(make_net(), path)
    assert "'0/kernel', '0/bias'" in str(refused.value)


def test_only_the_trainable_parameters_were_given(tmp_path):
    module = make_net()
    module[0].requires_grad_(False)
    optimizer = torch.optim.Adam(p for p in module.parameters() if p.requires_grad)
    train(module, optimizer)
    path = save_run(tmp_path / "run.pt", module, optimizer)
    assert xw.get_optimizer(module, path).diff(xw.get_optimizer(module, optimizer)) == []
    with pytest.raises(xw.HandoffError) as refused:
        xw.get_optimizer(make_net(), path)
    text = str(refused.value)
    assert "got:      2\nexpected: 4 (all of the model's)" in text.replace("    got", "got").replace("    exp", "exp")
    assert "position 0, (2, 8) against '0/kernel' (8, 4)" in text
    assert "where=" in text
    state = xw.get_optimizer(make_net(), path, where="2/*")
    assert state.names == ["2/kernel", "2/bias"]


def test_groups_are_matched_by_order_and_by_the_only_way_that_shapes_leave(tmp_path):
    module = make_net()
    weights, biases = [module[0].weight, module[2].weight], [module[0].bias, module[2].bias]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0, "name": "none"}]
    for chosen in (groups, [{"params": module[0].parameters()}, {"params": module[2].parameters(), "lr": 0.5}]):
        optimizer = torch.optim.AdamW([dict(group) for group in chosen])
        train(module, optimizer)
        path = save_run(tmp_path / "run.pt", module, optimizer)
        assert xw.get_optimizer(module, path).diff(xw.get_optimizer(module, optimizer)) == []


def test_groups_that_fit_in_several_ways_are_refused_unless_an_optimizer_tells(tmp_path):
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))

    def make(net):  # as for rates that fall from layer to layer
        return torch.optim.Adam([{"params": layer.parameters(), "lr": 0.5**n} for n, layer in enumerate(net[::-1])])

    optimizer = make(module)
    train(module, optimizer)
    path = save_run(tmp_path / "run.pt", module, optimizer)
    with pytest.raises(xw.HandoffError, match=r"in no way, or several(.|\n)*rule=optimizer"):
        xw.get_optimizer(module, path)
    live = xw.get_optimizer(module, optimizer)
    assert xw.get_optimizer(module, path, rule=make(module)).diff(live) == []
    fresh = make(module)
    xw.set_optimizer(module, fresh, xw.OptimizerState.load(path))
    assert xw.get_optimizer(module, fresh).diff(live) == []


def test_groups_without_slots_and_with_other_settings_are_refused(tmp_path):
    module = make_net()
    optimizer = torch.optim.SGD(
        [{"params": module[2].parameters(), "lr": 1.0}, {"params": module[0].parameters()}], 0.1
    )
    path = save_run(tmp_path / "run.pt", module, optimizer)
    with pytest.raises(xw.HandoffError, match="rule=optimizer"):
        xw.get_optimizer(module, path, step=3)
    assert xw.get_optimizer(module, path, step=3, rule=optimizer).names[0] == "2/kernel"


def test_names_in_the_file_are_used_behind_any_prefix(tmp_path):
    module = make_net()
    optimizer = torch.optim.Adam(reversed(list(module.named_parameters())))
    train(module, optimizer)
    live = xw.get_optimizer(module, optimizer)
    assert xw.get_optimizer(module, save_run(tmp_path / "named.pt", module, optimizer)).diff(live) == []
    # as FSDP.full_optim_state_dict and torch.distributed.checkpoint have it
    saved = torch.optim.Adam(module.parameters()).state_dict()
    names = [name for name, _ in module.named_parameters()]
    state = {f"_orig_mod.{name}": dict(optimizer.state[p]) for name, p in module.named_parameters()}
    group = {**saved["param_groups"][0], "params": [f"_orig_mod.{name}" for name in names]}
    torch.save({"optim": {"state": state, "param_groups": [group]}}, tmp_path / "fsdp.pt")
    read = xw.get_optimizer(module, tmp_path / "fsdp.pt")
    assert sorted(read.names) == sorted(live.names)
    assert all(np.array_equal(read.slots[n]["momentum"], live.slots[n]["momentum"]) for n in live.names)
    group["params"][0] = "_orig_mod.0.wait"
    state["_orig_mod.0.wait"] = state.pop("_orig_mod.0.weight")
    torch.save({"state": state, "param_groups": [group]}, tmp_path / "fsdp.pt")
    with pytest.raises(xw.HandoffError, match=r"the model has no '_orig_mod.0.wait'"):
        xw.get_optimizer(module, tmp_path / "fsdp.pt")


def test_shapes_that_contradict_are_refused_with_the_list(tmp_path):
    module, other = make_net(), nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    optimizer = torch.optim.Adam(module.parameters())
    train(module, optimizer)
    path = save_run(tmp_path / "run.pt", module, optimizer)
    with pytest.raises(xw.HandoffError) as refused:
        xw.get_optimizer(other, path)
    text = str(refused.value)
    assert "the shapes of 3 of 4 positions contradict" in text
    assert "position 0, (8, 4) against '0/kernel' (6, 4)" in text
    assert "position 3" not in text
    before = xw.get_optimizer(other, torch.optim.Adam(other.parameters()))
    mine = torch.optim.Adam(other.parameters())
    with pytest.raises(xw.HandoffError):
        xw.set_optimizer(other, mine, xw.OptimizerState.load(path))
    assert xw.get_optimizer(other, mine).diff(before) == []


def test_adam_and_adamw_are_told_by_the_group_or_by_the_caller(tmp_path):
    module = make_net()
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.1)
    train(module, optimizer)
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["decoupled_weight_decay"]  # as before torch 2.7
    torch.save(saved, tmp_path / "optimizer.pt")
    with pytest.raises(xw.HandoffError, match=r"Adam or AdamW may have written it(.|\n)*rule="):
        xw.get_optimizer(module, tmp_path / "optimizer.pt")
    live = xw.get_optimizer(module, optimizer)
    assert xw.get_optimizer(module, tmp_path / "optimizer.pt", rule="AdamW").diff(live) == []
    coupled = xw.get_optimizer(module, tmp_path / "optimizer.pt", rule=torch.optim.Adam)
    assert coupled.groups[0].variant["decay"] == "coupled"
    with pytest.raises(xw.HandoffError, match="SGD hasn't written this state"):
        xw.get_optimizer(module, tmp_path / "optimizer.pt", rule="SGD")
    saved["param_groups"][0]["weight_decay"] = 0.0
    torch.save(saved, tmp_path / "optimizer.pt")
    assert xw.get_optimizer(module, tmp_path / "optimizer.pt").rule == "adam"


UNKNOWN = {
    "RAdam wrote it, whose rule isn't known": lambda p: torch.optim.RAdam(p),
    "Rprop wrote it": lambda p: torch.optim.Rprop(p),
    "those of no class of torch.optim": lambda p: torch.optim.Adam([{"params": list(p), "trust_clip": True}]),
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_another_rule_is_refused_and_not_guessed(tmp_path, why):
    module = make_net()
    optimizer = UNKNOWN[why](module.parameters())
    train(module, optimizer)
    with pytest.raises(xw.HandoffError, match=why):
        xw.get_optimizer(module, save_run(tmp_path / "run.pt", module, optimizer))


def test_files_without_an_optimizer_or_with_two_are_refused_with_the_list(tmp_path):
    module = make_net()
    torch.save({"model": module.state_dict(), "epoch": 3}, tmp_path / "plain.pt")
    with pytest.raises(xw.HandoffError, match=r"no optimizer state in(.|\n)*'model'"):
        xw.get_optimizer(module, tmp_path / "plain.pt")
    with pytest.raises(xw.HandoffError, match="no optimizer state in"):
        xw.OptimizerState.load(tmp_path / "plain.pt")
    other = make_net()
    optimizers = [torch.optim.Adam(m.parameters()) for m in (module, other)]
    for m, optimizer in zip((module, other), optimizers, strict=True):
        train(m, optimizer)
    gan = {"netG": module.state_dict(), "netD": other.state_dict()}
    torch.save({**gan, "optG": optimizers[0].state_dict(), "optD": optimizers[1].state_dict()}, tmp_path / "gan.pt")
    with pytest.raises(xw.HandoffError, match=r"2 optimizers\n  'optG'\n  'optD'\nFix: part='optG'"):
        xw.get_optimizer(module, tmp_path / "gan.pt")
    live = xw.get_optimizer(other, optimizers[1])
    assert xw.get_optimizer(other, tmp_path / "gan.pt", part="optD").diff(live) == []
    assert xw.get_optimizer(other, xw.load(tmp_path / "gan.pt", part="optD")).diff(live) == []
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"state_dict": module.state_dict(), "optimizer_states": states}, tmp_path / "gan.ckpt")
    assert xw.get_optimizer(other, tmp_path / "gan.ckpt", part="optimizer_states/1").diff(live) == []
    with pytest.raises(xw.HandoffError, match="no optimizer of the name 'optX'"):
        xw.get_optimizer(other, tmp_path / "gan.ckpt", part="optX")
    torch.save({"state_dict": other.state_dict(), "optimizer_states": states[1:]}, tmp_path / "gan.ckpt")
    assert xw.get_optimizer(other, tmp_path / "gan.ckpt").diff(live) == []


DAMAGE = {
    "there are slots of '7'": lambda s: s["state"].update({7: s["state"][0]}),
    "has no 'exp_avg_sq'": lambda s: s["state"][1].pop("exp_avg_sq"),
    "have several shapes": lambda s: s["state"][1].update(exp_avg_sq=torch.zeros(3)),
    "learning_rate is no number": lambda s: s["param_groups"][0].update(lr="fast"),
    "its settings are damaged": lambda s: s["param_groups"][0].update(betas=0.9),
    "a parameter is listed twice": lambda s: s["param_groups"][0].update(params=[0, 1, 1, 3]),
    "aren't listed": lambda s: s["param_groups"][0].update(params={}),
    "no settings that can be read": lambda s: s.update(param_groups=[3]),
    "no settings that can be read ": lambda s: s.update(param_groups=[]),
    "updated different numbers of times": lambda s: s["state"][1].update(step=torch.tensor(9.0)),
    "is no number": lambda s: s["state"][1].update(step=torch.tensor([1.0, 2.0])),
    "is no number ": lambda s: s["state"][1].update(step=torch.tensor(float("nan"))),
    "maximize=True": lambda s: s["param_groups"][0].update(maximize=True),
}


@pytest.mark.parametrize("why", DAMAGE)
def test_a_state_dict_that_is_not_made_as_torch_makes_it_is_refused(tmp_path, why):
    module = make_net()
    optimizer = torch.optim.Adam(module.parameters())
    train(module, optimizer)
    saved = optimizer.state_dict()
    DAMAGE[why](saved)
    torch.save({"optimizer": saved}, tmp_path / "run.pt")
    with pytest.raises(xw.HandoffError, match=why.strip()):
        xw.get_optimizer(module, tmp_path / "run.pt")


def test_a_state_that_was_read_without_a_model_is_saved_and_placed_later(tmp_path):
    module = make_net()
    optimizer = torch.optim.Adam(module.parameters())
    train(module, optimizer)
    state = xw.OptimizerState.load(save_run(tmp_path / "run.pt", module, optimizer))
    assert state.names == ["0", "1", "2", "3"]
    state.save(tmp_path / "state.safetensors")
    again = xw.OptimizerState.load(tmp_path / "state.safetensors")
    assert state.diff(again) == []
    assert xw.get_optimizer(module, again).diff(xw.get_optimizer(module, optimizer)) == []
    assert xw.get_optimizer(module, tmp_path / "state.safetensors").names[0] == "0/kernel"


def test_options_of_files_are_refused_for_a_live_optimizer():
    module = make_net()
    with pytest.raises(xw.ArgumentError, match="for a file"):
        xw.get_optimizer(module, torch.optim.Adam(module.parameters()), part="optimizer")


def test_a_hand_off_continues_from_a_file(tmp_path):
    module, other = make_net(), make_net()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    train(module, optimizer)
    path = save_run(tmp_path / "run.pt", module, optimizer)
    report = xw.handoff((module, path), (other, None))
    assert xw.get_optimizer(other, report.optimizer).diff(xw.get_optimizer(module, optimizer)) == []
    assert any("matched by order" in note for note in report.notes)
    with pytest.raises(xw.HandoffError, match="clip= goes with a live optimizer"):
        xw.handoff(xw.Training(module, path, clip=("value", 1.0)), (other, None))


def test_shapes_divide_groups_in_one_way_or_in_none():
    assert match([[(2,)], [(3,)]], [(2,), (3,)]) == [[0], [1]]
    assert match([[(3,)], [(2,)]], [(2,), (3,)]) == [[1], [0]]
    assert match([[(2,), (3,)]], [(3,), (2,)]) is None
    assert match([[(2,)], [(2,)]], [(2,), (2,)]) is None
    assert match([[(2,)], []], [(2,)]) == [[0], []]
    assert match([[(1,), (2,)], [(2,), (1,)]], [(2,), (1,), (1,), (2,)]) is None
    assert match([[(2,)]], [(2,), (3,)]) is None
    # the second group could begin with either of two that are alike
    assert match([[(2,)], [(3,), (2,)]], [(3,), (2,), (2,)]) is None


# Keras


@pytest.fixture
def keras():
    return pytest.importorskip("keras")


def make_keras(keras, optimizer=None):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    )
    if optimizer is not None:
        model.compile(optimizer, "mse", run_eagerly=True)
        x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        for _ in range(2):
            model.train_on_batch(x, x[:, :2])
    return model


KERAS = {
    "adamw": lambda k: k.optimizers.AdamW(0.01, clipnorm=1.0),
    "scheduled": lambda k: k.optimizers.SGD(k.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9), momentum=0.9),
    "ema": lambda k: k.optimizers.RMSprop(0.01, use_ema=True, centered=True),
    "adafactor": lambda k: k.optimizers.Adafactor(0.01),
    "nadam": lambda k: k.optimizers.Nadam(0.01),
}


@pytest.mark.parametrize("name", KERAS)
def test_a_keras_file_is_read_as_the_live_optimizer(tmp_path, keras, name):
    model = make_keras(keras, KERAS[name](keras))
    live = xw.get_optimizer(model, model.optimizer)
    model.save(tmp_path / "m.keras")
    assert xw.get_optimizer(model, tmp_path / "m.keras").diff(live) == []
    assert xw.get_optimizer(make_keras(keras), tmp_path / "m.keras").diff(live) == []


def test_weights_without_settings_need_an_optimizer_that_has_them(tmp_path, keras):
    model = make_keras(keras, KERAS["adamw"](keras))
    live = xw.get_optimizer(model, model.optimizer)
    path = tmp_path / "m.weights.h5"
    model.save_weights(path)
    state = xw.get_optimizer(model, path)
    assert state.diff(live) == []
    assert "the file has no settings: those of the optimizer of the model were taken" in str(state)
    fresh = make_keras(keras)
    with pytest.raises(xw.HandoffError, match=r"no settings(.|\n)*its name: adam_?w(.|\n)*Fix: rule="):
        xw.get_optimizer(fresh, path)
    assert xw.get_optimizer(fresh, path, rule=KERAS["adamw"](keras)).diff(live) == []
    with pytest.raises(xw.HandoffError, match="written by another class"):
        xw.get_optimizer(fresh, path, rule=keras.optimizers.Adam())


def test_variables_that_do_not_fit_the_model_are_refused_with_the_list(tmp_path, keras):
    model = make_keras(keras, KERAS["adamw"](keras))
    model.save(tmp_path / "m.keras")
    narrow = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    with pytest.raises(xw.HandoffError, match=r"got:      14 variables\nexpected: 10 "):
        xw.get_optimizer(narrow, tmp_path / "m.keras")
    with pytest.raises(xw.HandoffError, match="only the model tells which is which"):
        xw.OptimizerState.load(tmp_path / "m.keras")
    with pytest.raises(xw.HandoffError, match=r"another framework\ngot:      keras"):
        xw.get_optimizer(make_net(), tmp_path / "m.keras")


def test_layers_that_are_frozen_since_are_left_out(tmp_path, keras):
    model = make_keras(keras, KERAS["adamw"](keras))
    live = xw.get_optimizer(model, model.optimizer)
    model.save(tmp_path / "m.keras")
    frozen = make_keras(keras)
    frozen.layers[0].trainable = False
    state = xw.get_optimizer(frozen, tmp_path / "m.keras")
    assert [name for name in live.names if name not in state.names] == ["dense/0/kernel", "dense/0/bias"]


HOSTILE = {
    "whose rule isn't known": {"class_name": "Lambda", "module": "evil"},
    "whose rule isn't known ": {"module": "os", "class_name": "AdamW"},
    "a setting that is no number": {"learning_rate": {"class_name": "Lambda", "config": {}}},
    "a setting that is no number ": {"beta_1": {"class_name": "CosineDecay", "config": {}}},
    "can't be made of its settings": {"nonsense": 3},
}


@pytest.mark.parametrize("why", HOSTILE)
def test_nothing_but_keras_own_optimizers_is_made(tmp_path, keras, why):
    model = make_keras(keras, KERAS["adamw"](keras))
    model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    optimizer = config["compile_config"]["optimizer"]
    for key, value in HOSTILE[why].items():
        (optimizer if key in optimizer else optimizer["config"])[key] = value
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(xw.HandoffError, match=why.strip()):
        xw.get_optimizer(model, tmp_path / "m.keras")


def test_a_hand_off_from_a_keras_file_continues_in_torch(tmp_path, keras):
    model = make_keras(keras, KERAS["adamw"](keras))
    model.save(tmp_path / "m.keras")
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    options = {"attributes": "fix", "sample": np.ones((3, 4), "float32")}
    report = xw.handoff((model, tmp_path / "m.keras"), (module, None), **options)
    assert report.updates == 2
    assert xw.get_optimizer(module, report.optimizer).rule == "adam"


@pytest.mark.parametrize("name", ["adamw", "scheduled"])
def test_the_legacy_h5_of_a_whole_model_is_read_as_the_live_optimizer(tmp_path, keras, name):
    model = make_keras(keras, KERAS[name](keras))
    live = xw.get_optimizer(model, model.optimizer)
    model.save(tmp_path / "m.h5")
    assert xw.get_optimizer(make_keras(keras), tmp_path / "m.h5").diff(live) == []


def write_as_keras_2(path, model, names, config):
    """Give a file that Keras 3 wrote the optimizer as Keras 2 keeps it: the steps, then slot after slot."""
    import h5py

    model.save(path)
    with h5py.File(path, "r+") as file:
        group = file["optimizer_weights"]
        values = {name.rpartition("/")[2]: group[name][()] for name in group.attrs["weight_names"]}
        del file["optimizer_weights"]
        group = file.create_group("optimizer_weights")
        for name, old in names.items():
            group[name] = values[old]
        group.attrs["weight_names"] = [name.encode() for name in names]
        settings = json.loads(file.attrs["training_config"])
        file.attrs["training_config"] = json.dumps({**settings, "optimizer_config": config})


def test_an_optimizer_of_keras_2_is_read_by_its_slots(tmp_path, keras):
    model = make_keras(keras, keras.optimizers.Adam(0.01))
    live = xw.get_optimizer(model, model.optimizer)
    weights = [v.path for v in model.trainable_variables]
    names = {"Adam/iter:0": "iteration"}
    for short, slot in (("m", "momentum"), ("v", "velocity")):
        names |= {f"Adam/{path}/{short}:0": f"{path.replace('/', '_')}_{slot}" for path in weights}
    numbers = {"learning_rate": 0.01, "decay": 0.0, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "amsgrad": False}
    config = {"class_name": "Adam", "config": {"name": "Adam", **numbers}}
    write_as_keras_2(tmp_path / "m.h5", model, names, config)
    state = xw.get_optimizer(make_keras(keras), tmp_path / "m.h5")
    assert state.diff(live) == []
    since_2_11 = {"iteration:0": "iteration", "Adam/learning_rate:0": "learning_rate"}
    for path in weights:
        for short, slot in (("m", "momentum"), ("v", "velocity")):
            since_2_11[f"Adam/{short}/{path}:0"] = f"{path.replace('/', '_')}_{slot}"
    write_as_keras_2(tmp_path / "m.h5", model, since_2_11, config)
    assert xw.get_optimizer(make_keras(keras), tmp_path / "m.h5").diff(live) == []
    config["config"]["decay"] = 1e-4
    write_as_keras_2(tmp_path / "m.h5", model, names, config)
    with pytest.raises(xw.HandoffError, match=r"got: decay=0\.0001"):
        xw.get_optimizer(model, tmp_path / "m.h5")
    del names[f"Adam/{weights[0]}/m:0"]
    config["config"]["decay"] = 0.0
    write_as_keras_2(tmp_path / "m.h5", model, names, config)
    with pytest.raises(xw.HandoffError, match="aren't those of Adam in Keras 2"):
        xw.get_optimizer(model, tmp_path / "m.h5")
