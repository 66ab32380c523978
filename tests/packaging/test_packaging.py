"""The distribution as it is installed: what it declares, what an import of it brings along, and what it doesn't."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

DISTRIBUTION = "xweights-nn"
REPOSITORY = Path(__file__).resolve().parents[2]
FRAMEWORKS = {"torch", "keras", "tensorflow", "jax"}
ADAPTERS = {f"xweights_{framework}" for framework in FRAMEWORKS}
PACKAGES = sorted({"xweights"} | ADAPTERS)
ONLY_WHEN_NEEDED = {"rich", "typer", "safetensors", "ml_dtypes", "h5py", "matplotlib"}
ROOMS = ["errors", "axes", "parameter", "backend", "selecting", "rules", "verbs", "holds", "undo", "measure"]
ROOMS += ["plots", "porting", "files", "handing", "merging", "pages", "testing", "command"]

TARGETS = {
    "torch": "import torch; target = torch.nn.Linear(2, 3)",
    "tensorflow": "import tensorflow as tf; target = tf.Module(); target.kernel = tf.Variable([1.0, 2.0])",
    "keras": "import keras; target = keras.layers.Dense(3); target.build((None, 2))",
    "numpy": "import numpy as np; target = {'dense/kernel': np.ones((2, 3), 'float32')}",
}


def newly_imported(code: str, *, after: str = "") -> set[str]:
    """Root packages that `code` imports in a fresh Python, beyond what `after` had imported already."""
    report = "print('IMPORTED', *set(sys.modules) - before)"
    script = f"import sys\n{after}\nbefore = set(sys.modules)\n{code}\n{report}"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("IMPORTED")]
    return {name.partition(".")[0] for name in line.split()[1:]}


def need(*modules: str) -> None:
    """Skip the test, with the reason, if a framework isn't installed."""
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if absent:
        pytest.skip(f"{' and '.join(absent)} not installed")


