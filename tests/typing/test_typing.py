"""A user's code runs as it is written, the type checkers find nothing in it, and mistakes are found."""

from __future__ import annotations

import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import xweights as xw

HERE = Path(__file__).resolve().parent


def test_the_code_that_is_checked_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("user_code", HERE / "user_code.py")
    assert spec is not None
    assert spec.loader is not None
    user_code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(user_code)
    user_code.main(tmp_path)
    assert "selects nothing" in capsys.readouterr().out


def test_dir_lists_the_public_names_and_nothing_that_is_imported() -> None:
    assert [name for name in dir(xw) if not name.startswith("__")] == [
        name for name in xw.__all__ if not name.startswith("__")
    ]


def test_no_module_has_a_public_name_that_it_would_shadow_once_it_is_imported() -> None:
    assert {module.name for module in pkgutil.iter_modules(xw.__path__)} & set(xw.__all__) == set()


@pytest.mark.thorough
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy not installed: nox -s types")
def test_mypy_finds_what_is_marked_as_a_mistake_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(HERE)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
