"""What can be done with the files of other software: the table in docs/files.md, measured.

XWEIGHTS_WRITE_PAGE=1 writes the table anew.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import xweights as xw

torch: Any = pytest.importorskip("torch")
keras: Any = pytest.importorskip("keras")
tf: Any = pytest.importorskip("tensorflow")

PAGE = Path(__file__).parents[2] / "docs" / "files.md"
BEGIN, END = "<!-- writers: begin -->\n", "<!-- writers: end -->\n"
HEAD = ["written by", "load", "equal", "diff", "edit", "merge", "convert"]


class Written(NamedTuple):
    """A file that other software wrote: where it is, the model whose weights it has, and a model to load it into."""

    path: Path
    source: Any
    target: Any
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)
        self.bn = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return self.head(self.bn(self.conv(x)).mean((2, 3)))


NATIVE = {"layout": "native"}


def nets() -> tuple[Any, Any]:
    torch.manual_seed(0)
    return Net(), Net()


def of_torch(save: Callable[[Any, Path], Path]) -> Callable[[Path], Written]:
    def write(folder: Path) -> Written:
        source, target = nets()
        return Written(save(source, folder), source, target, NATIVE)

    return write


def saved(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


def with_optimizer(net: Any) -> Any:
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 1, 5, 5)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def checkpoint_of(net: Any, folder: Path) -> Path:
    state = with_optimizer(net)
    return saved({"model": net.state_dict(), "optimizer": state, "epoch": 3}, folder / "run.pth.tar")


def of_safetensors(net: Any, folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(net.state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"


def of_lightning(net: Any, folder: Path) -> Path:
    lightning = pytest.importorskip("lightning")

    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"lr": 0.1, "path": Path("x")})
            self.net = net

        def training_step(self, batch: Any, _: int) -> Any:
            return self.net(batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Task(), torch.utils.data.DataLoader(torch.ones(4, 1, 5, 5), 2))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def of_accelerate(net: Any, folder: Path) -> Path:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(net, torch.optim.Adam(net.parameters()))
    model(torch.ones(2, 1, 5, 5)).sum().backward()
    optimizer.step()
    accelerator.save_state(str(folder / "state"))
    return folder / "state"


def tiny_bert() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=20, max_position_embeddings=8, **sizes))


def of_transformers(folder: Path) -> Written:
    source = tiny_bert()
    source.save_pretrained(folder / "hub")
    return Written(folder / "hub", source, tiny_bert(), NATIVE)


def of_transformers_shards(folder: Path) -> Written:
    source = tiny_bert()
    source.save_pretrained(folder / "hub", max_shard_size="2KB")
    assert (folder / "hub" / "model.safetensors.index.json").exists()
    return Written(folder / "hub", source, tiny_bert(), NATIVE)


def of_trainer(folder: Path) -> Written:
    transformers = pytest.importorskip("transformers")
    source = tiny_bert()
    rows = [{"input_ids": torch.tensor([1, 2]), "labels": torch.tensor([1, 2])}] * 2
    told = {"max_steps": 1, "save_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    arguments = transformers.TrainingArguments(str(folder), **told)
    transformers.Trainer(source, arguments, train_dataset=rows).train()
    return Written(folder / "checkpoint-1", source, tiny_bert(), NATIVE)


def with_adapters() -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    return peft.get_peft_model(Net(), peft.LoraConfig(r=2, target_modules=["head"]))


def of_peft(folder: Path) -> Written:
    source = with_adapters()
    source.base_model.disable_adapter_layers()  # or edits of what they lie over would be refused
    source.requires_grad_(True)  # as in the file, which doesn't know what is frozen
    saved(source.state_dict(), folder / "all.bin")
    return Written(folder / "all.bin", source, with_adapters(), NATIVE)


def of_peft_adapter(folder: Path) -> Written:
    source = with_adapters()
    source.save_pretrained(folder / "adapter")
    return Written(folder / "adapter", source, with_adapters(), {**NATIVE, "where": xw.native("*lora_*")})


def of_checkpoints(net: Any, folder: Path) -> Path:
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    state = {"model": net.state_dict(), "optimizer": with_optimizer(net)}
    state["model"] = net.state_dict()
    dcp.save(state, checkpoint_id=folder / "dcp")
    return folder / "dcp"


def keras_model() -> Any:
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((5, 5, 1)), layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="bn"),
         layers.GlobalAveragePooling2D(), layers.Dense(4, name="head")]
    )  # fmt: skip
    for position, weight in enumerate(model.weights):
        values = np.random.default_rng(position).normal(size=weight.shape).astype("float32")
        weight.assign(abs(values))
    return model


def of_keras(name: str, whole: bool) -> Callable[[Path], Written]:
    def write(folder: Path) -> Written:
        source = keras_model()
        (source.save if whole else source.save_weights)(folder / name)
        target = keras_model()
        for weight in target.weights:
            weight.assign(weight * 0)
        return Written(folder / name, source, target)

    return write


def of_keras_2(folder: Path) -> Written:
    h5py = pytest.importorskip("h5py")
    written = of_keras("unused.weights.h5", whole=False)(folder)
    with h5py.File(folder / "keras2.h5", "w") as file:
        layers = [layer for layer in written.source.layers if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        file.attrs["keras_version"], file.attrs["backend"] = b"2.15.0", b"tensorflow"
        for layer in layers:
            group = file.create_group(layer.name)
            group.attrs["weight_names"] = [f"{layer.name}/{weight.name}:0".encode() for weight in layer.weights]
            for weight in layer.weights:
                group.create_dataset(f"{layer.name}/{weight.name}:0", data=keras.ops.convert_to_numpy(weight))
    return written._replace(path=folder / "keras2.h5")


class Dense(tf.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(np.random.default_rng(0).normal(size=(3, 4)).astype("float32"))
        self.bias = tf.Variable(np.ones(4, "float32"))


class Modules(tf.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Dense(), Dense()


def empty_modules() -> Any:
    target = Modules()
    for variable in target.variables:
        variable.assign(variable * 0)
    return target


def of_tensorflow_1(folder: Path) -> Written:
    v1 = tf.compat.v1
    source = Modules()
    values = xw.get_params(source)
    with tf.Graph().as_default(), v1.Session() as session:
        for name, value in values.items():
            scope, _, role = name.rpartition("/")
            with v1.variable_scope(scope, reuse=v1.AUTO_REUSE):
                v1.get_variable(role, initializer=value)
                v1.get_variable(f"{role}/Adam", initializer=value * 0)
        v1.train.get_or_create_global_step()
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(folder / "model.ckpt"))
    return Written(folder / "model.ckpt", source, empty_modules())


def of_tensorflow_2(folder: Path) -> Written:
    source = Modules()
    path = tf.train.Checkpoint(source).write(str(folder / "ckpt"))
    return Written(Path(path), source, empty_modules())


def of_saved_model(folder: Path) -> Written:
    source = Modules()
    tf.saved_model.save(source, str(folder / "saved"))
    return Written(folder / "saved", source, empty_modules())


def of_jax(folder: Path) -> Written:
    source = {name: np.asarray(value) for name, value in xw.get_params(Modules()).items()}
    np.savez(folder / "params.npz", **source)
    return Written(folder / "params.npz", source, {name: value * 0 for name, value in source.items()})


def of_mergekit(folder: Path) -> Written:
    source = tiny_bert()
    source.save_pretrained(folder, max_shard_size="2KB")
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["metadata"] = {"mergekit_version": "0.1.5", "total_size": 0}
    index.write_text(json.dumps(listed))
    return Written(folder, source, tiny_bert(), NATIVE)


WRITERS: dict[str, Callable[[Path], Written]] = {
    "torch, a state dict": of_torch(lambda net, folder: saved(net.state_dict(), folder / "w.pt")),
    "torch, a training run": of_torch(checkpoint_of),
    "torch, a whole module": of_torch(lambda net, folder: saved(net, folder / "w.pt")),
    "torch, compiled": of_torch(lambda net, folder: saved(torch.compile(net).state_dict(), folder / "w.pt")),
    "torch, DataParallel and DDP": of_torch(
        lambda net, folder: saved({"model": torch.nn.DataParallel(net).state_dict()}, folder / "w.pt")
    ),
    "torch, FSDP (full state)": of_torch(
        lambda net, folder: saved(
            {"model": {f"_fsdp_wrapped_module.{key}": value for key, value in net.state_dict().items()}},
            folder / "w.pt",
        )
    ),
    "torch, distributed checkpoint": of_torch(of_checkpoints),
    "safetensors": of_torch(of_safetensors),
    "Lightning": of_torch(of_lightning),
    "Accelerate": of_torch(of_accelerate),
    "transformers, save_pretrained": of_transformers,
    "transformers, shards": of_transformers_shards,
    "transformers, Trainer": of_trainer,
    "PEFT, the whole model": of_peft,
    "PEFT, an adapter": of_peft_adapter,
    "mergekit": of_mergekit,
    "Keras 2, .h5": of_keras_2,
    "Keras 3, .weights.h5": of_keras("w.weights.h5", whole=False),
    "Keras 3, .keras": of_keras("m.keras", whole=True),
    "Keras 3, legacy .h5": of_keras("m.h5", whole=True),
    "TensorFlow 1, a checkpoint": of_tensorflow_1,
    "TensorFlow 2, a checkpoint": of_tensorflow_2,
    "TensorFlow 2, a SavedModel": of_saved_model,
    "JAX, arrays in .npz": of_jax,
}


def compared(written: Written) -> dict[str, Any]:
    return {"where": written.options["where"]} if "where" in written.options else {}


def load(written: Written, folder: Path) -> None:
    xw.set_params(written.target, written.path, **written.options)
    assert xw.equal(written.source, written.target)


def equal(written: Written, folder: Path) -> None:
    assert xw.equal(written.source, written.path, **compared(written))
    assert xw.equal(written.path, written.source, **compared(written))


def diff(written: Written, folder: Path) -> None:
    assert not xw.diff(written.source, written.path, **compared(written))
    xw.scale(written.source, 0.5)
    assert xw.diff(written.source, written.path, **compared(written)).changes


def edit(written: Written, folder: Path) -> None:
    names = [p.name for p in xw.parameters(written.path)]
    shutil.copytree(folder, copy := folder.parent / f"{folder.name} copy")
    path = copy / written.path.relative_to(folder)
    xw.edit_file(path, xw.Scale(0.5))
    assert [p.name for p in xw.parameters(path)] == names
    xw.scale(written.source, 0.5)
    xw.set_params(written.target, path, **written.options)
    assert xw.equal(written.source, written.target)


def merge(written: Written, folder: Path) -> None:
    before = xw.get_params(written.path)
    merged = xw.merge([written.path, written.path])
    assert all(np.allclose(merged[name], before[name]) for name in merged)


def convert(written: Written, folder: Path) -> None:
    xw.convert(written.path, folder / "converted.safetensors")
    xw.set_params(written.target, folder / "converted.safetensors", **written.options)
    assert xw.equal(written.source, written.target)


OPERATIONS = {"load": load, "equal": equal, "diff": diff, "edit": edit, "merge": merge, "convert": convert}


def measure(who: str, folder: Path) -> list[str]:
    """Return the row of a writer: "yes", or why an operation is refused."""
    row = [who]
    for name, operation in OPERATIONS.items():
        (here := folder / name).mkdir()
        written = WRITERS[who](here)
        try:
            operation(written, here)
            row.append("yes")
        except xw.CheckpointError as refused:
            row.append(f"refused: {refused.reason.splitlines()[0]}")
    return row


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    lines = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row for row in rows}


SLOW = {
    "transformers, Trainer",
    "transformers, shards",
    "mergekit",
    "PEFT, an adapter",
    "Accelerate",
    "Keras 3, legacy .h5",
}


@pytest.mark.parametrize(
    "who", [pytest.param(who, marks=[pytest.mark.thorough] if who in SLOW else []) for who in WRITERS]
)
def test_the_page_says_what_can_be_done_with_a_file(who: str, table: dict[str, list[str]], tmp_path: Path) -> None:
    row = measure(who, tmp_path)
    if os.environ.get("XWEIGHTS_WRITE_PAGE"):
        text = PAGE.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        rows = {**table, who: row}
        lines = [HEAD, ["---"] * len(HEAD), *(rows[name] for name in WRITERS if name in rows)]
        shown = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        PAGE.write_text(f"{before}{BEGIN}{shown}{END}{rest.partition(END)[2]}", encoding="utf-8")
        table[who] = row
    assert table.get(who) == row, "Fix: XWEIGHTS_WRITE_PAGE=1 pytest tests/files/test_writers.py"


def test_the_page_has_a_row_for_each_writer(table: dict[str, list[str]]) -> None:
    assert list(table) == list(WRITERS)
