"""Layers that a user, a package or a class declares, and the warning for those that nobody did."""

from __future__ import annotations

import types
import warnings
from typing import ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import xweights as xw  # noqa: E402
from xweights.core import layer_rows  # noqa: E402


class Mixer(nn.Module):
    def __init__(self, inputs=3, outputs=5):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


class SubMixer(Mixer):
    pass


class Heads(nn.Module):
    def __init__(self, heads=2):
        super().__init__()
        self.settings = types.SimpleNamespace(heads=heads)
        self.packed = nn.Parameter(torch.zeros(3 * heads * 4, 6))


class Carrying(nn.Module):
    __xweights_layers__: ClassVar = {
        "weight": ("kernel", "out in -> in out"),
        "cls": ("cls", "batch token dim", "token"),
    }

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 2))
        self.cls = nn.Parameter(torch.zeros(1, 1, 4))


class WideLinear(nn.Linear):
    def __init__(self):
        super().__init__(2, 3)
        self.table = nn.Parameter(torch.zeros(2, 3))


MIXER = f"{__name__}.Mixer"


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(layer_rows, "_registered", {})
    monkeypatch.setattr(layer_rows, "_shipped", {})
    monkeypatch.setattr(layer_rows, "_points", {})
    monkeypatch.setattr(layer_rows, "_roles", set())
    monkeypatch.setattr(layer_rows, "_known", {})
    layer_rows._forget()
    yield
    layer_rows._forget()


def known(model):
    return {p.name: (p.role, p.axes) for p in xw.parameters(model)}


def test_a_declared_layer_has_its_roles_and_axes_and_so_have_its_subclasses():
    model = nn.Sequential(Mixer(), SubMixer())
    assert known(model)["0.weight".replace(".", "/")] == ("weight", None)
    xw.register_layer(MIXER, weight=("kernel", "in out"), bias=("bias", "out"))
    # The same model, whose names were planned before.
    assert known(model) == {
        "0/kernel": ("kernel", ("in", "out")), "0/bias": ("bias", ("out",)),
        "1/kernel": ("kernel", ("in", "out")), "1/bias": ("bias", ("out",)),
    }  # fmt: skip
    assert list(xw.prune(model, fraction=0.5)) == ["0/kernel", "1/kernel"]


def test_a_stored_order_that_is_not_the_neutral_one_is_turned():
    xw.register_layer(MIXER, weight=("kernel", "out in -> in out"))
    model = Mixer(2, 3)
    xw.set_params(model, {"kernel": np.arange(6.0, dtype=np.float32).reshape(3, 2), "bias": np.ones(3, np.float32)})
    assert model.weight.tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]


def test_sizes_are_read_from_attributes_and_gates_count_the_parts():
    xw.register_layer(
        f"{__name__}.Heads",
        packed=("qkv/kernel", "(qkv head key) in -> in qkv head key"),
        heads="settings.heads",
        gates=("query", "key", "value"),
    )
    for heads in (2, 3):
        (p,) = xw.parameters(Heads(heads))
        assert (p.axes, p.shape) == (("in", "qkv", "head", "key"), (6, 3, heads, 4))
        assert p.gates == ("query", "key", "value")


def test_a_class_carries_its_own_rows_and_a_registration_counts_before_them():
    assert known(Carrying()) == {"kernel": ("kernel", ("in", "out")), "cls": ("token", ("batch", "token", "dim"))}
    xw.register_layer(f"{__name__}.Carrying", weight=("embeddings", "vocab dim"))
    assert known(Carrying())["embeddings"] == ("embeddings", ("vocab", "dim"))


def test_a_row_for_one_array_leaves_the_others_what_the_base_says():
    xw.register_layer(f"{__name__}.WideLinear", table=("table/embeddings", "vocab dim"))
    assert {name: axes for name, (_, axes) in known(WideLinear()).items()} == {
        "table/embeddings": ("vocab", "dim"), "kernel": ("in", "out"), "bias": ("out",),
    }  # fmt: skip


