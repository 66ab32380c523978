"""A hold and a freeze in the ways in which FSDP2 models are trained: exact on every rank, or found out by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch", reason="FSDP2 is PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import numpy as np
import ranks
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from worlds import init_device_mesh, small

import xweights as xw
from xweights.errors import StaleTrainFunctionError

UP, EMB = "up/kernel", "emb/embeddings"
KEPT = np.arange(8 * 18).reshape(8, 18) % 3 > 0
FROZEN = slice(3, 9)
BATCH = torch.arange(20).reshape(4, 5)


def sharded(model: nn.Module, **options: Any) -> Any:
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1, **options)


def hold(model: Any, optimizer: Any) -> tuple[Any, list[Any]]:
    """Hold a mask and freeze rows; return the weights of before, and the holds."""
    before = xw.get_params(model)
    held = xw.hold(model, xw.Mask(KEPT), where=f"*{UP}", optimizer=optimizer)
    return before, [held, xw.freeze(model, where=f"*{EMB}", entries=(FROZEN,), optimizer=optimizer)]


def look(model: Any, before: Any, held: list[Any]) -> dict[str, bool]:
    for one in held:
        one.check()

    def of(values: Any, name: str) -> Any:
        return next(value for key, value in values.items() if key.endswith(name))

    now = xw.get_params(model)
    return {
        "the mask holds": not of(now, UP)[~KEPT].any(),
        "frozen rows are as they were": np.array_equal(of(now, EMB)[FROZEN], of(before, EMB)[FROZEN]),
        "other rows moved": not np.array_equal(of(now, EMB)[10:], of(before, EMB)[10:]),
        "all else moved": not np.array_equal(of(now, "down/kernel"), of(before, "down/kernel")),
    }


def train(model: Any, optimizer: Any, step: Callable[[], Any] | None = None) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        model(BATCH).backward()
        (step or optimizer.step)()


def foreach() -> dict[str, bool]:
    model = sharded(small())
    optimizer = adamw(model, foreach=True)
    kept = hold(model, optimizer)
    train(model, optimizer)
    return look(model, *kept)


def accumulated() -> dict[str, bool]:
    model = sharded(small())
    optimizer = adamw(model, fused=True)
    kept = hold(model, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        for number in range(2):
            model.set_requires_gradient_sync(number == 1)
            (model(BATCH) / 2).backward()
        optimizer.step()
    return look(model, *kept)


def checkpointed() -> dict[str, bool]:
    model = small()
    apply_activation_checkpointing(
        model, checkpoint_wrapper_fn=checkpoint_wrapper, check_fn=lambda module: module is model.up
    )
    model = sharded(model)
    optimizer = adamw(model)
    kept = hold(model, optimizer)
    train(model, optimizer)
    return look(model, *kept)


def mixed() -> dict[str, bool]:
    model = sharded(small(), mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    optimizer = adamw(model)
    kept = hold(model, optimizer)
    train(model, optimizer)
    return look(model, *kept)


def run_ways(rank: int, ways: list[Callable[[], Any]]) -> dict[str, Any]:
    return {way.__name__: way() for way in ways}


def failures(answers: list[dict[str, dict[str, bool]]]) -> list[str]:
    found = [(way, what, good) for answer in answers for way, looked in answer.items() for what, good in looked.items()]
    return [f"{way}: {what}" for way, what, good in found if not good]


def test_holds_are_exact_under_accumulation_checkpointing_and_mixed_precision():
    answers = ranks.run_ranks(2, run_ways, [foreach, accumulated, checkpointed, mixed])
    assert len(answers[0]) == 4
    assert failures(answers) == []


def compiled_step() -> dict[str, bool]:
    model = sharded(small())
    optimizer = adamw(model)
    kept = hold(model, optimizer)
    train(model, optimizer, torch.compile(optimizer.step, backend="aot_eager"))
    return look(model, *kept)


def compiled_model() -> dict[str, bool]:
    model = sharded(small())
    model.compile(backend="aot_eager")
    optimizer = adamw(model)
    kept = hold(model, optimizer)
    train(model, optimizer)
    return look(model, *kept)


def held_later() -> dict[str, bool]:
    """Hold after the step was compiled."""
    model = sharded(small())
    optimizer = adamw(model)
    step = torch.compile(optimizer.step, backend="aot_eager")
    train(model, optimizer, step)
    kept = hold(model, optimizer)
    train(model, optimizer, step)
    return look(model, *kept)


def run_compiled(rank: int, way: Callable[[], Any]) -> dict[str, Any]:
    return {way.__name__: way()}


@pytest.mark.slow
@pytest.mark.parametrize("way", [compiled_step, compiled_model, held_later])
def test_holds_are_exact_in_compiled_training(way, monkeypatch):
    monkeypatch.setattr(ranks, "SECONDS", 300)  # a step of DTensors is traced for 20 seconds
    assert failures(ranks.run_ranks(2, run_compiled, way, timeout=120)) == []


def set_environment(rank: int) -> None:
    """Say what torchrun would."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "NODE_RANK": "0",
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip


