"""Count what calls cost on 512 ranks: `python benchmarks/sharded_counts.py` writes the table of docs/sharded.md.

A model of the shapes of Llama 3 70B is made on the meta device and sharded by FSDP2 over a fake process group of 512
ranks, of which this process is the first. Only its own blocks get memory. Each call is the real one; its collectives
are counted, and answered as if every rank were like this one. All counts grow by the same steps with each layer, so two
of the 80 layers are run.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import xweights as xw
from xweights.files import placing
from xweights.files.formats import dcp_write
from xweights.files.io.open_file import OpenFile
from xweights.training import prune_shards
from xweights_torch import storage
from xweights_torch.sharding import storage as sharding_storage
from xweights_torch.sharding.groups import TorchGroup

PAGE = Path(__file__).resolve().parents[1] / "docs" / "sharded.md"
BEGIN, END = "<!-- counts: begin -->", "<!-- counts: end -->"


@dataclass(frozen=True)
class Sizes:
    """The widths of a model, and the number of its layers."""

    vocab: int = 128256
    width: int = 8192
    hidden: int = 28672
    keys: int = 1024
    layers: int = 80


class Layer(nn.Module):
    """The weights of one layer; nothing here is ever computed."""

    def __init__(self, sizes: Sizes, **options: Any) -> None:
        super().__init__()
        for name, rows, columns in (
            ("q", sizes.width, sizes.width),
            ("k", sizes.width, sizes.keys),
            ("v", sizes.width, sizes.keys),
            ("o", sizes.width, sizes.width),
            ("gate", sizes.width, sizes.hidden),
            ("up", sizes.width, sizes.hidden),
            ("down", sizes.hidden, sizes.width),
        ):
            setattr(self, name, nn.Linear(rows, columns, bias=False, **options))
        self.norm_1, self.norm_2 = nn.RMSNorm(sizes.width, **options), nn.RMSNorm(sizes.width, **options)


class Model(nn.Module):
    """Embedding, layers, head."""

    def __init__(self, sizes: Sizes, layers: int) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
        self.emb = nn.Embedding(sizes.vocab, sizes.width, **options)
        self.layers = nn.ModuleList(Layer(sizes, **options) for _ in range(layers))
        self.norm = nn.RMSNorm(sizes.width, **options)
        self.head = nn.Linear(sizes.width, sizes.vocab, bias=False, **options)


@dataclass
class Counts:
    """What one call costs this rank: collectives and the bytes it hands in or gets, bytes of files, memory."""

    collectives: int = 0
    sent: int = 0
    read: int = 0
    written: int = 0
    memory: int = 0

    def minus(self, other: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def grown(self, step: Counts, times: int) -> Counts:
        return Counts(*(a + b * times for a, b in zip(vars(self).values(), vars(step).values(), strict=True)))


class Simulation:
    """The collectives of a fake group: counted, and answered as if all ranks had what this one has."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.kept = 0

    def note(self, nbytes: int) -> None:
        self.counts.collectives += 1
        self.counts.sent += nbytes

    def install(self) -> None:
        """Take the place of PyTorch's collectives, and count reads and writes of files."""
        simulation = self

        def all_gather(group: Any, array: Any) -> list[Any]:
            simulation.note(array.nbytes)
            return [array] * group.size

        def all_reduce(group: Any, array: Any, how: str = "sum") -> Any:
            simulation.note(array.nbytes)
            return array * group.size if how == "sum" else array

        def gather(group: Any, array: Any, root: int) -> Any:
            simulation.note(array.nbytes)
            return [array] * group.size if group.rank == root else None

        def scatter(group: Any, arrays: Any, like: Any, root: int) -> Any:
            simulation.note(like.nbytes)
            return np.zeros_like(like) if arrays is None else arrays[group.rank]

        for name, function in {
            "all_gather": all_gather, "all_reduce": all_reduce, "gather": gather, "scatter": scatter,
        }.items():  # fmt: skip
            setattr(TorchGroup, name, function)

        def settle(group: Any, parameters: Sequence[Any], *, known: bool) -> list[bool]:
            group.all_gather(np.zeros((len(parameters), 2), np.int64))
            return [True] * len(parameters)

        for module in (placing, dcp_write, prune_shards):
            module.settle_owners = settle  # type: ignore[attr-defined]
        read_some, write_at = OpenFile._read_some, placing._write_at

        def counted_read(file: OpenFile, offset: int, out: memoryview) -> int:
            simulation.counts.read += len(out)
            return read_some(file, offset, out)

        def counted_write(descriptor: int, data: memoryview, offset: int) -> None:
            simulation.counts.written += len(data)
            write_at(descriptor, data, offset)

        back_up = storage.back_up

        def counted_back_up(tensor: torch.Tensor) -> Any:
            simulation.kept += tensor.nbytes  # not NumPy's, so it isn't traced
            return back_up(tensor)

        storage.back_up = sharding_storage.back_up = counted_back_up  # type: ignore[attr-defined]
        OpenFile._read_some = counted_read  # type: ignore[method-assign]
        placing._write_at = counted_write

    @contextmanager
    def counting(self) -> Any:
        """Count what happens inside; memory is the most that is there beside the blocks, copies of them included."""
        self.counts, self.kept = Counts(), 0
        tracemalloc.start()
        yield self.counts
        self.counts.memory = tracemalloc.get_traced_memory()[1] + self.kept
        tracemalloc.stop()


