"""Keras models that DataParallel and ModelParallel spread over four devices of JAX: the bytes of one device."""

from __future__ import annotations

import pytest
from fresh_process import is_installed, names_of, run_checks

if not is_installed("jax", "keras"):
    pytest.skip("devices of JAX", allow_module_level=True)

FILE = "keras_on_jax_checks.py"
SETTINGS = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return run_checks(FILE, **SETTINGS)


@pytest.fixture(scope="module")
def slow_outcomes() -> dict[str, str]:
    return run_checks(FILE, "slow", **SETTINGS)


@pytest.mark.parametrize("name", names_of(FILE))
def test_on_four_devices(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", names_of(FILE, "slow"))
def test_on_four_devices_for_longer(name: str, slow_outcomes: dict[str, str]) -> None:
    assert not slow_outcomes[name], slow_outcomes[name]