def accelerated(rank: int) -> dict[str, Any]:
    import accelerate
    from accelerate.utils import DistributedType

    set_environment(rank)
    found: dict[str, Any] = {}
    for early in (False, True):
        plugin = accelerate.FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="no_wrap", reshard_after_forward=True, cpu_ram_efficient_loading=False
        )
        accelerator = accelerate.Accelerator(cpu=True, fsdp_plugin=plugin, gradient_accumulation_steps=2)
        # Accelerate takes its FSDP for GPUs alone, and DDP on a CPU.
        accelerator.state._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
        model = small()
        optimizer: Any = adamw(model)
        kept = hold(model, optimizer) if early else None
        model, optimizer = accelerator.prepare(model, optimizer)
        kept = kept or hold(model, optimizer)
        for _ in range(4):
            with accelerator.accumulate(model):
                accelerator.backward(model(BATCH))
                optimizer.step()
                optimizer.zero_grad()
        try:
            found[f"before prepare: {early}"] = look(model, *kept)
        except StaleTrainFunctionError as error:
            found[f"before prepare: {early}"] = {"it is found out": early and "another object now" in str(error)}
        is_cut = {"sharded": all(hasattr(p, "_local_tensor") for p in model.parameters())}
        found[f"before prepare: {early}"] |= is_cut
    return found


@pytest.mark.slow
def test_holds_are_exact_under_accelerate_and_one_from_before_prepare_is_found_out(monkeypatch):
    pytest.importorskip("accelerate", reason="its FSDP2")
    monkeypatch.setattr(ranks, "SECONDS", 120)
    answers = ranks.run_ranks(2, accelerated, timeout=60)
    assert failures(answers) == []
    assert "it is found out" in answers[0]["before prepare: True"]


def lightened(rank: int) -> dict[str, Any]:
    import lightning
    from lightning.fabric.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch.strategies import ModelParallelStrategy

    set_environment(rank)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def configure_model(self) -> None:
            if not hasattr(self.net.up.weight, "_local_tensor"):
                fully_shard(self.net.up, mesh=self.device_mesh["data_parallel"])
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: Any, index: int) -> Any:
            return self.net(batch[0])

        def configure_optimizers(self) -> Any:
            return adamw(self)

        def on_train_start(self) -> None:
            self.kept = hold(self.net, self.optimizers())

        def on_train_end(self) -> None:
            self.found = look(self.net, *self.kept)

    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, plugins=[TorchElasticEnvironment()], max_steps=4, accumulate_grad_batches=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    batches = torch.utils.data.TensorDataset(BATCH.repeat(4, 1))
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=4))
    return {"lightning": module.found | {"sharded": all(hasattr(p, "_local_tensor") for p in module.parameters())}}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_holds_are_exact_under_lightnings_strategy_for_fsdp2(monkeypatch):
    pytest.importorskip("lightning", reason="its ModelParallelStrategy")
    monkeypatch.setattr(ranks, "SECONDS", 120)
    assert failures(ranks.run_ranks(2, lightened, timeout=60)) == []
