"""Sharded files are edited shard by shard under their own names: all of them or none, and nothing is left over."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from forks import in_a_fork

import xweights as xw
from xweights.files.io import transaction

if TYPE_CHECKING:
    from typing import Self

posix = pytest.mark.skipif(os.name != "posix", reason="fork, kill -9 and links are POSIX's")
COUNT = 3
SHARDS = [f"model-{n + 1:05}-of-{COUNT:05}.safetensors" for n in range(COUNT)]
INDEX = "model.safetensors.index.json"


def make(folder: Path, value: float = 0.0, *, entries: int = 500, count: int = COUNT) -> str:
    """Write a checkpoint as model hubs have them; every entry is the same number, so that a mix of two shows."""
    shards = SHARDS[:count]
    for n, shard in enumerate(shards):
        xw.save({f"l{n}.weight": np.full(entries, value, np.float32)}, folder / shard, durable=False)
    weight_map = {f"l{n}.weight": shard for n, shard in enumerate(shards)}
    metadata = {"total_size": 4 * entries * count, "made by": 7}
    (folder / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=4))
    return str(folder / INDEX)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def value_of(path: object) -> float:
    found = {float(value) for array in xw.get_params(path).values() for value in np.unique(array)}
    assert len(found) == 1, f"a mix of {found}"
    return found.pop()


def state_of(path: Path) -> tuple[int, int, bytes]:
    return path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# What is touched.


def test_only_shards_with_something_that_changes_are_replaced(tmp_path: Path) -> None:
    path = make(tmp_path, 1.0)
    before = {name: state_of(tmp_path / name) for name in names(tmp_path)}
    report = xw.edit_file(path, xw.Scale(0.5), where="l1.weight")
    assert (report.changed, report.in_place) == ({"l1.weight": 500}, False)
    after = {name: state_of(tmp_path / name) for name in names(tmp_path)}
    assert {name for name in after if after[name] != before[name]} == {SHARDS[1]}
    assert [float(array[0]) for array in xw.get_params(path).values()] == [1.0, 0.5, 1.0]
    # All are selected, and the rule changes none of them, or one.
    assert sum(xw.edit_file(path, xw.Clip(0.0, 1.0), where="*").changed.values()) == 0
    assert {name: state_of(tmp_path / name) for name in names(tmp_path)} == after
    xw.edit_file(path, xw.Clip(0.6, 1.0), where="*")
    assert {name for name in after if after[name] != state_of(tmp_path / name)} == {SHARDS[1]}


@pytest.mark.parametrize("where", ["l0.weight", "*"])
def test_entries_are_set_in_place_in_one_shard_and_together_in_several(where: str, tmp_path: Path) -> None:
    path, live = make(tmp_path), {f"l{n}.weight": np.zeros(500, np.float32) for n in range(COUNT)}
    index = state_of(tmp_path / INDEX)
    assert xw.edit_file(path, xw.SetEntries(3, 7.0), where=where).in_place == (where != "*")
    xw.set_entries(live, 3, 7.0, where=where)
    assert xw.equal(path, live)
    assert state_of(tmp_path / INDEX) == index
    assert names(tmp_path) == sorted([*SHARDS, INDEX])


def test_rules_over_all_shards_give_what_they_give_on_a_live_target(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    live = {f"l{n}/kernel": source.normal(size=(20, 30)) for n in range(4)}
    path = tmp_path / INDEX
    xw.save(live, path, shard_bytes=10_000)
    assert names(tmp_path) == [f"model-0000{n + 1}-of-00002.safetensors" for n in range(2)] + [INDEX]
    for rule in (xw.Prune(fraction=0.5, scope="global"), xw.ClipNorm(1.0, "global")):
        xw.apply(live, rule, where="*")
        xw.edit_file(path, rule, where="*")
        assert xw.equal(path, live)


def test_shards_of_keras_are_edited_too(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="HDF5 needs h5py")
    for n, chunked in enumerate([False, True]):
        with h5py.File(tmp_path / f"m_0000{n}.weights.h5", "w") as file:
            options = {"chunks": (10,), "compression": "gzip"} if chunked else {}
            file.create_dataset(f"layers/d{n}/vars/0", data=np.ones(50, np.float32), **options)
    weight_map = {f"/layers/d{n}/vars": f"m_0000{n}.weights.h5" for n in (0, 1)}
    index = {"metadata": {"total_size": 400}, "weight_map": weight_map}
    (tmp_path / "m.weights.json").write_text(json.dumps(index))
    before = names(tmp_path)
    xw.edit_file(tmp_path / "m.weights.json", xw.Scale(3.0), where="*")
    assert value_of(tmp_path / "m.weights.json") == 3.0
    assert names(tmp_path) == before


def test_shards_of_pytorch_are_edited_too(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch writes the shards")
    shards = [f"pytorch_model-{n + 1:05}-of-00002.bin" for n in range(2)]
    for n, shard in enumerate(shards):
        torch.save({f"l{n}.weight": torch.ones(50)}, tmp_path / shard)
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": {f"l{n}.weight": s for n, s in enumerate(shards)}}))
    first = state_of(tmp_path / shards[0])
    xw.edit_file(path, xw.Scale(3.0), where="l1.weight")
    assert state_of(tmp_path / shards[0]) == first
    assert torch.load(tmp_path / shards[1], weights_only=True)["l1.weight"].eq(3).all()
    xw.edit_file(path, xw.Fill(2.0), where="*")
    assert value_of(path) == 2.0
    assert names(tmp_path) == [*shards, path.name]


def test_an_array_of_two_shards_that_is_refused_leaves_both(tmp_path: Path) -> None:
    path = make(tmp_path)
    before = {name: state_of(tmp_path / name) for name in names(tmp_path)}
    with pytest.raises(ZeroDivisionError):
        xw.edit_file(path, lambda w: 1 // 0, where="*")

    def breaks_in_the_second(w: np.ndarray) -> np.ndarray:
        calls.append(0)
        return w + 1 if len(calls) < 2 else w[:3]

    calls: list[int] = []
    with pytest.raises(xw.XweightsError):
        xw.edit_file(path, breaks_in_the_second, where="*")
    assert {name: state_of(tmp_path / name) for name in names(tmp_path)} == before


# Saving over a checkpoint of other names.


@pytest.mark.parametrize("shard_bytes", [3000, 10**9])
def test_a_save_over_anothers_checkpoint_leaves_none_of_its_shards(shard_bytes: int, tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / "model-00009-of-00009.safetensors").write_bytes(b"of something else")
    with xw.load(path) as opened:
        xw.save({f"k{n}": np.full(300, 2.0) for n in range(2)}, path, shard_bytes=shard_bytes)
        assert value_of(opened) == 0.0
    count = 2 if shard_bytes == 3000 else 1
    new = [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    assert names(tmp_path) == sorted([*new, "model-00009-of-00009.safetensors", INDEX])
    assert value_of(path) == 2.0


@posix
def test_a_link_to_an_index_of_another_folder_becomes_an_index_of_its_own(tmp_path: Path) -> None:
    blobs, shown = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    shown.mkdir()
    make(blobs)
    (blobs / INDEX).rename(blobs / "1234")
    (shown / INDEX).symlink_to("../blobs/1234")
    for shard in SHARDS:
        (shown / shard).symlink_to(f"../blobs/{shard}")
    edit_all(str(shown / INDEX), 1.0, False)  # an edit goes through links, as it does for single files
    assert value_of(shown / INDEX) == 1.0
    assert all((shown / name).is_symlink() for name in names(shown))
    xw.save({"k": np.full(3, 2.0)}, shown / INDEX)
    assert value_of(shown / INDEX) == 2.0
    assert names(shown) == ["model-00001-of-00001.safetensors", INDEX]
    assert names(blobs) == sorted(["1234", *SHARDS])


# Kills, failures.

STEPS = ("open", "write", "pwrite", "fsync", "link", "replace", "unlink", "utime", "fchmod", "sendfile")


class Step:
    """Make the system call of one number act otherwise, or all from that one on."""

    def __init__(self, number: int, act: Callable[[], None], *, always: bool = False) -> None:
        self.number, self.act, self.always, self.count = number, act, always, 0
        self.patched = pytest.MonkeyPatch()
        for word in STEPS:
            self.patched.setattr(os, word, self.counted(getattr(os, word)))

    def counted(self, call: Callable) -> Callable:
        def one(*args: object, **settings: object) -> object:
            self.count += 1
            if self.count == self.number or (self.always and self.count > self.number):
                self.act()
            return call(*args, **settings)

        return one

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.patched.undo()


def edit_all(path: str, value: float, durable: bool) -> None:
    xw.edit_file(path, lambda w: np.full_like(w, value), where="*", durable=durable)


def edit_one(path: str, value: float, durable: bool) -> None:
    make_one = json.loads(Path(path).read_text())["weight_map"]
    xw.edit_file(path, lambda w: np.full_like(w, value), where=next(iter(make_one)), durable=durable)


def save_other(path: str, value: float, durable: bool) -> None:
    xw.save({f"k{n}": np.full(300, value) for n in range(2)}, path, shard_bytes=3000, durable=durable)


CHANGES = pytest.mark.parametrize(("change", "count"), [(edit_all, 3), (save_other, 3), (edit_one, 1)])


def names_in(path: str) -> list[str]:
    return sorted({INDEX, *json.loads(Path(path).read_text())["weight_map"].values()})


@posix
@CHANGES
def test_a_process_that_ends_at_any_step_leaves_the_old_or_the_new_and_no_litter(change, count, tmp_path: Path) -> None:
    seen = []
    for number in range(1, 300):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = make(folder, count=count)

        def work(path: str = path, number: int = number) -> None:
            with Step(number, lambda: os._exit(7)):
                change(path, 1.0, True)

        status = status_of(in_a_fork(work))
        seen.append(value_of(path))
        assert names(folder) == names_in(path), number
        if status != 7:
            assert status == 0
            break
    assert len(seen) > (10 if change is edit_one else 30)
    assert seen == sorted(seen), "old up to one step, and new from there on"
    assert set(seen) == {0.0, 1.0}


@posix
@pytest.mark.parametrize("always", [False, True], ids=["once", "from then on"])
@CHANGES
def test_a_failure_at_any_step_is_reported_and_leaves_the_old(change, count, always: bool, tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    reported = 0
    for number in range(1, 300):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = make(folder, count=count)
        step, failure = Step(number, fail, always=always), None
        with step:
            try:
                change(path, 1.0, False)
            except xw.FileAccessError as error:
                failure = error
        # Opening it puts back what couldn't be put back then, and removes what couldn't be removed.
        assert value_of(path) == (1.0 if failure is None else 0.0), number
        left = [name for name in names(folder) if not (always and name.endswith(".xweights-tmp"))]
        assert left == names_in(path), number
        if step.count < number:
            break
        reported += failure is not None
    assert reported >= (4 if change is edit_one else 10)


def test_bytes_that_do_not_reach_the_disk_leave_the_old(tmp_path: Path, monkeypatch) -> None:
    path = make(tmp_path)
    before = {name: state_of(tmp_path / name) for name in names(tmp_path)}

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(xw.FileAccessError, match="Input/output error"):
            edit_all(path, 1.0, True)
    assert {name: state_of(tmp_path / name) for name in names(tmp_path)} == before


@posix
def test_a_file_system_without_links_copies_the_old_files(tmp_path: Path, monkeypatch) -> None:
    path = make(tmp_path)
    real, calls = os.replace, []

    def no_link(*args: object, **settings: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    def fail_second(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "link", no_link)
    edit_all(path, 1.0, False)
    assert value_of(path) == 1.0
    monkeypatch.setattr(os, "replace", fail_second)
    with pytest.raises(xw.FileAccessError):
        edit_all(path, 2.0, False)
    assert value_of(path) == 1.0
    assert names(tmp_path) == names_in(path)


@posix
@pytest.mark.parametrize("kills", [12, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("change", "count"), [(edit_all, 3), (save_other, 3)])
def test_kills_leave_the_old_or_the_new_shards_and_no_litter(change, count: int, kills: int, tmp_path: Path) -> None:
    path = make(tmp_path, count=count, entries=20_000)
    start = time.perf_counter()
    change(path, 0.0, False)
    change(path, 0.5, False)
    usual = (time.perf_counter() - start) / 2
    source, seen, old = np.random.default_rng(0), set(), 0.5
    for number in range(1, kills + 1):
        pid = in_a_fork(lambda number=number: change(path, float(number), number % 2 == 0))
        time.sleep(source.uniform(0, 1.3) * usual)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        now = value_of(path)
        assert now in (old, float(number)), f"kill {number} left {now}, and not {old} or {number}"
        assert names(tmp_path) == names_in(path)
        seen.add(now == old)
        usual *= 1.25 if now == old else 0.8  # so that half of the kills come in time, however busy the machine is
        old = now
    assert seen == {True, False}, "every kill came too early, or too late"


# Several at once.


@posix
@pytest.mark.parametrize("change", [edit_all, save_other])
def test_readers_see_one_state_beside_a_writer(change, tmp_path: Path) -> None:
    path = make(tmp_path)
    enough = tmp_path / "enough"

    def read() -> None:
        value_of(path)
        while not enough.exists():
            value_of(path)

    readers = [in_a_fork(read) for _ in range(3)]
    try:
        for number in range(30):
            change(path, float(number), False)
    finally:
        enough.touch()
        statuses = [status_of(pid) for pid in readers]
    assert statuses == [0] * 3


@posix
def test_editors_of_other_shards_keep_each_others_work_and_of_the_same_shard_take_turns(tmp_path: Path) -> None:
    path = make(tmp_path)

    def add(where: str | list[str], times: int) -> None:
        done = 0
        while done < times:
            # Refused where the shard was replaced between reading and writing it, so that nothing is lost.
            with contextlib.suppress(xw.RefusedFileError):
                xw.edit_file(path, xw.Add(1.0), where=where, durable=False)
                done += 1

    def enter(times: int) -> None:
        done = 0
        while done < times:
            with contextlib.suppress(xw.RefusedFileError):
                xw.edit_file(path, xw.SetEntries(0, -5.0), where="l2.weight", durable=False)
                done += 1

    pids = [in_a_fork(lambda where=where: add(where, 15)) for where in ("l0.weight", ["l0.weight", "l1.weight"], "*")]
    pids.append(in_a_fork(lambda: enter(15)))
    assert [status_of(pid) for pid in pids] == [0] * 4
    assert [float(array[1]) for array in xw.get_params(path).values()] == [45.0, 30.0, 15.0]
    assert names(tmp_path) == names_in(path)


def test_a_shard_that_another_writes_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = make(tmp_path)

    def meddle(w: np.ndarray) -> np.ndarray:
        xw.save({"l1.weight": np.full(500, 9.0, np.float32)}, tmp_path / SHARDS[1])
        return w + 1

    with pytest.raises(xw.RefusedFileError, match="was changed while it was being edited"):
        xw.edit_file(path, meddle, where="*")
    assert [float(array[0]) for array in xw.get_params(path).values()] == [0.0, 9.0, 0.0]
    assert names(tmp_path) == names_in(path)


# Journals from elsewhere.


def write_journal(path: str, changes: object) -> None:
    body = changes if isinstance(changes, bytes) else json.dumps(changes).encode()
    content = b"xweights transaction 1\n" + zlib.crc32(body).to_bytes(4, "little") + body
    Path(transaction.transaction_path(path)).write_bytes(content)


@pytest.mark.parametrize(
    "changes",
    [
        b"{}x",
        b"[" * 10_000,
        {"a": 1},
        [1],
        [["a", None, None]],
        [["../up", None, None, [1, 2]]],
        [["/etc/up", None, None, [1, 2]]],
        [["a\0", None, None, [1, 2]]],
        [[SHARDS[0], SHARDS[1], [1, 2], [1, 2]]],
        [[SHARDS[0], f".{SHARDS[1]}.00000000.xweights-old", [1, 2], [1, 2]]],
        [[SHARDS[0], f".{SHARDS[0]}.00000000.xweights-old", [1, 2], [3, 4]]],
        [[SHARDS[0], f".{SHARDS[0]}.00000000.xweights-old", [1, 2], None]],
        [[SHARDS[0], None, None, [1, 2]]],
        [[SHARDS[0], None, None, ["1", 2]]],
    ],
)
def test_a_journal_of_something_else_moves_and_removes_nothing(changes: object, tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / f".{SHARDS[0]}.00000000.xweights-old").write_bytes(b"bad")
    write_journal(path, changes)
    before = {name: state_of(tmp_path / name) for name in names(tmp_path)}
    with pytest.raises(xw.DamagedFileError, match="journal"):
        xw.load(path)
    assert {name: state_of(tmp_path / name) for name in names(tmp_path)} == before


def test_a_journal_that_was_cut_short_is_removed(tmp_path: Path) -> None:
    path = make(tmp_path)
    for content in (b"", b"xweights transaction 1\n", b"something"):
        Path(transaction.transaction_path(path)).write_bytes(content)
        assert value_of(path) == 0.0
        assert names(tmp_path) == names_in(path)


@posix
def test_a_reader_without_the_right_to_write_waits_and_can_not_undo(tmp_path: Path) -> None:
    path = make(tmp_path)
    write_journal(path, [])
    tmp_path.chmod(0o555)

    def read() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)  # root may write everywhere
        try:
            xw.load(path)
        except xw.FileAccessError as error:
            os._exit(7 if error.errno in (errno.EACCES, errno.EPERM) else 9)

    try:
        assert status_of(in_a_fork(read)) == 7
    finally:
        tmp_path.chmod(0o755)
    assert value_of(path) == 0.0
