"""Bad input raises a typed error with the fact, got against expected and the fix, and changes nothing."""

from __future__ import annotations

import pathlib
import zipfile

import numpy as np
import pytest

import xweights as xw
import xweights.core.registry
from xweights.errors import Problems, XweightsError, combine_kinds, got_expected, near


class Point:
    """An entry point, as the packaging tools would find it."""

    def __init__(self, load) -> None:
        self.load, self.value = load, "somewhere:backend"


@pytest.fixture
def installed_backends(monkeypatch):
    """Replace the installed backends by those passed to this fixture; forget any backend found meanwhile."""
    points: dict[str, Point] = {}
    monkeypatch.setattr(xweights.core.registry, "_points", points)
    monkeypatch.setattr(xweights.core.registry, "_loaded", {})
    monkeypatch.setattr(xweights.core.registry, "_registered", {})
    monkeypatch.setattr(xweights.core.registry, "_by_type", {})
    return lambda name, load: points.update({name: Point(load)})


def model_of(package: str):
    """Return an object whose class comes from a framework of that name."""
    return type("Model", (), {"__module__": f"{package}.nn.layers"})()


# Targets.


def test_an_object_of_no_known_framework_is_refused_with_what_is_installed_and_what_to_install(
    installed_backends,
) -> None:
    installed_backends("flamework", lambda: None)
    with pytest.raises(xw.TargetError) as caught:
        xw.parameters(model_of("otherframework"))
    text = str(caught.value)
    assert "got:      otherframework.nn.layers.Model" in text
    assert "expected: a model, layer, module or variable" in text
    assert "installed backends: flamework" in text
    assert "Fix: if 'otherframework' is a framework" in text
    assert "pip install 'xweights-nn[otherframework]'" in text
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("target", [None, 5, 2.5, object(), lambda: 1])
def test_plain_objects_are_refused(target) -> None:
    with pytest.raises(xw.TargetError, match="can't reach weights"):
        xw.parameters(target)


@pytest.mark.parametrize("target", [np.ones(2), np.float32(1.0)])
def test_a_bare_array_is_refused_with_the_advice_to_name_it(target) -> None:
    with pytest.raises(xw.TargetError, match=r"Fix: give it a name, as in \{'name': array\}"):
        xw.clip(target, -1, 1)


@pytest.mark.parametrize("target", ["weights.npz", pathlib.Path("weights.npz")])
def test_a_path_to_nothing_is_refused(target) -> None:
    with pytest.raises(xw.FileAccessError, match="No such file"):
        xw.parameters(target)


def test_a_path_in_bytes_is_refused_with_the_advice_to_load_it() -> None:
    with pytest.raises(xw.TargetError, match=r"Fix: xweights.load\(path\)"):
        xw.parameters(b"weights.npz")


def test_an_empty_list_is_no_target() -> None:
    with pytest.raises(xw.TargetError, match="empty list"):
        xw.parameters([])


def test_a_list_with_something_else_in_it_is_refused() -> None:
    with pytest.raises(xw.TargetError):
        xw.parameters([{"a": np.ones(1)}, object()])


@pytest.mark.parametrize("value", [1.0, np.float32(1.0), [1.0, 2.0], None, "x"])
def test_a_native_array_that_can_not_be_edited_in_place_is_refused(value) -> None:
    with pytest.raises(xw.TargetError, match="'b' can't be edited in place"):
        xw.parameters({"a": np.ones(1), "b": value})


@pytest.mark.parametrize(
    "value", [np.array(["x"]), np.array(["2026"], "M8[Y]"), np.array([object()]), np.zeros(1, "f4,i4")]
)
def test_an_array_of_no_numbers_that_weights_are_made_of_is_refused(value) -> None:
    with pytest.raises(xw.TargetError, match="'b' holds no numbers of a kind that weights have"):
        xw.parameters({"a": np.ones(1), "b": value})


def test_a_key_that_is_no_string_is_refused() -> None:
    with pytest.raises(xw.ArgumentError, match=r"names of weights are strings\ngot: 0 \(int\)"):
        xw.parameters({0: np.ones(1)})


def test_an_open_npz_file_can_be_read_but_an_edit_that_would_be_lost_is_refused(tmp_path) -> None:
    np.savez(tmp_path / "w.npz", a=np.ones(2))
    with np.load(tmp_path / "w.npz") as opened:
        assert xw.get_params(opened)["a"].tolist() == [1.0, 1.0]
        with pytest.raises(xw.WriteError, match=r"would be lost; pass dict\(...\)"):
            xw.scale(opened, 2.0)
        target = dict(opened)
    xw.scale(target, 2.0)
    assert target["a"].tolist() == [2.0, 2.0]
    assert zipfile.is_zipfile(tmp_path / "w.npz")


# Backends.


def test_a_backend_that_is_broken_says_why_and_is_tried_again(installed_backends) -> None:
    def broken():
        raise OSError("libframe.so: cannot open shared object")

    installed_backends("flamework", broken)
    for _ in range(2):
        with pytest.raises(xw.BackendBrokenError) as caught:
            xw.parameters(model_of("flamework"))
    text = str(caught.value)
    assert "the backend 'somewhere:backend' for 'flamework' is installed but can't be imported" in text
    assert "cause: OSError: libframe.so: cannot open shared object" in text
    assert "Fix: make `python -c 'import flamework'` work" in text
    assert isinstance(caught.value, xw.BackendMissingError)
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value.__cause__, OSError)
    assert xw.backends() == {"flamework": "broken: OSError: libframe.so: cannot open shared object"}


def test_an_entry_point_that_is_no_backend_is_refused(installed_backends) -> None:
    installed_backends("flamework", lambda: object())
    with pytest.raises(xw.BackendBrokenError, match="is no backend"):
        xw.parameters(model_of("flamework"))
    assert xw.backends()["flamework"].startswith("broken")


