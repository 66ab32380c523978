"""Adapters in PEFT's format, written by hand: tests of files need no framework."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import xweights as xw

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_dora": False, "fan_in_fan_out": False}


def make_base(seed: int = 0) -> dict[str, Any]:
    """Return a base as torch names and stores it."""
    rng = np.random.default_rng(seed)
    shapes = {"emb.weight": (30, 16), "fc.weight": (24, 16), "fc.bias": (24,), "conv.weight": (20, 16, 3, 3)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def make_factors(seed: int = 1, rank: int = 4) -> dict[str, Any]:
    """Return the arrays of an adapter of that base, by PEFT's names."""
    rng = np.random.default_rng(seed)
    shapes = {
        "emb.lora_embedding_A": (rank, 30),
        "emb.lora_embedding_B": (16, rank),
        "fc.lora_A.weight": (rank, 16),
        "fc.lora_B.weight": (24, rank),
        "conv.lora_A.weight": (rank, 16, 3, 3),
        "conv.lora_B.weight": (20, rank, 1, 1),
    }
    return {f"base_model.model.{name}": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_adapter(folder: Path, arrays: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write a folder as PEFT does."""
    folder.mkdir(parents=True, exist_ok=True)
    xw.save(make_factors() if arrays is None else arrays, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


def expected(base: dict[str, Any], factors: dict[str, Any], scaling: float = 1.5) -> dict[str, Any]:
    """Return the merged base, in float64 but for the addition: within rounding of the merge."""
    wide = {name.removeprefix("base_model.model."): array.astype(np.float64) for name, array in factors.items()}
    deltas = {
        "emb.weight": (wide["emb.lora_embedding_B"] @ wide["emb.lora_embedding_A"]).T,
        "fc.weight": wide["fc.lora_B.weight"] @ wide["fc.lora_A.weight"],
        "conv.weight": np.einsum("or,rihw->oihw", wide["conv.lora_B.weight"][:, :, 0, 0], wide["conv.lora_A.weight"]),
    }
    return {name: (array + scaling * deltas.get(name, 0.0)).astype(np.float32) for name, array in base.items()}
