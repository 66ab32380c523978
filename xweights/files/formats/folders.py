"""Find the one set of weights in a folder: of a model hub, a training run, a distributed checkpoint, a SavedModel.

Only names are looked at, and no link out of the folder is followed (but into the store of a model hub's cache). A set
of weights is a file or an index with its shards; several sets are refused with their names. What training leaves beside
weights (optimizers, schedulers, random states) is known by the names that the trainers give it.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from xweights.files.io.open_file import inaccessible, refused

_MOST_ENTRIES = 100_000
_DEEPEST = 3
_SHOWN = 12

_WEIGHTS = re.compile(
    r"(?i)(?P<stem>.+)\.(?P<ending>safetensors\.index\.json|bin\.index\.json|safetensors|weights\.h5|weights\.json|bin|"
    r"pt|pth|pth\.tar|pt\.tar|ckpt|h5|hdf5|keras|npz|gguf|onnx|msgpack|index)"
)
_SHARD = re.compile(r"(?P<stem>.+?)[-_](?P<number>\d{5})(-of-(?P<count>\d{5}))?")
# What Transformers' Trainer, Accelerate, Lightning and DeepSpeed leave beside the weights.
_NO_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|sampler|lr_scheduler|dataloader|dl_state_dict|training_args|trainer_state|rng_state|"
    r"random_states?|custom_checkpoint|events|meta|profiler|scheduler_state|optimizer_state|optim)([-_]\d+)*"
)
_ZERO = re.compile(r".*zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
_MODEL_STATES = re.compile(r"mp_rank_\d+_model_states\.pt")
_OPTIMIZER_STATES = re.compile(r".*_optim_states\.pt")
# One model in several formats, by the conventions of model hubs; the first that is there is read.
_PREFERRED = ("safetensors", "safetensors.index.json", "bin", "bin.index.json", "msgpack", "h5")
_SAME = {"pytorch_model": "model", "tf_model": "model", "flax_model": "model"}
_SAME |= {f"open_clip_{name}": "open_clip_model" for name in ("pytorch_model", "model")}
_SAME |= {"diffusion_flax_model": "diffusion_pytorch_model"}


@dataclass(frozen=True)
class Found:
    """The files of one set of weights: one, or shards without an index."""

    paths: tuple[str, ...]


def find_weights(folder: str) -> Found:
    """Return the one set of weights in a folder; refuse none, several, or one that can't be read."""
    found = _search(folder, folder, 0)
    if not found:
        raise refused(
            folder,
            f"it is no regular file but a folder, and holds no weights\n{_show_contents(folder)}",
            fix="name a file",
        )
    if len(found) > 1:
        names = sorted(os.path.relpath(one.paths[0], folder) for one in found)
        more = [f"... and {len(names) - _SHOWN} more"] * (len(names) > _SHOWN)
        shown = "\n".join(f"  {name}" for name in [*names[:_SHOWN], *more])
        reason = f"it is a folder that holds {len(names)} sets of weights, and one is wanted\n{shown}"
        raise refused(folder, reason, fix=f"name one of them: {os.path.join(folder, _latest(folder, names))}")
    return found[0]


def _latest(folder: str, names: Sequence[str]) -> str:
    """Return the name to show in a fix: the last one by its number."""
    return max(names, key=lambda name: [int(number) for number in re.findall(r"\d{1,18}", name)])


def _search(top: str, folder: str, depth: int) -> list[Found]:
    """Return the sets of weights in a folder, or those in folders inside of it if there are none."""
    files, folders = _list(top, folder)
    found = _find_in(folder, files, folders)
    if found or depth >= _DEEPEST:
        return found
    return [one for name in folders for one in _search(top, os.path.join(folder, name), depth + 1)]


def _list(top: str, folder: str) -> tuple[list[str], list[str]]:
    """Return the names of the files and folders in a folder, but for links out of it."""
    try:
        with os.scandir(folder) as entries:
            listed = []
            for entry in entries:
                listed.append(entry)
                if len(listed) > _MOST_ENTRIES:
                    raise refused(folder, f"it has more than {_MOST_ENTRIES:,} files", fix="name a file")
            inside = [entry for entry in listed if not entry.is_symlink() or _is_inside(top, entry.path)]
            folders = sorted(entry.name for entry in inside if entry.is_dir() and not entry.is_symlink())
            return sorted(entry.name for entry in inside if entry.is_file()), folders
    except OSError as cause:
        raise inaccessible(folder, cause, "list it") from None


