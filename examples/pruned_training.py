"""A digits classifier that is pruned to 90 % during training, in Keras and in PyTorch. Run it: nox -s demo.

Both twins start from the same weights and see the same batches; the sparsity grows by a cubic schedule, and three
rows of the last layer (torch's weight[:3]) are frozen. KERAS_BACKEND sets the framework below Keras, and --keras-only
leaves out the long run in PyTorch, which is the same beside each.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import digits
import keras
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import xweights as xw

FRACTION = 0.9
PRUNED = ["conv1/kernel", "conv2/kernel", "hidden/kernel"]
FROZEN, ROWS = "logits/kernel", {"out": slice(3)}
WITHIN = 0.01  # one point of accuracy
FILTERS, BATCH, EPOCHS = 48, 64, 20
SEEDS = (0, 1, 2)  # one of 360 test images is 0.3 points: single runs differ by three of them at random
LR, DECAY = 3e-3, 0.05

Epoch = tuple[np.ndarray, np.ndarray, float]  # images, labels, learning rate
Train = Callable[[np.ndarray, np.ndarray, float], None]

console = Console(width=112)
# The thread pools of TensorFlow and torch stall each other on a small machine; these layers need no threads.
torch.set_num_threads(1)


@dataclass(frozen=True)
class Run:
    """Results of training one twin twice: dense, and pruned during training. Accuracies are means over the seeds."""

    framework: str
    dense: float
    pruned: float
    zeros: int
    entries: int
    frozen_equal: bool

    @property
    def promised(self) -> int:
        """Return how many entries have to be zero: no more, and no less."""
        return int(FRACTION * self.entries + 0.5)

    @property
    def kept(self) -> bool:
        """Return True if the run kept every promise."""
        return self.zeros == self.promised and self.frozen_equal and self.pruned >= self.dense - WITHIN


def epochs(count: int) -> Iterator[Epoch]:
    """Yield the training set once per epoch, in the same order for all; the learning rate falls from halfway on."""
    images, _, labels, _ = digits.data()
    rng = np.random.default_rng(0)
    for epoch in range(count):
        order = rng.permutation(len(images))[: len(images) // BATCH * BATCH]
        yield images[order], labels[order], LR * min(1.0, 2 * (1 - epoch / count))


def schedule(count: int) -> xw.Schedule:
    """Return the schedule: from two to six tenths of the run, with new masks every eleven steps."""
    steps = count * (len(digits.data()[0]) // BATCH)
    return xw.Cubic(steps * 2 // 10, steps * 6 // 10, every=11)


def keras_twin(start: xw.Params | None = None) -> tuple[keras.Model, Train]:
    """Return the classifier in Keras, and a function that trains it for an epoch."""
    model = digits.KerasDigits(FILTERS)
    model(np.zeros((1, 8, 8, 1), np.float32))  # builds the layers
    if start is not None:
        xw.set_params(model, start)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(LR, weight_decay=DECAY), loss)

    def train(images: np.ndarray, labels: np.ndarray, lr: float) -> None:
        model.optimizer.learning_rate = lr
        model.fit(images, labels, batch_size=BATCH, shuffle=False, verbose=0)

    return model, train


def start(seed: int) -> xw.Params:
    """Return initial weights: the same bits on every Keras backend."""
    model, _ = keras_twin()
    xw.init(model, "glorot_uniform", seed=seed)
    return xw.get_params(model)


def torch_twin(start: xw.Params) -> tuple[torch.nn.Module, Train]:
    """Return the classifier in PyTorch, and a function that trains it for an epoch."""
    model = digits.TorchDigits(FILTERS)
    xw.set_params(model, start)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=DECAY, eps=1e-7)

    def train(images: np.ndarray, labels: np.ndarray, lr: float) -> None:
        model.train()
        optimizer.param_groups[0]["lr"] = lr
        for rows in np.split(np.arange(len(images)), len(images) // BATCH):
            optimizer.zero_grad()
            scores = model(torch.from_numpy(images[rows]))
            torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels[rows])).backward()
            optimizer.step()

    return model, train


TWINS: dict[str, Callable[..., tuple[object, Train]]] = {
    f"Keras on {keras.backend.backend()}": keras_twin,
    "PyTorch": torch_twin,
}


def prune(target: object, growth: xw.Schedule) -> xw.PruneHold:
    """Start to prune: the one line that the demo is about."""
    return xw.prune(target, fraction=FRACTION, scope="global", where=PRUNED, hold=True, schedule=growth)


def train_both_ways(framework: str, starts: Sequence[xw.Params], count: int) -> Run:
    """Train a twin both ways from each set of initial weights."""
    runs = []
    for place, start in enumerate(starts):
        console.print(
            f"{framework}: training {place + 1} of {len(starts)}, once dense and once pruned", highlight=False
        )
        runs.append(train_twice(framework, start, count))
    return Run(
        framework,
        float(np.mean([run.dense for run in runs])),
        float(np.mean([run.pruned for run in runs])),
        # One run that broke its promise is enough to report.
        next((run.zeros for run in runs if run.zeros != run.promised), runs[0].zeros),
        runs[0].entries,
        all(run.frozen_equal for run in runs),
    )


def train_twice(framework: str, start: xw.Params, count: int) -> Run:
    """Train a twin dense; then train it again from the same weights, pruned during training and with frozen rows."""
    model, train = TWINS[framework](start)
    for epoch in epochs(count):
        train(*epoch)
    dense = digits.accuracy(model)

    model, train = TWINS[framework](start)
    held, frozen = prune(model, schedule(count)), xw.freeze(model, where=FROZEN, entries=ROWS)
    for epoch in epochs(count):
        train(*epoch)
    held.check()
    frozen.check()
    now = xw.get_params(model)
    # Counted and compared by NumPy, from the model's own weights.
    before, after = (params[FROZEN][:, ROWS["out"]].tobytes() for params in (start, now))
    return Run(
        framework,
        dense,
        digits.accuracy(model),
        zeros=sum(int((now[name] == 0).sum()) for name in PRUNED),
        entries=sum(now[name].size for name in PRUNED),
        frozen_equal=before == after,
    )


def masks_of_equal_weights(start: xw.Params, steps: int) -> Iterator[tuple[int, int, list[str]]]:
    """Yield (step, entries dropped, checksums of the masks that NumPy, Keras and PyTorch selected).

    Frameworks round differently, so two real runs drift apart and have to select different masks. Here every twin gets
    the same weights before each step, and the learning rate is zero: the step only selects the masks.
    """
    growth = xw.Cubic(1, steps)
    twins = [make(start) for make in TWINS.values()]
    arrays = dict(xw.get_params(twins[0][0]))
    targets = [arrays, *(model for model, _ in twins)]
    held = [prune(target, growth) for target in targets]
    images, labels, _ = next(epochs(1))
    for step in range(1, steps + 1):
        weights = {name: xw.get_params(start)[name] for name in PRUNED}
        xw.noise(weights, 0.02, seed=0, step=step)
        for target in targets:
            xw.set_params(target, weights, strict=False)
        for _, train in twins:
            train(images[:BATCH], labels[:BATCH], 0.0)
        held[0].apply()  # arrays have no optimizer to follow
        dropped = sum(int((~mask).sum()) for mask in held[0].masks.values())
        yield step, dropped, [xw.checksum(hold.masks) for hold in held]


def real_run(frameworks: Sequence[str], starts: Sequence[xw.Params], count: int) -> bool:
    """Train these twins, print the results, and return True if every promise was kept."""
    table = Table(
        title=f"pruned to {FRACTION:.0%} while training, three rows frozen; mean of {len(SEEDS)} starts",
        title_justify="left",
    )
    for head in ("framework", "dense accuracy", "pruned accuracy", "zeros", "promised", "frozen rows", "kept"):
        table.add_column(head, no_wrap=True)
    runs = [train_both_ways(framework, starts, count) for framework in frameworks]
    for run in runs:
        zeros, promised = f"{run.zeros:,} of {run.entries:,}", f"{run.promised:,}"
        frozen = "equal" if run.frozen_equal else "DIFFERENT"
        scores = f"{run.dense:.3f}", f"{run.pruned:.3f}"
        table.add_row(run.framework, *scores, zeros, promised, frozen, "yes" if run.kept else "NO")
    console.print(table)
    return all(run.kept for run in runs)


def proof(start: xw.Params, steps: int) -> bool:
    """Print the masks that each framework selected from equal weights, and return True if they are all equal."""
    table = Table(title="equal weights, equal masks: selected after a training step", title_justify="left")
    for head in ("step", "dropped", "NumPy", *TWINS, "masks"):
        table.add_column(head, no_wrap=True)
    all_equal = True
    for step, dropped, checksums in masks_of_equal_weights(start, steps):
        same = len(set(checksums)) == 1
        all_equal &= same
        table.add_row(str(step), f"{dropped:,}", *checksums, "equal" if same else "DIFFERENT")
    console.print(table)
    return all_equal


def main(count: int = EPOCHS, steps: int = 6, frameworks: Sequence[str] = tuple(TWINS)) -> bool:
    """Do the real run and the proof; return True if every promise was kept."""
    starts = [start(seed) for seed in SEEDS]
    kept, equal = real_run(frameworks, starts, count), proof(starts[0], steps)
    console.print(f"exact sparsity, frozen rows bit for bit, accuracy within one point: {'yes' if kept else 'NO'}")
    console.print(f"equal masks for equal weights: {'yes' if equal else 'NO'}")
    return kept and equal


if __name__ == "__main__":
    chosen = tuple(TWINS)[:1] if "--keras-only" in sys.argv else tuple(TWINS)
    raise SystemExit(0 if main(frameworks=chosen) else 1)
