"""The public names: which there are, what type checkers see of them, and pickles made under their former paths."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights

HERE = Path(__file__).resolve().parent
STUB = HERE.parents[1] / "xweights" / "__init__.pyi"
PICKLES: dict[str, str] = json.loads((HERE / "pickles_of_0_1.json").read_text(encoding="utf-8"))


def stub() -> str:
    """What xweights/__init__.pyi has to say, by the table in xweights/__init__.py."""
    imports = sorted(f"from {module} import {name} as {public}" for public, (module, name) in xweights._HOME.items())
    names = "".join(f'    "{name}",\n' for name in xweights.__all__)
    head = (
        "# The names of the table in __init__.py, for type checkers. Written by tests/packaging/test_public_names.py."
    )
    return "\n".join([head, "", *imports, "", "__version__: str", "", f"__all__ = [\n{names}]", ""])


def test_the_public_names_are_those_of_the_list() -> None:
    """A name that comes or goes is a decision: change public_names.txt with it."""
    assert xweights.__all__ == (HERE / "public_names.txt").read_text(encoding="utf-8").split()
    assert set(xweights.__all__) <= set(dir(xweights))
    assert all(getattr(xweights, name) is not None for name in xweights.__all__)


@pytest.mark.skipif(not STUB.exists(), reason="only a checkout has the file that is compared")
def test_type_checkers_see_the_same_table() -> None:
    if os.environ.get("XWEIGHTS_WRITE_PAGE"):
        STUB.write_text(stub(), encoding="utf-8")
    assert STUB.read_text(encoding="utf-8") == stub(), "Fix: XWEIGHTS_WRITE_PAGE=1 pytest tests/packaging"


def test_the_first_use_of_a_name_loads_its_room_and_not_all_of_them() -> None:
    code = "import sys, xweights; xweights.clip; print(*[m for m in sys.modules if m.startswith('xweights.')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    rooms = {name.split(".")[1] for name in loaded}
    assert {"core", "rules", "edit"} <= rooms <= {"core", "rules", "edit", "errors"}


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'clipp'"):
        xweights.clipp  # noqa: B018


@pytest.mark.parametrize("name", sorted(PICKLES))
def test_a_pickle_of_0_1_loads(name: str) -> None:
    if name.startswith("torch") and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    thing: Any = pickle.loads(base64.b64decode(PICKLES[name]))
    if name.startswith("class "):
        assert thing is getattr(xweights, name.removeprefix("class "))
    elif name == "Params":
        assert thing.axes["dense/kernel"] == ("in", "out")
        assert np.array_equal(thing["dense/kernel"], np.arange(6, dtype=np.float32).reshape(2, 3))
    else:
        assert repr(thing)
        assert pickle.loads(pickle.dumps(thing)).__class__ is thing.__class__


def test_a_path_is_a_target_before_anything_else_was_used(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **{"a/kernel": np.ones(2)})
    code = f"import xweights; print(xweights.parameters({str(tmp_path / 'w.npz')!r})[0].name)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["a/kernel"], run.stderr


@pytest.mark.parametrize(
    ("former", "today", "name"),
    [
        ("xweights_keras.optimizers_maths", "xweights_keras.optimizers.foreign", "ForeignOptimizer"),
        ("xweights_keras.optimizers_rates", "xweights_keras.optimizers.schedules", "NeutralRate"),
        ("xweights_torch.optimizers_rates", "xweights_torch.optimizers.schedules", "Share"),
    ],
)
def test_saved_models_and_schedules_find_their_classes_under_the_former_path(
    former: str, today: str, name: str
) -> None:
    """Keras writes the module of a class into a saved model, and imports it if nothing else has."""
    framework = former.partition(".")[0].removeprefix("xweights_")
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    importlib.import_module(former.partition(".")[0])
    found = getattr(importlib.import_module(former), name)
    assert found.__module__ == today
    assert getattr(importlib.import_module(today), found.__name__) is found


def test_a_plugin_that_imports_only_the_protocols_can_read_a_parameter() -> None:
    code = (
        "import numpy as np, xweights.backend; from xweights.core.mappings import mapping_parameters; "
        "p = mapping_parameters({'a': np.zeros(2)})[0]; p.assign([1.0, 2.0]); print(*p.numpy())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["1.0", "2.0"], run.stderr
