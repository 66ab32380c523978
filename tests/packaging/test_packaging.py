"""The distribution as it is installed: what it declares, what an import of it brings along, and what it doesn't."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import absent
import pytest

DISTRIBUTION = "xweights-nn"
REPOSITORY = Path(__file__).resolve().parents[2]
FRAMEWORKS = {"torch", "keras", "tensorflow", "jax"}
ADAPTERS = {f"xweights_{framework}" for framework in FRAMEWORKS}
Imported = Callable[[str], dict[str, set[str]]]
PACKAGES = sorted({"xweights"} | ADAPTERS)
ONLY_WHEN_NEEDED = {"rich", "typer", "safetensors", "ml_dtypes", "h5py", "matplotlib"}

TARGETS = {
    "torch": "import torch; target = torch.nn.Linear(2, 3)",
    "tensorflow": "import tensorflow as tf; target = tf.Module(); target.kernel = tf.Variable([1.0, 2.0])",
    "keras": "import keras; target = keras.layers.Dense(3); target.build((None, 2))",
    "jax": "import jax.numpy as jnp; target = {'dense/kernel': jnp.ones((2, 3))}",
    "numpy": "import numpy as np; target = {'dense/kernel': np.ones((2, 3), 'float32')}",
}


# Frameworks that one process is asked about, one after the other: none of them brings the next along. A process each
# would start TensorFlow twice, which takes ten seconds of a processor each time.
CHAINS = (("numpy", "torch", "jax"), ("tensorflow", "keras"))
LOOK = """
import json, sys
found = {}
def look(moment):
    modules = {name for name in sys.modules if name.startswith("xweights")}
    found[moment] = sorted(modules | {name.partition(".")[0] for name in sys.modules})
look("start")
import xweights
look("import")
"""


# What the first use of a verb counts: modules, functions that are written as text and compiled, patterns.
COUNT = """
import builtins, json, re, sys
import numpy
written, patterns = [], []
run, compile = builtins.exec, re.compile
def note_text(source, *args, **kwargs):
    if isinstance(source, str):
        written.append(source)
    return run(source, *args, **kwargs)
def note_pattern(pattern, *args, **kwargs):
    if sys._getframe(1).f_globals["__name__"].startswith("xweights"):
        patterns.append(str(pattern))
    return compile(pattern, *args, **kwargs)
builtins.exec, re.compile = note_text, note_pattern
import xweights
xweights.clip
modules = [name for name in sys.modules if name.startswith("xweights")]
print(json.dumps({"modules": modules, "written": written, "patterns": patterns}))
"""
# All that the name `xweights.clip` needs. Each module more is 0.3 ms for everybody who edits, so what a call may not
# need is imported where it is used.
NEEDED_BY_CLIP = {
    "xweights": {"core", "edit", "errors", "rules"},
    "xweights.core": {
        "blocks", "casting", "dispatch", "dtypes", "entry_points", "former_paths", "groups", "hold_registry",
        "identities", "layout", "names", "numpy_backend", "openers", "parameter", "plan", "protocols", "public_calls",
        "records", "registry", "selection", "shards", "targets", "threads", "tied_names", "values",
    },
    "xweights.edit": {"apply", "drawing", "execute", "grouped", "guards", "verbs"},
    "xweights.rules": {"base", "elementwise"},
}  # fmt: skip


def probe(frameworks: Iterable[str]) -> str:
    """Return a script that edits a target of each framework and prints what was imported at each moment."""
    script = [LOOK]
    for framework in frameworks:
        script += [TARGETS[framework], f"look('{framework}, target')"]
        if framework != "jax":  # whose arrays can't be edited in place
            script += ["xweights.parameters(target); xweights.clip(target, -1, 1)", f"look('{framework}, edit')"]
        if framework != "numpy":
            script += [f"from xweights_{framework} import backend", f"look('{framework}, door')"]
    return "\n".join([*script, "print('FOUND' + json.dumps(found))"])


@pytest.fixture(scope="session")
def imported(shared_folder: Path) -> Imported:
    """Say what a fresh Python has imported at each moment; it is asked once for all workers."""

    def ask(framework: str) -> dict[str, set[str]]:
        (chain,) = [one for one in CHAINS if framework in one]
        if "keras" in chain and keras_backend() != "tensorflow":
            chain = (framework,)
        chain = tuple(one for one in chain if not lacking(one))
        answer = shared_folder / f"imported_by_{'_'.join(chain)}.json"
        if not answer.exists():
            environment = {**os.environ, "KERAS_BACKEND": keras_backend(), "TF_CPP_MIN_LOG_LEVEL": "3"}
            command = [sys.executable, "-c", probe(chain)]
            run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            assert run.returncode == 0, run.stderr
            (line,) = [line for line in run.stdout.splitlines() if line.startswith("FOUND")]
            written = answer.with_suffix(f".{os.getpid()}")
            written.write_text(line.removeprefix("FOUND"), encoding="utf-8")
            written.replace(answer)  # in one go: another worker may look at this moment
        return {moment: set(names) for moment, names in json.loads(answer.read_text(encoding="utf-8")).items()}

    return ask


def keras_backend() -> str:
    """Return what Keras runs on in this run."""
    return os.environ.get("KERAS_BACKEND", "tensorflow")


def lacking(framework: str) -> list[str]:
    """Return what isn't installed of all that a framework needs."""
    wanted = [framework, *([keras_backend()] if framework == "keras" else [])]
    return [one for one in wanted if importlib.util.find_spec(one) is None]


