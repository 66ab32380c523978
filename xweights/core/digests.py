"""Digests of arguments: equal for equal numbers, arrays and rules, in every process."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from xweights.core.blocks import as_stored, blocks
from xweights.core.dtypes import Array
from xweights.core.registry import backend_for

_BLOCK = 1 << 18


def digest_of(*values: Any) -> bytes:
    """Return 8 bytes that differ, but for chance, where values differ; objects nobody knows count by their type."""
    import hashlib  # loads OpenSSL, which takes a tenth of the time of importing NumPy

    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        _update(digest, value)
    return digest.digest()


def digest_bits(array: Array) -> int:
    """Return 64 bits that differ, but for chance, where an array was edited; at the speed of memory.

    The wrapping sum of its words, and a checksum of a thousand of them.
    """
    raw = np.ascontiguousarray(as_stored(array)).reshape(-1).view(np.uint8)
    words = raw[: raw.size // 8 * 8].view(np.uint64)
    sample = np.ascontiguousarray(words[:: words.size // 1024 + 1]).view(np.uint8)
    total = int(np.add.reduce(words)) ^ zlib.crc32(raw[words.size * 8 :].data, zlib.crc32(sample.data)) << 32
    return total & (1 << 64) - 1


def _update(digest: Any, value: Any) -> None:
    # Addresses differ between processes, so nothing is shown by its repr but what is plain.
    if isinstance(value, (str, bytes, int, float, complex, bool, type(None), type(...))):
        digest.update(f"{type(value).__name__}:{value!r}\0".encode())
    elif isinstance(value, (np.ndarray, np.generic)):
        _update_array(digest, np.asarray(value))
    elif isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "__getitem__")):
        digest.update(f"mapping of {len(value)}\0".encode())
        for key in value.keys():  # noqa: SIM118 - not every mapping iterates over its keys
            _update(digest, key)
            _update(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} values\0".encode())
        for item in value:
            _update(digest, item)
    elif isinstance(value, (set, frozenset)):
        for item in sorted(map(digest_of, value)):
            digest.update(item)
    elif is_dataclass(value) and not isinstance(value, type):
        digest.update(f"{type(value).__qualname__}\0".encode())
        for field in fields(value):
            _update(digest, getattr(value, field.name))
    elif callable(value):
        digest.update(f"function {getattr(value, '__qualname__', type(value).__qualname__)}\0".encode())
    else:
        _update_other(digest, value)


def _update_other(digest: Any, value: Any) -> None:
    backend = backend_for(value)
    if backend is not None and backend.is_tensor(value):
        _update_array(digest, backend.to_host(value))
    elif isinstance(value, slice):
        digest.update(repr(value).encode())
    else:
        digest.update(f"{type(value).__module__}.{type(value).__qualname__}\0".encode())


def _update_array(digest: Any, array: Array) -> None:
    digest.update(f"{array.dtype.name}{array.shape}\0".encode())
    stored = as_stored(array)
    for block in blocks(stored.shape, _BLOCK):
        # A checksum of the bytes: BLAKE2b itself takes six times as long.
        part = np.ascontiguousarray(stored[block])
        digest.update(zlib.crc32(part.reshape(-1).view(np.uint8).data).to_bytes(4, "little"))
