"""edit_file gives the same numbers as the verb on a live target, leaves everything else alone, and is crash-safe."""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

import xweights as xw
from xweights.files.io import journal

ENDINGS = ("safetensors", "safetensors.index.json", "npz", "pt", "weights.h5")
RULES = {
    "clip": xw.Clip(-0.5, 0.5),
    "noise": xw.Noise(0.1, seed=3),
    "unit norm": xw.UnitNorm(per="out"),
    "clip norm of all": xw.ClipNorm(1.0, "global"),
    "prune each": xw.Prune(fraction=0.3),
    "prune all": xw.Prune(fraction=0.5, scope="global"),
    "prune all units": xw.Prune(fraction=0.3, scope="global", per="out"),
    "prune all by score": xw.Prune(count=700, scope="global", score=np.square),
    "a function": lambda w: w[::-1] * np.float32(2),
}


def weights() -> xw.Params:
    """Return kernels with many ties, so that the order in which they are dropped shows."""
    source = np.random.default_rng(0)
    arrays = {f"l{i}/kernel": source.normal(size=(40, 30)).round(1).astype("f4") for i in range(3)}
    arrays |= {f"l{i}/bias": source.normal(size=30).astype("f4") for i in range(3)}
    return xw.Params(arrays, axes={f"l{i}/kernel": ("in", "out") for i in range(3)})


def save_weights(tmp_path: Path, ending: str) -> str:
    path = str(tmp_path / f"w.{ending}")
    xw.save(weights(), path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", RULES)
def test_a_file_is_edited_as_a_live_target_is(ending: str, name: str, tmp_path) -> None:
    path, live = save_weights(tmp_path, ending), weights()
    xw.apply(live, RULES[name], where="*/kernel")
    report = xw.edit_file(path, RULES[name], where="*/kernel")
    assert xw.equal(path, live)
    assert sum(report.changed.values()) == sum(change.changed for change in xw.diff(weights(), live).changes)


def test_edits_in_a_list_follow_each_other_and_joint_rules_see_the_edited_values(tmp_path) -> None:
    path, live = save_weights(tmp_path, "npz"), weights()
    xw.edit_file(path, [(xw.Scale(3.0), "l1/*"), xw.Prune(fraction=0.5, scope="global"), (xw.Add(1.0), "*/bias")])
    xw.scale(live, 3.0, where="l1/*")
    xw.prune(live, fraction=0.5, scope="global")
    xw.add(live, 1.0, where="*/bias")
    assert xw.equal(path, live)


@pytest.mark.parametrize("ending", ["npz", "pt", "safetensors"])
def test_out_leaves_the_file_as_it_is_and_may_be_another_format(ending: str, tmp_path) -> None:
    path = save_weights(tmp_path, "safetensors")
    before = Path(path).read_bytes()
    live = weights()
    xw.clip(live, -0.1, 0.1)
    xw.edit_file(path, xw.Clip(-0.1, 0.1), out=tmp_path / f"out.{ending}")
    assert Path(path).read_bytes() == before
    assert xw.equal(tmp_path / f"out.{ending}", live)


@pytest.mark.parametrize("ending", ["safetensors", "npz", "pt", "weights.h5"])
@pytest.mark.parametrize("rule", [xw.Scale(2.0), xw.SetEntries((1, 2), 5.0)], ids=["streamed", "in place"])
def test_arrays_that_are_not_selected_keep_every_byte_and_their_position(ending: str, rule: xw.Rule, tmp_path) -> None:
    path = save_weights(tmp_path, ending)
    before = Path(path).read_bytes()
    xw.edit_file(path, rule, where="l1/kernel")
    after = Path(path).read_bytes()
    (record,) = [p.handle for p in xw.parameters(path) if p.name == "l1/kernel"]
    place = record.location
    own = set(range(place.offset, place.offset + record.nbytes)) | {at + i for at in place.checks for i in range(4)}
    assert len(before) == len(after)
    assert {i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b} <= own
    if ending in ("npz", "pt"):
        assert zipfile.ZipFile(path).testzip() is None


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("index", [(3, 4), (slice(None), 2), {"out": 1}, {"in": slice(0, 40, 7), "out": slice(3)}])
def test_single_entries_are_set_in_the_file_itself(ending: str, index, tmp_path) -> None:
    path, live = save_weights(tmp_path, ending), weights()
    inode = Path(path).stat().st_ino
    report = xw.edit_file(path, xw.SetEntries(index, 7.0), where="l1/kernel")
    xw.set_entries(live, index, 7.0, where="l1/kernel")
    assert report.in_place
    assert Path(path).stat().st_ino == inode
    assert xw.equal(path, live)
    assert not [name for name in names(tmp_path) if "journal" in name]


def test_a_mask_of_entries_is_set_in_native_order_too(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, groups=4), torch.nn.Linear(5, 7))
    path = str(tmp_path / "w.pt")
    xw.save(model, path)
    for name in ("0/kernel", "1/kernel"):
        (p,) = xw.parameters(model, where=name)
        mask = np.random.default_rng(0).random(p.shape) < 0.3
        values = np.arange(mask.sum(), dtype=np.float32)
        assert xw.edit_file(path, xw.SetEntries(mask, values), where=name).in_place
        xw.set_entries(model, mask, values, where=name)
    assert xw.equal(path, model)
    model.load_state_dict(torch.load(path, weights_only=True))


