"""What a model does with its parameters outside of known layers is seen, and described so that it can be recomputed."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from observed_modules import (  # noqa: E402
    Checker,
    Experts,
    FrozenNorm,
    HandImageNorm,
    HandNorm,
    Images,
    Matrices,
    NormAct,
    SameConv,
    Tokens,
    fill,
    porting,
)
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import xweights as xw  # noqa: E402
from xweights.errors import PortError  # noqa: E402

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 9, 9)).astype(np.float32)
IDS = np.random.default_rng(0).integers(0, 11, (2, 6))
ROWS = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def observe(model, sample):
    return porting.observe(model, porting.records(model), sample)


def check(model, sample):
    """Return the records of a model, after every operation was recomputed and every parameter was found in a record."""
    records = observe(model, sample)
    checker = Checker()
    plain = Checker()
    expected = porting.run(model, porting.records(model), sample, plain)
    got = porting.run(model, records, sample, checker)
    assert got.keys() == expected.keys()
    for name in got:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-4 * np.abs(expected[name]).max())
    assert not checker.open
    covered = {}
    for record in records:
        for role, one in record.parameters.items():
            places = np.arange(one.size).reshape(one.shape)
            view = record.views.get(role, lambda array: array)
            covered.setdefault(one.identity(), set()).update(view(places).reshape(-1).tolist())
    for one in xw.parameters(model):
        if one.floating:
            assert len(covered[one.identity()]) == one.size, one.name
    assert len({record.path for record in records}) == len(records)
    return {record.path: record for record in records if record.kind != "plain"}


def shapes(record):
    return {role: view(np.empty(record.parameters[role].shape)).shape for role, view in record.views.items()}


def test_layers_of_images_with_a_forward_of_their_own_are_the_layers_that_they_compute():
    found = check(fill(Images()), IMAGES)
    kinds = {path: record.kind for path, record in found.items()}
    assert kinds == {
        "stem": "conv", "act": "batch_norm", "norm": "layer_norm", "frozen": "batch_norm", "mix": "conv",
        "gamma": "multiply", "head": "dense",
    }  # fmt: skip
    assert shapes(found["stem"]) == {"kernel": (3, 3, 3, 8), "bias": (8,)}
    assert found["stem"].attributes == {"groups": 1, "strides": (2, 2), "dilation": (1, 1), "padding": (0, 0)}
    assert found["mix"].attributes["computed"]
    assert found["frozen"].attributes == {"eps": 1e-3}
    assert shapes(found["gamma"]) == {"gamma": (8,)}


def test_tokens_tables_and_norms_by_hand_are_seen_with_the_rows_that_are_used():
    found = check(fill(Tokens()), IDS)
    kinds = {path: record.kind for path, record in found.items()}
    assert kinds == {
        "table": "embedding", "cls_token": "rows", "pos_embed": "rows", "token_type": "rows", "bias_table": "embedding",
        "positions": "rows", "first": "rms_norm", "second": "rms_norm", "third": "layer_norm",
        "attention/in_proj_weight": "dense", "attention/out_proj": "dense", "table/weight": "dense",
    }  # fmt: skip
    assert found["pos_embed"].attributes == {"first": 2, "count": 7}
    assert found["token_type"].attributes == {"first": 0, "count": 1}
    assert found["positions"].attributes["constant"]
    assert found["second"].attributes == {"offset": 1, "eps": 1e-3}
    assert shapes(found["third"]) == {"gamma": (8,), "beta": (8,)}
    assert shapes(found["attention/in_proj_weight"]) == {"kernel": (8, 24), "bias": (24,)}


def test_products_with_parameters_are_dense_layers_and_stacks_are_one_each():
    found = check(fill(Matrices()), ROWS)
    assert {path: record.kind for path, record in found.items()} == {
        "w": "dense", "t": "dense", "heads": "dense", "experts/0": "dense", "experts/1": "dense", "experts/2": "dense",
        "temperature": "rows", "idle": "rows",
    }  # fmt: skip
    assert shapes(found["w"]) == {"kernel": (6, 5), "bias": (5,)}
    assert shapes(found["t"]) == {"kernel": (5, 4)}
    assert shapes(found["heads"]) == {"kernel": (2, 8)}
    assert shapes(found["experts/1"]) == {"kernel": (8, 4), "bias": (4,)}
    assert shapes(found["temperature"]) == {"rows": (1, 1)}


def test_an_expert_that_the_sample_does_not_reach_is_a_record_that_is_never_entered():
    model, sample = fill(Experts()), ROWS[:, :5]
    found = check(model, sample)
    assert sorted(found) == ["up/0", "up/1", "up/2", "up/3"]
    checker = Checker()
    porting.run(model, list(found.values()), sample, checker)
    assert [record.path for record in checker.entered] == ["up/2", "up/0"]


def test_weights_that_are_written_when_an_operation_is_entered_are_those_that_it_computes_with():
    source, target = fill(Tokens(), 1), fill(Tokens(), 2)
    records = observe(target, IDS)
    values = {one.name: one for one in xw.parameters(source)}

    class Writer:
        def enter(self, record, inputs):
            for one in record.parameters.values():
                one.write(values[one.name].read())

        def leave(self, record, outputs):
            return None

    got = porting.run(target, records, IDS, Writer())["output"]
    expected = source(torch.from_numpy(IDS)).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_observing_changes_nothing():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm = Images(), nn.BatchNorm1d(4)
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x):
            self.calls += 1
            return self.norm(self.inner(x)) + torch.rand(()) * 0

    model = fill(Counting()).train()
    before, state, modes = (
        copy.deepcopy(model.state_dict()),
        torch.get_rng_state(),
        [m.training for m in model.modules()],
    )
    observe(model, IMAGES)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_eps_of_an_operation_is_set_on_the_module_that_has_it():
    model = fill(nn.Sequential(HandNorm(6), nn.Linear(6, 6)))
    norm = observe(model, ROWS)[0]
    porting.set_attribute(norm, "eps", 0.5)
    assert model[0].variance_epsilon == 0.5
    model = fill(nn.Sequential(nn.Conv2d(3, 8, 3), NormAct(8)))
    porting.set_attribute(observe(model, IMAGES)[1], "eps", 0.25)
    assert model[1].eps == 0.25
    with pytest.raises(PortError, match="can't be changed"):
        porting.set_attribute(observe(model, IMAGES)[1], "activation", "relu")


def test_a_table_that_is_resampled_is_refused():
    class Resampled(nn.Module):
        def __init__(self):
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, 3, 4, 4))

        def forward(self, x):
            return x + functional.interpolate(self.pos_embed, x.shape[2:], mode="bilinear")

    assert "pos_embed is resampled" in observe(fill(Resampled()), IMAGES)[0].refused
    # To its own size it is the table itself.
    assert observe(fill(Resampled()), IMAGES[:, :, :4, :4])[0].refused is None


def test_a_norm_with_a_running_mean_stays_apart_from_the_scale_of_its_output():
    found = check(fill(nn.Sequential(FrozenNorm(3), nn.Conv2d(3, 2, 3))), IMAGES)
    assert {path: record.kind for path, record in found.items()} == {"0": "batch_norm", "1": "conv"}
    assert sorted(found["0"].parameters) == ["beta", "gamma", "moving_mean", "moving_variance"]


def test_a_norm_by_hand_over_the_channels_of_images_is_a_layer_norm():
    found = check(fill(HandImageNorm(3)), IMAGES)
    assert {path: record.kind for path, record in found.items()} == {"weight": "layer_norm"}
    assert found["weight"].attributes == {"offset": 0, "eps": 1e-3}


def test_layers_take_inputs_without_a_batch():
    found = check(fill(nn.Sequential(nn.Linear(6, 5), nn.PReLU(), HandNorm(5))), ROWS[0])
    assert [record.kind for record in found.values()] == ["dense", "prelu", "rms_norm"]
    found = check(fill(nn.Sequential(SameConv(3, 8, 3, 2), nn.Flatten(0))), IMAGES[0])
    assert [record.kind for record in found.values()] == ["conv"]


def test_a_token_that_passes_through_layers_without_weights_is_one_record():
    class Passed(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.queries = nn.Parameter(torch.zeros(1, 6)), nn.Parameter(torch.zeros(3, 6))
            self.drop, self.same, self.inner = nn.Dropout(0.5), nn.Identity(), nn.Linear(6, 2)

        def forward(self, x):
            x = torch.cat([self.drop(self.same(self.token)), x])
            return self.inner(x).sum() + self.inner(self.queries)

    found = check(fill(Passed()), ROWS)
    assert {path: record.kind for path, record in found.items()} == {
        "token": "rows",
        "inner": "dense",
        "queries": "rows",
    }


def test_a_bias_is_part_of_a_product_only_where_it_always_follows():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.zeros(6, 6)), nn.Parameter(torch.zeros(6))

        def forward(self, x):
            y = x @ self.weight
            return (y + self.bias) * y

    found = check(fill(Sometimes()), ROWS)
    assert {path: record.kind for path, record in found.items()} == {"weight": "dense", "bias": "rows"}


def test_a_kernel_whose_bias_is_joined_from_several_parameters_is_several_layers():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(6, 12, bias=False)
            self.q_bias, self.v_bias = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
            self.register_buffer("k_bias", torch.zeros(4), persistent=False)

        def forward(self, x):
            return functional.linear(x, self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias)))

    found = check(fill(Fused()), ROWS)
    assert {path: shapes(record) for path, record in found.items()} == {
        "qkv": {"kernel": (6, 4), "bias": (4,)},
        "qkv/1": {"kernel": (6, 4)},
        "qkv/2": {"kernel": (6, 4), "bias": (4,)},
    }


def test_a_copy_of_a_parameter_that_is_changed_in_place_is_computed_from_the_present_weights():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x):
            bias = self.inner.bias.clone()
            bias[2:4].zero_()
            return functional.linear(x, self.inner.weight, bias)

    model, other = fill(Masked()), fill(Masked(), 1)
    records = observe(model, ROWS)
    assert {record.kind for record in records} == {"dense", "rows"}

    class Writer:
        def enter(self, record, inputs):
            with torch.no_grad():
                model.inner.weight.copy_(other.inner.weight)
                model.inner.bias.copy_(other.inner.bias)

        def leave(self, record, outputs):
            return None

    got = porting.run(model, records, ROWS, Writer())["output"]
    np.testing.assert_allclose(got, other(torch.from_numpy(ROWS)).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_known_layer_stays_a_layer_unless_its_forward_is_replaced():
    model = fill(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)))
    assert [record.layer for record in observe(model, ROWS)] == [model[0], model[1]]
    model[1].forward = lambda x: functional.linear(x, model[1].weight) + model[1].bias
    found = check(model, ROWS)
    assert found["0"].layer is model[0]
    assert found["1"].layer is not model[1]
    assert shapes(found["1"]) == {"kernel": (5, 2), "bias": (2,)}


def test_samples_are_contiguous_and_dicts_keep_their_names():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x, scale=1.0):
            return {"y": self.inner(x.view(-1, 3)) * scale}

    moved = np.moveaxis(IMAGES, 1, -1)
    model = fill(Named())
    first = porting.run(model, porting.records(model), {"x": moved, "scale": np.float32(2)}, Checker())["y"]
    second = porting.run(model, porting.records(model), torch.from_numpy(IMAGES).movedim(1, -1), Checker())["y"]
    np.testing.assert_allclose(first, 2 * second, rtol=1e-6)

    class OneDict(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 2)

        def forward(self, batch):
            return self.inner(batch["rows"])

    model = fill(OneDict())
    assert porting.run(model, porting.records(model), {"rows": ROWS}, Checker())["output"].shape == (4, 2)


def test_bfloat16_parameters_are_viewed_bit_for_bit():
    model = fill(nn.Sequential(HandNorm(6), nn.Linear(6, 2))).to(torch.bfloat16)
    model[1].forward = lambda x: x @ model[1].weight.T
    records = observe(model, ROWS)
    kernel = next(record for record in records if "kernel" in record.views)
    view = kernel.views["kernel"](kernel.parameters["kernel"].read())
    assert view.dtype.name == "bfloat16"
    assert view.shape == (6, 2)
    assert view.T.tobytes() == kernel.parameters["kernel"].read().tobytes()


CONFIGS = {
    "GPT2Model": {"n_embd": 8, "n_layer": 1, "n_head": 2},
    "LlamaModel": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12},
    "GemmaModel": {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "intermediate_size": 12,
    },
    "MixtralModel": {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 12, "num_local_experts": 3,
    },
    "OPTModel": {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 12, "word_embed_proj_dim": 8,
    },
    "FalconModel": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_the_layers_of_transformers_are_what_they_compute(name):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = getattr(transformers, name.replace("Model", "Config"))(vocab_size=20, **CONFIGS[name])
    found = check(fill(getattr(transformers, name)(config)), {"input_ids": IDS})
    assert {record.kind for record in found.values()} <= {"dense", "embedding", "layer_norm", "rms_norm"}
