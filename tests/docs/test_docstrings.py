"""Every public name has a docstring with a runnable example, which is run here."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re

import pytest

import xweights
from xweights.edit import verbs

PUBLIC = sorted(set(xweights.__all__))
ERRORS = {name for name in PUBLIC if name.endswith("Error")}
MODULES = sorted(module.name for module in pkgutil.walk_packages(xweights.__path__, "xweights."))
VERBS = [*sorted(name for name in PUBLIC if inspect.isfunction(getattr(verbs, name, None))), "prune"]
ALWAYS_EXACT_OR_CLOSE = [
    *VERBS,
    "set_params",
    "get_params",
    "snapshot",
    "transaction",
    "stats",
    "diff",
    "equal",
    "merge",
    "save",
    "convert",
]


def doc_of(name: str) -> str:
    return inspect.getdoc(getattr(xweights, name)) or ""


def missing_frameworks(test: doctest.DocTest) -> list[str]:
    """Return the packages that an example needs and that aren't installed here."""
    wanted = [
        name for name in ("torch", "keras") if any(f"import {name}" in example.source for example in test.examples)
    ]
    if any("xw.plot" in example.source for example in test.examples):
        wanted.append("matplotlib")
    if any("xw.import_hf" in example.source for example in test.examples):
        wanted.append("transformers")
    return [name for name in wanted if importlib.util.find_spec(name) is None]


def need_frameworks(test: doctest.DocTest) -> None:
    missing = missing_frameworks(test)
    if missing:
        pytest.skip(f"the example needs {', '.join(missing)}")


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_docstring(name: str) -> None:
    own = getattr(xweights, name)
    assert own.__doc__
    assert len(doc_of(name).splitlines()[0]) > 20


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - ERRORS))
def test_a_public_name_shows_an_example_that_runs(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    found = doctest.DocTestFinder(recurse=False).find(getattr(xweights, name), name, globs={})
    assert any(test.examples for test in found), f"xweights.{name} has no example"
    for test in found:
        need_frameworks(test)
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("name", ALWAYS_EXACT_OR_CLOSE)
def test_a_verb_says_whether_it_is_exact_or_close_and_how_close(name: str) -> None:
    said = re.search(r"^(Exact\b|Close \(rtol [0-9.e-]+\))", doc_of(name), re.MULTILINE)
    assert said, f"xweights.{name} says neither Exact nor Close"


@pytest.mark.parametrize(
    "name", [*ALWAYS_EXACT_OR_CLOSE, "parameters", "apply", "bind", "summary", "load", "edit_file"]
)
def test_a_function_documents_its_errors_and_arguments(name: str) -> None:
    text = doc_of(name)
    assert "Raises" in text
    for argument in inspect.signature(getattr(xweights, name)).parameters:
        assert re.search(rf"^\s*([\w, ]+, )?\*{{0,2}}{argument}(, [\w, ]+)?:", text, re.MULTILINE), (
            f"{name}: {argument}"
        )


@pytest.mark.parametrize("name", VERBS)
def test_a_verbs_promise_is_its_rules_promise(name: str) -> None:
    rule = {"init": "Init", "noise": "Noise", "prune": "Prune"}.get(name, "".join(w.title() for w in name.split("_")))
    promised = bool(re.search(r"^Exact\b", doc_of(name), re.MULTILINE))
    assert getattr(xweights, rule).exact is promised


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_run(module: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        loaded = importlib.import_module(module)
    except ImportError as missing:
        pytest.skip(f"{module} needs {missing.name}")
    for test in doctest.DocTestFinder().find(loaded):
        if not missing_frameworks(test):  # the test of the public name above says that it was skipped
            assert doctest.DocTestRunner().run(test).failed == 0


def test_all_is_sorted_and_every_name_exists() -> None:
    assert list(xweights.__all__) == PUBLIC
    assert all(hasattr(xweights, name) for name in PUBLIC)