def test_a_package_ships_rows_through_an_entry_point_which_only_its_own_classes_load(monkeypatch):
    rows = {MIXER: {"weight": ("kernel", "in out")}}
    loaded = []

    def point(shipped):
        return types.SimpleNamespace(value="package:rows", load=lambda: loaded.append(1) or shipped)

    root = __name__.partition(".")[0]
    for shipped in (rows, lambda: rows, lambda: xw.register_layer(MIXER, rows[MIXER])):
        monkeypatch.setattr(layer_rows, "_points", {root: point(shipped)})
        monkeypatch.setattr(layer_rows, "_shipped", {})
        layer_rows._forget()
        xw.parameters(nn.Linear(1, 1))
        count = len(loaded)
        assert known(Mixer())["kernel"] == ("kernel", ("in", "out"))
        assert len(loaded) == count + 1
    xw.register_layer(MIXER, weight=("embeddings", "vocab dim"))
    assert "embeddings" in known(Mixer())


def test_shipped_rows_that_are_broken_are_named_at_every_call(monkeypatch):
    root = __name__.partition(".")[0]
    point = types.SimpleNamespace(value="package:rows", load=lambda: {MIXER: {"weight": "kernel"}})
    monkeypatch.setattr(layer_rows, "_points", {root: point})
    for _ in range(2):
        with pytest.raises(xw.LayoutError, match="'package:rows' ships"):
            xw.parameters(Mixer())


def test_rows_that_do_not_fit_are_named_all_at_once_with_layer_row_and_shape():
    xw.register_layer(MIXER, weight=("kernel", "in out h"), bias=("bias", "(head dim)"), heads="heads")
    with pytest.raises(xw.LayoutError) as raised:
        xw.parameters(nn.Sequential(Mixer()))
    text = str(raised.value)
    assert "0.weight has the shape (3, 5)" in text
    assert "weight=('kernel', 'in out h')" in text
    assert "no number in: head='heads'" in text
    assert "0.bias has the shape (5,)" in text


def test_the_same_rows_again_are_fine_and_others_need_replace():
    xw.register_layer(MIXER, weight=("kernel", "in out"))
    xw.register_layer(MIXER, weight=("kernel", "in out"))
    with pytest.raises(xw.ArgumentError, match=r"other rows already\ngot: .*\nexpected: .*\nFix: .*replace=True"):
        xw.register_layer(MIXER, weight=("kernel", "out in"))
    assert known(Mixer())["kernel"] == ("kernel", ("in", "out"))
    xw.register_layer(MIXER, weight=("kernel", "out in"), replace=True)
    assert known(Mixer())["kernel"] == ("kernel", ("out", "in"))


@pytest.mark.parametrize(
    ("arguments", "options", "kind"),
    [
        (("Mixer",), {"weight": ("kernel", "in out")}, xw.ArgumentError),
        ((Mixer,), {"weight": ("kernel", "in out")}, xw.ArgumentError),
        ((MIXER,), {}, xw.ArgumentError),
        ((MIXER,), {"weight": "kernel"}, xw.ArgumentError),
        ((MIXER,), {"weight": ("kernel",)}, xw.ArgumentError),
        ((MIXER,), {"weight": ("", "in out")}, xw.ArgumentError),
        ((MIXER,), {"weight": ("kernel", 3)}, xw.ArgumentError),
        ((MIXER,), {"weight": ("kernel", "in in")}, xw.LayoutError),
        ((MIXER,), {"weight": ("kernel", "in out -> in")}, xw.LayoutError),
        ((MIXER,), {"weight": ("kernel", "(in out")}, xw.LayoutError),
        ((MIXER,), {"weight": ("kernel", "in out"), "bias": ("kernel", "out")}, xw.ArgumentError),
        ((MIXER,), {"weight": ("kernel", "in out"), "heads": 0}, xw.ArgumentError),
        ((MIXER,), {"weight": ("kernel", "in out"), "sizes": 3}, xw.ArgumentError),
        ((MIXER,), {"weight": ("kernel", "in qkv"), "gates": [1]}, xw.ArgumentError),
        ((MIXER,), {"weight": ("kernel", "in out"), "gates": {"wieght": ("a",)}}, xw.ArgumentError),
        ((MIXER, 3), {}, xw.ArgumentError),
    ],
)
def test_declarations_of_another_form_are_refused_and_nothing_is_registered(arguments, options, kind):
    with pytest.raises(kind):
        xw.register_layer(*arguments, **options)
    assert not layer_rows._registered
    assert known(Mixer())["weight"] == ("weight", None)


