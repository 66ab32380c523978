"""Time file calls against hand-written loops: loading into a live model, saving, and editing one entry of a large file.

Files are in the page cache: a disk would hide the cost of a call. The time that waiting for the disk adds is a row of
its own, which depends on the disk more than on the code.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from timing import MIB, Memory, Timing, compare, extra_memory
from torch import nn

import xweights as xw


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    with tempfile.TemporaryDirectory() as folder:
        shape = "2M" if quick else "50M"
        model = nn.Sequential(*[nn.Linear(400 if quick else 2048, 400 if quick else 2048) for _ in range(12)])
        yield from _time_loading(Path(folder), model, shape)
        yield from _time_loading_half(Path(folder), 400 if quick else 2048, shape)
        yield from _time_loading_many(Path(folder), 100 if quick else 1000)
        yield from _time_saving(Path(folder), model, shape)
        yield from _time_entry_edits(Path(folder), 16 * MIB if quick else 1024 * MIB, "16 MB" if quick else "1 GB")


def _time_loading(folder: Path, model: nn.Module, shape: str) -> Iterator[Timing | Memory]:
    path = str(folder / "w.safetensors")
    safetensors.torch.save_file(model.state_dict(), path)
    arrays = {key: tensor.detach().numpy() for key, tensor in model.state_dict().items()}

    by_hand = _read_by_hand(path, arrays)
    peers = {"seek, readinto": by_hand}
    unchecked = lambda: xw.set_params(model, path, layout="native", allow_nonfinite=True)  # noqa: E731
    idiom = ("safetensors.numpy.load_file", lambda: safetensors.numpy.load_file(path))
    name = "set_params(model, path, allow_nonfinite=True)"
    yield compare(name, "torch", shape, unchecked, peers, 1.3, idiom=idiom, idiom_goal=2.5, seconds=8)
    checked = lambda: xw.set_params(model, path, layout="native")  # noqa: E731
    yield compare("set_params(model, path)", "torch", shape, checked, peers, 1.7, seconds=8)
    yield compare(
        "set_params(model, path), two threads", "torch", shape, _on_two_threads(checked), peers, 1.2, seconds=8
    )
    yield extra_memory("set_params(model, path)", "torch", shape, checked, 2)
    packed = str(folder / "w.npz")
    half = {key: (64 * array).round() / 64 for key, array in list(arrays.items())[:2]}
    np.savez_compressed(packed, **half)
    target = {key: array.copy() for key, array in half.items()}
    size = f"{sum(array.size for array in half.values()) / 1e6:.0f}M"
    load = {"np.load, each array": lambda: [np.load(packed)[key] for key in half]}
    yield compare(
        "set_params(arrays, compressed .npz)", "numpy", size, lambda: xw.set_params(target, packed), load, None
    )


def _read_by_hand(path: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Callable[[], None]:
    def read() -> None:
        with Path(path).open("rb", buffering=0) as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            for key, array in arrays.items():
                file.seek(8 + length + header[key]["data_offsets"][0])
                view = memoryview(array.reshape(-1).view(np.uint8))
                done = 0
                while done < len(view):
                    done += file.readinto(view[done:])

    return read


def _time_loading_half(folder: Path, size: int, shape: str) -> Iterator[Timing]:
    model = nn.Sequential(*[nn.Linear(size, size) for _ in range(12)]).to(torch.bfloat16)
    path = str(folder / "half.safetensors")
    safetensors.torch.save_file(model.state_dict(), path)
    arrays = {key: tensor.detach().view(torch.int16).numpy() for key, tensor in model.state_dict().items()}
    peers = {"seek, readinto": _read_by_hand(path, arrays)}
    checked = lambda: xw.set_params(model, path, layout="native")  # noqa: E731
    yield compare("set_params(model, path), bfloat16", "torch", shape, checked, peers, 1.7, seconds=6)


def _time_loading_many(folder: Path, count: int) -> Iterator[Timing]:
    model = nn.Sequential(*[nn.Linear(20, 20, bias=False) for _ in range(count)])
    path = str(folder / "many.safetensors")
    safetensors.torch.save_file(model.state_dict(), path)

    def by_hand() -> None:
        state = model.state_dict()
        with safetensors.safe_open(path, "pt") as file, torch.no_grad():
            for key in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                state[key].copy_(file.get_tensor(key))

    checked = lambda: xw.set_params(model, path, layout="native")  # noqa: E731
    yield compare(
        "set_params(model, path), small arrays", "torch", f"{count:,}", checked, {"safe_open, copy_": by_hand}, 1.25
    )


def _on_two_threads(call: Callable[[], object]) -> Callable[[], None]:
    def with_two() -> None:
        before = os.environ.get("OMP_NUM_THREADS", "1")
        os.environ["OMP_NUM_THREADS"] = "2"
        try:
            call()
        finally:
            os.environ["OMP_NUM_THREADS"] = before

    return with_two


def _time_saving(folder: Path, model: nn.Module, shape: str) -> Iterator[Timing | Memory]:
    ours, theirs = str(folder / "ours.safetensors"), str(folder / "theirs.safetensors")
    state: dict[str, Any] = dict(model.state_dict())
    save = lambda: xw.save(model, ours, durable=False)  # noqa: E731
    peers = {"safetensors.torch.save_file": lambda: safetensors.torch.save_file(state, theirs)}
    yield compare("save(model, path, durable=False)", "torch", shape, save, peers, 1.1, seconds=12)
    durable = lambda: xw.save(model, ours)  # noqa: E731
    yield compare("save(model, path)", "torch", shape, durable, {"save(..., durable=False)": save}, None, seconds=12)
    yield extra_memory("save(model, path)", "torch", shape, durable, 2)


def _time_entry_edits(folder: Path, size: int, shape: str) -> Iterator[Timing | Memory]:
    path = str(folder / "large.safetensors")
    with Path(path).open("wb") as file:
        header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4096, 1024], "data_offsets": [0, size]}}).encode()
        file.write(len(header).to_bytes(8, "little") + header)
        start = file.tell()
        file.writelines(bytes(MIB) for _ in range(size // MIB))
    number = [0.0]

    def by_hand() -> None:
        number[0] += 1
        descriptor = os.open(path, os.O_RDWR)
        os.pwrite(descriptor, np.float32(number[0]).tobytes(), start + 4 * 123_456)
        os.fsync(descriptor)
        os.close(descriptor)

    def ours(durable: bool) -> None:
        number[0] += 1
        xw.edit_file(path, xw.SetEntries((120, 576), number[0]), where="w", durable=durable)

    peers = {"pwrite, fsync, no journal": by_hand}
    yield compare("edit_file: one entry", "file", shape, lambda: ours(True), peers, None)
    yield compare("edit_file: one entry, durable=False", "file", shape, lambda: ours(False), peers, None)
    yield extra_memory("edit_file: one entry", "file", shape, lambda: ours(True), 64)
