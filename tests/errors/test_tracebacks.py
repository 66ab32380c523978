"""A user's traceback ends at the outermost frame inside xweights, in notebooks and in pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xweights as xw
from xweights.errors import XweightsError


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XWEIGHTS_FULL_TRACEBACKS", raising=False)


def shown_frames(wrong: XweightsError) -> list[str]:
    lines = wrong._render_traceback_()
    return [line.split('"')[1] for line in lines if line.lstrip().startswith("File ")]


def test_a_notebook_shows_one_frame_inside_the_package() -> None:
    with pytest.raises(xw.SelectionError) as caught:
        xw.fill({"a": np.ones(2)}, 0.0, where="b")
    frames = shown_frames(caught.value)
    assert [Path(frame).name for frame in frames] == ["test_tracebacks.py", "verbs.py"]
    assert caught.value._render_traceback_()[-1].strip() == "Known names: 'a'"


def test_a_function_of_the_user_s_that_fails_inside_is_shown() -> None:
    def inner(w: np.ndarray) -> None:
        xw.fill({"a": w}, 0.0, where="nowhere")

    with pytest.raises(xw.SelectionError) as caught:
        xw.apply({"a": np.ones(2)}, inner, where="a")
    names = [Path(frame).name for frame in shown_frames(caught.value)]
    assert names.count("test_tracebacks.py") == 2
    assert len(names) == 3


def test_a_maintainer_sees_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XWEIGHTS_FULL_TRACEBACKS", "1")
    with pytest.raises(xw.SelectionError) as caught:
        xw.fill({"a": np.ones(2)}, 0.0, where="b")
    assert len(shown_frames(caught.value)) > 3


def test_pytest_shows_a_user_the_line_of_the_test(tmp_path: Path) -> None:
    code = 'import xweights as xw\n\ndef test_it():\n    xw.fill({"a": [1.0]}, 0.0, where="b")\n'
    (tmp_path / "test_user.py").write_text(code)
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_user.py")]
    shown = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path).stdout
    assert ">       xw.fill(" in shown or ">   " in shown
    assert "selection.py" not in shown
    assert "execute.py" not in shown
