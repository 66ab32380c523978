"""The tables of other packages' layers, against the packages themselves; docs/layers.md has the whole measurement."""

from __future__ import annotations

import importlib.util
import re
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import measure_layers  # noqa: E402
from torch import nn  # noqa: E402

import xweights as xw  # noqa: E402

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


def by_native_name(model):
    return {p.native_name: p for p in xw.parameters(model)}


@needs_transformers
def test_a_gpt2_has_kernels_and_a_default_prunes_them():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=16, bos_token_id=0, eos_token_id=0)
    )
    found = by_native_name(model)
    attention = found["transformer.h.0.attn.c_attn.weight"]
    assert (attention.role, attention.axes, attention.shape) == ("kernel", ("in", "out"), (8, 24))
    layer, x = model.transformer.h[0].attn.c_attn, torch.randn(3, 8)
    np.testing.assert_allclose(layer(x).detach().numpy(), x.numpy() @ attention.numpy(), rtol=1e-5, atol=1e-6)
    masks = xw.prune(model, fraction=0.5)
    assert {name.split("/")[-2] for name in masks} == {"wte", "wpe", "c_attn", "c_proj", "c_fc"}


@needs_transformers
@pytest.mark.parametrize(
    ("module", "name", "turned"),
    [("mixtral", "MixtralExperts", True), ("qwen3_moe", "Qwen3MoeExperts", True), ("gpt_oss", "GptOssExperts", False)],
)
def test_experts_in_one_array_have_their_inputs_before_their_outputs(module, name, turned):
    import transformers

    base = name.removesuffix("Experts")
    config = getattr(transformers, f"{base}Config")(
        hidden_size=6, intermediate_size=10, moe_intermediate_size=10, num_local_experts=3, num_experts=3
    )
    modeling = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    with torch.device("meta"):
        experts = getattr(modeling, name)(config)
    found = by_native_name(experts)
    up, down = found["gate_up_proj"], found["down_proj"]
    assert (up.name, up.role, up.axes, up.shape) == (
        "gate_up_proj/kernel", "kernel", ("expert", "in", "out"), (3, 6, 20),
    )  # fmt: skip
    assert (down.shape, down.inputs, down.outputs) == ((3, 10, 6), ("in",), ("expert", "out"))
    assert (up.layout.stored == up.shape) is not turned


# Of each kind of array in the table one model, with a small configuration.
SAMPLE = (
    "AlbertForMaskedLM BeitForImageClassification ConvNextV2ForImageClassification Gemma2ForCausalLM GptOssForCausalLM "
    "JambaForCausalLM LevitForImageClassification LlamaForCausalLM MambaForCausalLM RwkvForCausalLM SwinModel "
    "T5ForConditionalGeneration ViTForImageClassification Wav2Vec2ForPreTraining XLNetLMHeadModel"
)


@needs_transformers
def test_every_array_of_a_sample_of_transformers_has_a_role_and_axes():
    import transformers

    builders = {
        name: lambda name=name: measure_layers.build_small(getattr(transformers, name)) for name in SAMPLE.split()
    }
    found = measure_layers.measure("transformers", builders)
    assert not found.failed
    assert not found.unknown
    assert found.arrays > 500


@needs_transformers
def test_tokens_and_positions_have_standard_words_and_keep_their_names():
    from transformers import ViTConfig, ViTModel

    with torch.device("meta"):
        model = ViTModel(ViTConfig(num_hidden_layers=1))
    found = {p.name: (p.role, p.axes) for p in xw.parameters(model)}
    assert found["embeddings/cls_token"] == ("token", ("batch", "token", "dim"))
    assert found["embeddings/position_embeddings"] == ("position_embeddings", ("batch", "position", "dim"))


@needs_transformers
def test_arrays_of_a_users_own_class_stay_unknown_though_its_name_ends_like_a_packages():
    class MyRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    assert [(p.role, p.axes) for p in xw.parameters(MyRMSNorm())] == [("weight", None)]


@needs_transformers
def test_a_subclass_of_a_packages_layer_inherits_where_the_shape_fits():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    class Mine(LlamaRMSNorm):
        pass

    class Square(LlamaRMSNorm):
        def __init__(self):
            super().__init__(3)
            self.weight = nn.Parameter(torch.ones(3, 3))

    assert [(p.role, p.axes) for p in xw.parameters(Mine(3))] == [("scale", ("channel",))]
    assert [(p.role, p.axes) for p in xw.parameters(Square())] == [("scale", None)]


@pytest.mark.parametrize("package", ["transformers", "timm", "torchvision", "diffusers", "peft"])
def test_every_pattern_of_a_table_can_be_read(package):
    table = importlib.import_module(f"xweights_torch.tables.{package}")
    rows = [(row.name, row.axes) for rows in table.LAYERS.values() for row in rows.values()]
    from xweights.core.layer_rows import is_known_role
    from xweights.core.layout import read_names

    for _, axes in [*rows, *table.FREE.values()]:
        for pattern in axes.split("|"):
            read_names(pattern.strip())
    roles = {row.role or row.name.rpartition("/")[2] for rows in table.LAYERS.values() for row in rows.values()}
    roles |= {role for role, _ in table.FREE.values()}
    assert [role for role in sorted(roles) if not is_known_role(role)] == []


@pytest.mark.thorough
@pytest.mark.parametrize("package", ["transformers", "timm", "torchvision", "diffusers"])
def test_every_row_of_a_table_is_of_a_class_and_an_attribute_that_the_package_has(package):
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    text = "\n".join(path.read_text(encoding="utf-8") for path in Path(spec.origin).parent.rglob("*.py"))
    classes = set(re.findall(r"^class (\w+)", text, re.MULTILINE))
    words = set(re.findall(r"\w+", text))
    table = importlib.import_module(f"xweights_torch.tables.{package}")
    globs = [glob for pattern in table.LAYERS for glob in pattern.split()]
    assert [glob for glob in globs if not any(fnmatchcase(name, glob) for name in classes)] == []
    attributes = {attribute for rows in table.LAYERS.values() for attribute in rows} | set(table.FREE)
    stems = {re.sub(r"_?\d+$", "", attribute) for attribute in attributes}
    assert [stem for stem in sorted(stems) if not any(word.startswith(stem) for word in words)] == []
