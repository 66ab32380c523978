"""Merging files: the same bits as in memory, all or nothing, in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import xweights as xw

METHODS: dict[str, dict[str, Any]] = {
    "average": {"weights": (1, 3)},
    "slerp": {"t": 0.3},
    "ema": {"decay": 0.5},
    "ties": {"density": 0.4},
    "dare_ties": {"density": 0.4, "seed": 1},
    "della": {"density": 0.4, "seed": 1, "per": 0},
    "breadcrumbs": {"density": 0.4},
    "model_stock": {},
}
NEEDS_BASE = METHODS.keys() - {"average", "slerp", "ema"}


def make_arrays(seed: int, dtype: Any = np.float32) -> dict[str, np.ndarray[Any, Any]]:
    """Return arrays of several blocks, of a part of one, of one entry and of none."""
    source = np.random.Generator(np.random.PCG64(seed))
    shapes = {"long": (150_001,), "wide": (3, 70_000), "flat": (300, 301), "one": (), "none": (0, 3)}
    return {name: source.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
@pytest.mark.parametrize("method", METHODS)
def test_files_merge_to_the_bits_that_arrays_merge_to(method: str, ending: str, tmp_path: Path) -> None:
    a, b, base = make_arrays(0), make_arrays(1), make_arrays(2)
    for name, one in (("a", a), ("b", b), ("base", base)):
        xw.save(one, tmp_path / f"{name}.{ending}", durable=False)
    options = METHODS[method]
    bases = (tmp_path / f"base.{ending}", base) if method in NEEDS_BASE else (None, None)
    paths = [tmp_path / f"a.{ending}", str(tmp_path / f"b.{ending}")]
    out = tmp_path / f"out.{ending}"
    report = xw.merge(paths, method, base=bases[0], out=out, durable=False, **options)
    assert (report.path, report.kept, report.dropped) == (str(out), (), ())
    expected = xw.merge([a, b], method, base=bases[1], **options)
    assert xw.equal(out, expected)
    assert xw.equal(xw.merge([a, xw.load(paths[1])], method, base=bases[1], **options), expected)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_files_of_other_dtypes_merge_as_arrays_do(dtype: Any, tmp_path: Path) -> None:
    a, b = make_arrays(0, dtype), make_arrays(1, dtype)
    xw.save(a, tmp_path / "a.safetensors", durable=False)
    xw.save(b, tmp_path / "b.safetensors", durable=False)
    xw.merge([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], out=tmp_path / "c.safetensors", durable=False)
    assert xw.equal(tmp_path / "c.safetensors", xw.merge([a, b]))


@pytest.mark.parametrize("method", ["average", "ties"])
def test_a_file_in_another_order_than_the_neutral_one_keeps_its_order(method: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    models = [torch.nn.Sequential(torch.nn.Linear(300, 301), torch.nn.Conv2d(3, 4, 2)) for _ in range(3)]
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for model, path in zip(models, paths, strict=True):
        xw.save(model, path, durable=False)
    base, options = (paths[2], {"density": 0.3}) if method == "ties" else (None, {})
    xw.merge(paths[:2], method, base=base, out=tmp_path / "out.safetensors", **options)
    expected = xw.merge(models[:2], method, base=None if base is None else models[2], **options)
    assert xw.equal(tmp_path / "out.safetensors", expected)
    stored = xw.load(tmp_path / "out.safetensors")
    assert [p.native_name for p in xw.parameters(stored)] == [p.native_name for p in xw.parameters(models[0])]
    merged = {p.native_name: p.read() for p in xw.parameters(stored)}
    assert merged["0.weight"].shape == (301, 300)
    models[0].load_state_dict({name: torch.from_numpy(array.copy()) for name, array in merged.items()})
    assert xw.equal(models[0], expected)


def test_a_file_may_be_replaced_by_the_result_of_its_merge(tmp_path: Path) -> None:
    a, b = make_arrays(0), make_arrays(1)
    xw.save(a, tmp_path / "a.safetensors", durable=False)
    xw.merge([tmp_path / "a.safetensors", b], out=tmp_path / "a.safetensors")
    assert xw.equal(tmp_path / "a.safetensors", xw.merge([a, b]))


def test_a_merge_that_fails_at_its_last_entry_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    a, b = make_arrays(0), make_arrays(1)
    b["wide"][:, -1] = np.inf
    path = tmp_path / "out.safetensors"
    xw.save(a, path, durable=False)
    before = path.read_bytes()
    with pytest.raises(xw.NonfiniteError, match="'wide' of target 1: 3 of 210,000"):
        xw.merge([a, b], out=path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_a_file_that_is_missing_is_an_error_that_names_the_target(tmp_path: Path) -> None:
    with pytest.raises(xw.XweightsError, match=r"target 1: .*b\.npz"):
        xw.merge([make_arrays(0), tmp_path / "b.npz"])


PEAK = """
    import sys
    from pathlib import Path
    import numpy, xweights
    xweights.merge  # what is imported at the first use of a name isn't counted
    from xweights.files.formats import safetensors
    def memory(word):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(word))
    before = memory("VmRSS")
    a, b, base, out, method, options, copies = sys.argv[1:]
    import json
    xweights.merge([a, b] * int(copies), method, base=base or None, out=out, durable=False, **json.loads(options))
    print((memory("VmHWM") - before) / 1024)
