"""Named axes: patterns, layouts, packed gates and reordering by name, against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xweights.core.layout import Layout, layout_of, plain_layout, reorder, unpack_axes
from xweights.errors import LayoutError


def number_entries(shape):
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


def test_a_pattern_without_an_arrow_is_stored_in_neutral_order() -> None:
    layout = layout_of("in out", (3, 2))
    assert (layout.shape, layout.axes, layout.is_identity) == ((3, 2), ("in", "out"), True)
    array = number_entries((3, 2))
    assert layout.to_neutral(array) is array
    assert layout.to_stored(array) is array


def test_a_permuting_pattern_survives_a_round_trip() -> None:
    layout = layout_of("out in h w -> h w in out", (5, 4, 3, 2))
    stored = number_entries((5, 4, 3, 2))
    neutral = layout.to_neutral(stored)
    assert layout.shape == neutral.shape == (3, 2, 4, 5)
    assert np.array_equal(neutral, np.einsum("oihw->hwio", stored))
    assert np.shares_memory(neutral, stored)
    assert np.array_equal(layout.to_stored(neutral), stored)


def test_a_split_axis_and_a_dropped_one_survive_a_round_trip() -> None:
    layout = layout_of("(in mult) 1 h w -> h w in mult", (8, 1, 3, 2), mult=2)
    stored = number_entries((8, 1, 3, 2))
    neutral = layout.to_neutral(stored)
    by_hand = np.empty((3, 2, 4, 2), np.float32)
    for i in range(4):
        for m in range(2):
            by_hand[:, :, i, m] = stored[i * 2 + m, 0]
    assert np.array_equal(neutral, by_hand)
    assert np.array_equal(layout.to_stored(neutral), stored)
    assert layout.to_stored(neutral).shape == (8, 1, 3, 2)


def test_writing_to_the_neutral_view_writes_to_the_stored_array() -> None:
    stored = number_entries((3, 2))
    layout_of("out in -> in out", (3, 2)).to_neutral(stored)[1, 2] = -1
    assert stored[2, 1] == -1


def test_a_vector_of_several_axes_is_split_with_all_sizes_but_one() -> None:
    layout = layout_of("(qkv head key) in -> in qkv head key", (12, 5), qkv=3, head=2)
    assert layout.shape == (5, 3, 2, 2)


def test_a_pattern_of_no_axes_fits_a_scalar() -> None:
    assert layout_of("", ()).axes == ()


@pytest.mark.parametrize(
    ("pattern", "shape", "sizes"),
    [
        ("in out", (3, 2, 1), {}),
        ("(in mult) 1 h w -> h w in mult", (8, 2, 3, 3), {"mult": 2}),
        ("(in mult) h -> h in mult", (7, 3), {"mult": 2}),
        ("(in mult) h -> h in mult", (6, 3), {}),
        ("in out -> out", (3, 2), {}),
        ("in out -> out in in", (3, 2), {}),
        ("in in", (3, 2), {}),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(pattern: str, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    with pytest.raises(LayoutError):
        layout_of(pattern, shape, **sizes)


def test_an_axis_of_length_zero_fits() -> None:
    assert layout_of("out in -> in out", (0, 3)).shape == (3, 0)


@given(st.permutations(range(4)), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_the_inverse_undoes_any_permutation(order: list[int], shape: list[int]) -> None:
    layout = Layout(tuple(shape), tuple(shape), tuple(order), None)
    stored = number_entries(shape)
    assert np.array_equal(layout.to_neutral(stored).transpose(layout.inverse), stored)
    assert np.array_equal(layout.to_stored(layout.to_neutral(stored)), stored)


def test_packed_gates_are_split_by_their_names() -> None:
    assert unpack_axes(("in", "gate*unit"), (3, 8), ("i", "f", "g", "o")) == (("in", "gate", "unit"), (3, 4, 2))


def test_packed_axes_without_known_gates_stay_packed() -> None:
    assert unpack_axes(("in", "gate*unit"), (3, 8), None) == (("in", "gate*unit"), (3, 8))


def test_reordering_goes_by_name_and_not_by_shape() -> None:
    square = number_entries((3, 3))
    assert np.array_equal(reorder(square, ("out", "in"), ("in", "out")), square.T)


def test_reordering_to_the_same_axes_gives_the_same_object() -> None:
    array = number_entries((2, 3))
    assert reorder(array, ("a", "b"), ("a", "b")) is array


def test_reordering_drops_and_adds_axes_of_length_one() -> None:
    array = number_entries((3, 1, 2))
    assert np.array_equal(reorder(array, ("a", "one", "b"), ("b", "a")), array[:, 0].T)
    assert reorder(array, ("a", "one", "b"), ("new", "b", "one", "a")).shape == (1, 2, 1, 3)


@pytest.mark.parametrize(("have", "want"), [(("a", "b"), ("a",)), (("a", "b"), ("a", "c")), (("a", "a"), ("a", "b"))])
def test_reordering_that_names_cannot_settle_is_refused(have: tuple[str, ...], want: tuple[str, ...]) -> None:
    with pytest.raises(LayoutError, match="by name"):
        reorder(number_entries((3, 2)), have, want)


def test_a_plain_layout_is_the_identity() -> None:
    assert plain_layout((2, 3)).is_identity
    assert plain_layout((2, 3)).axes is None