def test_a_class_whose_own_rows_have_another_form_is_named():
    wrong = type("Wrong", (Mixer,), {"__xweights_layers__": ["weight"]})
    with pytest.raises(xw.ArgumentError, match=r"Wrong\.__xweights_layers__"):
        xw.parameters(wrong())


def mixed():
    return nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.ModuleList([Mixer(), Mixer()])})


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if w.category is xw.UnknownRoleWarning]


def test_a_default_that_leaves_out_an_unknown_role_says_which_and_what_to_do():
    (text,) = warned(lambda: xw.prune(mixed(), fraction=0.5))
    assert "b/*/weight (2 arrays)" in text
    assert "where=xweights.role('*kernel', 'embeddings', 'weight')" in text
    assert f"xweights.register_layer({MIXER!r}, ...)" in text
    # Both lines work.
    assert len(xw.prune(mixed(), fraction=0.5, where=xw.role("*kernel", "embeddings", "weight"))) == 3
    xw.register_layer(MIXER, weight=("kernel", "in out"))
    assert not warned(lambda: xw.prune(mixed(), fraction=0.5))


@pytest.mark.parametrize(
    "call",
    [
        lambda m: xw.init(m, "glorot_uniform", seed=0),
        lambda m: xw.max_norm(m, 1.0, per="out"),
        lambda m: xw.spectral_norm(m, 1.0),
        lambda m: xw.penalty(m, l2=0.1),
    ],
    ids=["init", "max_norm", "spectral_norm", "penalty"],
)
def test_every_default_for_kernels_says_it(call):
    assert len(warned(lambda: call(mixed()))) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda m: xw.prune(m, fraction=0.5, where="*/kernel"),
        lambda m: xw.clip(m, -1, 1),
        lambda m: xw.stats(m),
    ],
    ids=["chosen", "trainable", "all"],
)
def test_what_was_chosen_by_the_user_or_takes_all_says_nothing(call):
    assert not warned(lambda: call(mixed()))


def test_frozen_arrays_integers_and_vectors_are_no_reason_to_warn():
    model = mixed()
    for mixer in model["b"]:
        mixer.weight.requires_grad_(False)
    assert not warned(lambda: xw.prune(model, fraction=0.5))
    assert not warned(lambda: xw.prune({"a/kernel": np.ones((2, 2)), "w": np.ones((2, 2), int)}, fraction=0.5))


def test_bare_names_in_a_mapping_and_a_file_count_too(tmp_path):
    arrays = {"a/kernel": np.ones((2, 2)), "0.weight": np.ones((2, 2)), "gamma": np.ones((2, 2))}
    (text,) = warned(lambda: xw.prune(arrays, fraction=0.5))
    assert "0.weight" in text.replace("*", "0")
    assert "gamma" not in text
    np.savez(tmp_path / "w.npz", **arrays)
    assert len(warned(lambda: xw.edit_file(tmp_path / "w.npz", xw.Prune(fraction=0.5), out=tmp_path / "x.npz"))) == 1


def test_python_shows_it_once_for_each_line_of_the_user():
    model = mixed()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            xw.max_norm(model, 1.0, per="out")
    assert [w.filename for w in caught if w.category is xw.UnknownRoleWarning] == [__file__]


def test_the_summary_names_unknown_roles():
    assert "unknown roles, left out where kernels are the default: weight" in xw.summary(mixed())
    assert "unknown roles" not in xw.summary(nn.Linear(2, 2))
