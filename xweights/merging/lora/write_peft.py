"""Write factors as PEFT's folder: ``adapter_model.safetensors`` and ``adapter_config.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Layout
from xweights.errors import LayoutError, Problems
from xweights.files.io.atomic import replace_file
from xweights.files.io.open_file import inaccessible
from xweights.files.save import save
from xweights.merging.lora.peft_config import CONFIG

_PREFIX = "base_model.model."
_SPACE = {("t",), ("h", "w"), ("d", "h", "w")}


@dataclass(frozen=True, eq=False)
class PeftPair:
    """The two factors of a module as PEFT names and stores them."""

    module: str
    a: Array
    b: Array
    embedding: bool
    transposed: bool = False

    def iter_arrays(self) -> list[tuple[str, Array]]:
        """Return both with their keys."""
        stem = f"{_PREFIX}{self.module}.lora_"
        if self.embedding:
            return [(f"{stem}embedding_A", self.a), (f"{stem}embedding_B", self.b)]
        return [(f"{stem}A.weight", self.a), (f"{stem}B.weight", self.b)]


def make_pair(
    native_name: str, layout: Layout, left: Array, right: Array, transposed: bool, problems: Problems
) -> PeftPair | None:
    """Return the factors of one weight for PEFT; note a weight that PEFT has no factors for.

    Args:
        native_name: The framework's own name of the weight, which has to be a module's ``weight``.
        layout: Its layout. A matrix of unknown axes is a linear layer's, stored as (out, in); that of an embedding if
            its module's name says so ("embed_tokens", "wte"). More unknown axes are those of a convolution.
        left: (all axes but the last, rank), in neutral order; of unknown axes (first axis, rank).
        right: (rank, last axis); of unknown axes (rank, all but the first).
        transposed: Whether matrices of unknown axes are stored as (in, out).
        problems: Where to note it.
    """
    module, _, end = native_name.rpartition(".")
    module = ".".join(word for word in module.removeprefix(_PREFIX).split(".") if word != "base_layer")
    axes, rank = layout.axes, len(right)
    if end != "weight" or not module:
        problems.add(LayoutError, f"{native_name!r} isn't the 'weight' of a module", fix='format="keras"')
        return None
    if axes == ("in", "out"):
        return PeftPair(module, left.T, right.T, False, layout.stored_axes == ("in", "out"))
    if axes == ("vocab", "dim") or (axes is None and len(layout.shape) == 2 and _is_embedding(module)):
        return PeftPair(module, left.T, right.T, True)
    if axes is not None and axes[-2:] == ("in", "out") and axes[:-2] in _SPACE:
        spread = left.reshape(*layout.shape[:-1], rank)
        space = tuple(range(len(axes) - 2))
        a = spread.transpose(len(axes) - 1, len(axes) - 2, *space)
        return PeftPair(module, a, right.T.reshape(-1, rank, *(1 for _ in space)), False)
    if axes is None and len(layout.shape) == 2:
        return PeftPair(module, left.T, right.T, False, True) if transposed else PeftPair(module, right, left, False)
    if axes is None and 3 <= len(layout.shape) <= 5:
        ones = (1,) * (len(layout.shape) - 2)
        return PeftPair(module, right.reshape(rank, *layout.shape[1:]), left.reshape(-1, rank, *ones), False)
    shown = "unknown" if axes is None else ", ".join(axes)
    problems.add(
        LayoutError,
        f"{native_name!r} has the axes ({shown}) of shape {layout.shape}, for which PEFT has no factors",
        fix='leave it out with where=, or format="keras"',
    )
    return None


def _is_embedding(module: str) -> bool:
    last = module.rpartition(".")[2]
    return "emb" in last or last in ("wte", "wpe")


def write_folder(folder: str, pairs: Sequence[PeftPair], rank: int, durable: bool) -> None:
    """Write the weights, then the configuration, without which no reader takes them for an adapter."""
    ranks = {pair.module: pair.b.shape[1] for pair in pairs if not pair.embedding}
    ranks |= {pair.module: pair.a.shape[0] for pair in pairs if pair.embedding}
    smaller = {f"^{_escape(module)}": own for module, own in ranks.items() if own != rank}
    linear = [pair for pair in pairs if not pair.embedding and pair.a.ndim == 2]
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(ranks),
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "fan_in_fan_out": bool(linear) and all(pair.transposed for pair in linear),
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "task_type": None,
        "base_model_name_or_path": None,
    }
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise inaccessible(folder, cause, "write it") from None
    arrays = {key: np.ascontiguousarray(array) for pair in pairs for key, array in pair.iter_arrays()}
    texts = {"format": "pt"}
    save(arrays, Path(folder) / "adapter_model.safetensors", metadata=texts, durable=durable)
    with replace_file(str(Path(folder) / CONFIG), durable=durable) as sink:
        sink.write(json.dumps(config, indent=2, sort_keys=True).encode())


def _escape(module: str) -> str:
    return module.replace(".", "\\.")
