"""Attention that was recorded is computed again, and the setting that differs is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from xweights.porting.recomputing import Attention, explain_attention

HEADS = [2, 4]


def products(seed=0, length=7, width=16, groups=4):
    random = np.random.default_rng(seed)
    return tuple(random.normal(size=(length, size)).astype("float32") for size in (width, groups * 4, groups * 4))


PLAIN = Attention(4, 0.5)
TURNED = Attention(4, 0.5, causal=True, base=1e4)
CAPPED = replace(TURNED, base=2e6, cap=50.0)


@pytest.mark.parametrize(
    ("source", "target", "kind", "said"),
    [
        (PLAIN, replace(PLAIN, scale=0.25), "scale", "0.5 against 0.25"),
        (PLAIN, replace(PLAIN, scale=0.05), "scale", "0.5 against 0.05"),
        (PLAIN, replace(PLAIN, causal=True), "mask", "no mask against a causal mask"),
        (TURNED, replace(TURNED, causal=False), "mask", "a causal mask against no mask"),
        (TURNED, replace(TURNED, base=23456.0), "rotation", "10000 against 23456"),
        (TURNED, replace(TURNED, interleaved=True), "rotation", "halves against neighbours"),
        (TURNED, replace(TURNED, base=None), "rotation", "aren't rotated"),
        (CAPPED, replace(CAPPED, scale=0.25), "scale", "0.5 against 0.25"),
        (CAPPED, replace(CAPPED, cap=None), "scale", "capped at 50 against not at all"),
        (TURNED, replace(TURNED, cap=3.0), "scale", "not at all against capped at 3"),
    ],
)
@pytest.mark.parametrize("groups", [4, 2])
def test_the_setting_that_differs_is_named(source, target, kind, said, groups):
    given = products(groups=groups)
    found = explain_attention([given], HEADS, source.compute(*given), target.compute(*given))
    assert found is not None
    assert found[0] == kind
    assert said in found[1]


def test_what_no_setting_explains_has_no_cause():
    given, others = products(), products(1)
    assert explain_attention([given], HEADS, PLAIN.compute(*given), PLAIN.compute(*others)) is None
    assert explain_attention([given], HEADS, PLAIN.compute(*others), PLAIN.compute(*given)) is None
