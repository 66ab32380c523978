"""`merge_lora` on files and mappings, without any framework."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from lora_adapters import expected, make_base, make_factors, write_adapter

import xweights as xw
from xweights.merging.lora.product import multiply_factors

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def check(merged, base, factors, scaling=1.5):
    for name, value in expected(base, factors, scaling).items():
        np.testing.assert_allclose(merged[name], value, **CLOSE)


def test_a_mapping_is_merged_in_place(tmp_path):
    base, merged = make_base(), make_base()
    report = xw.merge_lora(merged, write_adapter(tmp_path / "adapter"))
    check(merged, base, make_factors())
    assert report.merged == {"emb.weight": 4, "fc.weight": 4, "conv.weight": 4}
    assert "3 weights merged from 'adapter', rank 4" in str(report)


@pytest.mark.parametrize("ending", ["safetensors", "npz", "safetensors.index.json"])
def test_a_file_goes_in_and_a_file_comes_out(tmp_path, ending):
    base = make_base()
    xw.save(base, tmp_path / f"base.{ending}")
    adapter = write_adapter(tmp_path / "adapter")
    xw.merge_lora(tmp_path / f"base.{ending}", adapter, out=tmp_path / "merged.safetensors")
    in_memory = make_base()
    xw.merge_lora(in_memory, adapter)
    assert xw.equal(tmp_path / "merged.safetensors", in_memory)
    assert xw.equal(tmp_path / f"base.{ending}", base)


def test_a_file_may_be_replaced_by_its_merged_copy_and_keeps_the_rest(tmp_path):
    xw.save(make_base(), tmp_path / "base.safetensors", metadata={"note": "kept"})
    xw.merge_lora(tmp_path / "base.safetensors", write_adapter(tmp_path / "a"), out=tmp_path / "base.safetensors")
    assert xw.load(tmp_path / "base.safetensors").metadata["note"] == "kept"
    check(xw.load(tmp_path / "base.safetensors"), make_base(), make_factors())


def test_the_file_alone_is_enough_if_its_configuration_lies_beside_it(tmp_path):
    folder, merged = write_adapter(tmp_path / "adapter"), make_base()
    xw.merge_lora(merged, folder / "adapter_model.safetensors")
    check(merged, make_base(), make_factors())


def test_scaling_follows_the_configuration(tmp_path):
    factors = {k: v for k, v in make_factors().items() if ".fc." in k}
    for config, scaling in [
        ({"lora_alpha": 4}, 1.0),
        ({"use_rslora": True}, 6 / math.sqrt(4)),
        ({"alpha_pattern": {"fc": 2}}, 0.5),
        ({"r": 8, "rank_pattern": {r"^f\w": 4, "fc": 4}}, None),
        ({"r": 8, "rank_pattern": {r"(fc|head)": 4}}, 1.5),
    ]:
        merged, adapter = make_base(), write_adapter(tmp_path / "adapter", factors, **config)
        if scaling is None:
            with pytest.raises(xw.RefusedFileError, match="is more than a name"):
                xw.merge_lora(merged, adapter)
            continue
        xw.merge_lora(merged, adapter)
        delta = factors["base_model.model.fc.lora_B.weight"] @ factors["base_model.model.fc.lora_A.weight"]
        np.testing.assert_allclose(merged["fc.weight"], make_base()["fc.weight"] + np.float32(scaling) * delta, **CLOSE)


def test_the_product_adds_the_ranks_in_order_with_one_rounding_each():
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=shape).astype(np.float32) for shape in ((40, 5), (5, 30)))
    naive = np.zeros((40, 30), np.float32)
    for rank in range(5):
        naive = (naive + left[:, rank, None].astype(np.float64) * right[rank]).astype(np.float32)
    got = multiply_factors(left, right, 0.3, np.zeros(1))
    np.testing.assert_array_equal(got, naive * np.float32(0.3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_factors_are_multiplied_in_float32_and_rounded_once(dtype):
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=shape).astype(kind) for shape in ((20, 4), (4, 16)))
    wide = multiply_factors(left.astype(np.float32), right.astype(np.float32), 0.5, np.zeros(1))
    np.testing.assert_array_equal(multiply_factors(left, right, 0.5, np.zeros(1)), wide.astype(kind))


def test_a_transposed_base_is_known_by_its_shape_and_a_square_one_by_the_configuration(tmp_path):
    factors = {k: v for k, v in make_factors().items() if ".fc." in k}
    turned = {"fc.weight": make_base()["fc.weight"].T.copy()}
    xw.merge_lora(turned, write_adapter(tmp_path / "a", factors))
    straight = {"fc.weight": make_base()["fc.weight"]}
    xw.merge_lora(straight, tmp_path / "a")
    np.testing.assert_array_equal(turned["fc.weight"].T, straight["fc.weight"])
    square = {name: value[:16] if "lora_B" in name else value for name, value in factors.items()}
    turned, straight = ({"fc.weight": np.zeros((16, 16), np.float32)} for _ in range(2))
    xw.merge_lora(straight, write_adapter(tmp_path / "b", square))
    xw.merge_lora(turned, write_adapter(tmp_path / "c", square, fan_in_fan_out=True))
    np.testing.assert_array_equal(turned["fc.weight"].T, straight["fc.weight"])
    assert not np.array_equal(turned["fc.weight"], straight["fc.weight"])


def test_arrays_of_their_own_take_the_place_of_the_bases(tmp_path):
    bias = np.arange(24, dtype=np.float32)
    merged = make_base()
    report = xw.merge_lora(merged, write_adapter(tmp_path, make_factors() | {"base_model.model.fc.bias": bias}))
    np.testing.assert_array_equal(merged["fc.bias"], bias)
    assert report.replaced == ("fc.bias",)


def test_factors_add_to_the_array_that_takes_the_place_of_the_bases(tmp_path):
    """PEFT saves an embedding called embed_tokens with its factors, and trained biases with what is added to them."""
    table, bias = np.ones((30, 16), np.float32), np.arange(24, dtype=np.float32)
    more = {"emb.base_layer.weight": table, "fc.bias": bias, "fc.lora_B.bias": np.ones(24, np.float32)}
    factors = make_factors()
    merged = make_base()
    arrays = factors | {f"base_model.model.{name}": array for name, array in more.items()}
    report = xw.merge_lora(merged, write_adapter(tmp_path, arrays))
    base = make_base() | {"emb.weight": table, "fc.bias": bias + 1.5}
    for name, wanted in expected(base, factors).items():
        np.testing.assert_allclose(merged[name], wanted, rtol=1e-5, atol=1e-5)
    assert set(report.replaced) == {"emb.weight", "fc.bias"}
    assert set(report.merged) == {"emb.weight", "fc.weight", "fc.bias", "conv.weight"}


def test_prefixes_of_wrappers_are_seen_through_and_names_map_the_rest(tmp_path):
    adapter, plain = write_adapter(tmp_path), make_base()
    xw.merge_lora(plain, adapter)
    for prefix in ("module.", "base_model.model.", "encoder."):
        wrapped = {f"{prefix}{name}": value for name, value in make_base().items()}
        xw.merge_lora(wrapped, adapter)
        assert xw.equal({name.removeprefix(prefix): value for name, value in wrapped.items()}, plain)
    other = {name.replace("fc", "dense"): value for name, value in make_base().items()}
    with pytest.raises(xw.SelectionError, match=r"is of another base: the target has no 'fc\.weight'"):
        xw.merge_lora(other, adapter)
    xw.merge_lora(other, adapter, names={"dense.*": "fc.*"})
    np.testing.assert_array_equal(other["dense.weight"], plain["fc.weight"])


def test_where_leaves_out_what_the_report_lists(tmp_path):
    merged = make_base()
    report = xw.merge_lora(merged, write_adapter(tmp_path), where="fc*")
    assert list(report.merged) == ["fc.weight"]
    assert set(report.left_out) == {"emb.weight", "conv.weight"}
    np.testing.assert_array_equal(merged["emb.weight"], make_base()["emb.weight"])


def test_factors_by_keras_names_count_once_or_alpha_by_rank():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 3, 16, 2)), rng.normal(size=(2, 20))
    factors = {"conv/lora_kernel_a": a, "conv/lora_kernel_b": b}
    for alpha, scaling in ((None, 1.0), (5, 2.5)):
        model = {"conv/kernel": np.zeros((3, 3, 16, 20))}
        xw.merge_lora(model, factors, alpha=alpha)
        np.testing.assert_allclose(model["conv/kernel"], scaling * (a @ b), rtol=1e-12)


def test_dora_scales_each_row_to_its_magnitude(tmp_path):
    factors = {k: v for k, v in make_factors().items() if ".fc." in k}
    magnitude = np.linspace(1, 2, 24, dtype=np.float32)
    merged = make_base()
    arrays = factors | {"base_model.model.fc.lora_magnitude_vector": magnitude}
    xw.merge_lora(merged, write_adapter(tmp_path, arrays, use_dora=True))
    np.testing.assert_allclose(np.linalg.norm(merged["fc.weight"], axis=1), magnitude, rtol=1e-6)


def drop(*names):
    return {k: v for k, v in make_factors().items() if not k.endswith(names)}


def change(name, value):
    factors = make_factors()
    key = f"base_model.model.{name}"
    return factors | {key: value(factors[key])}


def with_nan(array):
    array = array.copy()
    array.flat[3] = np.nan
    return array


def stranger(name):
    return make_factors() | {f"base_model.model.fc.{name}": np.ones((4, 4), np.float32)}


BAD = {
    "a missing factor": (drop("fc.lora_B.weight"), {}, xw.SelectionError, "'fc' has lora_A and no lora_B"),
    "another rank": (None, {"r": 8}, xw.ShapeError, "another rank than the configuration states"),
    "ranks that differ": (
        change("fc.lora_A.weight", lambda a: a[:3]),
        {},
        xw.ShapeError,
        r"the factors of 'fc' don't fit together",
    ),
    "another width": (change("fc.lora_A.weight", lambda a: a[:, :9]), {}, xw.ShapeError, "make another shape"),
    "a NaN": (change("conv.lora_A.weight", with_nan), {}, xw.NonfiniteError, "1 of 576 entries aren't finite"),
    "integers": (change("fc.lora_A.weight", lambda a: a.astype(np.int8)), {}, xw.RefusedFileError, "it is int8"),
    "no factors": ({"fc.bias": np.ones(24, np.float32)}, {}, xw.SelectionError, "it has no factors"),
    "a magnitude without use_dora": (stranger("lora_magnitude_vector"), {}, xw.SelectionError, "use_dora is False"),
    "no magnitude": (None, {"use_dora": True}, xw.SelectionError, "has no magnitude"),
    "(IA)3": (None, {"peft_type": "IA3"}, xw.RefusedFileError, "of the kind 'IA3'"),
    "LoHa": (None, {"peft_type": "LOHA"}, xw.RefusedFileError, "of the kind 'LOHA'"),
    "AdaLoRA by its keys": (stranger("lora_E"), {}, xw.RefusedFileError, "is of AdaLoRA"),
    "kohya's names": (stranger("lora_up.weight"), {}, xw.RefusedFileError, "kohya"),
    "two adapters": (
        make_factors() | {"base_model.model.fc.lora_A.x.weight": 1.0 * np.ones((4, 16)),
                          "base_model.model.emb.lora_A.y.weight": np.ones((4, 16))},
        {},
        xw.SelectionError,
        "it has 2 adapters: 'x', 'y'",
    ),
    "aLoRA": (None, {"alora_invocation_tokens": [1]}, xw.RefusedFileError, "activated LoRA"),
    "a setting of the future": (None, {"use_zlora": True}, xw.RefusedFileError, "'use_zlora' is a setting that isn't"),
    "a rank that is no number": (None, {"r": "4"}, xw.DamagedFileError, "a rank is a whole number"),
    "a rank of zero": (None, {"r": 0}, xw.DamagedFileError, "a rank is a whole number"),
    "an alpha that is no number": (None, {"lora_alpha": "x"}, xw.DamagedFileError, "it is no number"),
    "a pattern that never ends": (
        None,
        {"alpha_pattern": {"(a+)+b": 3}},
        xw.RefusedFileError,
        "is more than a name",
    ),
    "a pattern with stars": (None, {"alpha_pattern": {".*" * 9: 3}}, xw.RefusedFileError, "is more than a name"),
    "another shape of its own": (
        make_factors() | {"base_model.model.fc.bias": np.ones(7, np.float32)},
        {},
        xw.ShapeError,
        "another shape of 'fc.bias'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_adapter_is_refused_by_name_and_changes_nothing(tmp_path, case):
    arrays, config, kind, text = BAD[case]
    adapter, base = write_adapter(tmp_path / "adapter", arrays, **config), make_base()
    xw.save(make_base(), tmp_path / "base.safetensors")
    for target, out in ((base, None), (tmp_path / "base.safetensors", tmp_path / "out.safetensors")):
        with pytest.raises(kind, match=text):
            xw.merge_lora(target, adapter, out=out)
    assert xw.equal(base, make_base())
    assert not (tmp_path / "out.safetensors").exists()


def test_a_configuration_that_is_no_json_is_damaged_and_one_that_is_missing_named(tmp_path):
    adapter = write_adapter(tmp_path)
    for text in ("{", "[]", '{"r": NaN}', '{"r": 4, "r": 5}', "[" * 100_000):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(xw.DamagedFileError):
            xw.merge_lora(make_base(), adapter)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(xw.RefusedFileError, match=r"need their adapter_config\.json"):
        xw.merge_lora(make_base(), adapter)


def test_a_quantised_base_and_one_that_overflows_are_refused(tmp_path):
    adapter = write_adapter(tmp_path)
    base = make_base() | {"fc.weight": np.ones((24, 16), np.int8)}
    with pytest.raises(xw.DtypeError, match=r"'fc\.weight' can't be merged into: it is int8, as a quantised base"):
        xw.merge_lora(base, adapter)
    base = {name: value.astype(np.float16) for name, value in make_base().items()}
    base["fc.weight"][...] = 65504
    before = {name: value.copy() for name, value in base.items()}
    with pytest.raises(xw.NonfiniteError, match="merged entries aren't finite in float16"):
        xw.merge_lora(base, write_adapter(tmp_path, change("fc.lora_A.weight", lambda a: a * 100)))
    assert xw.equal(base, before)
    xw.save(before, tmp_path / "half.safetensors")
    with pytest.raises(xw.NonfiniteError):
        xw.merge_lora(tmp_path / "half.safetensors", adapter, out=tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda base, path, a: xw.merge_lora(path, a), xw.ArgumentError, "the target is a file"),
        (lambda base, path, a: xw.merge_lora(path, out="x"), xw.ArgumentError, "no factors of its own in use"),
        (lambda base, path, a: xw.merge_lora(base, a, out="x.npz"), xw.ArgumentError, "out= is for the copy of a file"),
        (lambda base, path, a: xw.merge_lora(base), xw.SelectionError, "no selected weight has LoRA factors"),
        (lambda base, path, a: xw.merge_lora(base, a, alpha="x"), xw.ArgumentError, "alpha= is a number"),
        (lambda base, path, a: xw.merge_lora(base, a, alpha=2), xw.ArgumentError, "which states its own"),
        (lambda base, path, a: xw.merge_lora(base, a, where="fc.bias"), xw.SelectionError, "selects no weight"),
        (lambda base, path, a: xw.merge_lora(base, a / "no.npz"), xw.FileAccessError, "no.npz"),
    ],
)
def test_calls_that_make_no_sense_say_so(tmp_path, call, kind, text):
    xw.save(make_base(), tmp_path / "base.safetensors")
    with pytest.raises(kind, match=text):
        call(make_base(), tmp_path / "base.safetensors", write_adapter(tmp_path / "adapter"))


def test_a_report_is_plain_values(tmp_path: Path):
    report = xw.merge_lora(make_base(), write_adapter(tmp_path))
    assert report.as_dict()["merged"] == {"emb.weight": 4, "fc.weight": 4, "conv.weight": 4}
