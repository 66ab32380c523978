"""Long names are shortened where they are alike, and can still be told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xweights.core.short_names import common_prefix, shorten_names

PARTS = st.sampled_from(["encoder", "layers", "0", "1", "17", "self_attention", "q", "kernel", "bias", "x" * 30])


def test_the_most_common_parts_are_left_out_and_numbers_and_the_end_stay() -> None:
    names = [f"encoder/layers/{i}/self_attention/{part}/kernel" for i in (0, 1) for part in ("query", "value")]
    assert shorten_names(names, 22) == [
        "…/0/…/query/kernel",
        "…/0/…/value/kernel",
        "…/1/…/query/kernel",
        "…/1/…/value/kernel",
    ]


def test_a_name_that_fits_stays_as_it_is() -> None:
    assert shorten_names(["a/b", "encoder/layers/0/attention/kernel"], 20)[0] == "a/b"


@given(
    st.lists(st.lists(PARTS, min_size=1, max_size=9).map("/".join), unique=True, min_size=1, max_size=12),
    st.integers(8, 60),
)
def test_different_names_stay_different_and_fit(names: list[str], width: int) -> None:
    short = shorten_names(names, width)
    assert len(set(short)) == len(names)
    assert all(len(text) <= width for text in short)


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["model/language/a", "model/language/b"], "model/language/"),
        (["a/b", "a/c"], ""),
        (["only/one/name/that/is/long"], ""),
        (["language_model/x", "language_modes/x"], ""),
        ([], ""),
    ],
)
def test_only_a_prefix_that_is_worth_a_line_is_taken_off(names: list[str], prefix: str) -> None:
    assert common_prefix(names) == prefix