def folder(package: str) -> Path:
    """Where an importable package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None, f"{package} has no __init__.py"
    return Path(spec.origin).parent


# What an import brings along.


def test_importing_xweights_imports_no_framework_and_nothing_that_is_only_sometimes_needed() -> None:
    imported = newly_imported("import xweights")
    assert "xweights" in imported
    assert imported & (FRAMEWORKS | ADAPTERS | ONLY_WHEN_NEEDED) == set()


@pytest.mark.parametrize(
    ("framework", "unwanted"),
    [
        ("numpy", FRAMEWORKS | ADAPTERS),
        ("torch", {"keras", "tensorflow", "jax"} | ADAPTERS - {"xweights_torch"}),
        ("tensorflow", {"torch", "jax", "xweights_torch", "xweights_jax"}),
        ("keras", {"torch", "jax", "xweights_torch", "xweights_jax"}),
    ],
)
def test_a_target_loads_the_backend_of_its_own_framework_and_no_other(framework: str, unwanted: set[str]) -> None:
    need(framework, *(["tensorflow"] if framework == "keras" else []))
    edit = "import xweights; xweights.parameters(target); xweights.clip(target, -1, 1)"
    imported = newly_imported(edit, after=TARGETS[framework])
    assert imported & unwanted == set()
    assert framework == "numpy" or f"xweights_{framework}" in imported


# What the distribution declares.


def test_the_entry_points_bear_the_names_of_the_frameworks_packages() -> None:
    entry_points = metadata.distribution(DISTRIBUTION).entry_points.select(group="xweights.backends")
    assert {entry_point.name: entry_point.value for entry_point in entry_points} == {
        framework: f"xweights_{framework}:backend" for framework in FRAMEWORKS
    }


@pytest.mark.parametrize("framework", sorted(FRAMEWORKS))
def test_every_door_opens_where_its_framework_is_installed(framework: str) -> None:
    need(framework, *(["tensorflow"] if framework == "keras" else []))
    assert f"xweights_{framework}" in newly_imported(f"from xweights_{framework} import backend")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_that_it_is_typed(package: str) -> None:
    assert (folder(package) / "py.typed").is_file()


def test_the_core_needs_five_small_packages_and_no_framework() -> None:
    requirements = metadata.requires(DISTRIBUTION) or []
    core = {line.split(">")[0] for line in requirements if "extra ==" not in line}
    assert core == {"numpy", "ml-dtypes", "safetensors", "rich", "typer"}


def test_the_extra_all_leaves_the_choice_of_tensorflow_to_the_user() -> None:
    requirements = metadata.requires(DISTRIBUTION) or []
    everything = [line for line in requirements if "extra == 'all'" in line or 'extra == "all"' in line]
    assert everything
    assert not any("tensorflow" in line for line in everything)


@pytest.mark.skipif("XWEIGHTS_TEST_WHEEL" not in os.environ, reason="only nox tests the wheel")
@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_tested_is_the_wheel_and_not_the_checkout(package: str) -> None:
    assert folder(package) != REPOSITORY / "xweights"
    assert folder(package) != REPOSITORY / "backends" / package


# The rules of the house.


def modules(package: str) -> list[Path]:
    """The source files of an installed package."""
    return sorted(folder(package).rglob("*.py"))


def room(path: Path) -> str:
    """The room of the core that a file is, or lies in."""
    return path.relative_to(folder("xweights")).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms of the core that a file needs when it is imported.

    Not those that only its types name, nor those that a method imports when it is called: `p.assign(x)` is
    short for `set_params`, which lives higher up.
    """
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module == "xweights":
            names |= {f"xweights.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("xweights.")} - {room(path)}


def floor_plan() -> dict[str, set[str]]:
    """Each room of the core, and the rooms that it imports."""
    plan: dict[str, set[str]] = {}
    for path in modules("xweights"):
        if room(path) != "__init__":
            plan.setdefault(room(path), set()).update(imports(path))
    return plan


def test_lower_rooms_of_the_core_never_import_higher_ones() -> None:
    upward = [
        f"{lower} imports {higher}"
        for lower, imported in floor_plan().items()
        for higher in sorted(imported)
        if lower in ROOMS and higher in ROOMS and ROOMS.index(higher) > ROOMS.index(lower)
    ]
    assert upward == []


def test_no_two_rooms_of_the_core_import_each_other_even_by_a_detour() -> None:
    try:
        graphlib.TopologicalSorter(floor_plan()).prepare()
    except graphlib.CycleError as cycle:
        pytest.fail(f"{cycle.args[0]}: {' <- '.join(cycle.args[1])}")


@pytest.mark.parametrize(
    ("folder_room", "some"),
    [
        ("porting", {"protocol", "units", "recipes", "plan", "trace", "matching", "moving", "verify"}),
        ("handing", {"protocol", "formulas", "numbers", "state", "carrying", "access", "moving", "proving"}),
        ("merging", {"streams", "means", "vectors", "table", "pairing", "working", "joining"}),
    ],
)
def test_no_two_files_of_a_room_import_each_other_even_by_a_detour(folder_room: str, some: set[str]) -> None:
    plan = {}
    for path in modules("xweights"):
        if room(path) == folder_room and path.stem != "__init__":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            names = [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
            plan[path.stem] = {name.split(".")[2] for name in names if name.startswith(f"xweights.{folder_room}.")}
    assert some <= set(plan)
    try:
        graphlib.TopologicalSorter(plan).prepare()
    except graphlib.CycleError as cycle:
        pytest.fail(f"{cycle.args[0]}: {' <- '.join(cycle.args[1])}")


def test_no_room_bears_the_name_of_a_public_function() -> None:
    import xweights

    assert {room(path) for path in modules("xweights")} & set(xweights.__all__) == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_longer_than_400_lines(package: str) -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in modules(package)}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