"""


def peak(folder: Path, method: str, options: dict[str, Any], *, base: str = "", copies: int = 1) -> float:
    """Return the MiB that a process took to merge two files, beyond its memory after the imports."""
    paths = [str(folder / f"{name}.safetensors") for name in "ab"]
    arguments = [*paths, base, str(folder / "out.safetensors"), method, json.dumps(options), str(copies)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), *arguments],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


def large_files(folder: Path, mebibytes: int) -> None:
    """Write two files by hand and in pieces: one large array, one of half the size, and a small one."""
    entries = mebibytes * (1 << 20) // 4
    shapes = {"large": (entries // 2,), "square": (entries // 4 // 1024, 1024), "rest": (entries // 4 - 7,), "b": (7,)}
    source = np.random.Generator(np.random.PCG64(0))
    some = source.normal(size=1 << 20).astype(np.float32)
    for name in "ab":
        at, header = 0, {}
        for key, shape in shapes.items():
            size = 4 * int(np.prod(shape))
            header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        with (folder / f"{name}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            left = at // 4
            while left:
                part = np.roll(some, int(source.integers(1000)))[:left]
                file.write(part.tobytes())
                left -= part.size


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of resident memory is read from /proc")
@pytest.mark.parametrize("method", ["average", "slerp", "ties", "dare_linear", "breadcrumbs_ties"])
def test_merging_files_takes_as_much_memory_as_a_few_blocks(method: str, tmp_path: Path) -> None:
    large_files(tmp_path, 40)
    options = {"average": {}, "slerp": {"t": 0.3}, "dare_linear": {"density": 0.5, "seed": 0}}.get(
        method, {"density": 0.5}
    )
    base = str(tmp_path / "b.safetensors") if method not in ("average", "slerp") else ""
    assert peak(tmp_path, method, options, base=base) < 16


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of resident memory is read from /proc")
def test_many_targets_take_no_more_memory_than_two(tmp_path: Path) -> None:
    large_files(tmp_path, 4)
    assert peak(tmp_path, "average", {}, copies=25) < 16


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of resident memory is read from /proc")
@pytest.mark.parametrize("method", ["average", "slerp", "ties"])
def test_merging_two_files_of_a_gigabyte_takes_no_more(method: str, tmp_path: Path) -> None:
    large_files(tmp_path, 1024)
    options: dict[str, Any] = {"average": {}, "slerp": {"t": 0.3}, "ties": {"density": 0.5}}[method]
    base = str(tmp_path / "b.safetensors") if method == "ties" else ""
    assert peak(tmp_path, method, options, base=base) < 16
