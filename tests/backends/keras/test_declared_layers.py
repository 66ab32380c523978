"""Keras layers that a user, a class or a package's table declares, and the warning for those that nobody did."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

keras = pytest.importorskip("keras")

import xweights as xw  # noqa: E402
from xweights.core import layer_rows  # noqa: E402
from xweights.core.layer_rows import is_known_role  # noqa: E402
from xweights.core.layout import read_names  # noqa: E402

pytestmark = pytest.mark.keras_backend


class Mixer(keras.layers.Layer):
    def __init__(self, inputs=3, outputs=5):
        super().__init__()
        self.table = self.add_weight(shape=(inputs, outputs), initializer="ones", name="mixing")
        self.shift = self.add_weight(shape=(outputs,), initializer="zeros")


class SubMixer(Mixer):
    pass


class Carrying(Mixer):
    __xweights_layers__: ClassVar = {"table": ("kernel", "in out"), "shift": ("bias", "out")}


class Heads(keras.layers.Layer):
    def __init__(self, heads):
        super().__init__()
        self.heads = heads
        self.packed = self.add_weight(shape=(3 * heads * 4, 6), initializer="ones", name="packed")


class WideDense(keras.layers.Dense):
    def build(self, shape):
        super().build(shape)
        self.table = self.add_weight(shape=(2, 3), initializer="zeros", name="table")


MIXER = f"{__name__}.Mixer"


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(layer_rows, "_registered", {})
    monkeypatch.setattr(layer_rows, "_roles", set())
    monkeypatch.setattr(layer_rows, "_known", {})
    layer_rows._forget()
    yield
    layer_rows._forget()


def known(layer):
    return {p.name: (p.role, p.axes) for p in xw.parameters(layer)}


def test_a_declared_layer_is_known_by_attribute_and_so_are_subclasses_and_a_model_that_was_walked_before():
    model = keras.Sequential([Mixer(), SubMixer()])
    model.build((None, 3))
    assert {axes for _, axes in known(model).values()} == {None}
    xw.register_layer(MIXER, table=("kernel", "in out"), shift=("bias", "out"))
    assert known(model) == {
        "mixer/0/kernel": ("kernel", ("in", "out")), "mixer/0/bias": ("bias", ("out",)),
        "sub_mixer/0/kernel": ("kernel", ("in", "out")), "sub_mixer/0/bias": ("bias", ("out",)),
    }  # fmt: skip
    assert list(xw.prune(model, fraction=0.4)) == ["mixer/0/kernel", "sub_mixer/0/kernel"]


def test_a_row_may_also_use_the_name_of_the_variable():
    xw.register_layer(MIXER, mixing=("embeddings", "vocab dim"))
    assert known(Mixer())["embeddings"] == ("embeddings", ("vocab", "dim"))


def test_a_stored_order_that_is_not_the_neutral_one_is_turned():
    xw.register_layer(MIXER, table=("kernel", "out in -> in out"))
    layer = Mixer(3, 2)
    xw.set_params(layer, {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, strict=False)
    assert layer.table.numpy().tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_sizes_are_read_from_attributes_of_each_layer_and_gates_count_the_parts():
    xw.register_layer(
        f"{__name__}.Heads",
        packed=("qkv/kernel", "(qkv head key) in -> in qkv head key"),
        heads="heads",
        gates=("query", "key", "value"),
    )
    for heads in (2, 3):
        (p,) = xw.parameters(Heads(heads))
        assert (p.axes, p.shape, p.gates) == (("in", "qkv", "head", "key"), (6, 3, heads, 4), ("query", "key", "value"))


def test_a_class_carries_its_own_rows_and_a_registration_counts_before_them():
    assert known(Carrying()) == {"kernel": ("kernel", ("in", "out")), "bias": ("bias", ("out",))}
    xw.register_layer(f"{__name__}.Carrying", table=("embeddings", "vocab dim"))
    assert known(Carrying())["embeddings"] == ("embeddings", ("vocab", "dim"))


def test_a_row_for_one_array_leaves_the_others_what_keras_says():
    layer = WideDense(3)
    layer.build((None, 2))
    xw.register_layer(f"{__name__}.WideDense", table=("table", "vocab dim", "embeddings"))
    assert known(layer) == {
        "kernel": ("kernel", ("in", "out")), "bias": ("bias", ("out",)), "table": ("embeddings", ("vocab", "dim")),
    }  # fmt: skip


def test_a_row_counts_before_what_keras_says_of_its_own_layer():
    layer = WideDense(3)
    layer.build((None, 2))
    xw.register_layer(f"{__name__}.WideDense", kernel=("embeddings", "vocab dim"))
    assert list(known(layer))[:2] == ["embeddings", "bias"]


def test_rows_that_do_not_fit_are_named_all_at_once_with_row_and_shape_and_nothing_is_changed():
    layer = Mixer()
    xw.register_layer(MIXER, table=("kernel", "in out h"), shift=("bias", "(head dim)"), heads="heads")
    with pytest.raises(xw.LayoutError) as raised:
        xw.scale(layer, 2.0)
    text = str(raised.value)
    assert "has the shape (3, 5)\n    row:" in text
    assert "table=('kernel', 'in out h')" in text
    assert "no number in: head='heads'" in text
    assert "has the shape (5,)" in text
    assert layer.table.numpy().min() == 1.0


def test_a_default_that_leaves_out_an_unknown_role_says_which_layer_to_teach():
    model = keras.Sequential([keras.layers.Dense(3), Mixer(3, 3), Mixer(3, 3)])
    model.build((None, 3))

    def texts(**options):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            xw.prune(model, fraction=0.5, **options)
        return [str(w.message) for w in caught if w.category is xw.UnknownRoleWarning]

    (text,) = texts()
    assert "mixer/*/mixing (2 arrays)" in text
    assert f"xweights.register_layer({MIXER!r}, ...)" in text
    assert "mixing" in xw.summary(model)
    assert not texts(where="*/kernel")
    xw.register_layer(MIXER, table=("kernel", "in out"))
    assert not texts()


# Layers as packages have them: a class is known by its module and name, and nothing of the package is imported.


def layer_of(module, name, **shapes):
    layer = type(name, (keras.layers.Layer,), {"__module__": module})()
    for key, shape in shapes.items():
        setattr(layer, key, layer.add_weight(shape=shape, name=key))
    return layer


HUB = "keras_hub.src.models.some.layers"
KNOWN = {
    ("keras_hub.src.layers.modeling.position_embedding", "PositionEmbedding", "embeddings", (7, 4)): (
        "embeddings", "position_embeddings", ("position", "dim"),
    ),
    (HUB, "LlamaLayerNorm", "scale", (4,)): ("scale", "scale", ("channel",)),
    (HUB, "T5LayerNorm", "weight", (4,)): ("scale", "scale", ("channel",)),
    (HUB, "MixtralMoeExperts", "expert_feedforward_output_dense", (3, 6, 4)): (
        "expert_feedforward_output_dense/kernel", "kernel", ("expert", "in", "out"),
    ),
    (HUB, "ViTPatchingAndEmbedding", "class_token", (1, 1, 4)): ("class_token", "token", ("batch", "token", "dim")),
    (HUB, "DINOV2LayerScale", "lambda1", (4,)): ("lambda1", "scale", ("channel",)),
    (HUB, "T5MultiHeadAttention", "embeddings", (8, 2)): ("embeddings", "relative_position_bias", ("position", "head")),
    (HUB, "RelativeEmbedding", "rel_embedding", (8, 4)): ("rel_embedding", "position_embeddings", ("position", "dim")),
    ("keras_nlp.src.layers", "MaskedLMHead", "output_kernel", (4, 9)): ("output/kernel", "kernel", ("in", "out")),
    ("keras_cv.src.layers.vit_layers", "PatchingAndEmbedding", "class_token", (1, 1, 4)): (
        "class_token", "token", ("batch", "token", "dim"),
    ),
    # A shape that the row doesn't fit: unknown, never guessed.
    (HUB, "LlamaLayerNorm", "scale", (4, 4)): ("scale", "scale", None),
    # A class of the user's own that is called like the package's.
    ("my_models.layers", "LlamaLayerNorm", "weight", (4,)): ("weight", "weight", None),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "expected"), KNOWN.items(), ids=lambda value: value[1])
def test_layers_of_packages_are_known_by_module_and_class(layer, expected):
    module, name, array, shape = layer
    (p,) = xw.parameters(layer_of(module, name, **{array: shape}))
    assert (p.name, p.role, p.axes) == expected


def test_an_output_of_experts_is_a_number_of_one_expert():
    (p,) = xw.parameters(layer_of(HUB, "GptOssExperts", gate_up_proj=(3, 4, 6)))
    assert (p.inputs, p.outputs) == (("in",), ("expert", "out"))


def test_layer_scales_of_keras_own_applications_are_known():
    from keras.src.applications.convnext import LayerScale

    layer = LayerScale(1e-6, 4)
    layer.build(None)
    assert known(layer) == {"gamma": ("scale", ("channel",))}


@pytest.mark.parametrize("package", ["applications", "keras_cv", "keras_hub"])
def test_every_pattern_of_a_table_can_be_read_and_every_role_is_known(package):
    table = importlib.import_module(f"xweights_keras.tables.{package}")
    rows = [row for rows in table.LAYERS.values() for row in rows.values()]
    for row in rows:
        for pattern in row.axes.split("|"):
            read_names(pattern.strip())
    roles = {row.role or row.name.rpartition("/")[2] for row in rows}
    assert [role for role in sorted(roles) if not is_known_role(role)] == []


@pytest.mark.skipif(importlib.util.find_spec("keras_hub") is None, reason="keras_hub is not installed: nox -s layers")
def test_every_array_of_a_sample_of_keras_hub_has_a_role_and_axes():
    code = (
        "import hub_models, measure_keras_layers as m;"
        "names = 'T5Backbone MixtralBackbone ViTBackbone DebertaV3Backbone';"
        "f = m.measure('keras_hub', {n: hub_models.MODELS[n] for n in names.split()});"
        "assert not f['failed'] and not f['unknown'] and f['arrays'] > 100, f"
    )
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
