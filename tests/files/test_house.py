"""The house rules of the files room: modules don't import each other in circles, and none imports pickle."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
from pathlib import Path

import pytest


def modules() -> dict[str, ast.Module]:
    spec = importlib.util.find_spec("xweights.files")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    return {
        one.stem: ast.parse(one.read_text(encoding="utf-8")) for one in folder.glob("*.py") if one.stem != "__init__"
    }


def imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
    return found


def test_no_two_files_of_the_room_import_each_other_even_by_a_detour() -> None:
    known = modules()
    plan = {
        name: {one.split(".")[2] for one in imported(tree) if one.startswith("xweights.files.")} & known.keys()
        for name, tree in known.items()
    }
    assert {"descriptors", "records", "formats", "checkpoint", "saving", "editing"} <= set(plan)
    try:
        graphlib.TopologicalSorter(plan).prepare()
    except graphlib.CycleError as cycle:
        pytest.fail(f"{cycle.args[0]}: {' <- '.join(cycle.args[1])}")


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_reader_imports_what_runs_code(name: str) -> None:
    dangerous = {
        "pickle",
        "marshal",
        "shelve",
        "dill",
        "cloudpickle",
        "subprocess",
        "ctypes",
        "importlib",
        "ast",
        "code",
    }
    roots = {one.partition(".")[0] for one in imported(modules()[name])}
    assert roots & (dangerous | {"torch", "keras", "tensorflow", "jax", "safetensors"}) == set()
    called = {
        node.func.id
        for node in ast.walk(modules()[name])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called & {"eval", "exec", "compile", "__import__"} == set()