def needed(framework: str) -> str:
    """Return the framework, or skip the test, with the reason, where it isn't installed."""
    if absent := lacking(framework):
        pytest.skip(f"{' and '.join(absent)} not installed")
    return framework


def folder(package: str) -> Path:
    """Where an importable package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None, f"{package} has no __init__.py"
    return Path(spec.origin).parent


# What an import brings along.


def test_importing_xweights_imports_no_framework_and_nothing_that_is_only_sometimes_needed(imported: Imported) -> None:
    found = imported("numpy")
    assert "xweights" in found["import"] - found["start"]
    assert (found["import"] - found["start"]) & (FRAMEWORKS | ADAPTERS | ONLY_WHEN_NEEDED) == set()


@pytest.mark.parametrize(
    ("framework", "unwanted"),
    [
        ("numpy", FRAMEWORKS | ADAPTERS),
        ("torch", {"keras", "tensorflow", "jax"} | ADAPTERS - {"xweights_torch"}),
        ("tensorflow", {"torch", "jax", "xweights_torch", "xweights_jax"}),
    ],
)
def test_a_target_loads_the_backend_of_its_own_framework_and_no_other(
    framework: str, unwanted: set[str], imported: Imported
) -> None:
    found = imported(needed(framework))
    new = found[f"{framework}, edit"] - found[f"{framework}, target"]
    assert new & unwanted == set()
    assert framework == "numpy" or f"xweights_{framework}" in new


def test_a_first_edit_loads_nothing_of_training_files_and_ports(imported: Imported) -> None:
    rooms = ("training", "files", "porting", "optimizers", "merging", "inspection", "state_dict", "sharding.twins")
    loaded = imported(needed("torch"))["torch, edit"]
    assert "xweights_torch.adapter" in loaded
    unneeded = tuple(f"{package}.{room}" for package in ("xweights", "xweights_torch") for room in rooms)
    assert [name for name in sorted(loaded) if name.startswith(unneeded)] == []


def test_the_name_of_a_verb_loads_what_it_needs_and_compiles_little() -> None:
    run = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    needed_modules = {f"{room}.{name}" for room, names in NEEDED_BY_CLIP.items() for name in names}
    assert set(found["modules"]) - needed_modules - {"xweights"} == set()
    # A layout's and a shard's methods, written by `dataclass`: 0.1 ms each. All classes' would be 165.
    assert len(found["written"]) <= 12, "small frozen classes can be records (xweights.core.records)"
    assert found["patterns"] == [], "a pattern can be compiled when something is first matched"


@pytest.mark.keras_backend
def test_a_keras_model_loads_the_backend_of_keras_and_no_framework_that_keras_does_not_run_on(
    imported: Imported,
) -> None:
    found = imported(needed("keras"))
    assert "xweights_keras" in found["keras, edit"] - found["keras, target"]
    others = {"torch", "tensorflow", "jax"} - {keras_backend()}
    assert (found["keras, door"] - found["keras, target"]) & others == set()


@pytest.mark.parametrize("framework", sorted(FRAMEWORKS))
def test_every_door_opens_where_its_framework_is_installed(framework: str, imported: Imported) -> None:
    assert f"xweights_{framework}" in imported(needed(framework))[f"{framework}, door"]


# What the distribution declares.


def test_the_entry_points_bear_the_names_of_the_frameworks_packages() -> None:
    entry_points = metadata.distribution(DISTRIBUTION).entry_points.select(group="xweights.backends")
    assert {entry_point.name: entry_point.value for entry_point in entry_points} == {
        framework: f"xweights_{framework}:backend" for framework in FRAMEWORKS
    }


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


# Frameworks that are left out of a run (`pytest --only=`).


def test_a_package_that_is_left_out_looks_as_though_it_were_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(importlib.util, "find_spec", importlib.util.find_spec)
    for name in [name for name in sys.modules if name.partition(".")[0] == "wsgiref"]:
        monkeypatch.delitem(sys.modules, name)
    assert importlib.util.find_spec("wsgiref") is not None
    absent.leave_out(["wsgiref"])
    assert importlib.util.find_spec("wsgiref") is None
    assert importlib.util.find_spec("wave") is not None
    for name in ("wsgiref", "wsgiref.util"):
        with pytest.raises(ModuleNotFoundError, match="No module named 'wsgiref"):
            importlib.import_module(name)


@pytest.mark.parametrize("framework", sorted(FRAMEWORKS))
def test_what_this_run_leaves_out_cannot_be_imported(framework: str, request: pytest.FixtureRequest) -> None:
    only = request.config.getoption("--only")
    if only is None or framework not in absent.LEFT_OUT[only]:
        pytest.skip(f"{framework} is not left out of this run")
    assert importlib.util.find_spec(framework) is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(framework)
    assert framework not in sys.modules
