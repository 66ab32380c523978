"""Settings that all tests share: hypothesis' profiles, frameworks that are left out, and how long each test took."""

from __future__ import annotations

import gc
import json
import os
import random
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent / "packaging"))

from absent import LEFT_OUT, leave_out
from older import absent_here, age_torch, reason_to_skip

# No deadlines, and no check of how quickly data is drawn: a busy machine says nothing about the code. CI draws the same
# examples every time, so that a red run is about the change; `nox -s nightly` draws many more, and others each time.
QUIET = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
}
settings.register_profile("ci", max_examples=10, derandomize=True, database=None, **QUIET)
settings.register_profile("nightly", max_examples=200, print_blob=True, **QUIET)
settings.load_profile(os.environ.get("XWEIGHTS_HYPOTHESIS", "ci"))

# Errors keep the frames inside xweights, which pytest and notebooks leave out for users.
os.environ.setdefault("XWEIGHTS_FULL_TRACEBACKS", "1")

SECONDS: dict[str, float] = {}
# Their tests share what takes long to make, so that one process should run all of a file.
IN_ONE_PROCESS = (
    "tests/files/test_corpus.py",
    "tests/inspection/test_html_report.py",
    "tests/packaging/test_contracts.py",
    "tests/packaging/test_packaging.py",
    "tests/training/test_demo_training.py",
)
# What takes long, and has its twin in CI: other dtypes and optimizers of a test, and whole networks.
# (Cells of tests/matrix and of late attachments, numbers of steps and of kills say it where they are parametrized.)
AT_NIGHT = re.compile(
    r"""tests/backends/test_ops\.py::test_set_at_writes_.*-(float64|float16|bfloat16)-(jax-jit|tensorflow-(graph|xla))\]
    |tests/backends/test_ops\.py::test_set_at_writes_.*-float16-jax-eager\]
    |tests/backends/test_ops\.py::test_clip_.*[-[](float64|float16|bfloat16)-(jax-jit|tensorflow-(graph|xla))\]
    |tests/backends/test_ops\.py::test_operations_that_only_move_.*\[(float64|float16)-(jax-jit|tensorflow-(graph|xla))\]
    |tests/backends/test_ops\.py::test_multiply_rounds_.*\[(0\.0|-0\.0|1\.0)-.*-(jax-jit|tensorflow-(graph|xla))\]
    |tests/backends/test_ops\.py::test_cast_rounds_.*\[(float64|float16|bfloat16)-.*-jax-eager\]
    |tests/backends/test_ops\.py::test_the_largest_singular_.*\[float32-tensorflow-xla\]
    |tests/backends/torch/test_ops\.py::test_a_chain_of_rules_.*\[(eager|aot_eager)-torch\.(float64|float16)\]
    |tests/backends/torch/test_ops\.py::test_a_chain_of_rules_.*\[inductor-torch\.(float64|float16|bfloat16)\]
    |tests/backends/torch/test_ops\.py::test_without_the_fence_.*\[torch\.float16\]
    |tests/backends/torch/test_ops\.py::test_compiled_code_moves_bits_.*\[inductor-torch\.(float64|float16|bfloat16)\]
    |tests/cli/test_whole_files\.py::test_no_stream_is_too_narrow_.*\[words(0-utf-8|1-cp1252|1-utf-8|2-.*|3-cp1252|3-utf-8)\]
    |tests/edit/test_properties\.py::.*\[keras-(float64|float16)\]
    |tests/optimizers/test_handoff\.py::test_two_biases_.*\[(RMSprop,.*|NAdam|AdamW|SGD,.*)\]
    |tests/optimizers/test_handoff\.py::test_gradients_of_embeddings_.*\[True\]
    |tests/optimizers/test_handoff\.py::test_pytorchs_muon_.*-True\]
    |tests/optimizers/test_handoff\.py::test_slots_are_ported_.*\[(gru|attention)-to[ ]PyTorch\]
    |tests/optimizers/test_handoff\.py::test_training_goes_on_in_pytorch_.*\[(mlp-muon|norms-adam,|lstm-).*
    |tests/optimizers/test_handoff\.py::test_training_goes_on_in_keras_.*\[(lstm-NAdam|cnn-Adafactor)\]
    |tests/optimizers/test_state\.py::test_a_state_is_saved_.*\[(nadam|adafactor)-.*(?<!npz)\]
    |tests/optimizers/test_training_state\.py::test_verify_handoff_trains_both_sides_.*
    |tests/porting/test_faults\.py::test_some_faults_of_each_kind_.*
    |tests/porting/test_networks\.py::test_a_(pretrained_speaker_encoder|resnet_with_two_blocks)_.*
    |tests/porting/test_networks\.py::test_an_application_of_keras_.*
    |tests/porting/test_silence\.py::test_scrambled_names_never_.*-1\]
    |tests/training/test_averages\.py::test_averages_follow_.*\[(jit-adamw|keras-(sgd|ema|loss[ ]scaling))-swa-.*
    |tests/rules/test_pruning\.py::test_the_traced_implementation_.*\[(float16|float64)-.*
    |tests/training/test_article_[04]\.py::.*\[keras-jit\]
    |tests/training/test_averages\.py::test_averages_follow_.*\[(jit-adamw|keras-(sgd|adamw))-0\.9-.*
    |tests/training/test_demo_training\.py::.*
    |tests/training/test_freeze\.py::test_a_frozen_parameter_keeps_.*\[(keras-(adamw|accumulation|ema|muon)|jit-ema)-.*
    |tests/training/test_freeze\.py::test_free_entries_move_.*\[(keras-(adamw|accumulation|ema|muon)|jit-ema)-.*
    |tests/training/test_holds\.py::test_a_rule_that_cannot_be_held_.*\[(?!Add).*-keras\]
    |tests/training/test_holds\.py::test_a_held_mask_is_true_.*\[keras-muon\]
    |tests/training/test_holds\.py::test_in_keras_a_hold_takes_.*\[before.*
    |tests/training/test_holds\.py::test_a_held_rule_is_true_.*\[keras-(?!clip|mask|spectral).*
    |tests/training/test_learning_rates\.py::test_a_factor_of_0_.*\[(jit-accumulation|keras-(adamw|loss[ ]scaling))-.*
    |tests/training/test_learning_rates\.py::test_the_arithmetic_is_.*\[keras-adamw\]
    |tests/training/test_learning_rates\.py::test_all_factors_alike_.*\[(jit|keras)-(adam|adamw)\]
    |tests/training/test_prune\.py::test_after_every_step_.*\[(jit-adamw|keras-loss[ ]scaling)\]""",
    re.VERBOSE,
)
# What JAX under Keras can't change: tables of layers, files, and what is done to arrays that have left the framework.
ALIKE_ON_JAX = (
    "tests/backends/keras/test_building.py",
    "tests/backends/keras/test_layers.py",
    "tests/backends/keras/test_names.py",
    "tests/backends/keras/test_twins.py",
    "tests/cli/",
    "tests/docs/test_readme.py",
    "tests/files/",
    "tests/optimizers/",
    "tests/porting/",
)
# Training goes on in both directions, and in a step that JAX compiles; fit brings variables that are no parameters; a
# port and a skeleton stand for the others, which are run at night.
YET_ON_JAX = (
    "test_seed_states_metrics_and_optimizer_variables",
    "goes_on_in_float32_there_and_back[adam",
    "goes_on_in_a_compiled_keras_step",
    "test_a_pair_is_ported_right[conv1d-",
    "test_a_network_of_equal_blocks_",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take --only, --old-torch and --shuffle."""
    told = "run as though no framework were installed but this one (TensorFlow has Keras with it)"
    parser.addoption("--only", choices=sorted(LEFT_OUT), help=told)
    parser.addoption(
        "--old-torch", action="store_true", help="run without what PyTorch's oldest supported release lacks"
    )
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in a random order, the same for a seed")


def pytest_configure(config: pytest.Config) -> None:
    """Leave frameworks out, and let Ctrl-C interrupt.

    As it does at a terminal: a shell starts background processes with it ignored.
    """
    gc.disable()  # until all is imported and collected, of which nothing is ever garbage
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.only:
        leave_out(LEFT_OUT[config.option.only])
    if config.option.old_torch:
        age_torch()


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say how this run differs from others."""
    seed = config.option.shuffle
    return [f"in random order: --shuffle={seed}"] if seed is not None else []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say which tests go to one process, which wait for the night, and in which order all are run."""
    on_jax = os.environ.get("KERAS_BACKEND") == "jax"
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            # One test with all its parameters: each group costs the process that gives out work as much as one test.
            name = (
                item.path.stem
                if item.nodeid.startswith(IN_ONE_PROCESS)
                else item.nodeid.partition("[")[0].rpartition("/")[2]
            )
            item.add_marker(pytest.mark.xdist_group(name))
        if AT_NIGHT.fullmatch(item.nodeid):
            item.add_marker(pytest.mark.thorough)
        if on_jax and item.nodeid.startswith(ALIKE_ON_JAX) and not any(name in item.nodeid for name in YET_ON_JAX):
            item.add_marker(pytest.mark.thorough)
    if config.option.shuffle is not None:
        random.Random(config.option.shuffle).shuffle(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    """Skip what a release of a framework can't do yet, and say since when it can (tests/packaging/older.py)."""
    report = yield
    if report.failed and call.excinfo is not None:
        absent = list(absent_here(item.config.option.old_torch))
        if reason := reason_to_skip(call.excinfo.value, absent):
            report.outcome = "skipped"
            report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {reason}")
    return report


def pytest_collection_finish() -> None:
    """Let the garbage collector look at what tests make, and no more at frameworks and at thousands of tests."""
    gc.freeze()
    gc.enable()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up a test's setup, call and teardown."""
    test = re.sub(r"@[^\]]*$", "", report.nodeid)  # without its group
    SECONDS[test] = SECONDS.get(test, 0.0) + report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the seconds of each test where noxfile.py adds them up; workers report to the process that writes."""
    out = os.environ.get("XWEIGHTS_SECONDS")
    if out and not hasattr(session.config, "workerinput"):
        Path(out).write_text(json.dumps(SECONDS), encoding="utf-8")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
