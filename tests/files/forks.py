"""Forked processes that are ended in the middle of what they do."""

from __future__ import annotations

import os
from collections.abc import Callable


def in_a_fork(work: Callable[[], None]) -> int:
    """Run a function in a forked process that has imported everything already; return its pid."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid
