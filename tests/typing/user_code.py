"""A user's code, in which mypy --strict and pyright --strict have to find no mistake (`nox -s types`)."""
# pyright: strict

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import xweights as xw

Weights = dict[str, npt.NDArray[np.float32]]


def make_weights(seed: int) -> xw.Params:
    rng = np.random.default_rng(seed)
    arrays: Weights = {
        "dense/kernel": rng.normal(size=(6, 4)).astype(np.float32),
        "dense/bias": np.zeros(4, np.float32),
    }
    return xw.Params(arrays, axes={"dense/kernel": ("in", "out"), "dense/bias": ("out",)})


def look(weights: xw.Params) -> str:
    params: xw.Params = xw.get_params(weights, where="*/kernel")
    kernel: npt.NDArray[Any] = params["dense/kernel"]
    axes: Mapping[str, tuple[str, ...] | None] = params.axes
    names: list[str] = [p.name for p in xw.parameters(weights) if p.trainable]
    shapes: dict[str, tuple[int, ...]] = {p.name: p.shape for p in xw.parameters(weights)}
    total: int = sum(row.count - row.nan for row in xw.stats(weights).values())
    return f"{kernel.sum():.3f} {axes} {names} {shapes} {total} {xw.checksum(weights)}\n{xw.summary(weights)}"


def edit(weights: xw.Params) -> None:
    xw.fill(weights, 0.0, where="*/bias")
    xw.clip(weights, -1.0, 1.0, where=xw.role("kernel") & ~xw.native("head.*") | "dense/*")
    xw.max_norm(weights, 1.0, per="out", where=lambda p: p.size > 4)
    xw.set_entries(weights, (0, slice(2)), 1.0, where="dense/kernel")
    xw.noise(weights, 0.1, seed=3)
    xw.init(weights, "glorot_uniform", seed=0)
    xw.apply(weights, xw.Clip(high=0.5), where=["dense/kernel", "*/bias"])


def drop(weights: xw.Params, later: bool) -> tuple[float, int]:
    masks = xw.prune(weights, fraction=0.5)
    kept: float = float(masks["dense/kernel"].mean())
    held = xw.prune(weights, fraction=0.9, hold=True, schedule=xw.Cubic(begin=0, end=10, every=2))
    held.apply()
    step: int = held.step
    held.release()
    same = xw.prune(weights, fraction=0.9, schedule=xw.OneShot(0))
    same.release()
    either = xw.prune(weights, fraction=0.9, hold=later)
    if isinstance(either, xw.PruneHold):
        either.release()
    return kept, step


def merge(a: xw.Params, b: xw.Params, out: Path) -> xw.Params:
    report = xw.merge([a, b], "ties", base=a, density=0.5, out=out)
    print(report.as_dict())
    xw.merge([a, b], "lerp", t=0.5, into=a)
    return xw.merge([a, b], weights=(3, 1))


def compare(a: xw.Params, b: xw.Params) -> bool:
    difference: xw.Diff = xw.diff(a, b)
    rows: list[str] = [change.name for change in difference.changes]
    print(difference.as_dict(), rows)
    return xw.equal(a, b, rtol=1e-6)


def try_out(weights: xw.Params) -> None:
    before: xw.Snapshot = xw.snapshot(weights)
    with xw.transaction(weights) as undo:
        xw.scale(weights, 2.0)
        undo.rollback()
    before.restore()
    with xw.hold(weights, xw.Clip(-1, 1), where="*/kernel") as held:
        held.check()


def to_files(weights: xw.Params, folder: Path) -> list[str]:
    xw.save(weights, folder / "w.safetensors", metadata={"epoch": "3"})
    checkpoint: xw.Checkpoint = xw.load(folder / "w.safetensors")
    loaded: xw.LoadReport = xw.set_params(weights, folder / "w.safetensors")
    edited = xw.edit_file(folder / "w.safetensors", xw.Prune(fraction=0.9, scope="global"))
    xw.convert(folder / "w.safetensors", str(folder / "w.npz"))
    print(loaded.as_dict(), edited, [part.name for part in xw.parts(folder / "w.safetensors")])
    return sorted(checkpoint)


class Double(xw.Rule):
    """A rule of one's own."""

    def __call__(self, w: Any, ops: Any, parameter: xw.Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.add(w, w)


def answer(weights: xw.Params, function: Callable[[xw.Params], None]) -> str:
    try:
        function(weights)
    except (xw.SelectionError, xw.ArgumentError) as wrong:
        return str(wrong)
    return ""


def frameworks() -> dict[str, str]:  # importing them all takes long: it is checked, and not run
    return xw.backends()


def main(folder: Path) -> None:
    a, b = make_weights(0), make_weights(1)
    print(look(a))
    edit(a)
    print(drop(a, later=True), merge(a, b, folder / "both.npz").axes, compare(a, b))
    try_out(a)
    print(to_files(a, folder))
    xw.apply(a, Double(), where="*/kernel")
    print(answer(a, lambda w: xw.fill(w, 0.0, where="nothing")), xw.__version__)
