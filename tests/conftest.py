"""Settings that all tests share."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# No deadlines, and no check of how quickly data is drawn: a busy machine says nothing about the code. CI draws the same
# examples every time, so that a red run is about the change; `nox -s nightly` draws many more, and others each time.
QUIET = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
}
settings.register_profile("ci", max_examples=20, derandomize=True, database=None, **QUIET)
settings.register_profile("nightly", max_examples=200, print_blob=True, **QUIET)
settings.load_profile(os.environ.get("XWEIGHTS_HYPOTHESIS", "ci"))


def pytest_configure() -> None:
    """Let Ctrl-C interrupt, as it does at a terminal: a shell starts background processes with it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
