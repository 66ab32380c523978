"""The table of promises has a row for each promise and verb, a column for each dtype, and shows what is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xweights.testing import CHECKS, check_conformance
from xweights.testing.__main__ import main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_numpy_keeps_every_promise_in_every_dtype() -> None:
    report = check_conformance(lambda dtype: {"kernel": np.ones((4, 3), dtype), "bias": np.zeros(3, dtype)})
    assert report.ok
    assert report.columns == ("float64", "float32", "float16", "bfloat16")
    assert len(report.results) == len(CHECKS) - 1 + 2 * 14
    assert str(report).endswith("every promise is kept")


def test_a_dtype_that_a_framework_lacks_is_said_and_not_counted() -> None:
    def make(dtype):
        if dtype.itemsize == 2:
            raise NotImplementedError("no half precision")
        return {"kernel": np.ones((2, 2), dtype)}

    report = check_conformance(make)
    assert report.columns == ("float64", "float32")
    assert "bfloat16 was not tried: NotImplementedError: no half precision" in str(report)


def test_a_factory_without_arguments_has_one_column() -> None:
    assert check_conformance(lambda: {"kernel": np.ones((2, 2), np.float32)}).columns == ("float32",)


def test_a_factory_that_makes_nothing_keeps_no_promise() -> None:
    def make(dtype: Any) -> Any:
        raise RuntimeError("out of order")

    report = check_conformance(make)
    assert not report.ok
    assert "nothing was tried" in str(report)
    assert "float32 was not tried: RuntimeError: out of order" in str(report)


def test_a_misspelt_dtype_is_a_mistake_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["nets:make", "--dtypes", "float32,flaot16"])
    assert left.value.code == 2
    assert "got: flaot16" in capsys.readouterr().err


toy = pytest.mark.skipif(not EXAMPLES.exists(), reason="only a checkout has the toy backend")
FACTORY = """
from xweights_toy.framework import Network, linear, lookup

def make(dtype):
    return Network(dense=linear(4, 3, dtype), table=lookup(5, 2, dtype))
"""


@toy
def test_the_toy_passes_from_one_command(tmp_path) -> None:
    done = run(tmp_path, FACTORY)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert len(report["columns"]) == 4


@toy
def test_a_backend_that_loses_a_write_is_told_which_promises_it_breaks(tmp_path) -> None:
    broken = FACTORY + "\nfrom xweights_toy.storage import SlotStorage\nSlotStorage.write = lambda *_: None\n"
    done = run(tmp_path, broken, "--dtypes", "float32")
    assert done.returncode == 1
    results = json.loads(done.stdout)["results"]
    assert results["what is written is read again"][0] is not None
    assert results["names are the same for two instances"] == [None]


def run(folder: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "nets.py").write_text(f"import sys; sys.path.append({str(EXAMPLES)!r})\n{code}", encoding="utf-8")
    # The factory's module is imported before the backend is asked for anything.
    (folder / "toy.py").write_text("import nets\nfrom xweights_toy import backend\n", encoding="utf-8")
    command = [sys.executable, "-m", "xweights.testing", "nets:make", "--backend", "xweights_toy=toy:backend", "--json"]
    return subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, check=False)
