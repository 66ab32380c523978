"""Work on several threads: all of it, once, and the first error."""

from __future__ import annotations

import os
import threading

import pytest

from xweights.core.threads import count_threads, run_all


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_every_call_runs_once(threads: int) -> None:
    done: list[int] = []
    run_all([lambda i=i: done.append(i) for i in range(100)], threads=threads)
    assert sorted(done) == list(range(100))


def test_nothing_is_no_work() -> None:
    run_all([], threads=4)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_error_in_order_is_raised_after_everybody_has_ended(threads: int) -> None:
    before = threading.active_count()

    def fail(i: int) -> None:
        if i >= 3:
            raise ValueError(i)

    with pytest.raises(ValueError, match="3"):
        run_all([lambda i=i: fail(i) for i in range(50)], threads=threads)
    assert threading.active_count() == before


def test_no_call_begins_after_an_error() -> None:
    begun: list[int] = []

    def fail(i: int) -> None:
        begun.append(i)
        raise ValueError(i)

    with pytest.raises(ValueError, match="0"):
        run_all([lambda i=i: fail(i) for i in range(50)], threads=1)
    assert begun == [0]


def test_where_no_thread_can_start_the_caller_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    run_all([lambda i=i: done.append(i) for i in range(9)], threads=4)
    assert done == list(range(9))


@pytest.mark.parametrize(("value", "most"), [("1", 1), ("1,4", 1), ("", None), ("0", None), ("many", None)])
def test_omp_num_threads_limits_them(value: str, most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    free = count_threads()
    assert 1 <= free <= (os.cpu_count() or 1)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert count_threads() == (free if most is None else most)
