"""Assertions on weights pass where weights are the same, and say what differs where they aren't."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from xweights.testing import assert_same_weights


def test_the_same_weights_pass_whatever_holds_them() -> None:
    assert_same_weights({"a": {"kernel": np.eye(2)}}, {"a/kernel": np.eye(2)})


def test_another_bit_is_an_assertion_error_with_the_table_of_differences() -> None:
    a = {"kernel": np.ones((2, 2)), "bias": np.zeros(2)}
    b = {"kernel": np.array([[1, 1], [1, 1.5]]), "bias": np.zeros(2)}
    with pytest.raises(AssertionError, match=r"the weights differ\n[\s\S]*kernel\s+1 of 4\s+0\.5"):
        assert_same_weights(a, b)
    assert_same_weights(a, b, rtol=0.5)
    assert_same_weights(a, b, where="bias")


def test_weights_that_only_one_has_are_named() -> None:
    with pytest.raises(AssertionError, match=r"bias +only in a"):
        assert_same_weights({"kernel": np.ones(2), "bias": np.zeros(2)}, {"kernel": np.ones(2)})


@pytest.mark.skipif(not __import__("os").environ.get("XWEIGHTS_TEST_WHEEL"), reason="an entry point needs the wheel")
def test_pytest_finds_the_fixtures_by_itself_and_hides_our_frames(tmp_path) -> None:
    (tmp_path / "test_project.py").write_text(
        textwrap.dedent(
            """
            import numpy as np
            import xweights as xw

            def test_right(assert_same_weights):
                assert_same_weights({"b": np.ones(2)}, {"b": np.ones(2)})

            def test_wrong(assert_same_weights):
                assert_same_weights({"b": np.ones(2)}, {"b": np.zeros(2)})

            def test_params():
                assert xw.get_params({"b": np.ones(2)}) == xw.get_params({"b": np.zeros(2)})
            """
        ),
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "test_project.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "2 failed, 1 passed" in done.stdout
    assert done.stdout.count("the weights differ") >= 2
    assert "comparisons.py" not in done.stdout


def test_the_plugin_alone_imports_no_numpy() -> None:
    code = "import sys, xweights.testing.pytest_plugin; print(sorted({'numpy', 'torch', 'keras'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
