"""What all tests start from."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Have Ctrl-C interrupt, as it does at a terminal: a shell starts what runs in the background without."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
