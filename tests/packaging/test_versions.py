"""Which releases of the frameworks are supported, what the older ones lack, and the page that says so."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import older
import pytest

import xweights as xw
from xweights.core import registry

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "versions.md"
TITLES = {"keras": "Keras", "torch": "PyTorch", "tensorflow": "TensorFlow", "jax": "JAX", "numpy": "NumPy"}
# What is compared: the releases at which something came.
RELEASES = {"keras": ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "3.15"), "torch": ("2.6", "2.7", "2.8", "2.9")}

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
in_checkout = pytest.mark.skipif(not PAGE.is_file(), reason="the page lies in the checkout, and this is none")


def parameters(function: Any) -> set[str]:
    """Return the names of a function's parameters."""
    return set(inspect.signature(function).parameters)


def lower_bounds() -> dict[str, str]:
    """Return the oldest release of each package that pyproject.toml allows."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    return dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(lines), re.MULTILINE))


def newest_tested() -> dict[str, str]:
    """Return the newest release of each package that the tests run with."""
    text = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w-]+)==([\w.]+)$", text, re.MULTILINE))


def page() -> str:
    """Return docs/versions.md."""
    oldest, newest = lower_bounds(), newest_tested()
    newer = ", ".join(f"`torch.{name}`" for name in older.NEW_IN_TORCH)
    lines = [
        "# Supported versions",
        "",
        "Written by the tests: `XWEIGHTS_WRITE_PAGE=1 pytest tests/packaging/test_versions.py`.",
        "",
        "Python 3.10 to 3.13, wherever the frameworks have builds.",
        "",
        "| | oldest | newest that is tested |",
        "|---|---|---|",
    ]
    for name, title in TITLES.items():
        package = "tensorflow-cpu" if name == "tensorflow" else name
        lines.append(f"| {title} | {oldest[package]} | {newest[package]} |")
    lines += [
        "",
        "`nox -s oldest` installs the oldest release of all that `pyproject.toml` allows, and runs the tests on it.",
        f"PyTorch is the newest there, too, but without the names that came after 2.6 ({newer}).",
        "Nothing else that is newer is used: `backends/xweights_torch/tables/newer.py` is the list.",
        "",
        "## What came later",
        "",
        "Everything works on each of these releases, except what they don't have themselves.",
    ]
    for framework, releases in RELEASES.items():
        lines += ["", f"| {TITLES[framework]} | {' | '.join(releases)} | where it is missing |"]
        lines.append("|---|" + ":-:|" * len(releases) + "---|")
        for feature in older.FEATURES:
            if feature.framework == framework:
                marks = ("yes" if older.release(one) >= older.release(feature.since) else "no" for one in releases)
                lines.append(f"| {feature.what} | {' | '.join(marks)} | {feature.older} |")
    return "\n".join([*lines, ""])


@in_checkout
def test_the_page_of_versions_says_what_is_declared_and_what_is_tested() -> None:
    if os.environ.get("XWEIGHTS_WRITE_PAGE"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), "Fix: XWEIGHTS_WRITE_PAGE=1 pytest tests/packaging"


@pytest.mark.parametrize("feature", older.FEATURES, ids=lambda feature: f"{feature.framework} {feature.what}")
def test_a_release_has_a_feature_from_the_version_on_that_the_page_says(
    feature: older.Feature, request: pytest.FixtureRequest
) -> None:
    version = older.installed(feature.framework)
    if version is None or importlib.util.find_spec(feature.framework) is None:
        pytest.skip(f"{feature.framework} is not installed")
    if request.config.option.old_torch and feature.framework == "torch":
        pytest.skip("this PyTorch was made to look old")
    framework = importlib.import_module(feature.framework)
    there = eval(feature.there, {feature.framework: framework, "parameters": parameters, "inspect": inspect})
    assert there == (older.release(version) >= older.release(feature.since)), version


@pytest.mark.parametrize("name", older.NEW_IN_TORCH)
def test_one_module_alone_uses_names_that_the_oldest_supported_pytorch_lacks(name: str) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    spec = importlib.util.find_spec("xweights_torch")
    assert spec is not None
    assert spec.origin is not None
    home = Path(spec.origin).parent
    users = [
        path.name for path in home.rglob("*.py") if re.search(rf"\btorch\.{re.escape(name)}\b", path.read_text("utf-8"))
    ]
    assert users == []
    assert name.rpartition(".")[2] in (home / "tables" / "newer.py").read_text(encoding="utf-8")


def test_pytorch_without_its_newer_names_has_a_backend_and_hands_over_the_rule_of_muon(
    request: pytest.FixtureRequest,
) -> None:
    """Here it is only looked at what the backend says; the whole suite runs without the names under `nox -s oldest`."""
    if not request.config.option.old_torch:
        pytest.skip("this PyTorch is as new as it is: pytest --old-torch")
    import torch

    from xweights_torch.optimizers.table import CLASSES
    from xweights_torch.tables import newer

    assert newer.Muon is None
    assert newer.float8_e8m0fnu is None
    assert "muon" not in {row.rule for row in CLASSES.values()}
    assert torch.optim.SGD in CLASSES


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AttributeError("module 'keras.api.layers' has no attribute 'ReversibleEmbedding'"), "since 3.12"),
        (AttributeError("module 'keras.api.layers' has no attribute 'Dense'"), ""),
        (AssertionError("ReversibleEmbedding differs"), ""),
    ],
)
def test_only_the_answer_of_a_release_that_lacks_a_feature_skips_a_test(error: Exception, reason: str) -> None:
    features = [feature for feature in older.FEATURES if feature.framework == "keras"]
    assert older.reason_to_skip(error, features).endswith(reason)
    assert bool(older.reason_to_skip(error, features)) == bool(reason)
    assert older.reason_to_skip(error, []) == ""


def test_versions_are_compared_as_numbers() -> None:
    assert older.release("3.9.0") < older.release("3.13.2") < older.release("3.15")
    assert older.release("2.13.0+cpu") == (2, 13, 0)
    assert sys.version_info[:2] >= (3, 10)


def test_a_backend_that_cannot_be_imported_names_what_failed_first_and_the_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a framework does that is older than it may be, and wraps the error of an import in one of its own."""

    class Door:
        value = "xweights_numpy:backend"

        def load(self) -> None:
            first = AttributeError("module 'numpy' has no attribute 'float128x'")
            raise ImportError("numpy could not be set up") from first

    monkeypatch.setattr(registry, "_points", {"numpy": Door()})
    monkeypatch.setattr(registry, "_loaded", {})
    with pytest.raises(xw.BackendBrokenError) as caught:
        registry.load("numpy")
    said = str(caught.value).splitlines()
    assert said[1] == (
        "cause: ImportError: numpy could not be set up, because of "
        "AttributeError: module 'numpy' has no attribute 'float128x'"
    )
    assert said[2:4] == [f"installed: numpy {np.__version__}", f"supported: numpy>={lower_bounds()['numpy']}"]
