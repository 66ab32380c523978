"""Folders: the one set of weights in them is opened; several are refused with their names."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw

ARRAYS = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "fc.bias": np.ones(3, np.float32)}
OTHERS = {"fc.weight": np.zeros((2, 3), np.float32), "fc.bias": np.zeros(3, np.float32)}


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fill(*names: str, arrays: dict[str, np.ndarray] | None = None, folder: str = "f") -> None:
    """Write a file of each name: weights where the ending is that of a format, else a few bytes."""
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(
            (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".keras", ".h5", ".index.json", ".tar")
        ):
            xw.save(ARRAYS if arrays is None else arrays, path.parent / "temporary.safetensors", durable=False)
            (path.parent / "temporary.safetensors").rename(path)
        else:
            path.write_bytes(b"{}")


HUB = ("config.json", "tokenizer.json", "README.md", ".gitattributes", "spiece.model")
TRAINER = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "trainer_state.json",
    "training_args.bin",
)
ACCELERATE = ("optimizer.bin", "optimizer_1.bin", "scheduler.bin", "random_states_0.pkl", "sampler.bin", "scaler.pt")
ONE = {
    "hub": ("model.safetensors", *HUB),
    "older hub": ("pytorch_model.bin", *HUB),
    "adapter": ("adapter_model.safetensors", "adapter_config.json"),
    "older adapter": ("adapter_model.bin", "adapter_config.json"),
    "Trainer": ("model.safetensors", *TRAINER, *HUB),
    "Accelerate": ("model.safetensors", *ACCELERATE),
    "diffusers": ("diffusion_pytorch_model.safetensors", "config.json"),
    "variant": ("model.fp16.safetensors", "config.json"),
    "Keras preset": ("model.weights.h5", "config.json", "metadata.json", "tokenizer.json", "task.json"),
    "Lightning": ("version_0/checkpoints/epoch=3-step=40.ckpt", "version_0/hparams.yaml", "version_0/metrics.csv"),
    "DeepSpeed": ("step5/mp_rank_00_model_states.pt", "step5/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "latest"),
    "old name": ("checkpoint.pth.tar",),
    "any name": ("weights.npz", "log.txt"),
}


@pytest.mark.parametrize("kind", ONE)
def test_the_one_set_of_weights_in_a_folder_is_opened(kind: str) -> None:
    fill(*ONE[kind])
    assert xw.equal("f", ARRAYS)
    assert xw.equal(Path("f"), ARRAYS)
    assert xw.load("f/").path == f"f/{ONE[kind][0]}"


def test_the_same_weights_in_several_formats_are_one_set_and_safetensors_is_preferred() -> None:
    fill("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "pytorch_model.bin.index.json", arrays=OTHERS)
    fill("model.safetensors")
    assert xw.equal("f", ARRAYS)
    Path("f/model.safetensors").unlink()
    assert xw.load("f").path == "f/pytorch_model.bin"


@pytest.mark.parametrize("size", ["1 GB", 0, 1.5, True])
def test_shards_of_no_size_are_refused_and_nothing_is_written(size: Any) -> None:
    with pytest.raises(xw.ArgumentError, match=r"shard_bytes= is a whole number >= 1\ngot: "):
        xw.save(ARRAYS, "model.safetensors.index.json", shard_bytes=size)
    assert not list(Path().iterdir())


def test_an_index_stands_for_its_shards() -> None:
    xw.save(ARRAYS, "model.safetensors.index.json", shard_bytes=10)
    assert len(list(Path().glob("model-*-of-*.safetensors"))) == 2
    fill(*HUB, folder=".")
    opened = xw.load(".")
    assert opened.format == "sharded safetensors"
    assert xw.equal(opened, ARRAYS)
    Path("model.safetensors.index.json").unlink()
    assert xw.equal(".", ARRAYS)  # every shard is there, and they say how many they are
    next(Path().glob("model-00001-*")).unlink()
    with pytest.raises(xw.RefusedFileError, match="1 of 00002 shards"):
        xw.load(".")


SEVERAL = {
    "two variants": ("model.safetensors", "model.fp16.safetensors"),
    "two models of Accelerate": ("model.safetensors", "model_1.safetensors"),
    "a pipeline": ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
    "checkpoints of Lightning": ("checkpoints/epoch=9.ckpt", "checkpoints/epoch=10.ckpt"),
    "checkpoints of the Trainer": ("checkpoint-500/model.safetensors", "checkpoint-1000/model.safetensors"),
    "a preset of a task": ("model.weights.h5", "task.weights.h5"),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_sets_are_refused_with_their_names_and_a_fix(kind: str) -> None:
    fill(*SEVERAL[kind], "model_index.json")
    with pytest.raises(xw.RefusedFileError, match="2 sets of weights") as caught:
        xw.load("f")
    text = str(caught.value)
    assert all(name in text for name in SEVERAL[kind])
    last = "f/checkpoint-1000/model.safetensors" if "Trainer" in kind else f"f/{SEVERAL[kind][1]}"
    fix = text.rpartition("name one of them: ")[2]
    assert fix == last or kind not in ("checkpoints of Lightning", "checkpoints of the Trainer")
    assert xw.equal(fix, ARRAYS)


def test_hundreds_of_sets_are_shown_in_few_lines() -> None:
    fill(*(f"step-{n}.pt" for n in range(300)))
    with pytest.raises(xw.RefusedFileError, match="300 sets") as caught:
        xw.load("f")
    assert len(str(caught.value).splitlines()) < 40
    assert "step-299.pt" in str(caught.value).rpartition("Fix:")[2]


REFUSED = {
    "nothing": ((), "holds no weights"),
    "no weights": (("config.json", "optimizer.pt", "training_args.bin"), "holds no weights"),
    "Orbax": (("_METADATA", "manifest.ocdbt", "d/x"), "Orbax"),
    "ZeRO 3": (("zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_to_fp32.py"), "zero_to_fp32.py"),
    "parallel": (("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"), "2 ranks"),
    "no metadata": (("__0_0.distcp",), "without its .metadata"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_that_cant_be_read_is_refused_with_the_reason(kind: str) -> None:
    names, reason = REFUSED[kind]
    Path("f").mkdir()
    fill(*names)
    with pytest.raises(xw.RefusedFileError, match=reason.replace(".", r"\.")) as caught:
        xw.load("f")
    assert "Fix: " in str(caught.value)


def test_links_out_of_a_folder_arent_followed_but_into_the_store_of_a_hubs_cache() -> None:
    fill("secret.safetensors", folder="elsewhere")
    fill(*HUB)
    Path("f/model.safetensors").symlink_to("../elsewhere/secret.safetensors")
    Path("f/more").symlink_to("../elsewhere")
    with pytest.raises(xw.RefusedFileError, match="holds no weights"):
        xw.load("f")
    fill("4d7a.safetensors", folder="models--x/blobs")
    Path("models--x/blobs/4d7a.safetensors").rename("models--x/blobs/4d7a")
    snapshot = Path("models--x/snapshots/abc")
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/4d7a")
    assert xw.equal(snapshot, ARRAYS)


def test_a_loop_of_folders_ends() -> None:
    Path("f/a/b").mkdir(parents=True)
    Path("f/a/b/up").symlink_to("../..")
    with pytest.raises(xw.RefusedFileError, match="holds no weights"):
        xw.load("f")


# What trainers write themselves.


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def make_net(torch: Any) -> Any:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    return net, optimizer


def assert_weights(opened: Any, net: Any) -> None:
    for key, tensor in net.state_dict().items():
        np.testing.assert_array_equal(opened[key], tensor.detach().numpy())
    assert set(opened) == set(net.state_dict())


def test_a_folder_of_torch_distributed_checkpoint_is_read_with_its_parts(torch: Any) -> None:
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    net, optimizer = make_net(torch)
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    dcp.save(state, checkpoint_id="f", no_dist=True)
    opened = xw.load("f")
    assert opened.format == "torch distributed"
    assert {part.name: part.kind for part in opened.parts} == {"model": "weights", "optimizer": "optimizer"}
    assert_weights(opened, net)
    assert {"epoch", "optimizer.param_groups.0.lr"} <= set(opened.ignored)
    xw.convert("f", "w.safetensors")
    assert xw.equal("w.safetensors", opened)
    xw.edit_file("f", xw.Scale(2.0))
    xw.scale(net, 2.0)
    state = {"model": {key: torch.empty_like(value) for key, value in net.state_dict().items()}}
    dcp.load(state, checkpoint_id="f", no_dist=True)
    assert all(torch.equal(value, state["model"][key]) for key, value in net.state_dict().items())


def test_a_plain_dict_in_a_distributed_checkpoint_is_the_weights(torch: Any) -> None:
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)}
    state |= {"scalar": torch.tensor(2.5), "count": torch.tensor(7)}
    dcp.save(state, checkpoint_id="f", no_dist=True)
    opened = xw.load("f")
    assert set(opened) == set(state)
    assert opened["half"].dtype.name == "bfloat16"
    assert opened["scalar"] == 2.5


def write_chunks(torch: Any, folder: Path, whole: Any, blocks: Any, change: Any = None) -> None:
    """Write a distributed checkpoint of one tensor as two ranks do, each with blocks of it in its own file."""
    from torch.distributed.checkpoint import filesystem, metadata

    folder.mkdir()
    chunks, storage = [], {}
    for number, cut in enumerate(blocks):
        name = f"__{number % 2}_0.distcp"
        start = (folder / name).stat().st_size if (folder / name).exists() else 0
        with (folder / name).open("ab") as file:
            torch.save(whole[cut].clone(), file)
        length = (folder / name).stat().st_size - start
        offsets = torch.Size(part.start for part in cut)
        chunks.append(metadata.ChunkStorageMetadata(offsets, torch.Size(whole[cut].shape)))
        storage[metadata.MetadataIndex("w", offsets)] = filesystem._StorageInfo(name, start, length)
    properties = metadata.TensorProperties(whole.dtype)
    tensor = metadata.TensorStorageMetadata(properties, whole.shape, chunks)
    made = metadata.Metadata({"w": tensor}, None, storage)
    if change is not None:
        change(made)
    with (folder / ".metadata").open("wb") as file:
        pickle.dump(made, file)


BLOCKS = [
    (slice(0, 2), slice(0, 3)), (slice(0, 2), slice(3, 6)), (slice(2, 5), slice(0, 3)), (slice(2, 5), slice(3, 6)),
]  # fmt: skip


def test_chunks_of_several_ranks_are_joined_and_read_in_parts(torch: Any) -> None:
    whole = torch.arange(30.0).reshape(5, 6)
    write_chunks(torch, Path("f"), whole, BLOCKS)
    assert xw.equal("f", {"w": whole.numpy()})
    record = xw.parameters("f")[0].handle
    for start, count in ((0, 30), (4, 3), (10, 11), (29, 1)):
        part = np.empty(count, np.float32)
        record.read_into(part, start)
        np.testing.assert_array_equal(part, np.arange(start, start + count, dtype=np.float32))


def test_chunks_that_are_missing_overlap_or_lie_outside_are_damage(torch: Any) -> None:
    whole = torch.arange(30.0).reshape(5, 6)

    def resize(made: Any) -> None:
        made.state_dict_metadata["w"].size = torch.Size([4, 6])

    def overlap(made: Any) -> None:
        made.state_dict_metadata["w"].chunks[3].offsets = torch.Size([1, 3])

    def lose(made: Any) -> None:
        made.storage_data.popitem()

    def escape(made: Any) -> None:
        next(iter(made.storage_data.values())).relative_path = "../secret"

    def beyond(made: Any) -> None:
        next(iter(made.storage_data.values())).length = 1 << 40

    def retype(made: Any) -> None:
        object.__setattr__(made.state_dict_metadata["w"].properties, "dtype", torch.float64)

    changes = {
        "missing": (None, "don't make it up"), "resized": (resize, "isn't inside"), "overlap": (overlap, "overlap"),
        "lost": (lose, "in no file"), "escape": (escape, "plain name"), "beyond": (beyond, "ends before"),
        "retyped": (retype, "isn't what its metadata says"),
    }  # fmt: skip
    for name, (change, reason) in changes.items():
        write_chunks(torch, Path(name), whole, BLOCKS[:3] if change is None else BLOCKS, change)
        with pytest.raises((xw.DamagedFileError, xw.RefusedFileError), match=reason):
            xw.get_params(name)
    folder = Path("linked")
    write_chunks(torch, folder, whole, BLOCKS)
    (folder / "__0_0.distcp").rename("secret")
    (folder / "__0_0.distcp").symlink_to("../secret")
    with pytest.raises(xw.RefusedFileError, match="link out"):
        xw.load(folder)


@pytest.mark.thorough
def test_ranks_of_a_sharded_save_are_joined() -> None:
    program = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file:///" + sys.argv[2], rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
whole = torch.arange(35.0).reshape(7, 5)
state = {"model": {f"w{axis}": distribute_tensor(whole, mesh, [Shard(axis)]) for axis in (0, 1)}}
dcp.save(state, checkpoint_id="f")
dist.destroy_process_group()
"""
    pytest.importorskip("torch.distributed.tensor", reason="tensors that are divided among ranks need torch")
    run = [sys.executable, "-c", program]
    meeting = str(Path("meeting").resolve()).lstrip("/")
    ranks = [subprocess.Popen([*run, str(rank), meeting], env=os.environ) for rank in range(2)]
    assert [rank.wait(300) for rank in ranks] == [0, 0]
    whole = np.arange(35, dtype=np.float32).reshape(7, 5)
    assert xw.equal("f", {"w0": whole, "w1": whole})