def test_a_backend_is_loaded_only_when_its_object_arrives(installed_backends) -> None:
    def loaded():
        pytest.fail("it was loaded")

    installed_backends("flamework", loaded)
    xw.clip({"a": np.ones(2)}, -1, 1)
    with pytest.raises(xw.TargetError):
        xw.parameters(model_of("flamework2"))


def test_a_backend_that_is_not_installed_is_named_with_its_command(installed_backends) -> None:
    installed_backends("flamework", lambda: None)
    with pytest.raises(xw.BackendMissingError) as caught:
        xweights.core.registry.load("otherframework")
    assert "no backend for 'otherframework' is installed" in str(caught.value)
    assert "installed: flamework" in str(caught.value)
    assert "pip install 'xweights-nn[otherframework]'" in str(caught.value)


# Arguments.


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda t: xw.clip(t), xw.ArgumentError, "Fix: give low=, high= or both"),
        (lambda t: xw.clip(t, 1, -1), xw.ArgumentError, "low:  1\n.*high: -1\n.*Fix: swap them"),
        (lambda t: xw.clip(t, np.array([2.0, 0, 0]), 1), xw.ArgumentError, "low is greater than high somewhere"),
        (lambda t: xw.clip(t, float("nan"), 1), xw.ArgumentError, "NaN"),
        (lambda t: xw.clip(t, {"a/kernel": np.nan}, None), xw.ArgumentError, "NaN"),
        (lambda t: xw.clip(t, "0", 1), xw.XweightsError, "low"),
        (lambda t: xw.clip_norm(t, 0), xw.ArgumentError, "max must be a positive number\ngot: 0"),
        (lambda t: xw.clip_norm(t, float("inf")), xw.ArgumentError, "positive number"),
        (lambda t: xw.clip_norm(t, 1.0, scope="all"), xw.ArgumentError, 'scope= is "each" or "global"'),
        (lambda t: xw.max_norm(t, -1.0, per="out"), xw.ArgumentError, "positive number"),
        (lambda t: xw.max_norm(t, 1.0, per=0), xw.ArgumentError, "Fix: per='out'"),
        (lambda t: xw.max_norm(t, 1.0, per=()), xw.ArgumentError, "per="),
        (lambda t: xw.max_norm(t, 1.0, per="out"), xw.LayoutError, r"Fix: leave it out with where=, or .*Params"),
        (lambda t: xw.spectral_norm(t, 1.0), xw.ShapeError, r"'a/kernel' has the shape \(3,\)"),
        (lambda t: xw.mask(t, np.array([1, 0, 1])), xw.DtypeError, "got:      int64\n.*expected: bool"),
        (lambda t: xw.mask(t, 1.0), xw.DtypeError, "can't be stored as bool"),
        (lambda t: xw.mask(t, {}), xw.SelectionError, "empty mapping"),
        (lambda t: xw.prune(t, fraction=1), xw.ArgumentError, "Fix: count= for a number of entries"),
        (lambda t: xw.apply(t, "clip", where=...), xw.ArgumentError, "expected a rule or a function"),
        (lambda t: xw.parameters(t, where=5), xw.ArgumentError, r"where= can't be understood\n.*got:      5 \(int\)"),
        (lambda t: xw.fill(t, 1.0, where="a/kernal"), xw.SelectionError, "Near names: 'a/kernel'"),
        (lambda t: xw.set_params(t, {"a/kernal": np.ones(3)}), xw.SelectionError, "Near names: 'a/kernel'"),
    ],
)  # fmt: skip
def test_an_argument_that_is_wrong_is_refused_with_its_fix(call, kind, text: str) -> None:
    target = {"a/kernel": np.arange(3.0)}
    with pytest.raises(kind, match=f"(?s){text}"):
        call(target)
    assert target["a/kernel"].tolist() == [0.0, 1.0, 2.0]


# How errors are made.


def test_got_and_expected_are_aligned() -> None:
    got, expected = got_expected(1, 2).splitlines()
    assert got.index("1") == expected.index("2")


def test_several_problems_are_one_error_of_every_kind() -> None:
    problems = Problems("headline")
    problems.check()
    problems.add(xw.ShapeError, "first\nmore", fix="do this")
    problems.add(xw.DtypeError, "second", fix="do this")
    problems.add(xw.DtypeError, "second")
    with pytest.raises(xw.ShapeError) as caught:
        problems.check()
    assert isinstance(caught.value, xw.DtypeError)
    assert str(caught.value).splitlines() == [
        "headline",
        "  - first",
        "    more",
        "  - second (2 times)",
        "Fix: do this",
    ]


ERRORS = [value for value in vars(xw).values() if isinstance(value, type) and issubclass(value, XweightsError)]


@pytest.mark.parametrize("first", ERRORS)
@pytest.mark.parametrize("second", ERRORS)
def test_any_two_errors_combine_and_further_with_a_third(first, second) -> None:
    both = combine_kinds((first, second)) if first is not second else first
    assert issubclass(both, first)
    assert issubclass(both, second)
    assert issubclass(combine_kinds((both, xw.ShapeError)), both)
    assert str(both("text")) == "text"


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_is_an_xweights_error_with_a_docstring(error) -> None:
    assert issubclass(error, xw.XweightsError)
    assert error.__doc__


def test_near_names_fall_back_to_all_names_when_they_are_few() -> None:
    assert near("zzz", ["abc", "def"]) == "Known names: 'abc', 'def'"
    assert near("zzz", [str(i) * 9 for i in range(9)]).endswith("(9 in all)")
    assert near("x", []) == "There are no names to choose from."
