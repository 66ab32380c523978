"""The import contracts hold, and a fault of each kind, planted in a copy of the source, turns them red."""

from __future__ import annotations

import configparser
import graphlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CORE = REPOSITORY / "xweights"
BACKENDS = REPOSITORY / "backends"
CONFIG = REPOSITORY / ".importlinter"
BACKEND_PACKAGES = ("xweights_torch", "xweights_keras", "xweights_tensorflow", "xweights_jax")
EVERYWHERE = ("__init__.py", "__init__.pyi", "__main__.py", "py.typed", "__pycache__")

pytestmark = [
    pytest.mark.skipif(not CONFIG.is_file(), reason="the contracts lie in the checkout, and this is none"),
    pytest.mark.skipif(importlib.util.find_spec("importlinter") is None, reason="import-linter not installed"),
]

ROOMS = "The rooms of the core: higher ones import lower ones, never the other way"
INSIDE = "Inside core"
NO_FRAMEWORKS = "The core knows no framework and no backend"
INDEPENDENT = "Backends don't know each other"
BACKEND_ROOMS = "The rooms of the two large backends"
BELOW_THE_API = "Backends are below the public API"
NO_CIRCLES = "No circles among sibling modules, all the way down"

AT_THE_TOP = "\nimport {}\n"
IN_A_FUNCTION = "\ndef planted():\n    import {}\n"
FOR_TYPES_ONLY = "\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import {}\n"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source that may be spoiled."""
    home = tmp_path_factory.mktemp("contracts")
    for one in (CORE, *(BACKENDS / package for package in BACKEND_PACKAGES)):
        shutil.copytree(one, home / one.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CONFIG, home)
    return home


def broken(home: Path, planted: dict[str, str]) -> set[str]:
    """Return the contracts that a copy breaks once this is written at the end of these modules."""
    paths = [home / f"{module.replace('.', '/')}.py" for module in planted]
    before = [path.read_text(encoding="utf-8") for path in paths]
    try:
        for path, old, new in zip(paths, before, planted.values(), strict=True):
            path.write_text(old + new, encoding="utf-8")
        # In front of all else, so that the copy is read and not what is installed.
        environment = {**os.environ, "PYTHONPATH": str(home), "COLUMNS": "200"}
        program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
        command = [sys.executable, "-c", program, "--no-cache"]
        ran = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    finally:
        for path, old in zip(paths, before, strict=True):
            path.write_text(old, encoding="utf-8")
    assert "Contracts: " in ran.stdout, ran.stdout + ran.stderr
    red = {line.partition(" BROKEN")[0] for line in ran.stdout.splitlines() if " BROKEN" in line}
    assert bool(red) is (ran.returncode != 0), ran.stdout + ran.stderr
    return red


def test_the_source_keeps_every_contract(copy: Path) -> None:
    assert broken(copy, {}) == set()


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(AT_THE_TOP, id="at the top"),
        pytest.param(IN_A_FUNCTION, id="in a function"),
        pytest.param(FOR_TYPES_ONLY, id="under TYPE_CHECKING"),
    ],
)
def test_an_import_of_a_higher_room_and_a_frameworks_name_in_the_core_are_red(copy: Path, place: str) -> None:
    planted = {
        "xweights.core.layout": place.format("xweights.files.save"),
        "xweights.rules.norms": place.format("torch"),
    }
    assert {ROOMS, NO_FRAMEWORKS} <= broken(copy, planted)


@pytest.mark.parametrize(
    "planted",
    [
        pytest.param({"xweights.rules.base": IN_A_FUNCTION.format("xweights.rules.norms")}, id="two files"),
        pytest.param({"xweights_tensorflow.graphs": IN_A_FUNCTION.format("xweights_tensorflow.adapter")}, id="three"),
    ],
)
def test_a_circle_that_closes_inside_a_function_is_red(copy: Path, planted: dict[str, str]) -> None:
    assert broken(copy, planted) == {NO_CIRCLES}


def test_each_of_the_other_contracts_can_be_broken(copy: Path) -> None:
    planted = {
        "xweights.core.tables": AT_THE_TOP.format("xweights.core.params"),
        "xweights_torch.storage": IN_A_FUNCTION.format("xweights_keras.walk"),
        "xweights_keras.walk": FOR_TYPES_ONLY.format("xweights.api"),
        "xweights_torch.walk": AT_THE_TOP.format("xweights_torch.skeleton"),
    }
    assert {INSIDE, INDEPENDENT, BELOW_THE_API, BACKEND_ROOMS} <= broken(copy, planted)


def test_one_import_is_ignored_and_no_other() -> None:
    config = configparser.ConfigParser()
    config.read(CONFIG, encoding="utf-8")
    ignored = [config[section].get("ignore_imports", "").strip() for section in config.sections()]
    assert [one for one in ignored if one] == ["xweights_keras.storage.jax -> xweights_jax.ops"]


def test_no_modules_import_each_other_by_any_detour_not_even_through_the_packages_that_they_lie_in() -> None:
    grimp = pytest.importorskip("grimp", reason="grimp not installed")
    graph = grimp.build_graph("xweights", *BACKEND_PACKAGES, cache_dir=None)
    plan = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert "xweights.rules.base" in plan["xweights.rules.norms"]
    try:
        graphlib.TopologicalSorter(plan).prepare()
    except graphlib.CycleError as cycle:
        pytest.fail(f"{cycle.args[0]}: {' <- '.join(cycle.args[1])}")


# What the contracts don't see.


def entries(folder: Path) -> list[str]:
    """What a reader finds in a folder, apart from the files that every package has."""
    return sorted(path.name for path in folder.iterdir() if path.name not in EVERYWHERE)


def test_the_top_of_the_core_has_14_entries_at_most() -> None:
    assert len(entries(CORE)) <= 14, entries(CORE)


@pytest.mark.parametrize("package", BACKEND_PACKAGES)
def test_the_top_of_a_backend_has_14_files_at_most(package: str) -> None:
    files = [name for name in entries(BACKENDS / package) if name.endswith(".py")]
    assert len(files) <= 14, files


def test_no_room_bears_the_name_of_a_public_function() -> None:
    import xweights

    assert {name.removesuffix(".py") for name in entries(CORE)} & set(xweights.__all__) == set()


def test_no_file_is_longer_than_400_lines() -> None:
    files = [path for home in (CORE, BACKENDS) for path in home.rglob("*.py")]
    assert len(files) > 100
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
