"""Faults of a careless port are detected, with their layer and cause; right ports raise no alarm."""

from __future__ import annotations

import pytest

mutate = pytest.importorskip("mutate", reason="the twins are of Keras and of torch")
keras = pytest.importorskip("keras")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="once is enough")


def check(count):
    rows = list(mutate.judge(mutate.choose(count)))
    assert [row for row in rows if not row[2]] == []
    assert [row for row in rows if row[0] == "no fault"] == []
    assert len(rows) == count
    assert sum(row[3] for row in rows) >= 0.98 * count
    assert sum(row[4] for row in rows) >= 0.95 * count


def test_some_faults_of_each_kind_are_detected_and_named():
    check(34)


@pytest.mark.slow
def test_two_hundred_faults_are_detected_and_named():
    check(200)
