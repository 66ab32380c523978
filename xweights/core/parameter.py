"""`Parameter`: the neutral handle of one native weight array."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from xweights.core.dtypes import Array, is_floating
from xweights.core.layout import Axes, Layout, Shape, inputs_of, outputs_of
from xweights.core.protocols import Storage
from xweights.core.shards import Shard, ShardedStorage

Reader = Callable[["Parameter"], Array]
Writer = Callable[["Parameter", Any], None]
_io: list[Any] = []
_sharded_types: dict[type[Any], bool] = {}


def register_io(reader: Reader, writer: Writer) -> None:
    """Register the functions behind `Parameter.numpy` and `Parameter.assign`; importing `xweights.edit` does."""
    _io[:] = [reader, writer]


class Parameter:
    """One native weight array of a target: a neutral handle that is never split or merged.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.parameters({"dense/kernel": np.ones((3, 2))})[0].role
        'kernel'

    Attributes:
        name: Neutral path, ``/``-separated, the last part is the role.
        native_name: The framework's own name.
        role: Its role, in Keras 3's words (``kernel``, ``bias``, ``gamma``, ...).
        layer: Neutral path of the layer that owns it.
        gates: Order of the parts packed along the ``gate`` or ``qkv`` axis, or None.
        aliases: Other neutral names of the same array (tied weights).
        native_aliases: Its other native names.
        layout: The conversion between the stored and the neutral array.
        dtype: NumPy (or ml_dtypes) dtype.
        hidden: True if only an explicit name selects it (non-persistent buffers).
        storage, handle: Access to the native array; for backends.
    """

    __slots__ = (
        "aliases", "dtype", "gates", "handle", "hidden", "layer", "layout", "name", "native_aliases", "native_name",
        "role", "storage",
    )  # fmt: skip

    def __init__(
        self,
        *,
        name: str,
        native_name: str,
        layout: Layout,
        dtype: np.dtype[Any],
        storage: Storage,
        handle: Any,
        role: str | None = None,
        layer: str | None = None,
        gates: tuple[str, ...] | None = None,
        aliases: tuple[str, ...] = (),
        native_aliases: tuple[str, ...] = (),
        hidden: bool = False,
    ) -> None:
        self.name = name
        self.native_name = native_name
        self.role = name.rsplit("/", 1)[-1] if role is None else role
        self.layer = name.rpartition("/")[0] if layer is None else layer
        self.gates = gates
        self.aliases = aliases
        self.native_aliases = native_aliases
        self.layout = layout
        self.dtype = dtype
        self.hidden = hidden
        self.storage = storage
        self.handle = handle

    @property
    def axes(self) -> Axes | None:
        """Names of the axes in neutral order; None if the layer is unknown."""
        return self.layout.axes

    @property
    def inputs(self) -> Axes:
        """The axes of a kernel that are summed over, spatial ones left out."""
        return inputs_of(self.layout)

    @property
    def outputs(self) -> Axes:
        """The axes of a kernel that its layer's output has."""
        return outputs_of(self.layout)

    @property
    def shape(self) -> Shape:
        """Shape in neutral order."""
        return self.layout.shape

    @property
    def size(self) -> int:
        """Number of entries."""
        size = 1
        for length in self.layout.split:
            size *= length
        return size

    @property
    def trainable(self) -> bool:
        """True if the framework would train it, as of now."""
        return self.storage.trainable(self.handle)

    @property
    def shard(self) -> Shard | None:
        """The part of it that this rank holds, by global index ranges; None if no other rank holds any."""
        storage = self.storage
        return storage.shard(self.handle, self.layout) if isinstance(storage, ShardedStorage) else None

    @property
    def floating(self) -> bool:
        """True for float16, bfloat16, float32, float64 and float8 types."""
        return is_floating(self.dtype)

    def numpy(self) -> Array:
        """Return a copy in neutral order.

        Example:
            >>> import numpy as np, xweights as xw
            >>> xw.parameters({"b": np.zeros(2)})[0].numpy()
            array([0., 0.])
        """
        value: Array = _io[0](self)
        return value

    def assign(self, value: Any) -> None:
        """Write ``value`` (neutral order) in place, checked as :func:`xweights.set_params` checks it.

        Example:
            >>> import numpy as np, xweights as xw
            >>> xw.parameters({"b": np.zeros(2)})[0].assign([1.0, 2.0])
        """
        _io[1](self, value)

    def read(self) -> Array:
        """Return the stored values on the host, in stored order; callers neither keep nor change them."""
        return self.storage.read(self.handle)

    def write(self, value: Array) -> None:
        """Copy in ``value``, of the stored shape and dtype."""
        self.storage.write(self.handle, value)

    def refusal(self, *, writing: bool) -> str | None:
        """Return why the parameter can't be read or written, or None."""
        return self.storage.refusal(self.handle, writing=writing)

    def edit_refusal(self) -> str | None:
        """Return why its layer wouldn't obey an edit by a rule, or None; values may be written all the same."""
        return self.storage.edit_refusal(self.handle)

    def effective(self) -> Array | None:
        """Return what its layer computes with in its place, in stored order; None where :meth:`read` has that."""
        return self.storage.effective(self.handle)

    def is_part(self) -> bool:
        """Return True for an array that only changes another one, such as an adapter's factor."""
        return self.storage.is_part(self.handle)

    def native(self, *, tensor: bool = False) -> Any:
        """Return the native array that ops work on, or (``tensor``) the framework's own tensor."""
        return self.storage.native_array(self.handle, tensor=tensor)

    def commit(self, native: Any, value: Any) -> None:
        """Store ``value``, the result of a rule applied to ``native``."""
        self.storage.commit(self.handle, native, value)

    def backup(self) -> Any:
        """Return what :meth:`restore` needs to undo every later write."""
        return self.storage.backup(self.handle)

    def restore(self, kept: Any) -> None:
        """Undo every write since :meth:`backup`."""
        self.storage.restore(self.handle, kept)

    def set_trainable(self, flag: bool) -> None:
        """Set whether the framework trains the parameter; raise WriteError where that can't be done."""
        self.storage.set_trainable(self.handle, flag)

    def identity(self) -> Hashable:
        """Return a key that handles of one native array share."""
        return self.storage.identity(self.handle)

    def replace(self, **changes: Any) -> Parameter:
        """Return a copy in which some of the attributes that the constructor takes are others."""
        return Parameter(**{name: getattr(self, name) for name in self.__slots__} | changes)

    def with_handle(self, handle: Any, storage: Storage | None = None) -> Parameter:
        """Return a copy with another handle, and maybe another storage."""
        # A fifth of the time of `replace`, for each parameter of a kept plan at each call that looks at parameters.
        parameter = Parameter.__new__(Parameter)
        parameter.name = self.name
        parameter.native_name = self.native_name
        parameter.role = self.role
        parameter.layer = self.layer
        parameter.gates = self.gates
        parameter.aliases = self.aliases
        parameter.native_aliases = self.native_aliases
        parameter.layout = self.layout
        parameter.dtype = self.dtype
        parameter.hidden = self.hidden
        parameter.storage = self.storage if storage is None else storage
        parameter.handle = handle
        return parameter

    def renamed(self, prefix: str) -> Parameter:
        """Return the same parameter under ``prefix/``, as a list of targets names it."""
        return self.replace(
            name=f"{prefix}/{self.name}",
            layer=f"{prefix}/{self.layer}" if self.layer else prefix,
            aliases=tuple(f"{prefix}/{alias}" for alias in self.aliases),
        )

    def __repr__(self) -> str:
        axes = "?" if self.axes is None else ", ".join(self.axes)
        shape = ", ".join(str(n) for n in self.shape)
        frozen = "" if self.trainable else ", not trainable"
        tied = f", also {', '.join(self.aliases)}" if self.aliases else ""
        return f"<Parameter {self.name!r} ({axes}) = ({shape}) {self.dtype.name}{frozen}{tied}>"


def is_shared(p: Parameter) -> bool:
    """Return whether several ranks hold a parameter, in parts or as copies that only change together."""
    kind = type(p.storage)
    if kind not in _sharded_types:
        _sharded_types[kind] = isinstance(p.storage, ShardedStorage)
    return _sharded_types[kind]
