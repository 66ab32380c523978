"""Every argument of every public function, wrong once: the error is typed, short, and says what was expected."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import wrong_calls

import xweights as xw

SNAPSHOT = Path(__file__).with_name("snapshot.txt")
HEAD = """\
The texts of the errors for each argument of each public function, when it is an object that it doesn't take, and for an
argument that the function doesn't have; written by XWEIGHTS_WRITE_PAGE=1 pytest tests/errors.
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseException | None]:
    """What each call raised; None for a wrong value that was taken."""
    here = Path.cwd()
    wrong_calls.in_folder(tmp_path_factory.mktemp("calls"))
    found: dict[str, BaseException | None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for label, call in wrong_calls.wrong_calls():
            found[label] = None
            try:
                call()
            except Exception as wrong:  # noqa: BLE001 - which kind it is, is the question
                found[label] = wrong
    os.chdir(here)
    return found


def test_no_wrong_argument_raises_an_error_from_deep_inside(outcomes: dict[str, BaseException | None]) -> None:
    untyped = {
        label: f"{type(wrong).__name__}: {wrong}"
        for label, wrong in outcomes.items()
        if wrong is not None and not isinstance(wrong, xw.XweightsError)
    }
    assert not untyped
    assert sum(wrong is not None for wrong in outcomes.values()) > 900


def test_no_error_is_longer_than_a_screen(outcomes: dict[str, BaseException | None]) -> None:
    texts = {label: str(wrong).splitlines() for label, wrong in outcomes.items() if wrong is not None}
    assert not [label for label, lines in texts.items() if len(lines) > 40 or max(map(len, lines)) > 500]


def test_an_error_says_more_than_that_something_is_wrong(outcomes: dict[str, BaseException | None]) -> None:
    marks = (
        "got:",
        "Fix: ",
        "Near names",
        "Known names",
        "expected:",
        "takes",
        "installed",
        "shape:",
        "names a part",
        "file: ",
    )
    thin = [label for label, wrong in outcomes.items() if wrong is not None and not any(m in str(wrong) for m in marks)]
    # What is said in one sentence.
    assert all("optimizer= was given, and nothing here is trained" in str(outcomes[label]) for label in thin)


def test_the_texts_are_those_of_the_snapshot(outcomes: dict[str, BaseException | None]) -> None:
    texts = [
        f"## {label}\n{type(wrong).__name__}\n{_settled(str(wrong))}\n"
        for label, wrong in outcomes.items()
        if wrong is not None and label.endswith(("=an object)", "(nonsense=1)"))
    ]
    page = HEAD + "\n" + "\n".join(texts)
    if os.environ.get("XWEIGHTS_WRITE_PAGE"):
        SNAPSHOT.write_text(page, encoding="utf-8")
    assert len(texts) >= 150
    # What needs a package that isn't installed here says only that.
    absent = {label for label, wrong in outcomes.items() if isinstance(wrong, xw.BackendMissingError)}
    assert _sections(SNAPSHOT.read_text(encoding="utf-8"), absent) == _sections(page, absent), (
        "Fix: XWEIGHTS_WRITE_PAGE=1 pytest tests/errors"
    )


def test_a_wrong_call_is_answered_in_the_words_of_the_function_that_was_called() -> None:
    """Also where that calls other public functions, whichever of them was used before."""
    w = {"w": np.ones(2)}
    xw.diff(w, w)  # from here on diff() answers for itself, as equal() does
    for call, name in ((xw.plot_diff, "plot_diff"), (xw.diff, "diff"), (xw.plot_diff, "plot_diff")):
        with pytest.raises(xw.ArgumentError, match=rf"^names= of {name}\(\) is of the wrong kind\n"):
            call(w, w, names=3.5)


def _sections(page: str, absent: set[str]) -> list[str]:
    parts = re.split(r"(?m)^## ", page)
    return [part for part in parts if part.partition("\n")[0] not in absent]


def _settled(text: str) -> str:
    """Leave out what differs by Python's version, and by which backends are installed."""
    lines = [line for line in text.splitlines() if not line.startswith(("cause: ", "installed"))]
    return re.sub(r" at 0x[0-9a-f]+", "", "\n".join(lines))
