"""No file reader imports a module that can run code."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

import pytest


@functools.cache
def modules() -> dict[str, ast.Module]:
    spec = importlib.util.find_spec("xweights.files")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
        for path in folder.rglob("*.py")
        if path.stem != "__init__"
    }


def imports_of(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_reader_imports_a_module_that_runs_code(name: str) -> None:
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
    roots = {module.partition(".")[0] for module in imports_of(modules()[name])}
    assert roots & (dangerous | {"torch", "keras", "tensorflow", "jax", "safetensors"}) == set()
    called = {
        node.func.id
        for node in ast.walk(modules()[name])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called & {"eval", "exec", "compile", "__import__"} == set()