def test_a_hostile_pickle_of_metadata_is_described_and_refused() -> None:
    class Command:
        def __reduce__(self) -> Any:
            return os.system, ("touch PWNED",)

    Path("f").mkdir()
    for number, content in enumerate((Command(), {"state_dict_metadata": Command()}, [1, 2], {})):
        Path("f/.metadata").write_bytes(pickle.dumps(content, 4))
        with pytest.raises((xw.DamagedFileError, xw.RefusedFileError)) as caught:
            xw.load("f")
        assert number > 1 or "nothing of it was imported or run" in str(caught.value)
    assert not Path("PWNED").exists()


def test_accelerate_writes_what_is_read(torch: Any) -> None:
    accelerate = pytest.importorskip("accelerate", reason="the folder is made by accelerate")
    net, optimizer = make_net(torch)
    accelerator = accelerate.Accelerator(cpu=True)
    net, optimizer = accelerator.prepare(net, optimizer)
    accelerator.save_state("f")
    assert_weights(xw.load("f"), net)


def test_the_weights_of_deepspeed_are_a_part_of_its_states(torch: Any) -> None:
    net, _ = make_net(torch)
    Path("f/global_step3").mkdir(parents=True)
    Path("f/latest").write_text("global_step3")
    states = {"module": net.state_dict(), "buffer_names": ["1.running_mean"], "optimizer": None, "global_steps": 3}
    torch.save(states, "f/global_step3/mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, "f/global_step3/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert_weights(xw.load("f"), net)


def test_shards_of_torch_in_a_folder_are_read_by_their_index(torch: Any) -> None:
    fill(*HUB)
    names = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    torch.save({"a.weight": torch.ones(2)}, f"f/{names[0]}")
    torch.save({"b.weight": torch.zeros(3)}, f"f/{names[1]}")
    weight_map = dict(zip(("a.weight", "b.weight"), names, strict=True))
    Path("f/pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert xw.equal("f", {"a.weight": np.ones(2, np.float32), "b.weight": np.zeros(3, np.float32)})
