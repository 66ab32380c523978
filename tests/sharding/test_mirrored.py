"""Models that `tf.distribute.MirroredStrategy` copies to two devices: every replica has the bytes of one process."""

from __future__ import annotations

import pytest
from fresh_process import is_installed, names_of, run_checks

if not is_installed("tensorflow", "keras"):
    pytest.skip("replicas of TensorFlow", allow_module_level=True)

FILE = "mirrored_checks.py"


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return run_checks(FILE, KERAS_BACKEND="tensorflow")


@pytest.fixture(scope="module")
def slow_outcomes() -> dict[str, str]:
    return run_checks(FILE, "slow", KERAS_BACKEND="tensorflow")


@pytest.mark.parametrize("name", names_of(FILE))
def test_on_two_devices(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]


@pytest.mark.parametrize("name", names_of(FILE, "page"))
def test_on_two_devices_by_itself(name: str) -> None:
    # The first fit of the second strategy in a process has been seen to be stopped by TensorFlow ("Shape mismatch in
    # the collective instance"): the strategies count their collectives from the same number.
    outcomes = run_checks(FILE, "page", KERAS_BACKEND="tensorflow")
    assert not outcomes[name], outcomes[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", names_of(FILE, "slow"))
def test_on_two_devices_for_longer(name: str, slow_outcomes: dict[str, str]) -> None:
    assert not slow_outcomes[name], slow_outcomes[name]