def write_sparse(path: Path, model: nn.Module) -> None:
    """Write a safetensors file of the whole model, all zeros, that takes no room on a disk that knows holes."""
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in model.state_dict().items():
        size = tensor.numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


Call = Callable[[Any, Path], Any]
CALLS: dict[str, Call] = {
    "`scale`, `clip`, `mask`, `set_entries`": lambda m, f: xw.clip(m, -1, 1),
    "`hold`, `freeze`": lambda m, f: xw.hold(m, xw.Clip(-1, 1), where="*/kernel").release(),
    "`snapshot`, `transaction`": lambda m, f: xw.snapshot(m),
    '`max_norm(per="out")`': lambda m, f: xw.max_norm(m, 1.0, per="out", where="*/kernel"),
    '`clip_norm(scope="global")`': lambda m, f: xw.clip_norm(m, 1.0, scope="global"),
    '`prune(fraction=0.5, scope="global")`': lambda m, f: xw.prune(m, fraction=0.5, scope="global"),
    "`noise`, `init`": lambda m, f: xw.noise(m, 0.1, seed=0, where="*/kernel"),
    "`checksum`, `stats`, `diff`": lambda m, f: xw.checksum(m),
    "`set_params` from a file": lambda m, f: xw.set_params(m, f / "in.safetensors", layout="native"),
    "... with `allow_nonfinite=True`": lambda m, f: xw.set_params(
        m, f / "in.safetensors", layout="native", allow_nonfinite=True
    ),
    "`save` to safetensors": lambda m, f: xw.save(m, f / "out.safetensors", durable=False),
    "`save` to a folder of PyTorch": lambda m, f: xw.save(m, f"{f}/out/", durable=False),
    "`merge` of two files, entry by entry": lambda m, f: xw.merge(
        [f / "in.safetensors", f / "in.safetensors"], into=m, layout="native"
    ),
}


def measure(sizes: Sizes, layers: int, calls: dict[str, Call], simulation: Simulation) -> tuple[int, dict[str, Counts]]:
    """Return the bytes of this rank's blocks, and what each call costs on a model of so many layers."""
    found: dict[str, Counts] = {}
    model: Any = Model(sizes, layers)
    with tempfile.TemporaryDirectory() as folder:
        write_sparse(Path(folder) / "in.safetensors", model)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model.to_empty(device="cpu")
        share = 0
        with torch.no_grad():
            for p in model.parameters():
                block = p.to_local()
                block.copy_(torch.linspace(-1, 1, block.numel()).reshape(block.shape))
                share += block.nbytes
        for name, call in calls.items():
            with simulation.counting() as counts:
                call(model, Path(folder))
            found[name] = counts
            for path in (Path(folder) / "out").glob("*"):
                counts.written += path.stat().st_size
                path.unlink()
    return share, found


def extrapolate(sizes: Sizes, calls: dict[str, Call], simulation: Simulation) -> tuple[int, dict[str, Counts]]:
    """Return the same for all layers, from one and two of them."""
    measure(Sizes(64, 64, 64, 64, 1), 1, calls, simulation)  # what the first call of a process imports isn't counted
    (share_1, one), (share_2, two) = (measure(sizes, layers, calls, simulation) for layers in (1, 2))
    more = sizes.layers - 1
    found = {name: one[name].grown(two[name].minus(one[name]), more) for name in calls}
    return share_1 + (share_2 - share_1) * more, found


def start(ranks: int) -> Simulation:
    """Be the first of so many ranks."""
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    simulation = Simulation()
    simulation.install()
    return simulation


def show(share: int, found: dict[str, Counts]) -> str:
    """Return the table."""
    lines = [
        f"A rank's blocks are {_size(share)}.",
        "",
        "| call | collectives | bytes that a rank sends | reads of files | writes | memory beside the blocks |",
        "|---|---|---|---|---|---|",
    ]
    for name, c in found.items():
        sizes = " | ".join(map(_size, (c.sent, c.read, c.written, c.memory)))
        lines.append(f"| {name} | {c.collectives:,} | {sizes} |")
    return "\n".join(lines)


def _size(count: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}" if count < 100 * unit else f"{count / unit:,.0f} {name}"
    return f"{count:,}" if count else "-"


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--only", help="a part of the name of a call")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    calls = {name: call for name, call in CALLS.items() if options.only is None or options.only in name}
    table = show(*extrapolate(Sizes(), calls, start(options.ranks)))
    print(table)
    if options.only is None:
        text = PAGE.read_text(encoding="utf-8")
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
