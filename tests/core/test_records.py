"""Records are what `dataclass(frozen=True)` makes, but for the compiling."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xweights.core.records import record

Decorator = Callable[..., Any]


def make_kinds(decorate: Decorator) -> dict[str, type[Any]]:
    """Return classes of none to three fields, decorated in one of the two ways."""

    @decorate(frozen=True)
    class Nothing:
        """No fields."""

    @decorate(frozen=True)
    class One:
        """One field."""

        value: int

    @decorate(frozen=True)
    class Pair:
        """Two fields, the second with a default, and a check."""

        low: float
        high: float = 1.0

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low is greater than high")

    @decorate(frozen=True)
    class Triple:
        """Three fields."""

        a: Any
        c: Any
        b: Any = None

    @decorate(frozen=True, eq=False, repr=False)
    class Same:
        """Equal only to itself."""

        value: Any

        def __repr__(self) -> str:
            return "the same"

    @decorate(frozen=True)
    class Shown:
        """With a repr of its own."""

        value: Any

        def __repr__(self) -> str:
            return f"shown {self.value}"

    return {kind.__name__: kind for kind in (Nothing, One, Pair, Triple, Same, Shown)}


RECORDS, DATACLASSES = make_kinds(record), make_kinds(dataclasses.dataclass)
ARGUMENTS = {"Nothing": (), "One": (1,), "Pair": (0.5,), "Triple": (1, 2, 3), "Same": (1,), "Shown": ("x",)}
NAMES = sorted(RECORDS)


def both(name: str) -> tuple[type[Any], type[Any]]:
    """Return a record and the dataclass of the same source."""
    return RECORDS[name], DATACLASSES[name]


def outcome(function: Callable[[], Any]) -> Any:
    """Return a result, or the error and its words, without what tells the two classes apart."""
    try:
        return str(function()).replace("make_kinds.<locals>.", "")
    except (TypeError, ValueError, AttributeError) as wrong:
        return type(wrong), str(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_a_record_has_the_signature_and_fields_of_a_dataclass(name: str) -> None:
    mine, theirs = both(name)
    assert inspect.signature(mine) == inspect.signature(theirs)
    assert inspect.signature(mine.__init__) == inspect.signature(theirs.__init__)
    assert mine.__init__.__annotations__ == theirs.__init__.__annotations__
    assert mine.__init__.__globals__ is sys.modules[__name__].__dict__
    assert [(f.name, f.type, f.default) for f in dataclasses.fields(mine)] == [
        (f.name, f.type, f.default) for f in dataclasses.fields(theirs)
    ]
    assert mine.__match_args__ == theirs.__match_args__
    assert mine.__init__.__qualname__ == theirs.__init__.__qualname__


@pytest.mark.parametrize("name", NAMES)
def test_a_record_is_shown_compared_and_hashed_as_a_dataclass(name: str) -> None:
    mine, theirs = (kind(*ARGUMENTS[name]) for kind in both(name))
    assert outcome(lambda: repr(mine)) == outcome(lambda: repr(theirs))
    assert dataclasses.asdict(mine) == dataclasses.asdict(theirs)
    again = copy.deepcopy(mine)
    assert (mine == again) == (theirs == copy.deepcopy(theirs))
    assert (hash(mine) == hash(again)) == (hash(theirs) == hash(copy.deepcopy(theirs)))
    assert mine != theirs
    assert vars(mine) == vars(theirs)
    assert dataclasses.is_dataclass(mine)


def test_records_of_arrays_and_nan_compare_as_tuples_do() -> None:
    array, nan = np.ones(2), float("nan")
    for kind in both("One"):
        assert kind(array) == kind(array)
        assert kind(nan) == kind(nan)
        assert kind(nan) != kind(float("nan"))
        assert kind(1) != kind(2)


@pytest.mark.parametrize("given", [(), (1.0, 2.0, 3.0), (2.0,)])
def test_a_wrong_call_of_a_record_has_the_error_of_a_dataclass(given: tuple[float, ...]) -> None:
    mine, theirs = both("Pair")
    assert outcome(lambda: mine(*given)) == outcome(lambda: theirs(*given))
    assert outcome(lambda: mine(1.0, lo=1.0)) == outcome(lambda: theirs(1.0, lo=1.0))


@pytest.mark.parametrize("name", ["One", "Same"])
def test_a_record_is_frozen_and_a_plain_subclass_may_have_more(name: str) -> None:
    for kind in both(name):
        made = kind(1)
        for attribute in ("value", "other"):
            with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot assign to field '{attribute}'"):
                setattr(made, attribute, 2)
            with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot delete field '{attribute}'"):
                delattr(made, attribute)
        more = type("More", (kind,), {})(1)
        more.other = 2
        del more.other
        with pytest.raises(dataclasses.FrozenInstanceError):
            more.value = 2
        with pytest.raises(dataclasses.FrozenInstanceError):
            del more.value


def test_replace_makes_another_record_and_checks_it() -> None:
    for kind in both("Pair"):
        assert dataclasses.replace(kind(0.0), low=0.5) == kind(0.5)
        with pytest.raises(ValueError, match="low is greater"):
            dataclasses.replace(kind(0.0), low=2.0)


def test_a_frozen_dataclass_may_inherit_from_a_record_and_no_other_may() -> None:
    for kind in both("Pair"):

        @dataclasses.dataclass(frozen=True)
        class Wider(kind):  # type: ignore[misc, valid-type]
            step: int = 1

        assert repr(Wider(0.0, 1.0, 2)).endswith("Wider(low=0.0, high=1.0, step=2)")
        with pytest.raises(TypeError, match="cannot inherit non-frozen"):
            dataclasses.dataclass(type("Open", (kind,), {"__annotations__": {}}))


@record(frozen=True)
class Kept:
    """A record that a pickle can name."""

    value: Any


def test_a_pickle_of_a_dataclass_loads_as_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        former = dataclasses.dataclass(frozen=True)(
            type("Kept", (), {"__annotations__": {"value": "Any"}, "__module__": __name__, "__doc__": "As it was."})
        )
        before.setitem(globals(), "Kept", former)
        pickled = pickle.dumps(former((1, 2)))
    assert pickle.loads(pickled) == Kept((1, 2))
    assert pickle.loads(pickle.dumps(Kept((1, 2)))) == Kept((1, 2))


@pytest.mark.parametrize(
    "annotations", [dict.fromkeys("abcd", "int"), {"a": "int"}], ids=["four fields", "a field with a factory"]
)
def test_what_a_record_can_not_have_is_refused(annotations: dict[str, str]) -> None:
    default = {} if len(annotations) > 1 else {"a": dataclasses.field(default_factory=list)}
    kind = type("Odd", (), {"__annotations__": annotations, "__module__": __name__, **default})
    with pytest.raises(TypeError, match="at most three plain fields"):
        record(frozen=True)(kind)
    with pytest.raises(TypeError, match="frozen"):
        record(frozen=False)(kind)
