"""Time merging two safetensors files into a third against a hand-written streaming loop.

The loop reads both files a mebibyte at a time and writes as it goes; it assumes that they have the same layout, and
checks nothing. Files are in the page cache, and nothing waits for the disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from timing import MIB, Memory, Timing, can_measure_memory, compare

import xweights as xw

CHUNK = MIB // 4
# Runs in a process of its own: memory beyond that after the imports.
PEAK = """
import sys
from pathlib import Path
import xweights
xweights.merge
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))
before = memory("VmRSS")
xweights.merge(sys.argv[1:3], out=sys.argv[3], durable=False)
print((memory("VmHWM") - before) / 1024)
"""


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape, arrays, entries in (("8M", 4, 1 << 19),) if quick else (("200M", 12, 1 << 22), ("1G", 16, 1 << 24)):
            paths = _two_files(folder, arrays, entries)
            out, by_hand = folder / "out.safetensors", folder / "by_hand.safetensors"

            def no_file(out: Path = out, by_hand: Path = by_hand) -> None:
                out.unlink(missing_ok=True)
                by_hand.unlink(missing_ok=True)

            if shape != "1G":
                ours = lambda paths=paths, out=out: xw.merge(paths, out=out, durable=False)  # noqa: E731
                peers = {"readinto, add, write, 1 MiB": lambda paths=paths, by_hand=by_hand: _by_hand(paths, by_hand)}
                idiom = ("safetensors.numpy", lambda paths=paths, by_hand=by_hand: _idiom(paths, by_hand))
                yield compare("merge(out=), average of two", "files", shape, ours, peers, 1.15, idiom=idiom,
                              idiom_goal=2.0, before=no_file, seconds=10)  # fmt: skip
                checked = {
                    "the same, and the sum of squares": lambda paths=paths, by_hand=by_hand: _by_hand(
                        paths, by_hand, check=True
                    )
                }
                title = "merge(out=), average, a peer that looks for NaN"
                yield compare(title, "files", shape, ours, checked, 1.15, before=no_file, seconds=10)
                weighted = lambda paths=paths, out=out: xw.merge(paths, weights=(1, 2), out=out, durable=False)  # noqa: E731
                peers = {
                    "readinto, multiply, add, write": lambda paths=paths, by_hand=by_hand: _by_hand(
                        paths, by_hand, 1 / 3
                    )
                }
                yield compare("merge(out=, weights=)", "files", shape, weighted, peers, None, before=no_file, seconds=5)
            if can_measure_memory():
                yield Memory("merge(out=): beyond the imports", "files", shape, _peak(paths, out), 16.0)


def _two_files(folder: Path, arrays: int, entries: int) -> list[Path]:
    paths = [folder / "a.safetensors", folder / "b.safetensors"]
    offset, header = 0, {}
    for i in range(arrays):
        header[f"{i}/kernel"] = {
            "dtype": "F32",
            "shape": [entries // 1024, 1024],
            "data_offsets": [offset, offset + 4 * entries],
        }
        offset += 4 * entries
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    for seed, path in enumerate(paths):
        part = np.random.default_rng(seed).standard_normal(entries, dtype=np.float32)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _ in range(arrays):
                file.write(part)
    return paths


def _by_hand(paths: list[Path], out: Path, weight: float = 0.5, *, check: bool = False) -> None:
    a, b = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    with paths[0].open("rb", 0) as first, paths[1].open("rb", 0) as second, out.open("wb", 0) as result:
        length = 8 + int.from_bytes(first.read(8), "little")
        first.seek(0)
        result.write(first.read(length))
        second.seek(length)
        while got := first.readinto(a):
            second.readinto(b)
            part, rest = a[: got // 4], b[: got // 4]
            if weight == 0.5:
                np.add(part, rest, out=part)
                np.multiply(part, np.float32(0.5), out=part)
            else:
                np.multiply(part, np.float32(weight), out=part)
                np.multiply(rest, np.float32(1.0 - weight), out=rest)
                np.add(part, rest, out=part)
            if check and not np.isfinite(np.dot(part, part)):
                raise ValueError("not finite")
            result.write(part)


def _idiom(paths: list[Path], out: Path) -> None:
    first, second = (safetensors.numpy.load_file(path) for path in paths)
    safetensors.numpy.save_file({name: (array + second[name]) / 2 for name, array in first.items()}, out)


def _peak(paths: list[Path], out: Path) -> float:
    command: list[Any] = [sys.executable, "-c", PEAK, *paths, out]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout)
