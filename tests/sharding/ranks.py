"""Run a function on several ranks: forked processes, with gloo on the loopback device.

Forked, because a spawned process imports torch again: 11 seconds for two ranks against 0.15.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from xweights.errors import XweightsError

# Far more than a test takes, as a fork of a process with every framework in it is slow beside other work.
SECONDS = 180


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 20.0) -> list[Any]:
    """Return what ``function(rank, *arguments)`` returns on each rank; raise what a rank raised."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [_fork(rank, size, function, arguments, Path(folder) / "meeting", timeout) for rank in range(size)]
        answers = _read_all(ranks)
    failed = [f"rank {rank}:\n{text}" for rank, (good, text) in enumerate(answers) if not good]
    assert not failed, "\n".join(failed)
    return [answer for _, answer in answers]


def _fork(
    rank: int, size: int, function: Callable[..., Any], arguments: Any, meeting: Path, timeout: float
) -> tuple[int, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    answer: tuple[bool, Any] = (False, "it never answered")
    try:
        os.close(reading)
        answer = (True, _run(rank, size, function, arguments, meeting, timeout))
    except BaseException:  # noqa: BLE001 - whatever it is, the parent shows it
        answer = (False, traceback.format_exc())
    finally:
        try:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(pickle.dumps(answer))
            sys.stdout.flush()
        finally:
            os._exit(0)


def _run(rank: int, size: int, function: Callable[..., Any], arguments: Any, meeting: Path, timeout: float) -> Any:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    return function(rank, *arguments)


def _read_all(ranks: list[tuple[int, int]]) -> list[tuple[bool, Any]]:
    received = {pipe: b"" for _, pipe in ranks}
    waiting = set(received)
    end = time.monotonic() + SECONDS
    while waiting:
        ready, _, _ = select.select(list(waiting), [], [], max(0.0, end - time.monotonic()))
        if not ready:
            break
        for pipe in ready:
            part = os.read(pipe, 1 << 16)
            received[pipe] += part
            if not part:
                waiting.discard(pipe)
    answers = []
    for child, pipe in ranks:
        if pipe in waiting:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(pipe)
        answers.append(pickle.loads(received[pipe]) if pipe not in waiting and received[pipe] else (False, "it hung"))
    return answers


def check_that_all_raised(answers: list[dict[str, Any]], what: str, kind: str, text: str) -> None:
    """Check that on each rank the error under a name, (type, text), is of a type and has a text in it."""
    for answer in answers:
        assert answer[what] is not None, what
        assert kind in answer[what][0]
        assert text in answer[what][1]


def caught(call: Any) -> Any:
    """Return the error that a call raises, with its text; None if it raises nothing."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the test looks at what it is
        kinds = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, XweightsError)]
        return kinds or [type(error).__name__], str(error)
    return None
