"""Undo brings back exactly the same bits, whoever wrote and however a block ended."""

# ruff: noqa: PT012 - what a block has done before it raises is what is tested

from __future__ import annotations

import signal
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import xweights as xw
from xweights.core.layout import plain_layout
from xweights.core.numpy_backend import NumpyStorage
from xweights.core.parameter import Parameter

PAYLOADS = np.array([0x7FC01234, 0x7F801234, 0xFFC00001, 0x80000000, 0x00000001, 0x7F800000], np.uint32)


def model() -> dict[str, np.ndarray]:
    return {"kernel": PAYLOADS.copy().view(np.float32), "bias": np.arange(3.0), "count": np.array(7)}


def bits(target) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in target.items()}


@given(
    arrays(np.uint16, array_shapes(min_dims=0, max_side=4)), st.sampled_from([np.float16, ml_dtypes.bfloat16, np.int16])
)
def test_a_snapshot_restores_every_bit_in_the_same_arrays(raw: np.ndarray, dtype) -> None:
    target = {"w": raw.copy().view(dtype)}
    home, before = target["w"], xw.snapshot(target)
    xw.fill(target, 1, where=...)
    before.restore()
    assert target["w"] is home
    assert home.tobytes() == raw.tobytes()


def test_nan_payloads_and_minus_zero_come_back() -> None:
    target = model()
    with pytest.raises(RuntimeError), xw.transaction(target):
        xw.scale(target, 0.5)
        raise RuntimeError
    assert np.array_equal(target["kernel"].view(np.uint32), PAYLOADS)


def test_a_snapshot_can_be_restored_again_and_is_not_changed_by_later_edits() -> None:
    target, expected = model(), bits(model())
    before = xw.snapshot(target)
    for _ in range(2):
        xw.fill(target, 5, where=...)
        before.restore()
        assert bits(target) == expected
    assert repr(before) == "<Snapshot of 3 parameters>"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_any_exception_undoes_the_block_and_goes_on(error) -> None:
    target, expected = model(), bits(model())
    with pytest.raises(error), xw.transaction(target):
        xw.fill(target, 5, where=...)
        raise error
    assert bits(target) == expected


def test_ctrl_c_undoes_the_block() -> None:
    target, expected = model(), bits(model())
    with pytest.raises(KeyboardInterrupt), xw.transaction(target):
        target["bias"][0] = 5
        signal.raise_signal(signal.SIGINT)
    assert bits(target) == expected


def test_writes_of_the_users_own_code_are_undone_in_the_array_and_in_its_place() -> None:
    target, expected = model(), bits(model())
    homes = dict(target)
    with pytest.raises(RuntimeError), xw.transaction(target):
        target["bias"][:] = 5.0
        target["kernel"] = np.zeros(6, np.float32)
        del target["count"]
        raise RuntimeError
    assert bits(target) | {"count": expected["count"]} == expected
    assert all(target[name] is homes[name] for name in homes)


def test_arrays_replaced_in_nested_mappings_and_lists_come_back() -> None:
    target = [{"a": {"kernel": np.zeros(2)}}, OrderedDict(kernel=np.zeros(2))]
    homes = target[0]["a"]["kernel"], target[1]["kernel"]
    with pytest.raises(RuntimeError), xw.transaction(target):
        target[0]["a"]["kernel"] = np.ones(2)
        target[1]["kernel"] = np.ones(2)
        raise RuntimeError
    assert (target[0]["a"]["kernel"] is homes[0], target[1]["kernel"] is homes[1]) == (True, True)


def test_parameters_that_are_not_selected_keep_the_edits_of_the_block() -> None:
    target = model()
    with pytest.raises(RuntimeError), xw.transaction(target, where="kernel"):
        target["bias"] = np.ones(3)
        target["count"][...] = 8
        raise RuntimeError
    assert (target["bias"].tolist(), int(target["count"])) == ([1.0, 1.0, 1.0], 8)


def test_a_block_that_ends_well_is_kept() -> None:
    target = model()
    with xw.transaction(target):
        xw.fill(target, 5.0, where="bias")
    assert target["bias"].tolist() == [5.0] * 3


def test_rollback_goes_back_to_the_beginning_and_the_block_goes_on() -> None:
    target = model()
    with xw.transaction(target) as tx:
        xw.fill(target, 5.0, where="bias")
        tx.rollback()
        assert target["bias"].tolist() == [0.0, 1.0, 2.0]
        xw.fill(target, 6.0, where="bias")
    assert target["bias"].tolist() == [6.0] * 3


def test_transactions_nest() -> None:
    target, expected = model(), bits(model())
    with pytest.raises(RuntimeError), xw.transaction(target):
        xw.fill(target, 5.0, where="bias")
        with pytest.raises(ValueError, match="inner"), xw.transaction(target):
            xw.fill(target, 6.0, where="bias")
            raise ValueError("inner")
        assert target["bias"].tolist() == [5.0] * 3
        raise RuntimeError
    assert bits(target) == expected


def test_one_transaction_can_be_entered_twice() -> None:
    target, expected = model(), bits(model())
    tx = xw.transaction(target)
    with pytest.raises(RuntimeError), tx:
        xw.fill(target, 5.0, where="bias")
        with tx:
            xw.fill(target, 6.0, where="bias")
            tx.rollback()
            assert target["bias"].tolist() == [5.0] * 3
        raise RuntimeError
    assert bits(target) == expected


def test_rollback_outside_of_the_block_is_refused() -> None:
    tx = xw.transaction(model())
    with pytest.raises(xw.TraceError, match="has not begun"):
        tx.rollback()


def test_a_read_only_array_prevents_neither_snapshot_nor_transaction() -> None:
    frozen = np.frombuffer(b"\0" * 16)
    target = {"a": np.zeros(2), "frozen": frozen, "z": np.zeros(2)}
    with pytest.raises(RuntimeError), xw.transaction(target):
        target["a"][:] = 1.0
        target["a"].flags.writeable = False
        target["z"][:] = 1.0
        raise RuntimeError
    assert (target["a"].tolist(), target["z"].tolist()) == ([0.0, 0.0], [0.0, 0.0])
    assert not target["a"].flags.writeable


class Flagged(NumpyStorage):
    """Arrays with a trainable flag, as a framework has."""

    def __init__(self) -> None:
        self.flag = True

    def trainable(self, handle) -> bool:
        return self.flag

    def set_trainable(self, handle, flag: bool) -> None:
        self.flag = flag


def test_trainable_flags_come_back_too() -> None:
    storage, array = Flagged(), np.zeros(2)
    p = Parameter(
        name="a", native_name="a", layout=plain_layout((2,)), dtype=array.dtype, storage=storage, handle=array
    )
    with pytest.raises(RuntimeError), xw.transaction(p):
        storage.flag = False
        raise RuntimeError
    assert storage.flag


def test_numpy_arrays_have_no_flag_to_set() -> None:
    (p,) = xw.parameters({"a": np.zeros(2)})
    with pytest.raises(xw.WriteError, match="no trainable flag"):
        p.set_trainable(False)


def test_a_selection_of_nothing_is_refused_before_the_block() -> None:
    with pytest.raises(xw.SelectionError), xw.transaction(model(), where="nothing"):
        pytest.fail("the block was entered")
