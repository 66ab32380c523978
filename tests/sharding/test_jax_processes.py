"""Keras models on the devices of two processes of `jax.distributed`: the bytes of one, or refused by name in both."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from fresh_process import is_installed, names_of, outcome_of, start

if not is_installed("jax", "keras"):
    pytest.skip("processes of JAX", allow_module_level=True)

FILE = "jax_process_checks.py"
SETTINGS = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
BOTH = (0, 1)


def run_both(folder: Path, kind: str) -> list[dict[str, str]]:
    """Return what became of the checks in each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = [start(FILE, str(rank), address, str(folder), kind, **SETTINGS) for rank in BOTH]
    try:
        return [outcome_of(process, 300 if kind == "check" else 600) for process in started]
    finally:
        for process in started:
            process.kill()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[dict[str, str]]:
    return run_both(tmp_path_factory.mktemp("shared"), "check")


@pytest.fixture(scope="module")
def slow_outcomes(tmp_path_factory) -> list[dict[str, str]]:
    return run_both(tmp_path_factory.mktemp("shared"), "slow")


@pytest.mark.parametrize("name", names_of(FILE))
def test_in_two_processes(name: str, outcomes: list[dict[str, str]]) -> None:
    assert not any(outcome[name] for outcome in outcomes), "\n".join(outcome[name] for outcome in outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("name", names_of(FILE, "slow"))
def test_in_two_processes_for_longer(name: str, slow_outcomes: list[dict[str, str]]) -> None:
    assert not any(outcome[name] for outcome in slow_outcomes), "\n".join(outcome[name] for outcome in slow_outcomes)
