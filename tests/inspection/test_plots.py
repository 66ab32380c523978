"""Plots show the same numbers as NumPy and can draw any target."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import numpy as np
import pytest

import xweights as xw
from xweights.inspection.drawing import format_percent, shorten
from xweights.inspection.histograms import histogram, singular_values, top_entries, zero_map, zeros_in

pytest.importorskip("matplotlib")


def weights(**arrays: Any) -> xw.Params:
    axes = {"kernel": ("h", "w", "in", "out"), "attention": ("in", "head", "key"), "dense": ("in", "out")}
    names = {f"{name}/kernel" if name in axes else name: array for name, array in arrays.items()}
    return xw.Params(names, axes={f"{name}/kernel": axes[name] for name in arrays if name in axes})


def parameter(array: Any, axes: tuple[str, ...] | None = None) -> xw.Parameter:
    (p,) = xw.parameters(xw.Params({"w": array}, axes={"w": axes}))
    return p


RANDOM = np.random.default_rng(0)


def test_a_histogram_counts_zeros_and_nonfinite_entries_separately() -> None:
    array = RANDOM.normal(size=(300, 400)).astype("float32")
    array[:30] = 0
    array[30, :5] = (np.nan, np.inf, -np.inf, np.nan, -0.0)
    found = histogram(parameter(array))
    kept = array[np.isfinite(array) & (array != 0)].astype(np.float64)
    assert np.array_equal(found.counts, np.histogram(kept, found.edges)[0])
    assert (found.edges[0], found.edges[-1]) == (kept.min(), kept.max())
    assert (found.zeros, found.nonfinite) == (30 * 400 + 1, 4)
    assert found.counts.sum() + found.zeros + found.nonfinite == array.size


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3)),
        np.zeros(4),
        np.full(3, np.nan),
        np.array(5.0),
        np.array([1.0, np.nextafter(1.0, 2.0)]),
        np.array([1e308, -1e308]),
        np.array([5e-324]),
        np.arange(6),
        np.array([True, False]),
        np.ones(3, np.float16),
    ],
    ids=["empty", "zeros", "NaN", "a number", "neighbours", "huge", "subnormal", "whole numbers", "bools", "half"],
)
def test_odd_arrays_have_histograms_and_pictures(array: Any) -> None:
    found = histogram(parameter(array))
    finite = array[np.isfinite(array.astype(np.float64))]
    assert found.counts.sum() == np.count_nonzero(finite)
    draw_svg(xw.plot({"w": array}))


def test_a_histogram_of_differences_is_that_of_a_minus_b_by_name_of_the_axis() -> None:
    a = RANDOM.normal(size=(30, 20))
    b = RANDOM.normal(size=(20, 30))
    found = histogram(parameter(a, ("in", "out")), minus=parameter(b, ("out", "in")))
    assert np.array_equal(found.counts, np.histogram(a - b.T, found.edges)[0])


@pytest.mark.parametrize(
    ("axes", "shape", "order", "rows"),
    [
        (("in", "out"), (7, 5), (0, 1), 7),
        (("h", "w", "in", "out"), (3, 2, 4, 5), (0, 1, 2, 3), 24),
        (("h", "w", "out", "in"), (3, 2, 4, 5), (0, 1, 3, 2), 30),
        (("in", "head", "key"), (6, 2, 3), (0, 1, 2), 6),
        (("head", "value", "out"), (2, 3, 6), (0, 1, 2), 6),
        (None, (4, 6), (0, 1), 4),
    ],
)
def test_singular_values_are_those_of_all_inputs_by_outputs(
    axes: tuple[str, ...] | None, shape: tuple[int, ...], order: tuple[int, ...], rows: int
) -> None:
    array = RANDOM.normal(size=shape).astype("float32")
    found = singular_values(parameter(array, axes))
    expected = np.linalg.svd(array.transpose(order).reshape(rows, -1).astype(np.float64), compute_uv=False)
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("array", [np.ones(3), np.ones((2, 3, 4)), np.array([[1.0, np.nan]]), np.zeros((0, 3))])
def test_an_array_that_is_no_known_matrix_has_no_singular_values(array: Any) -> None:
    assert singular_values(parameter(array)) is None


def test_a_zero_map_has_the_share_of_zeros_of_each_field() -> None:
    array = (RANDOM.random((130, 200)) < 0.4).astype("float32")
    found = zero_map(parameter(array, ("in", "out")), side=10)
    assert found.shape == (10, 10)
    np.testing.assert_allclose(found[0], [(array[:13, i : i + 20] == 0).mean() for i in range(0, 200, 20)])
    small = zero_map(parameter(np.array([[0.0, 1.0], [1.0, -0.0]]), ("in", "out")))
    assert np.array_equal(small, [[1, 0], [0, 1]])
    assert zeros_in(parameter(array)) == np.count_nonzero(array == 0)


def test_the_top_entries_are_the_largest_differences_in_order() -> None:
    a = RANDOM.normal(size=(300, 500))
    b = a.copy()
    places = [(3, 4), (299, 499), (150, 0), (0, 0)]
    for size, at in enumerate(places, start=1):
        b[at] += size
    b[7, 7] = np.nan
    one, other = xw.Params({"w": a}), xw.Params({"w": b})
    found = top_entries(xw.diff(one, other), one, other, 4)
    assert [entry.index for entry in found] == [(7, 7), *places[:0:-1]]
    assert found[1].b == b[0, 0]
    assert len(top_entries(xw.diff(one, other), one, other, 100)) == 5


def test_top_entries_meet_by_axis_and_by_renamed_name() -> None:
    a = xw.Params({"x/kernel": np.arange(6.0).reshape(2, 3)}, axes={"x/kernel": ("in", "out")})
    moved = np.arange(6.0).reshape(2, 3).T.copy()
    moved[2, 1] = 50
    b = xw.Params({"y/kernel": moved}, axes={"y/kernel": ("out", "in")})
    names = {"x/*": "y/*"}
    (entry,) = top_entries(xw.diff(a, b, names=names), a, b, 5, names=names)
    assert (entry.index, entry.a, entry.b) == ((1, 2), 5.0, 50.0)


def test_a_plot_has_a_panel_a_parameter_with_its_name_and_count() -> None:
    target = weights(kernel=RANDOM.normal(size=(3, 3, 2, 4)), dense=np.zeros((4, 2)), bias=np.ones(2))
    titles = [panel.get_title() for panel in xw.plot(target).axes]
    assert titles == ["kernel/kernel\n72 entries", "dense/kernel\n8 entries, 100 % zero", "bias\n2 entries"]
    bars, *panels = xw.plot(target, kind="sparsity").axes
    assert [label.get_text() for label in bars.get_yticklabels()] == ["all together", "kernel/kernel", "dense/kernel"]
    assert [bar.get_width() for bar in bars.patches] == [10.0, 0.0, 100.0]
    titles = [panel.get_title() for panel in panels]
    assert titles == ["kernel/kernel\n3 x 3 x 2 x 4, 0 % zero", "dense/kernel\n4 x 2, 100 % zero"]


def test_spectra_are_drawn_relative_to_the_largest_value_which_is_shown_too() -> None:
    array = RANDOM.normal(size=(6, 4))
    left, right = xw.plot(weights(dense=array), kind="spectra").axes
    values = np.linalg.svd(array, compute_uv=False)
    np.testing.assert_allclose(left.lines[0].get_ydata(), values / values[0])
    assert right.patches[0].get_width() == pytest.approx(values[0])
    assert [label.get_text() for label in right.get_yticklabels()] == ["dense/kernel"]


def test_where_and_the_role_select_the_plotted_parameters() -> None:
    target = weights(dense=np.ones((4, 2)), bias=np.ones((2, 2)))
    assert len(xw.plot(target).axes) == 2
    assert len(xw.plot(target, kind="sparsity").axes) == 2
    assert [axis.get_title() for axis in xw.plot(target, kind="sparsity", where="bias").axes][1:] == [
        "bias\n2 x 2, 0 % zero"
    ]
    assert len(xw.plot({"a": np.ones((2, 2)), "b": np.ones((2, 2))}, kind="sparsity").axes) == 3


def test_of_more_parameters_than_can_be_read_the_largest_are_drawn_and_it_says_so() -> None:
    many = {f"layer{i}/kernel": np.ones((2, i + 1)) for i in range(40)}
    figure = xw.plot(many)
    assert figure.get_suptitle() == "Values (the 24 largest of 40 parameters)"
    assert [panel.get_title().split("\n")[0] for panel in figure.axes] == [f"layer{i}/kernel" for i in range(16, 40)]


def test_plot_diff_shows_shares_sizes_and_the_spread_of_differences() -> None:
    a = weights(dense=np.ones((4, 2)), bias=np.ones(2))
    b = a.copy()
    b["dense/kernel"][0] = 3
    left, right, *spread = xw.plot_diff(a, b).axes
    assert [bar.get_width() for bar in left.patches] == [25.0]
    assert [bar.get_width() for bar in right.patches] == [2.0]
    assert [panel.get_title() for panel in spread] == ["dense/kernel\na - b, where they differ"]
    assert xw.plot_diff(a, a).get_suptitle() == "no difference in 2 parameters"


def test_plot_diff_names_the_parameters_that_can_not_be_drawn() -> None:
    one = {"x": np.ones(2), "y": np.ones(3), "z": np.ones(1)}
    other = {"x": np.ones(3), "y": np.array([1.0, 2.0, np.nan]), "w": np.ones(1)}
    said = xw.plot_diff(one, other).figure.subfigs[0].get_suptitle()
    assert said == "Differences; 1 only in a, 1 only in b, 1 of another shape or order; 0 parameters are equal"
    assert xw.plot_diff({"x": np.ones(2)}, {"y": np.ones(2)}).get_suptitle().startswith("1 only in a, 1 only in b")


def test_names_are_shown_as_they_are() -> None:
    odd = {"a$x_1$b": np.ones((2, 2)), "<b>&": np.eye(2), "\x1b[31mred": np.eye(2), "x" * 200: np.eye(2)}
    for figure in (
        xw.plot(odd),
        xw.plot(odd, kind="spectra"),
        xw.plot_diff(odd, {name: 2 * w for name, w in odd.items()}),
    ):
        drawing = draw_svg(figure)
        assert "a$x_1$b" in drawing
        assert "&lt;b&gt;&amp;" in drawing
        assert "\x1b" not in drawing
        assert "x" * 50 not in drawing


def draw_svg(figure: Any) -> str:
    """Draw a figure as SVG with its text as text; a warning while drawing is an error, but for deprecations."""
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # what other packages call of one another
        figure.savefig(out, format="svg")
    return re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)


def test_a_wrong_kind_and_a_selection_without_matrices_are_refused() -> None:
    with pytest.raises(xw.ArgumentError, match="'histograms', 'sparsity', 'spectra'"):
        xw.plot({"w": np.ones(2)}, kind="pie")  # type: ignore[arg-type]
    with pytest.raises(xw.SelectionError, match="none of these parameters has singular values"):
        xw.plot({"w": np.ones(2)}, kind="spectra")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(xw.BackendMissingError, match=re.escape("pip install 'xweights-nn[plot]'")):
        xw.plot({"w": np.ones(2)})


def test_drawing_opens_no_window_and_keeps_no_figure() -> None:
    import sys

    before = "matplotlib.pyplot" in sys.modules
    xw.plot({"w": np.ones(2)})
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (1e-9, "< 0.1 %"), (1 - 1e-9, "> 99.9 %"), (0.5, "50 %"), (0.123, "12.3 %")],
)
def test_a_share_that_is_not_quite_all_or_nothing_does_not_look_so(share: float, text: str) -> None:
    assert format_percent(share) == text


def test_a_long_name_keeps_its_two_ends() -> None:
    assert shorten("abcdefghij", 7) == "abc…hij"
    assert shorten("abc", 7) == "abc"


LONG = "model/language_model/encoder/layers"


def test_what_all_names_begin_with_is_shown_once() -> None:
    many = {f"{LONG}/{i}/self_attention/query/kernel": np.ones((2, 2)) for i in range(3)}
    figure = xw.plot(many)
    assert figure.get_suptitle() == f"Values\nall names begin with {LONG}/"
    assert [panel.get_title().split("\n")[0] for panel in figure.axes] == [
        f"{i}/self_attention/query/kernel" for i in range(3)
    ]


def test_what_is_not_finite_is_marked_on_every_picture() -> None:
    target = {f"{i}/kernel": np.ones((3, 3)) * (i + 1) for i in range(60)}
    target["0/kernel"] = np.array([[1.0, np.nan], [np.inf, 0.0]])
    other = dict(target) | {"1/kernel": np.array([[np.nan, 1, 1]] * 3)}
    for figure in (xw.plot(target), xw.plot(target, kind="sparsity")):
        assert "2 not finite" in draw_svg(figure)
    assert "1 with NaN or infinity, which have none: 0/kernel" in draw_svg(xw.plot(target, kind="spectra"))
    drawing = draw_svg(xw.plot_diff(target, other))
    assert "NaN or infinity on one side" in drawing
    assert "3 not finite" in drawing


def test_values_far_from_all_others_do_not_press_those_into_one_bar() -> None:
    array = RANDOM.normal(size=5000)
    array[:3] = (1e6, -1e6, 2e6)
    found = histogram(parameter(array))
    assert 3 <= found.beyond <= 10
    assert found.counts.sum() == 5000 - found.beyond
    assert found.edges[-1] - found.edges[0] < 50
    assert f"{found.beyond} farther out" in xw.plot({"w": array}).axes[0].get_title()


def test_the_share_of_zeros_of_each_parameter_is_a_bar_and_that_of_all_the_first() -> None:
    target = {"a/kernel": np.eye(4), "b/kernel": np.zeros((2, 2))}
    bars = xw.plot(target, kind="sparsity").axes[0]
    assert [bar.get_width() for bar in bars.patches] == [80.0, 75.0, 100.0]
    assert {text.get_text() for text in bars.texts} == {"80 %", "75 %", "100 %"}


def test_the_spectra_of_many_kernels_are_rows_beside_their_bars() -> None:
    many = {f"{i}/kernel": RANDOM.normal(size=(6, 4)) for i in range(50)}
    left, right, _ = xw.plot(many, kind="spectra").axes
    (picture,) = left.images
    assert picture.get_array().shape == (50, 100)
    assert len(right.patches) == 50
    assert left.get_ylim() == right.get_ylim()
