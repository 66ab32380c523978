"""Files of training runs: the part that is merged, what becomes of the rest, and names behind wrappers' prefixes."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import xweights as xw

torch = pytest.importorskip("torch")


def make_net(seed: int) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))


def make_run(path: Path, seed: int, *, prefix: str = "", ema: bool = False) -> Any:
    net = make_net(seed)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    state = {f"{prefix}{key}": value for key, value in net.state_dict().items()}
    run = {"model": state, "optimizer": optimizer.state_dict(), "epoch": seed, "args": {"lr": 0.1}}
    if ema:
        run["ema"] = make_net(seed + 100).state_dict()
    torch.save(run, path)
    return net


def mean(nets: list[Any]) -> dict[str, Any]:
    states = [net.state_dict() for net in nets]
    return {
        key: torch.stack([s[key] for s in states]).double().mean(0).float() if value.is_floating_point() else value
        for key, value in states[0].items()
    }


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(got) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-6, atol=1e-7)


def test_the_weights_are_merged_and_the_rest_is_that_of_the_first(tmp_path: Path) -> None:
    paths = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    nets = [make_run(path, seed) for seed, path in enumerate(paths)]
    report = xw.merge(paths, out=tmp_path / "c.pt")
    assert (report.part, report.kept, report.dropped) == ("model", ("optimizer", "epoch", "args"), ())
    assert "unchanged: the rest of target 0: 'optimizer', 'epoch', 'args'" in str(report)
    first, merged = (torch.load(path, weights_only=True) for path in (paths[0], tmp_path / "c.pt"))
    assert_same(merged["model"], mean(nets))
    assert merged["epoch"] == 0
    assert merged["args"] == {"lr": 0.1}
    for position, slots in first["optimizer"]["state"].items():
        assert all(torch.equal(v, merged["optimizer"]["state"][position][k]) for k, v in slots.items())
    assert xw.equal(xw.merge(paths), {k: v.numpy() for k, v in merged["model"].items()})


def test_a_run_is_merged_into_its_own_file(tmp_path: Path) -> None:
    paths = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    nets = [make_run(path, seed) for seed, path in enumerate(paths)]
    xw.merge(paths, out=paths[0])
    assert_same(torch.load(paths[0], weights_only=True)["model"], mean(nets))


def test_the_rest_is_dropped_on_demand_and_in_other_formats(tmp_path: Path) -> None:
    paths = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    nets = [make_run(path, seed) for seed, path in enumerate(paths)]
    report = xw.merge(paths, out=tmp_path / "c.pt", rest="drop")
    assert_same(torch.load(tmp_path / "c.pt", weights_only=True), mean(nets))
    assert report.dropped == ("optimizer", "epoch", "args")
    report = xw.merge(paths, out=tmp_path / "c.safetensors")
    assert "left out:  the rest of target 0: 'optimizer', 'epoch', 'args'; a pt file is copied" in str(report)
    assert list(xw.load(tmp_path / "c.safetensors")) == list(nets[0].state_dict())
    with pytest.raises(xw.ArgumentError, match="rest= is"):
        xw.merge(paths, out=tmp_path / "c.pt", rest="move")


def test_what_where_leaves_out_stays_as_it_is_in_the_first(tmp_path: Path) -> None:
    paths = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    nets = [make_run(path, seed) for seed, path in enumerate(paths)]
    report = xw.merge(paths, where="0.*", out=tmp_path / "c.pt")
    assert report.merged == 2
    expected = {**nets[0].state_dict(), **{k: v for k, v in mean(nets).items() if k.startswith("0.")}}
    assert_same(torch.load(tmp_path / "c.pt", weights_only=True)["model"], expected)


def test_several_parts_of_weights_need_part(tmp_path: Path) -> None:
    paths = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    for seed, path in enumerate(paths):
        make_run(path, seed, ema=True)
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    with pytest.raises(xw.SelectionError, match=r"target 0(.|\n)*2 parts that hold weights(.|\n)*part='model'"):
        xw.merge(paths, out=tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()
    report = xw.merge(paths, part="ema", out=tmp_path / "c.pt")
    assert report.kept == ("model", "optimizer", "epoch", "args")
    merged = torch.load(tmp_path / "c.pt", weights_only=True)
    assert_same(merged["ema"], mean([make_net(100), make_net(101)]))
    first = torch.load(paths[0], weights_only=True)
    assert_same(merged["model"], first["model"])
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] == before
    # A file of weights alone has no parts, and stands for itself.
    torch.save(make_net(5).state_dict(), tmp_path / "plain.pt")
    expected = mean([make_net(100), make_net(5)])
    merged = xw.merge([paths[0], tmp_path / "plain.pt"], part="ema")
    assert np.allclose(merged["0.weight"], expected["0.weight"].numpy())
    with pytest.raises(xw.ArgumentError, match="none of these has any"):
        xw.merge([tmp_path / "plain.pt"] * 2, part="ema")
    with pytest.raises(xw.SelectionError, match="no part of the name 'swa'"):
        xw.merge(paths, part="swa")


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    net = make_run(tmp_path / "a.ckpt", 0)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(xw.SelectionError, match=r"target 1(.|\n)*no part that holds weights"):
        xw.merge([tmp_path / "a.ckpt", tmp_path / "optimizer.pt"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.", "module._orig_mod.net."])
@pytest.mark.parametrize("first_is_wrapped", [False, True])
def test_names_behind_a_prefix_pair_with_those_without(tmp_path: Path, prefix: str, first_is_wrapped: bool) -> None:
    paths = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    prefixes = (prefix, "") if first_is_wrapped else ("", prefix)
    nets = [make_run(path, seed, prefix=p) for seed, (path, p) in enumerate(zip(paths, prefixes, strict=True))]
    report = xw.merge(paths, out=tmp_path / "c.pt")
    assert list(report.readings) == ["target 1"]
    expected = {f"{prefixes[0]}{key}": value for key, value in mean(nets).items()}
    assert_same(torch.load(tmp_path / "c.pt", weights_only=True)["model"], expected)


def test_another_models_names_are_refused_as_before(tmp_path: Path) -> None:
    make_run(tmp_path / "a.ckpt", 0)
    torch.save({"0.weight": torch.zeros(3, 4), "other.weight": torch.zeros(2)}, tmp_path / "b.pt")
    with pytest.raises(xw.SelectionError, match=r"target 1 has no '0\.bias'"):
        xw.merge([tmp_path / "a.ckpt", tmp_path / "b.pt"])


def test_two_prefixes_that_fit_are_refused(tmp_path: Path) -> None:
    net = make_run(tmp_path / "a.ckpt", 0)
    state = net.state_dict()
    twice = {f"{side}.{key}": value for side in ("student", "teacher") for key, value in state.items()}
    torch.save(twice, tmp_path / "tied.pt")
    assert np.array_equal(xw.merge([tmp_path / "a.ckpt", tmp_path / "tied.pt"])["0.bias"], state["0.bias"].numpy())
    torch.save({key: value + ("teacher" in key) for key, value in twice.items()}, tmp_path / "b.pt")
    with pytest.raises(xw.SelectionError, match=r"fit those of target 0 in 2 ways(.|\n)*Fix: names="):
        xw.merge([tmp_path / "a.ckpt", tmp_path / "b.pt"])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("model_first", [False, True])
def test_a_file_pairs_with_a_live_model_by_the_frameworks_own_names(
    tmp_path: Path, prefix: str, model_first: bool
) -> None:
    net = make_run(tmp_path / "a.ckpt", 0, prefix=prefix)
    other = make_net(1)
    pair = [other, tmp_path / "a.ckpt"] if model_first else [tmp_path / "a.ckpt", other]
    merged = xw.merge(pair)
    expected = mean([net, other])
    name = "0/kernel" if model_first else f"{prefix}0.weight"
    assert merged.axes[name] == ("in", "out")
    assert np.allclose(merged[name], expected["0.weight"].numpy().T)
    xw.merge([tmp_path / "a.ckpt", other], out=tmp_path / "c.pt")
    merged_run = torch.load(tmp_path / "c.pt", weights_only=True)
    assert_same(merged_run["model"], {f"{prefix}{key}": value for key, value in expected.items()})
    assert merged_run["epoch"] == 0


def test_a_merge_that_fails_late_leaves_the_old_file(tmp_path: Path) -> None:
    paths = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    for seed, path in enumerate(paths):
        make_run(path, seed)
    run = torch.load(paths[1], weights_only=True)
    run["model"]["2.bias"][0] = float("nan")
    torch.save(run, paths[1])
    before = paths[0].read_bytes()
    with pytest.raises(xw.NonfiniteError, match=r"2\.bias"):
        xw.merge(paths, out=paths[0])
    assert paths[0].read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt"]


def test_a_keras_model_is_merged_with_its_configuration_and_optimizer(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    models = []
    for name in ("a", "b"):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile("adam", "mse", run_eagerly=True)
        model.train_on_batch(np.ones((2, 4)), np.ones((2, 3)))
        model.save(tmp_path / f"{name}.keras")
        models.append(model)
    report = xw.merge([tmp_path / "a.keras", tmp_path / "b.keras"], out=tmp_path / "c.keras")
    assert report.kept == ("optimizer_weights",)
    merged = keras.models.load_model(tmp_path / "c.keras")
    means = [(x + y) / 2 for x, y in zip(*(model.get_weights() for model in models), strict=True)]
    assert all(np.allclose(x, y) for x, y in zip(merged.get_weights(), means, strict=True))
    assert int(merged.optimizer.iterations) == 1
    assert zipfile.ZipFile(tmp_path / "c.keras").testzip() is None


def test_the_command_line_names_the_part_and_says_what_became_of_the_rest(tmp_path: Path) -> None:
    from xweights.cli.app import app

    paths = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    for seed, path in enumerate(paths):
        make_run(path, seed, ema=True)
    run = CliRunner().invoke(app, ["merge", *map(str, paths), "--part", "ema", "-o", str(tmp_path / "c.pt")])
    assert run.exit_code == 0, run.output
    assert "unchanged: the rest of target 0: 'model', 'optimizer', 'epoch', 'args'" in run.output
    named = [f"{path}#ema" for path in paths]
    run = CliRunner().invoke(app, ["merge", *named, "--rest", "drop", "-o", str(tmp_path / "d.pt")])
    assert run.exit_code == 0, run.output
    assert "left out:" in run.output
    assert_same(torch.load(tmp_path / "d.pt"), torch.load(tmp_path / "c.pt")["ema"])
