"""A file whose arrays fit a model one to one is streamed in a few reads, with what `set_params` does of any other."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw
from xweights.edit import write
from xweights.files.io.open_file import OpenFile
from xweights.files.io.storage import FileStorage

torch = pytest.importorskip("torch", reason="PyTorch isn't installed")
nn = torch.nn

MODELS: dict[str, Callable[[], Any]] = {
    "layers": lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)),
    "square": lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False)),
    "statistics": lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)),
    "recurrent": lambda: nn.LSTM(3, 5),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "bfloat16": lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)).to(torch.bfloat16),
    "float16": lambda: nn.Linear(4, 8).half(),
    "mixed": lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4).to(torch.bfloat16), nn.Embedding(9, 4).double()),
    "complex": lambda: nn.Linear(4, 4, dtype=torch.complex64),
    "empty": lambda: nn.Sequential(nn.Linear(4, 0), nn.Linear(4, 2)),
}


def make(name: str, seed: int) -> Any:
    torch.manual_seed(seed)
    return MODELS[name]()


def bits(model: Any) -> dict[str, bytes]:
    state = {key: tensor.detach().reshape(-1).contiguous() for key, tensor in model.state_dict().items()}
    return {key: tensor.view(torch.uint8).numpy().tobytes() for key, tensor in state.items() if tensor.numel()}


def save(model: Any, path: Path, names: str | None) -> str:
    """Save a model: by xweights under names of either kind, or (None) as safetensors does, without any notes."""
    if names is None:
        writer = pytest.importorskip("safetensors.torch", reason="safetensors isn't installed")
        writer.save_file(model.state_dict(), path)
    else:
        xw.save(model, path, names=names, durable=False)
    return str(path)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return `set_params` without the way for plain files."""

    def set_slowly(*args: Any, **options: Any) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(write, "stream_plainly", lambda *args, **options: None)
            return xw.set_params(*args, **options)

    return set_slowly


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that says for each call whether it went the way for plain files."""
    calls: list[bool] = []
    stream_plainly = write.stream_plainly

    def watch(*args: Any, **options: Any) -> Any:
        report = stream_plainly(*args, **options)
        calls.append(report is not None)
        return report

    monkeypatch.setattr(write, "stream_plainly", watch)
    return calls


@pytest.mark.parametrize("names", ["neutral", "native", None])
@pytest.mark.parametrize("name", MODELS)
def test_the_bits_and_the_report_are_those_of_the_long_way(
    name: str, names: str | None, slow: Any, streamed: list[bool], tmp_path: Path
) -> None:
    source, fast, reference = make(name, 0), make(name, 1), make(name, 1)
    path = save(source, tmp_path / "w.safetensors", names)
    layout: Any = "native" if names is None else None
    xw.set_params(fast, path, layout=layout)  # the first call makes the plan
    fast = make(name, 2)
    xw.parameters(fast)
    report = xw.set_params(fast, path, layout=layout)
    assert streamed == [True, True]
    assert report == slow(reference, path, layout=layout)
    assert bits(fast) == bits(reference) == bits(source)


@pytest.mark.parametrize("where", ["*/kernel", "0/*", ["0/bias"]])
def test_a_selection_is_written_and_nothing_else(where: Any, slow: Any, streamed: list[bool], tmp_path: Path) -> None:
    path = save(make("layers", 0), tmp_path / "w.safetensors", "neutral")
    fast, reference = make("layers", 1), make("layers", 1)
    assert xw.set_params(fast, path, where=where) == slow(reference, path, where=where)
    assert streamed == [True]
    assert bits(fast) == bits(reference) != bits(make("layers", 1))


def test_a_thousand_small_arrays_are_two_reads_beside_the_header(
    streamed: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(*[nn.Linear(3, 3, bias=False) for _ in range(1000)])
    path = save(model, tmp_path / "w.safetensors", None)
    reads: list[int] = []
    preadv = os.preadv

    def watch(descriptor: int, buffers: Any, offset: int) -> int:
        reads.append(len(buffers))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", watch)
    xw.set_params(model, path, layout="native")
    assert streamed == [True]
    assert reads[-2:] == [1, 1000]
    assert len(reads) < 8


@pytest.mark.parametrize("short", [1, 7, 40, 100])
def test_a_read_that_returns_less_goes_on_where_it_ended(
    short: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = make("layers", 0), make("layers", 1)
    path = save(source, tmp_path / "w.safetensors", "neutral")
    preadv = os.preadv

    def read_less(descriptor: int, buffers: Any, offset: int) -> int:
        left, some = short, []
        for buffer in buffers:
            some.append(memoryview(buffer)[:left])
            left -= len(some[-1])
            if not left:
                break
        return preadv(descriptor, some, offset)

    monkeypatch.setattr(os, "preadv", read_less)
    xw.set_params(target, path)
    assert bits(target) == bits(source)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("what", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_one_entry_that_is_not_finite_in_the_last_array_changes_nothing(
    dtype: str, what: float, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xweights.edit.stream.count_threads", lambda: threads)
    monkeypatch.setattr("xweights.edit.stream._WORTH_A_THREAD", 1)
    layers = [nn.Linear(700, 400, dtype=getattr(torch, dtype)) for _ in range(3)]
    model, source = nn.Sequential(*layers), nn.Sequential(*layers)
    with torch.no_grad():
        source[2].weight[-1, -1] = what
    path = save(source, tmp_path / "w.safetensors", None)
    model = nn.Sequential(*[nn.Linear(700, 400, dtype=getattr(torch, dtype)) for _ in range(3)])
    before, versions = bits(model), [p._version for p in model.parameters()]
    with pytest.raises(xw.NonfiniteError, match="'2/kernel' has 1 non-finite"):
        xw.set_params(model, path, layout="native")
    assert bits(model) == before
    assert [p._version for p in model.parameters()] == versions
    xw.set_params(model, path, layout="native", allow_nonfinite=True)
    assert bits(model) == bits(source)
    assert all(p._version > version for p, version in zip(model.parameters(), versions, strict=True))


def test_a_file_that_can_not_be_read_to_its_end_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(make("layers", 0), tmp_path / "w.safetensors", "neutral")
    model = make("layers", 1)
    before = bits(model)
    read_into = OpenFile.read_into

    def fail(self: OpenFile, offset: int, out: Any, *, key: str | None = None) -> None:
        monkeypatch.setattr(os, "preadv", raise_error)
        read_into(self, offset, out, key=key)

    def raise_error(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(OpenFile, "read_into", fail)
    with pytest.raises(xw.FileAccessError, match="read it: Input/output error"):
        xw.set_params(model, path)
    assert bits(model) == before


@pytest.mark.parametrize("way", ["streamed", "long way"])
def test_a_file_that_became_shorter_after_its_check_says_that_a_part_is_written(
    way: str, slow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model = make("layers", 0), make("layers", 1)
    path = save(source, tmp_path / "w.safetensors", "neutral")
    versions = [p._version for p in model.parameters()]
    read_together = FileStorage.read_together

    def shorten(self: FileStorage, handles: Any, outs: Any) -> None:
        os.truncate(path, Path(path).stat().st_size - 100)
        read_together(self, handles, outs)

    monkeypatch.setattr(FileStorage, "read_together", shorten)
    with pytest.raises(xw.DamagedFileError, match=r"(?s)became shorter.*a part of the parameters has its values"):
        (xw.set_params if way == "streamed" else slow)(model, path)
    # Autograd is told of what was overwritten.
    assert all(p._version > version for p, version in zip(model.parameters(), versions, strict=True))


def test_ctrl_c_in_the_middle_waits_until_all_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = make("layers", 0), make("layers", 1)
    path = save(source, tmp_path / "w.safetensors", "neutral")
    read_places = OpenFile._read_places

    def interrupt(self: OpenFile, offset: int, views: list[memoryview]) -> int:
        got = read_places(self, offset, [views[0][:8]])
        signal.raise_signal(signal.SIGINT)
        return got

    monkeypatch.setattr(OpenFile, "_read_places", interrupt)
    with pytest.raises(KeyboardInterrupt):
        xw.set_params(model, path)
    assert bits(model) == bits(source)


def _rename(module: Any, state: Any, prefix: str, metadata: Any) -> Any:
    return {key.replace("0.", "x.").replace("1.", "0.").replace("x.", "1."): tensor for key, tensor in state.items()}


def _hook(model: Any) -> None:
    model._register_state_dict_hook(_rename)


def _override(model: Any) -> None:
    own = model.state_dict
    model.state_dict = lambda *args, **options: _rename(None, own(*args, **options), "", None)


@pytest.mark.parametrize("change", [_hook, _override])
def test_names_that_the_module_saves_otherwise_since_are_its_own_ones(
    change: Callable[[Any], None], streamed: list[bool], tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    source = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    path = save(source, tmp_path / "w.safetensors", None)
    xw.set_params(model, path, layout="native")
    assert bits(model) == bits(source)
    change(model)  # what it saves as "0." is now what it has as "1."
    xw.set_params(model, path, layout="native")
    assert torch.equal(model[1].weight, source[0].weight)
    assert torch.equal(model[0].weight, source[1].weight)
    assert streamed == [True, False]


def test_what_changed_in_the_model_since_is_seen(streamed: list[bool], tmp_path: Path) -> None:
    source, model = make("layers", 0), make("layers", 1)
    path = save(source, tmp_path / "w.safetensors", "neutral")
    xw.set_params(model, path)
    former = model[0]
    model[0] = nn.Linear(4, 8)
    model[2].weight = nn.Parameter(torch.zeros(4, 8))
    kept = former.weight.detach().clone()
    xw.set_params(model, path)
    assert bits(model) == bits(source)
    assert torch.equal(former.weight, kept)
    model[2].weight = nn.Parameter(torch.zeros(8, 4).T)  # its entries aren't in the order of the file's
    xw.set_params(model, path)
    assert bits(model) == bits(source)
    model[2] = nn.Linear(8, 5)
    before = bits(model)
    with pytest.raises(xw.ShapeError):
        xw.set_params(model, path)
    assert bits(model) == before
    assert streamed == [True, True, False, False]


def test_a_held_parameter_has_its_hold_applied(streamed: list[bool], tmp_path: Path) -> None:
    source, model = make("layers", 0), make("layers", 1)
    path = save(source, tmp_path / "w.safetensors", "neutral")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with xw.hold(model, xw.Clip(-0.01, 0.01), where="0/kernel", optimizer=optimizer):
        xw.set_params(model, path)
    assert float(model[0].weight.detach().abs().max()) <= 0.0101
    assert torch.equal(model[2].weight, source[2].weight)
    assert streamed == [False]


def test_tied_and_overlapping_parameters_go_the_long_way(streamed: list[bool], tmp_path: Path) -> None:
    source = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    path = save(source, tmp_path / "w.safetensors", None)
    memory = torch.zeros(24)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight = nn.Parameter(memory[:16].view(4, 4))
    model[1].weight = nn.Parameter(memory[8:].view(4, 4))
    xw.set_params(model, path, layout="native")
    assert streamed == [False]
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    xw.save(tied, tmp_path / "tied.safetensors", durable=False)
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    other[1].weight = other[0].weight
    xw.set_params(other, tmp_path / "tied.safetensors")
    assert bits(other) == bits(tied)
    assert streamed == [False, False]
