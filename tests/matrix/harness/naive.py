"""The referee: the meaning of each verb, written as plainly as NumPy allows.

Shares no code with xweights and imports none: loops instead of blocks, a sort instead of a selection, one Philox
stream instead of parts. ``w`` is a dict of arrays in neutral order, ``axes`` their names.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def _times(w: Array, factor: Array) -> Array:
    """Scale in the dtype of w; half types in float32, which can hold the factor, and rounded once."""
    wide = np.dtype(np.float32) if w.dtype.itemsize < 4 else w.dtype
    return (w.astype(wide) * factor.astype(wide)).astype(w.dtype)


def narrow(names: Iterable[str], few: Sequence[str]) -> list[str]:
    """Return the names that are among the few, or all of them if none is."""
    return [name for name in names if name in few] or list(names)


class Naive:
    """The verbs on a dict of arrays; a ``where`` is a list of names. ``few``: as in :func:`narrow`."""

    def __init__(
        self, w: dict[str, Array], axes: Mapping[str, tuple[str, ...]], trained: Sequence[str], few: Sequence[str] = ()
    ) -> None:
        self.w, self.axes, self.trained, self.few = w, axes, trained, few
        self.kernels = [name for name in w if name.endswith(("kernel", "embeddings"))]

    def _each(self, where: Any, default: Sequence[str]) -> list[str]:
        return narrow(default if where is None else where, self.few)

    def _of(self, value: Any, name: str) -> Array:
        value = value[name] if isinstance(value, Mapping) else value
        return np.asarray(value, np.float64).astype(self.w[name].dtype)

    def _edited_names(self, value: Any, where: Any) -> list[str]:
        return self._each(value if where is None and isinstance(value, Mapping) else where, self.trained)

    def fill(self, value: Any, where: Any = None) -> None:
        for name in self._edited_names(value, where):
            self.w[name] = np.broadcast_to(self._of(value, name), self.w[name].shape).copy()

    def scale(self, factor: Any, where: Any = None) -> None:
        for name in self._edited_names(factor, where):
            self.w[name] = self.w[name] * self._of(factor, name)

    def add(self, delta: Any, where: Any = None) -> None:
        for name in self._edited_names(delta, where):
            self.w[name] = self.w[name] + self._of(delta, name)

    def clip(self, low: Any = None, high: Any = None, where: Any = None) -> None:
        for name in self._each(where, self.trained):
            w = new = self.w[name]
            with np.errstate(invalid="ignore"):  # ml_dtypes warns of a comparison with NaN, NumPy doesn't
                if high is not None:
                    new = np.where(w > self._of(high, name), self._of(high, name), new)
                if low is not None:
                    new = np.where(w < self._of(low, name), self._of(low, name), new)
            self.w[name] = new

    def non_negative(self, where: Any = None) -> None:
        self.clip(0.0, None, where)

    def apply(self, function: Any, where: Any) -> None:
        for name in self._each(where, []):
            if hasattr(function, "low"):  # the one rule that a row applies, Clip
                self.clip(function.low, function.high, [name])
            else:
                self.w[name] = function(self.w[name])

    def mask(self, keep: Any, where: Any = None) -> None:
        for name in self._each(keep if where is None and isinstance(keep, Mapping) else where, self.kernels):
            kept = np.broadcast_to(keep[name] if isinstance(keep, Mapping) else keep, self.w[name].shape)
            self.w[name] = np.where(kept, self.w[name], np.zeros((), self.w[name].dtype))

    def set_entries(self, index: Any, value: Any, where: Any) -> None:
        for name in self._each(where, []):
            if isinstance(index, Mapping):
                entries: Any = tuple(index.get(axis, slice(None)) for axis in self.axes[name])
            else:
                entries = index
            self.w[name] = self.w[name].copy()
            self.w[name][entries] = np.asarray(value, np.float64).astype(self.w[name].dtype)

    # Norms

    def _shrink(self, name: str, others: tuple[int, ...] | None, limit: Any, shape: Any = None) -> None:
        w = self.w[name]
        fine = w.reshape(shape or w.shape)
        norm = np.sqrt((fine.astype(np.float64) ** 2).sum(axis=others, keepdims=True))
        if limit is None:
            factor = np.where(norm > 0, 1 / np.where(norm > 0, norm, 1), 1.0)
        else:
            factor = np.where(norm > limit, limit / np.where(norm > 0, norm, 1), 1.0)
        self.w[name] = _times(fine, factor).reshape(w.shape)

    def _fine(self, name: str, per: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        axes, shape = list(self.axes[name]), list(self.w[name].shape)
        wanted = (per,) if isinstance(per, str) else per
        if "gate*unit" in axes and "gate*unit" not in wanted:
            at = axes.index("gate*unit")
            axes[at : at + 1], shape[at : at + 1] = ["gate", "unit"], [4, shape[at] // 4]
        return tuple(shape), tuple(i for i, axis in enumerate(axes) if axis not in wanted)

    def max_norm(self, max: float, *, per: Any, where: Any = None) -> None:
        for name in self._each(where, self.kernels):
            shape, others = self._fine(name, per)
            self._shrink(name, others, max, shape)

    def unit_norm(self, *, per: Any, where: Any = None) -> None:
        for name in self._each(where, self.kernels):
            shape, others = self._fine(name, per)
            self._shrink(name, others, None, shape)

    def clip_norm(self, max: float, *, scope: str = "each", where: Any = None) -> None:
        names = self._each(where, self.trained)
        if scope == "each":
            for name in names:
                self._shrink(name, None, max)
            return
        norm = math.sqrt(sum(float((self.w[name].astype(np.float64) ** 2).sum()) for name in names))
        for name in names:
            self.w[name] = _times(self.w[name], np.asarray(max / norm if norm > max else 1.0))

    def spectral_norm(self, max: float, where: Any = None) -> None:
        for name in self._each(where, self.kernels):
            w, axes = self.w[name], self.axes[name]
            last = axes.index("out") if "out" in axes else w.ndim - 1
            matrix = np.moveaxis(w.astype(np.float64), last, -1).reshape(-1, w.shape[last])
            # The root of the largest eigenvalue: another way than the decomposition that the library uses.
            sigma = math.sqrt(np.linalg.eigvalsh(matrix.T @ matrix)[-1])
            self.w[name] = _times(w, np.asarray(max / sigma if sigma > max else 1.0))

    # Random numbers

    @staticmethod
    def _stream(seed: int, step: int, name: str) -> np.random.Generator:
        digest = hashlib.blake2b(f"{seed}\0{step}\0{name}".encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))

    def noise(
        self, std: Any = None, *, low: Any = None, high: Any = None, seed: int, step: int = 0, where: Any = None
    ) -> None:
        for name in self._each(where, self.trained):
            w, source = self.w[name], self._stream(seed, step, name)
            wide = np.float64 if w.dtype == np.float64 else np.float32
            if std is not None:
                delta = source.standard_normal(w.shape, dtype=wide) * wide(std)
            else:
                delta = (low + (high - low) * source.random(w.shape, dtype=wide).astype(np.float64)).astype(wide)
            self.w[name] = w + delta.astype(w.dtype)

    def init(self, initializer: Any, *, seed: int, where: Any = None, **options: Any) -> None:
        for name in self._each(where, self.kernels):
            w, source = self.w[name], self._stream(seed, 0, name)
            values = (
                initializer(w.shape, source)
                if callable(initializer)
                else self._initial(initializer, name, source, options)
            )
            self.w[name] = np.asarray(values).astype(w.dtype)

    def _initial(self, kind: str, name: str, source: Any, options: Mapping[str, Any]) -> Array:
        shape = self.w[name].shape
        wide = np.float64 if self.w[name].dtype == np.float64 else np.float32
        if kind in ("zeros", "ones", "constant"):
            return np.full(shape, {"zeros": 0.0, "ones": 1.0}.get(kind, options.get("value")))
        if kind == "identity":
            return np.eye(*shape) * options.get("gain", 1.0)
        if kind == "orthogonal":
            columns = shape[-1]
            rows = math.prod(shape) // columns
            q, r = np.linalg.qr(source.standard_normal((max(rows, columns), min(rows, columns))))
            q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
            return (q if rows >= columns else q.T).reshape(shape) * options.get("gain", 1.0)
        if kind in ("uniform", "normal", "truncated_normal"):
            first, second = {"uniform": ("low", "high")}.get(kind, ("mean", "std"))
            return self._draw(kind, options[first], options[second], shape, wide, source)
        scale, mode, law = {
            "glorot_uniform": (1, "fan_avg", "uniform"), "glorot_normal": (1, "fan_avg", "truncated_normal"),
            "xavier_uniform": (1, "fan_avg", "uniform"), "xavier_normal": (1, "fan_avg", "normal"),
            "he_uniform": (2, "fan_in", "uniform"), "he_normal": (2, "fan_in", "truncated_normal"),
            "kaiming_uniform": (2, "fan_in", "uniform"), "kaiming_normal": (2, "fan_in", "normal"),
            "lecun_uniform": (1, "fan_in", "uniform"), "lecun_normal": (1, "fan_in", "truncated_normal"),
        }.get(kind) or (options["scale"], options["mode"], options["distribution"])  # fmt: skip
        # (fan in, fan out): the two last axes, each times the receptive field.
        field = math.prod(shape[:-2])
        fan_in, fan_out = shape[-2] * field, shape[-1] * field
        variance = scale / {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        if law == "uniform":
            return self._draw(law, -math.sqrt(3 * variance), math.sqrt(3 * variance), shape, wide, source)
        std = math.sqrt(variance) / (0.87962566103423978 if law == "truncated_normal" else 1)
        return self._draw(law, 0.0, std, shape, wide, source)

    @staticmethod
    def _draw(law: str, first: float, second: float, shape: Any, wide: Any, source: Any) -> Array:
        if law == "uniform":
            return first + (second - first) * source.random(shape, dtype=wide).astype(np.float64)
        numbers = source.standard_normal(shape, dtype=wide).astype(np.float64).reshape(-1)
        while law == "truncated_normal" and (np.abs(numbers) > 2).any():
            outside = np.abs(numbers) > 2
            numbers[outside] = source.standard_normal(int(outside.sum()), dtype=wide)
        return first + second * numbers.reshape(shape)

    # Pruning: one list of (score, name, unit), sorted.

    def prune(
        self, *, fraction: Any = None, count: Any = None, threshold: Any = None, scope: str = "each", per: Any = None,
        pattern: Any = None, block: Any = None, score: Any = None, where: Any = None,
    ) -> dict[str, Array]:  # fmt: skip
        names = self._each(where, self.kernels)
        keep = {name: np.ones(self.w[name].shape, np.bool_) for name in names}
        units = {name: self._units(name, per, block) for name in names}
        scored = []
        for name in names:
            scores = score(self.w[name]) if callable(score) else None if score is None else score[name]
            for unit, members in enumerate(units[name]):
                flat = (self.w[name] if scores is None else scores).reshape(-1).astype(np.float64)
                if scores is not None:
                    value = float(np.sum(flat[members]))
                else:
                    value = (
                        abs(float(flat[members[0]]))
                        if len(members) == 1
                        else math.sqrt(float(np.sum(flat[members] ** 2)))
                    )
                scored.append((value, name, unit))
        groups: list[list[tuple[float, str, int]]] = [[entry for entry in scored if entry[1] == name] for name in names]
        if pattern is not None:
            groups = [
                group for name in names for group in self._runs(name, pattern, [s for s in scored if s[1] == name])
            ]
        elif scope == "global":
            groups = [scored]
        for group in groups:
            drop = pattern[1] - pattern[0] if pattern else count if count is not None else None
            drop = math.floor(fraction * len(group) + 0.5) if drop is None and fraction is not None else drop
            gone = (
                [entry for entry in group if entry[0] <= threshold] if threshold is not None else sorted(group)[:drop]
            )
            for _, name, unit in gone:
                keep[name].reshape(-1)[units[name][unit]] = False
        self.mask(keep)
        return keep

    def _units(self, name: str, per: Any, block: Any) -> list[list[int]]:
        """Return the flat indices of each unit, in the order of the units."""
        shape, axes = self.w[name].shape, self.axes[name]
        if per is None and block is None:
            return [[i] for i in range(self.w[name].size)]
        members: dict[tuple[int, ...], list[int]] = {}
        if per is not None:
            shape, others = self._fine(name, per)
        for flat, index in enumerate(np.ndindex(*shape)):
            if per is not None:
                key = tuple(0 if i in others else n for i, n in enumerate(index))
            else:
                key = tuple(n // block.get(axis, 1) for n, axis in zip(index, axes, strict=True))
            members.setdefault(key, []).append(flat)
        return [members[key] for key in sorted(members)]

    def _runs(self, name: str, pattern: Any, scored: list[Any]) -> list[list[Any]]:
        at, m = self.axes[name].index(pattern[2]), pattern[1]
        runs: dict[tuple[int, ...], list[Any]] = {}
        for index, entry in zip(np.ndindex(*self.w[name].shape), scored, strict=True):
            runs.setdefault((*index[:at], index[at] // m, *index[at + 1 :]), []).append(entry)
        return list(runs.values())
