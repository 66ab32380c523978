"""Train a transformer that several ranks hold: 90 % pruned, half frozen, the same bytes on 1, 2 and 4 ranks.

    torchrun --nproc-per-node 4 examples/sharded_training.py train weights.safetensors
    torchrun --nproc-per-node 2 examples/sharded_training.py load weights.safetensors

The first line trains and saves to one file, the second one loads it on another number of ranks. Both print the same
checksums of what is held: which weights are pruned, and the frozen rows of the embedding. The other weights agree to
the precision of sums, whose order depends on the number of ranks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import xweights as xw

WORDS, WIDTH, STEPS = 96, 32, 10
FROZEN = slice(0, WORDS // 2)
KERNELS = "blocks/*/kernel"


class Transformer(nn.Module):
    """Two layers of self-attention that predict the next word."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return the scores of the next word at each place."""
        h = self.words(words)
        for block in self.blocks:
            h = block(h)
        scores: torch.Tensor = self.head(h)
        return scores


def build() -> Transformer:
    """Return the model, sharded over all ranks: each layer by itself."""
    model = Transformer()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # The same numbers on any number of ranks, whatever torch's own generators have done.
    xw.init(model, "glorot_uniform", seed=0, where=["blocks/*/kernel", "head/kernel", "words/*"])
    return model


def train(path: Path) -> dict[str, str]:
    """Train under the holds, save, and return the checksums of what was held."""
    model = build()
    xw.prune(model, fraction=0.9, scope="global", where=KERNELS)
    kept = {name: values != 0 for name, values in xw.get_params(model, where=KERNELS).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    held = [
        xw.hold(model, xw.Mask(kept), where=KERNELS, optimizer=optimizer),
        xw.freeze(model, where="words/embeddings", entries=(FROZEN,), optimizer=optimizer),
    ]
    before = xw.get_params(model, where="words/embeddings")["words/embeddings"]
    text = torch.arange(4 * 24).reshape(4, 24) * 7 % WORDS
    for _ in range(STEPS):
        optimizer.zero_grad()
        scores = model(text[:, :-1])
        nn.functional.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten()).backward()
        optimizer.step()
    for one in held:
        one.check()
    after = xw.get_params(model, where="words/embeddings")["words/embeddings"]
    assert np.array_equal(before[FROZEN], after[FROZEN])
    assert not np.array_equal(before, after)
    xw.save(model, path)
    return checksums(model)


def load(path: Path) -> dict[str, str]:
    """Load the file into a model that is sharded over the ranks of now, and return the same checksums."""
    model = build()
    xw.set_params(model, path)
    return checksums(model)


def checksums(model: nn.Module) -> dict[str, str]:
    """Return the checksums of the masks and of the frozen rows, and that of all weights."""
    values = xw.get_params(model)
    masks = {name: values[name] != 0 for name in values if name.startswith("blocks/") and name.endswith("/kernel")}
    density = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.size for mask in masks.values())
    return {
        "masks": xw.checksum(masks),
        "frozen rows": xw.checksum({"rows": values["words/embeddings"][FROZEN].copy()}),
        "all weights": xw.checksum(model),
        "kept": f"{density:.4f}",
    }


def main() -> None:
    """Run on each rank what the command line says."""
    work = {"train": train, "load": load}[sys.argv[1]]
    dist.init_process_group("gloo")
    found = work(Path(sys.argv[2]))
    if dist.get_rank() == 0:
        for what, checksum in found.items():
            print(f"{what}: {checksum}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
