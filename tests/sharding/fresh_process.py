"""Run the checks of a file in a process of their own, for settings that a framework reads once, when it starts.

A file of checks has functions ``check_...`` and, for those that CI leaves out, ``slow_...``, each with a sentence as
its name. It ends with ``report(globals(), *sys.argv[1:])``.
Starting a process and importing a framework takes long, so one process runs all checks of a file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_MARK = "checks: "


def is_installed(*names: str) -> bool:
    """Return whether packages can be imported, without importing them."""
    for name in names:
        try:
            if importlib.util.find_spec(name) is None:
                return False
        except (ValueError, ImportError):  # left out of this run
            return False
    return True


def names_of(file: str, kind: str = "check") -> list[str]:
    """Return the names of the checks in a file, without running it."""
    return re.findall(rf"^def {kind}_(\w+)", (HERE / file).read_text(encoding="utf-8"), re.MULTILINE)


def run_checks(file: str, *arguments: str, seconds: float = 300, **settings: str) -> dict[str, str]:
    """Return the traceback of each check, empty for one that passed."""
    said = start(file, *arguments, **settings)
    return outcome_of(said, seconds)


def start(file: str, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    """Start a process that runs the checks of a file."""
    settings = {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"} | settings
    # Named in full, since a file's own folder may not be looked into (PYTHONSAFEPATH).
    program = f"import runpy, sys; sys.path.append({str(HERE)!r}); sys.argv = sys.argv[1:]; "
    program += "runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.Popen(
        [sys.executable, "-c", program, str(HERE / file), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | settings,
    )


def outcome_of(process: subprocess.Popen[str], seconds: float) -> dict[str, str]:
    """Wait for a process and return what became of its checks."""
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
        raise AssertionError(f"it hung\n{out[-2000:]}\n{errors[-4000:]}") from None
    lines = [line for line in out.splitlines() if line.startswith(_MARK)]
    assert lines, f"it ended with {process.returncode}\n{out[-2000:]}\n{errors[-4000:]}"
    results: dict[str, str] = json.loads(lines[-1].removeprefix(_MARK))
    return results


def run_example(word: str) -> None:
    """Run the example of docs/sharded.md that has a word in it, where there are pages."""
    page = HERE.parents[1] / "docs" / "sharded.md"
    if page.exists():
        codes = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        (code,) = (code for code in codes if word in code)
        exec(compile(code, page.name, "exec"), {"__name__": "page"})


def report(names: dict[str, Any], kind: str = "check", only: str = "") -> None:
    """Run every check of a kind, and print what became of them. ``only``: those with this text in their names."""
    results = {}
    for name, check in list(names.items()):
        if name.startswith(f"{kind}_") and only in name:
            start = time.perf_counter()
            try:
                check()
            except BaseException:  # noqa: BLE001 - whatever it is, the test shows it
                results[name.removeprefix(f"{kind}_")] = traceback.format_exc()
            else:
                results[name.removeprefix(f"{kind}_")] = ""
            print(f"{time.perf_counter() - start:6.2f} s  {name}", flush=True)
    print(_MARK + json.dumps(results), flush=True)