def test_packed_arrays_are_edited_by_rewriting_the_file(tmp_path) -> None:
    path, live = tmp_path / "w.npz", {"a": np.zeros((50, 50)), "b": np.arange(9.0)}
    np.savez_compressed(path, **live)
    assert not xw.edit_file(path, xw.SetEntries((0, 0), 5.0), where="a").in_place
    xw.set_entries(live, (0, 0), 5.0, where="a")
    assert xw.equal(path, live)


def test_packed_arrays_of_hdf5_are_edited_and_all_else_in_the_file_stays(tmp_path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=np.arange(5000.0), chunks=(1000,), compression="gzip")
        file["b"], file["optimizer/vars/0"] = np.ones(3), np.arange(4)
        file["b"].attrs["mine"] = "kept"
    report = xw.edit_file(path, xw.Scale(2.0), where="*")
    assert (report.changed, report.in_place) == ({"a": 4999, "b": 3}, False)
    np.testing.assert_array_equal(xw.load(path)["a"], 2 * np.arange(5000.0))
    with h5py.File(path) as file:
        assert file["optimizer/vars/0"][()].tolist() == [0, 1, 2, 3]
        assert file["b"].attrs["mine"] == "kept"
        assert file["a"].compression == "gzip"
    assert names(tmp_path) == ["w.h5"]


def test_all_problems_are_raised_at_once_and_the_file_is_untouched(tmp_path) -> None:
    path = save_weights(tmp_path, "safetensors")
    before = Path(path).read_bytes()
    with pytest.raises(xw.ShapeError, match=r"(?s)l0/kernel.*l1/kernel.*l2/kernel"):
        xw.edit_file(path, xw.Add(np.ones(7)), where="*/kernel")
    with pytest.raises(xw.SelectionError):
        xw.edit_file(path, xw.Scale(2.0), where="nothing")
    with pytest.raises(xw.ArgumentError, match="Fix: where="):
        xw.edit_file(path, lambda w: w)
    with pytest.raises(ZeroDivisionError):
        xw.edit_file(path, lambda w: 1 // 0, where=...)
    assert Path(path).read_bytes() == before
    assert names(tmp_path) == ["w.safetensors"]


class Crash(BaseException):
    """A stand-in for a killed process: xweights doesn't catch it."""


@pytest.mark.parametrize("ending", ["safetensors", "npz", "pt"])
@pytest.mark.parametrize("steps", range(12))
def test_an_edit_that_is_cut_short_anywhere_is_undone_or_finished_afterwards(
    ending: str, steps: int, tmp_path, monkeypatch
) -> None:
    path, old, new = save_weights(tmp_path, ending), weights(), weights()
    xw.set_entries(new, (slice(None), 2), 7.0, where="l1/kernel")
    left = [steps]

    def counted(call):
        def one(*args):
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            return call(*args)

        return one

    with monkeypatch.context() as patched:
        for word in ("pwrite", "fsync", "fdatasync", "unlink"):
            patched.setattr(journal.os, word, counted(getattr(os, word)))
        with contextlib.suppress(Crash):
            xw.edit_file(path, xw.SetEntries((slice(None), 2), 7.0), where="l1/kernel")
    assert xw.equal(path, old) or xw.equal(path, new)
    assert not [name for name in names(tmp_path) if "journal" in name]
    if ending != "safetensors":
        assert zipfile.ZipFile(path).testzip() is None


def test_a_journal_of_another_file_is_not_applied(tmp_path) -> None:
    path = save_weights(tmp_path, "safetensors")
    Path(journal.journal_path(path)).write_bytes(b"half of a jour")
    xw.load(path)
    assert names(tmp_path) == ["w.safetensors"]
    patches = [journal.Patch(700, b"nothing like this", b"what it should be")]
    with journal.open_locked(path) as descriptor, pytest.MonkeyPatch.context() as patched:
        patched.setattr(journal, "_apply", lambda *a, **k: None)
        patched.setattr(journal, "_remove", lambda *a, **k: None)
        journal.patch(path, descriptor, patches)
    with pytest.raises(xw.DamagedFileError, match="speaks of another file"):
        xw.load(path)


def test_an_archive_that_was_open_while_an_entry_was_set_is_read_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    xw.save({"w": np.ones(4, np.float32)}, path)
    opened = xw.load(path)
    xw.edit_file(path, xw.SetEntries((0,), 7.0), where="w")
    assert list(xw.get_params(opened)["w"]) == [7.0, 1.0, 1.0, 1.0]


def test_a_changed_byte_of_an_archive_is_found_before_a_model_is_written(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    xw.save({"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}, path)
    whole = bytearray(path.read_bytes())
    whole[whole.rindex(np.ones(4, np.float32).tobytes())] ^= 1
    path.write_bytes(bytes(whole))
    target = {"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)}
    with pytest.raises(xw.DamagedFileError, match="CRC-32"):
        xw.set_params(target, path, allow_nonfinite=True)
    assert not any(array.any() for array in target.values())
