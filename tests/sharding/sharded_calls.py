"""Calls that have to give the bytes of one process in every world: each changes a model in place."""

from __future__ import annotations

from typing import Any

import numpy as np

import xweights as xw

THIRDS = np.arange(8 * 18).reshape(8, 18) % 3 > 0
UP = "up/kernel"

VERBS: dict[str, Any] = {
    "fill": lambda m: xw.fill(m, 0.5, where="*/bias"),
    "scale": lambda m: xw.scale(m, 0.9),
    "add an array that broadcasts": lambda m: xw.add(m, np.arange(18, dtype=np.float32), where=UP),
    "clip": lambda m: xw.clip(m, -0.1, 0.1),
    "mask": lambda m: xw.mask(m, THIRDS, where=UP),
    "normal noise": lambda m: xw.noise(m, 0.1, seed=3),
    "uniform noise": lambda m: xw.noise(m, low=-1.0, high=1.0, seed=3, where=...),
    "init by variance": lambda m: xw.init(m, "glorot_uniform", seed=3, where="*/kernel"),
    "init truncated": lambda m: xw.init(m, "truncated_normal", seed=3, where=...),
    "init orthogonal": lambda m: xw.init(m, "orthogonal", seed=3, where="*/kernel"),
    "entries backwards": lambda m: xw.set_entries(m, (slice(6, 1, -2), 17), 3.0, where=UP),
    "entries by axis": lambda m: xw.set_entries(m, {"in": 3, "out": slice(1, None, 5)}, np.arange(4.0), where=UP),
    "one entry": lambda m: xw.set_entries(m, (1, 2, 3), 9.0, where="conv/kernel"),
    "entries by mask": lambda m: xw.set_entries(m, THIRDS, np.arange(int(THIRDS.sum()), dtype=np.float32), where=UP),
    "max_norm over the whole axis": lambda m: xw.max_norm(m, 0.3, per="out", where="*/kernel"),
    "max_norm over the cut axis": lambda m: xw.max_norm(m, 0.3, per="in", where="*/kernel"),
    "unit_norm": lambda m: xw.unit_norm(m, per="out", where="*/kernel"),
    "clip_norm": lambda m: xw.clip_norm(m, 0.3),
    "clip_norm of all": lambda m: xw.clip_norm(m, 0.3, scope="global"),
    "spectral_norm": lambda m: xw.spectral_norm(m, 0.3, where=[UP, "down/kernel"]),
    "a function": lambda m: xw.apply(m, lambda w: w - w.mean(), where="*/kernel"),
}

PRUNES: dict[str, dict[str, Any]] = {
    "half of each": {"fraction": 0.5},
    "a tenth of each": {"fraction": 0.1},
    "half of all": {"fraction": 0.5, "scope": "global"},
    "most of everything": {"fraction": 0.9, "scope": "global", "where": ...},
    "a count": {"count": 5},
    "none": {"fraction": 0.0},
    "whole parameters": {"fraction": 1.0},
    "a threshold": {"threshold": 0.1},
    "units": {"fraction": 0.5, "per": "out", "where": "*/kernel"},
    "units of all": {"fraction": 0.5, "per": "out", "scope": "global", "where": "*/kernel"},
    "2 of 4": {"pattern": (2, 4, "in"), "where": UP},
    "blocks": {"fraction": 0.5, "block": {"in": 2, "out": 2}, "where": UP},
    "scores": {"fraction": 0.5, "score": np.square},
}
