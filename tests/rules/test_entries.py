"""Setting single entries: the same entries as NumPy would set, in neutral order, or a typed refusal."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw


@pytest.mark.parametrize(
    ("index", "by_hand"),
    [
        ((0, 1), np.s_[0, 1]),
        (1, np.s_[1]),
        ((-1, slice(None, None, 2)), np.s_[-1, ::2]),
        ((slice(None), 0), np.s_[:, 0]),
        ((..., -1), np.s_[..., -1]),
        (..., np.s_[...]),
        ((slice(None, None, -1), 1), np.s_[::-1, 1]),
        ({"in": 0}, np.s_[0]),
        ({"out": slice(1, 3), "in": 1}, np.s_[1, 1:3]),
        (np.arange(6).reshape(2, 3) % 2 == 0, np.arange(6).reshape(2, 3) % 2 == 0),
    ],
    ids=str,
)
def test_entries_are_set_where_numpy_would_set_them(index, by_hand) -> None:
    target = xw.Params({"kernel": np.zeros((2, 3))}, axes={"kernel": ("in", "out")})
    expected = np.zeros((2, 3))
    expected[by_hand] = np.arange(expected[by_hand].size).reshape(expected[by_hand].shape) + 1
    xw.set_entries(target, index, expected[by_hand], where="kernel")
    assert np.array_equal(target["kernel"], expected)


@pytest.mark.parametrize(
    ("index", "kind"),
    [
        ((0, 3), xw.ShapeError),
        ((-3,), xw.ShapeError),
        ((0, 0, 0), xw.ShapeError),
        ({"h": 0}, xw.LayoutError),
        ([0, 1], xw.ArgumentError),
        (np.array([0, 1]), xw.ArgumentError),
        ((True, 0), xw.ArgumentError),
        ((None, 0), xw.ArgumentError),
        ((0, 1.0), xw.ArgumentError),
        ((..., ...), xw.ArgumentError),
        ((slice("a"),), xw.ArgumentError),
        ((slice(0, 2, 0),), xw.ArgumentError),
        ("in", xw.ArgumentError),
        (np.ones((3, 2), bool), xw.ShapeError),
        (np.zeros((2, 3), bool), xw.SelectionError),
        ((slice(2, 2),), xw.SelectionError),
    ],
    ids=str,
)
def test_an_index_that_does_not_fit_is_refused(index, kind) -> None:
    target = xw.Params({"kernel": np.zeros((2, 3))}, axes={"kernel": ("in", "out")})
    with pytest.raises(kind):
        xw.set_entries(target, index, 1.0, where="kernel")
    assert not target["kernel"].any()


def test_an_index_by_axis_names_needs_known_axes() -> None:
    with pytest.raises(xw.LayoutError, match="axes are unknown"):
        xw.set_entries({"kernel": np.zeros((2, 3))}, {"in": 0}, 1.0, where="kernel")


def test_values_of_entries_must_fit_the_indexed_part() -> None:
    with pytest.raises(xw.ShapeError, match=r"expected: \(3,\)"):
        xw.set_entries({"kernel": np.zeros((2, 3))}, (0,), [1.0, 2.0], where="kernel")