def _is_inside(top: str, path: str) -> bool:
    """Return whether a link leads to a file in the folder, or in the store of a model hub's cache that it is in."""
    top, target = os.path.realpath(top), os.path.realpath(path)
    if os.path.commonpath([top, target]) == top:
        return True
    # The cache of huggingface_hub: <model>/snapshots/<revision>/... links to <model>/blobs/<hash>.
    model, mark, _ = top.partition(f"{os.sep}snapshots{os.sep}")
    return bool(mark) and os.path.dirname(target) == os.path.join(model, "blobs")


def _find_in(folder: str, files: Sequence[str], folders: Sequence[str]) -> list[Found]:
    names = set(files)

    def single(name: str) -> list[Found]:
        return [Found((os.path.join(folder, name),))]

    if ".metadata" in names:
        return single(".metadata")
    if any(name.endswith(".distcp") for name in names):
        reason = "it is a folder of torch.distributed.checkpoint without its .metadata: its saving was stopped"
        raise refused(folder, reason, fix="use an earlier checkpoint")
    if "saved_model.pb" in names:
        return single("saved_model.pb")
    if names & {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"}:
        reason = "it is a folder of Orbax (JAX), which isn't read"
        raise refused(
            folder, reason, fix="restore it with orbax.checkpoint, and xweights.save(params, 'w.safetensors')"
        )
    states = [name for name in files if _MODEL_STATES.fullmatch(name)]
    if any(_ZERO.fullmatch(name) for name in files):
        reason = "it is a folder of DeepSpeed's ZeRO stage 3: each file has a part of every tensor"
        raise refused(folder, reason, fix="python zero_to_fp32.py FOLDER OUT (in the folder), and name its output")
    if len(states) > 1:
        reason = f"it is a folder of DeepSpeed with {len(states)} ranks of a model that is divided among them"
        raise refused(folder, reason, fix="merge them with the trainer that saved them")
    kept = [name for name in files if not _OPTIMIZER_STATES.fullmatch(name)]
    return [Found(tuple(os.path.join(folder, name) for name in names)) for names in _group(folder, kept)]


def _group(folder: str, files: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the sets of weights among the names of files, each in the format that is preferred."""
    listed: dict[tuple[str, str], dict[str, tuple[str, ...]]] = defaultdict(dict)
    shards: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name in files:
        match = _WEIGHTS.fullmatch(name)
        if match is None or name.startswith(".") or _NO_WEIGHTS.fullmatch(match["stem"].lower()):
            continue
        stem, ending = match["stem"], match["ending"].lower()
        shard = _SHARD.fullmatch(stem)
        if shard is not None and (shard["count"] or ending == "weights.h5"):
            shards[shard["stem"], ending, shard["count"] or ""].append(name)
        else:
            listed[_name_set(stem, ending)][ending] = (name,)
    for (stem, ending, count), names in shards.items():
        index = "weights.json" if ending == "weights.h5" else f"{ending}.index.json"
        own = listed.get(_name_set(stem, ending), {})
        if index in own or (ending == "weights.h5" and f"{stem}.weights.json" in files):
            continue
        if not count or len(names) != int(count):
            reason = f"it holds {len(names)} of {count or 'several'} shards of {stem!r}, and no index of them"
            raise refused(folder, reason, fix="get the others and the index")
        listed[_name_set(stem, ending)].setdefault(ending, tuple(names))
    return [min(formats.items(), key=lambda item: _rank(item[0]))[1] for _, formats in sorted(listed.items())]


def _name_set(stem: str, ending: str) -> tuple[str, str]:
    """Return the name of a set: that of hubs for all formats of one model, else the file's own."""
    if ending not in _PREFERRED:
        return stem, ending
    first, _, variant = stem.partition(".")  # model.fp16.safetensors is another set than model.safetensors
    return f"{_SAME.get(first, first)}.{variant}".rstrip("."), ""


def _rank(ending: str) -> int:
    return _PREFERRED.index(ending) if ending in _PREFERRED else 0


def _show_contents(folder: str) -> str:
    names = sorted(os.listdir(folder))[: _SHOWN + 1]
    if not names:
        return "it is empty"
    return f"it has: {', '.join(map(repr, names[:_SHOWN]))}{', ...' * (len(names) > _SHOWN)}"[:600]
