"""A file is entirely the old one or the new one: under kill -9, a full disk, missing permissions and many readers."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forks import in_a_fork
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import xweights as xw
from xweights.files.io import journal

ENDINGS = ("safetensors", "safetensors.index.json", "npz", "pt", "weights.h5")
posix = pytest.mark.skipif(os.name != "posix", reason="fork, kill -9 and limits are POSIX's")


def weights(value: float, entries: int = 3000) -> dict[str, np.ndarray]:
    """Return arrays of a single number, so that a mix of two files shows."""
    return {f"l{i}/kernel": np.full((entries // 10, 10), value, np.float32) for i in range(4)} | {
        "b": np.full(7, value)
    }


def value_of(path: object) -> float:
    """Return the single number in a file; fail for a mix."""
    found = {float(value) for array in xw.get_params(path).values() for value in np.unique(array)}
    assert len(found) == 1, f"a mix of {found}"
    return found.pop()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# kill -9


def kills(ending: str, folder: Path, count: int, change: Callable[[str, float], None]) -> None:
    path = str(folder / f"w.{ending}")
    xw.save(weights(0.0), path)
    start = time.perf_counter()
    change(path, 0.0)
    usual = time.perf_counter() - start
    source = np.random.default_rng(0)
    seen = set()
    old = 0.0
    for number in range(1, count + 1):
        pid = in_a_fork(lambda number=number: change(path, float(number)))
        time.sleep(source.uniform(0, 1.3) * usual)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        now = value_of(path)
        assert now in (old, float(number)), f"kill {number} left {now}, and not {old} or {number}"
        seen.add(now == old)
        usual *= 1.3 if now == old else 0.77  # so that half of the kills come in time, however busy the machine is
        old = now
    assert seen == {True, False}, "every kill came too early, or too late"
    before = names(folder)
    xw.save(weights(-1.0), path)
    assert value_of(path) == -1.0
    left = names(folder) - {f"w.{ending}"}
    assert len(left) == (1 if ending.endswith("index.json") else 0), f"litter: {left}, of {before}"


def replace(path: str, value: float) -> None:
    xw.save(weights(value), path)


def patch(path: str, value: float) -> None:
    xw.edit_file(path, xw.SetEntries(..., value), where=...)


@posix
@pytest.mark.parametrize(
    "count", [30, pytest.param(100, marks=pytest.mark.thorough), pytest.param(500, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("ending", ENDINGS)
def test_kills_leave_the_old_or_the_new_file_and_no_litter(ending: str, count: int, tmp_path) -> None:
    kills(ending, tmp_path, count, replace)


@posix
@pytest.mark.parametrize("count", [20, pytest.param(50, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_kills_while_entries_are_set_in_place_leave_all_of_them_or_none(ending: str, count: int, tmp_path) -> None:
    kills(ending, tmp_path, count, patch)


# A full disk, missing rights.


@posix
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_disk_that_fills_up_at_any_point_leaves_the_old_file_and_no_other(ending: str, tmp_path) -> None:
    path = tmp_path / f"w.{ending}"
    xw.save(weights(1.0), path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    before = names(tmp_path)

    def write(limit: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            xw.save(weights(2.0), path)
        except xw.FileAccessError as error:
            if error.errno == errno.EFBIG and "Fix: raise the limit" in str(error) and names(tmp_path) == before:
                os._exit(7)
        os._exit(8)

    for cut in range(20):
        _, status = os.waitpid(in_a_fork(lambda cut=cut: write(size * cut // 25)), 0)
        assert os.waitstatus_to_exitcode(status) == 7, f"with room for {cut} of 25 parts"
        assert names(tmp_path) == before
        assert value_of(path) == 1.0


@posix
@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_a_full_disk_leaves_a_file_alone_that_was_to_be_edited(ending: str, tmp_path) -> None:
    path = tmp_path / f"w.{ending}"
    xw.save(weights(1.0, 30_000), path)

    def edit(limit: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for rule in (xw.Scale(2.0), xw.SetEntries(0, 2.0)):
            try:
                xw.edit_file(path, rule, where=...)
                os._exit(8)
            except xw.FileAccessError:
                pass
        os._exit(7)

    for limit in (0, 100, 300):
        _, status = os.waitpid(in_a_fork(lambda limit=limit: edit(limit)), 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert names(tmp_path) == {path.name}
        assert value_of(path) == 1.0


@posix
@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_a_folder_without_write_permission_is_reported(ending: str, tmp_path) -> None:
    path = tmp_path / f"w.{ending}"
    xw.save(weights(1.0), path)
    tmp_path.chmod(0o500)

    def write() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)  # root may write everywhere
        try:
            xw.save(weights(2.0), path)
        except xw.FileAccessError as error:
            os._exit(7 if error.errno in (errno.EACCES, errno.EPERM) else 9)
        os._exit(8)

    try:
        _, status = os.waitpid(in_a_fork(write), 0)
    finally:
        tmp_path.chmod(0o700)
    assert os.waitstatus_to_exitcode(status) == 7
    assert names(tmp_path) == {path.name}
    assert value_of(path) == 1.0


def test_the_folder_is_missing_or_a_file(tmp_path) -> None:
    with pytest.raises(xw.FileAccessError, match="No such file"):
        xw.save(weights(1.0), tmp_path / "no" / "w.npz")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(xw.FileAccessError):
        xw.save(weights(1.0), tmp_path / "file" / "w.npz")


@posix
def test_the_new_file_has_the_permissions_of_the_old_one_and_a_link_still_leads_to_it(tmp_path) -> None:
    real, link = tmp_path / "real.npz", tmp_path / "link.npz"
    xw.save(weights(1.0), real)
    real.chmod(0o640)
    link.symlink_to(real)
    xw.save(weights(2.0), link)
    assert link.is_symlink()
    assert value_of(real) == 2.0
    assert real.stat().st_mode & 0o777 == 0o640


def test_an_array_that_can_not_be_written_leaves_the_old_file(tmp_path) -> None:
    pytest.importorskip("ml_dtypes")
    import ml_dtypes

    path = tmp_path / "w.safetensors"
    xw.save(weights(1.0), path)
    with pytest.raises(xw.RefusedFileError, match="has no dtype float8_e4m3b11fnuz"):
        xw.save({"w": np.ones(2).astype(ml_dtypes.float8_e4m3b11fnuz)}, path)
    assert names(tmp_path) == {"w.safetensors"}
    assert value_of(path) == 1.0


# Readers beside a writer.


def readers_and_a_writer(ending: str, folder: Path, writes: int, count: int = 8) -> None:
    """Write a file again and again beside its readers: so many times, however long that takes on a busy machine."""
    path = str(folder / f"w.{ending}")
    xw.save(weights(0.0), path)
    enough = folder / "enough"

    def read() -> None:
        value_of(path)
        while not enough.exists():
            value_of(path)

    readers = [in_a_fork(read) for _ in range(count)]
    try:
        for number in range(writes):
            xw.save(weights(float(number)), path, durable=False)
    finally:
        enough.touch()
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in readers]
    assert statuses == [0] * count


@posix
@pytest.mark.parametrize("ending", ["safetensors", "safetensors.index.json", "npz"])
def test_eight_readers_see_wholly_old_or_wholly_new_files(ending: str, tmp_path) -> None:
    readers_and_a_writer(ending, tmp_path, 12)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_eight_readers_see_wholly_old_or_wholly_new_files_in_hundreds_of_writes(ending: str, tmp_path) -> None:
    readers_and_a_writer(ending, tmp_path, 400)


def test_an_open_checkpoint_keeps_its_values_when_its_file_is_replaced(tmp_path) -> None:
    xw.save(weights(1.0), tmp_path / "w.npz")
    with xw.load(tmp_path / "w.npz") as opened:
        xw.save(weights(2.0), tmp_path / "w.npz")
        assert value_of(opened) == 1.0
    assert value_of(tmp_path / "w.npz") == 2.0
    with pytest.raises(xw.RefusedFileError, match="has been closed"):
        xw.get_params(opened)


@posix
def test_writers_of_entries_take_turns(tmp_path) -> None:
    path = str(tmp_path / "w.npz")
    xw.save(weights(0.0), path)

    def enter(column: int) -> None:
        for value in range(10):
            xw.edit_file(path, xw.SetEntries((slice(None), column), float(value)), where="l0/kernel", durable=False)

    pids = [in_a_fork(lambda column=column: enter(column)) for column in range(3)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 3
    assert (xw.load(path)["l0/kernel"][:, :3] == 9).all()
    assert not os.path.exists(journal.journal_path(path))  # noqa: PTH110


# Whatever is saved comes back.

DTYPES = [*map(np.dtype, ("bool", "u1", "i2", "u4", "i8", "f2", "f4", "f8"))]
NAMES = st.text(st.characters(exclude_characters="/.\0", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@pytest.mark.parametrize("ending", ENDINGS)
@given(data=st.data())
def test_any_arrays_under_any_names_come_back_bit_for_bit(ending: str, data, tmp_path) -> None:
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    arrays = {}
    fewest = int(ending.endswith("index.json"))  # an index lists at least one array
    for name in data.draw(st.lists(NAMES, min_size=fewest, max_size=4, unique=True)):
        dtype, shape = data.draw(st.sampled_from(DTYPES)), data.draw(shapes)
        size = int(np.prod(shape)) * dtype.itemsize
        bits = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
        bits = bits & 1 if dtype.kind == "b" else bits
        arrays[f"layer/{name}"] = bits.view(dtype).reshape(shape).copy()
    path = tmp_path / f"w.{ending}"
    xw.save(arrays, path, durable=False)
    assert xw.equal(arrays, path) if arrays else len(xw.load(path)) == 0
    assert [p.name for p in xw.load(path).__xweights_parameters__()] == list(arrays)
