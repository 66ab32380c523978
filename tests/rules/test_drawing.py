"""Numbers drawn in blocks, across the stored order and on several threads have the bytes that they always had."""

from __future__ import annotations

import hashlib
import threading

import ml_dtypes
import numpy as np
import pytest

import xweights as xw
from xweights.core.layout import layout_of
from xweights.core.parameter import Parameter
from xweights.rules.initializers import Init
from xweights.rules.noise import Noise

SHAPES = {
    "across": ("out in -> in out", (300, 513)),
    "conv": ("out in h w -> h w in out", (70, 65, 3, 5)),
    "tall": ("out in -> in out", (3, 70001)),
    "vector": ("unit", (200001,)),
}
# SHA-256 of the stored bytes (the first 16 digits), from the code that drew each array at once, in neutral order.
PINNED = {
    "noise normal across float32": "d0e83728000b3acc",
    "noise uniform across float32": "0457daafae5dd181",
    "noise normal across float64": "cfdb6e5437572484",
    "noise uniform across float64": "79f8576b0b2ceb32",
    "noise normal across float16": "9561aec52c098e67",
    "noise uniform across float16": "016821b994e759a1",
    "noise normal across bfloat16": "c29d15ac76bcb621",
    "noise uniform across bfloat16": "7dc7ffd619ed9dbf",
    "noise normal conv float32": "655f4722e5fde5b4",
    "noise uniform conv float32": "36bf295c60f3b671",
    "noise normal tall float32": "35673eb02401e1d4",
    "noise uniform tall float32": "212fa22eb3202787",
    "noise normal vector float32": "35882d82ee12e3d6",
    "noise uniform vector float32": "c72d3c0794dac052",
    "init uniform across float32": "1384476279078059",
    "init normal across float32": "1900468891db367c",
    "init truncated_normal across float32": "7d85095b97a6c47c",
    "init he_normal across float32": "cc1cfd4dc5d1e220",
    "init glorot_uniform across float32": "db1b04680935b748",
    "init uniform across bfloat16": "05a2dd7040ce667d",
    "init normal across bfloat16": "344ba6ac048ca095",
    "init truncated_normal across bfloat16": "7b3e4e061fb549c4",
    "init he_normal across bfloat16": "f424a31a0cf1891e",
    "init glorot_uniform across bfloat16": "f25241581a9deb0f",
    "init uniform conv float32": "2cf676b437df750b",
    "init normal conv float32": "e235fbbf263fffb1",
    "init truncated_normal conv float32": "e12319d96109ccd5",
    "init he_normal conv float32": "af7a6cb85df09e89",
    "init glorot_uniform conv float32": "f5cd2e1da9c1ddfe",
    "init uniform conv bfloat16": "6aa06bc33fcf0ee1",
    "init normal conv bfloat16": "deb6d564c246771f",
    "init truncated_normal conv bfloat16": "1d2628a7c6314ef5",
    "init he_normal conv bfloat16": "221e030627392248",
    "init glorot_uniform conv bfloat16": "160cc0a8b9c226a1",
}


def parameter(pattern: str, shape: tuple[int, ...], dtype: str) -> Parameter:
    stored = np.zeros(shape, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    storage = xw.parameters({"a": stored})[0].storage
    return Parameter(name="a/kernel", native_name="a", layout=layout_of(pattern, shape), dtype=stored.dtype,
                     storage=storage, handle=stored)  # fmt: skip


@pytest.mark.parametrize("case", PINNED)
def test_the_bytes_of_a_seed_are_pinned_for_every_order_and_dtype(case: str) -> None:
    verb, kind, shape, dtype = case.split()
    p = parameter(*SHAPES[shape], dtype)
    if verb == "init":
        xw.init(p, kind, seed=3)
    else:
        xw.noise(p, seed=3, step=2, **({"std": 0.1} if kind == "normal" else {"low": -0.3, "high": 0.7}))
    assert hashlib.sha256(p.handle.tobytes()).hexdigest()[:16] == PINNED[case]


def weights() -> dict[str, np.ndarray]:
    return {f"{i}/kernel": np.zeros((300, 100 + i), np.float32) for i in range(7)}


@pytest.mark.parametrize("edit", [Noise(0.5, seed=1), Noise(low=-1.0, high=2.0, seed=1), Init("he_normal", seed=1)])
def test_two_threads_give_the_bytes_of_one(edit, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr("xweights.edit.drawing.count_threads", lambda threads=threads: threads)
        target = xw.Params(weights(), axes=dict.fromkeys(weights(), ("in", "out")))
        xw.apply(target, edit, where=...)
        results.append({name: array.tobytes() for name, array in target.items()})
    assert results[0] == results[1] == results[2]


def test_several_threads_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    barrier = threading.Barrier(2, timeout=60)
    on_host = Noise.on_host

    def watched(self, w, p) -> bool:
        if len(seen) < 2:
            barrier.wait()  # two threads have to be here at once
        seen.add(threading.get_ident())
        return on_host(self, w, p)

    monkeypatch.setattr(Noise, "on_host", watched)
    monkeypatch.setattr("xweights.edit.drawing.count_threads", lambda: 2)
    xw.noise({f"{i}/kernel": np.zeros((300, 300), np.float32) for i in range(2)}, 1.0, seed=0)
    assert len(seen) == 2


def test_arrays_that_overlap_are_edited_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for threads in (1, 2):
        monkeypatch.setattr("xweights.edit.drawing.count_threads", lambda threads=threads: threads)
        whole = np.zeros((1000, 100), np.float32)
        xw.noise({"a/kernel": whole, "b/kernel": whole[100:], "c/kernel": whole[500:]}, 1.0, seed=0)
        results.append(whole.tobytes())
    assert results[0] == results[1]


def test_what_is_wrong_is_said_as_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xweights.edit.drawing.count_threads", lambda: 2)
    target = {"a/kernel": np.ones((500, 200), np.float32), "b/kernel": np.ones(5, np.float32)}
    with pytest.raises(xw.ShapeError, match="b/kernel"):
        xw.init(target, "orthogonal", seed=0)
    assert target["a/kernel"].min() == 1.0


def test_uniform_noise_reaches_a_scalar_of_a_half_type() -> None:
    target = {"s": np.zeros((), ml_dtypes.bfloat16)}
    xw.noise(target, low=1.0, high=2.0, seed=0)
    assert 1 <= float(target["s"]) <= 2
