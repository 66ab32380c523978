"""Folders of transformers, whose files are untrusted: settings and the names of arrays, within limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xweights.errors import CheckpointError, DamagedFileError, FileAccessError, RefusedFileError

_MOST_BYTES = 1 << 22


def read_config(folder: str) -> dict[str, Any]:
    """Return the settings of a folder; raise CheckpointError."""
    path = Path(folder) / "config.json"
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as cause:
        raise _make_error(
            FileAccessError, path, f"the system doesn't let us read it: {cause.strerror or cause}"
        ) from cause
    if len(data) > _MOST_BYTES:
        raise _make_error(RefusedFileError, path, f"it is larger than {_MOST_BYTES >> 20} MiB")
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as cause:
        raise _make_error(DamagedFileError, path, "it is no JSON") from cause
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise _make_error(DamagedFileError, path, "it has no model_type")
    return config


def check_folder(folder: str) -> set[str]:
    """Return the names of the arrays in a folder; raise CheckpointError without safetensors of its own."""
    from safetensors import SafetensorError, safe_open

    adapter = Path(folder) / "adapter_config.json"
    if adapter.exists():
        # With peft, from_pretrained loads it too, also from a pickle.
        raise _make_error(RefusedFileError, adapter, "it is an adapter beside the model\nFix: xw.merge_lora it first")
    single, index = (Path(folder) / f"model.safetensors{end}" for end in ("", ".index.json"))
    names = ["model.safetensors"]
    if not single.exists():
        if not index.exists():
            reason = "there are no weights in safetensors (pickles are not loaded)"
            raise _make_error(RefusedFileError, single, reason)
        names = _read_index(index)
    keys: set[str] = set()
    for name in names:
        path = Path(folder) / name
        try:
            with safe_open(path, "np") as file:
                keys.update(file.keys())
        except (SafetensorError, OSError, ValueError) as cause:
            raise _make_error(DamagedFileError, path, str(cause).splitlines()[0]) from cause
    return keys


def damaged_config(folder: str, reason: str) -> CheckpointError:
    """Return the error for settings that aren't what they say."""
    return _make_error(DamagedFileError, Path(folder) / "config.json", reason)


def _read_index(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(1 << 26))["weight_map"].values()
        names = sorted(set(found))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as cause:
        raise _make_error(DamagedFileError, path, "it is no index of shards") from cause
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise _make_error(RefusedFileError, path, f"it names a shard outside of the folder: {name!r}")
    return names


def _make_error(kind: type[CheckpointError], path: Path, reason: str) -> CheckpointError:
    error = kind(f"{path.name!r}: {reason}\nfile: {path}")
    error.path, error.reason = str(path), reason
    return error
