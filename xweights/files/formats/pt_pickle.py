"""Read pickles that describe tensors, without running them.

A pickle is a program for a small stack machine. The machine here has no instruction that imports, calls or builds
anything but dicts, lists, tuples, texts, numbers and the descriptions of tensors below; a name in the program is looked
up in :data:`CALLS` and :data:`TYPES` and nowhere else. Python's ``pickle`` isn't used.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xweights.files.io.limits import Limits
from xweights.files.io.open_file import damaged, refused, shorten

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8",
}  # fmt: skip
DTYPES = frozenset(
    {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "uint16"}
    | {"uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"}
)
_WHY = (
    ("sparse", "a sparse tensor: save tensor.to_dense()"),
    ("qtensor", "a quantized tensor: save tensor.dequantize()"),
    ("nested", "a nested tensor"),
    ("meta_tensor", "a tensor without values"),
    ("wrapper_subclass", "a tensor of a subclass: save a plain one"),
)


@dataclass(frozen=True, slots=True)
class Name:
    """A name in the program, as ``module.name``; it is never imported."""

    text: str


@dataclass(frozen=True, slots=True)
class PickledStorage:
    """A storage in the archive: its dtype, its key, and the number of its entries."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage: offset, shape and strides in entries of ``dtype``."""

    storage: PickledStorage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _are_counts(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= 64 and all(_is_count(item) for item in value)


def _describe_tensor(*args: Any) -> Tensor:
    """Describe ``_describe_tensor(_v2)``: storage, offset, shape, strides, and arguments only for gradients."""
    if len(args) < 4:
        raise TypeError
    storage, offset, shape, strides = args[:4]
    if (
        not isinstance(storage, PickledStorage)
        or not _is_count(offset)
        or not _are_counts(shape)
        or not _are_counts(strides)
    ):
        raise ValueError("a tensor isn't described by a storage, an offset, a shape and strides")
    if len(shape) != len(strides):
        raise ValueError(f"a tensor has the shape {shape} and the strides {strides}")
    return Tensor(storage, storage.dtype, offset, shape, strides)


def _describe_tensor_of_dtype(*args: Any) -> Tensor:
    """Describe ``_rebuild_tensor_v3``: the same, with a dtype that isn't the storage's."""
    tensor = _describe_tensor(*args)
    dtype = args[6]
    if not isinstance(dtype, Name) or dtype.text.removeprefix("torch.") not in DTYPES:
        raise ValueError(f"a tensor has the dtype {shorten(getattr(dtype, 'text', dtype))}")
    return Tensor(tensor.storage, dtype.text.removeprefix("torch."), tensor.offset, tensor.shape, tensor.strides)


def _describe_parameter(*args: Any) -> Tensor:
    """Describe ``_describe_parameter``: a tensor, and arguments only for gradients."""
    if not isinstance(args[0], Tensor):
        raise ValueError("a parameter isn't made of a tensor")  # noqa: TRY004 - the file's fault, not the caller's
    return args[0]


def _describe_from_type(*args: Any) -> Tensor:
    """Describe ``_rebuild_from_type_v2``: a call, the type of its result, its arguments, attributes (left out)."""
    call, kind, inner, _ = args
    if not isinstance(call, Name) or call.text not in CALLS or not isinstance(inner, tuple):
        raise ValueError("a tensor with attributes isn't made by a known call")
    if not isinstance(kind, Name) or kind.text not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        raise ValueError(f"a tensor has the type {shorten(getattr(kind, 'text', kind))}")
    tensor: Tensor = CALLS[call.text](*inner)
    return tensor


def _describe_mapping(*args: Any) -> dict[Any, Any]:
    if not args:
        return {}
    if len(args) > 1 or not isinstance(args[0], (list, tuple)):
        raise ValueError("an ordered dict isn't made of pairs")
    return {_check_key(key): value for key, value in args[0]}


def _check_key(key: Any) -> Any:
    if type(key) not in (str, int):
        raise ValueError(f"a dict has the key {shorten(key)}, and names are texts or whole numbers")
    return key


# Names that the program may call; all of these functions are ours.
CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _describe_mapping,
    "torch._utils._rebuild_tensor": _describe_tensor,
    "torch._utils._rebuild_tensor_v2": _describe_tensor,
    "torch._utils._rebuild_tensor_v3": _describe_tensor_of_dtype,
    "torch._utils._rebuild_parameter": _describe_parameter,
    "torch._utils._rebuild_parameter_with_state": _describe_parameter,
    "torch._tensor._rebuild_from_type_v2": _describe_from_type,
    "torch.Size": tuple,
}
# Names that the program may use without calling them.
TYPES = frozenset(
    {f"torch.{name}" for name in (*STORAGES, *DTYPES, "Tensor")}
    | {"torch.storage.UntypedStorage", "torch.nn.parameter.Parameter"}
)


class _TooShortError(ValueError):
    """The data ends in the middle of an instruction."""


_MARK = object()
_SIMPLE: Mapping[int, Any] = {ord("N"): None, 0x88: True, 0x89: False}


class _Machine:
    """The stack machine, with one method for each instruction that has an effect."""

    def __init__(self, data: bytes, path: str, room: int) -> None:
        self.data, self.path, self.room = data, path, room
        self.at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, PickledStorage] = {}

    def run(self) -> Any:
        while True:
            code = self._take_byte()
            if code == ord("."):
                if len(self.stack) != 1:
                    raise ValueError("it ends with more or less than one object")
                return self.stack[0]
            if code in _SIMPLE:
                self.stack.append(_SIMPLE[code])
                continue
            step = _STEPS.get(code)
            if step is None:
                raise ValueError(f"it has the instruction {code:#04x}, which weights don't need")
            step(self)

    def _take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.data):
            raise _TooShortError("it ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def _take_byte(self) -> int:
        return self._take(1)[0]

    def take_number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def push(self, value: Any, cost: int = 8) -> None:
        self.room -= cost
        if self.room < 0:
            raise MemoryError
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("its stack is empty where a value is wanted")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for position in range(len(self.stack) - 1, -1, -1):
            if self.stack[position] is _MARK:
                items = self.stack[position + 1 :]
                del self.stack[position:]
                return items
        raise ValueError("its stack has no mark where one is wanted")

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise ValueError(f"its stack has no {kind.__name__} where one is wanted")
        return self.stack[-1]

    def text(self, count: int) -> None:
        self.push(self._take(count).decode("utf-8", "surrogatepass"), 64 + 2 * count)

    def long(self, count: int) -> None:
        if count > 16:
            raise ValueError(f"it has a whole number of {count} bytes")
        self.push(int.from_bytes(self._take(count), "little", signed=True), 40)

    def take_line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 1000)
        if end < 0:
            more = self.at + 1000 > len(self.data)
            raise _TooShortError if more else ValueError("it has a name without an end")
        return self._take(end + 1 - self.at)[:-1].decode("utf-8")

    def name(self, module: str, name: str) -> None:
        text = f"{module}.{name}"
        if text not in CALLS and text not in TYPES:
            why = next((why for part, why in _WHY if part in name.lower()), None)
            reason = f"it names {shorten(text)}"
            raise refused(self.path, f"{reason}, {why}" if why else f"{reason}, which is no part of weights: "
                          "nothing of it was imported or run", fix="save a state dict of plain tensors")  # fmt: skip
        self.push(Name(text), 64)

    def remember(self, index: int) -> None:
        self.room -= 100
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("its stack is empty where a value is wanted")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError("it recalls what it never kept")
        self.push(self.memo[index])

    def name_from_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("it has a name that is no text")  # noqa: TRY004
        self.name(module, name)

    def tuple(self, count: int | None) -> None:
        items = self.pop_to_mark() if count is None else [self.pop() for _ in range(count)][::-1]
        self.push(tuple(items), 56 + 8 * len(items))

    def call(self) -> None:
        args, name = self.pop(), self.pop()
        if not isinstance(name, Name) or name.text not in CALLS or not isinstance(args, tuple):
            raise ValueError(f"it calls {shorten(getattr(name, 'text', name))}")
        try:
            self.push(CALLS[name.text](*args), 200)
        except (TypeError, IndexError):
            raise ValueError(f"it calls {name.text} with wrong arguments") from None

    def build(self) -> None:
        # The metadata of a state dict, and attributes of tensors: neither is weights.
        self.pop()
        if not self.stack or not isinstance(self.stack[-1], (dict, Tensor)):
            raise ValueError("it sets attributes of what has none")

    def persistent(self) -> None:
        reference = self.pop()
        # Before PyTorch 1.6 a sixth item named a part of a shared storage.
        if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
            raise ValueError("it refers to something else than a storage")
        _, kind, key, _, count = reference[:5]
        if reference[5:] not in ((), (None,)):
            raise ValueError("it refers to a part of a storage")
        storage_name = kind.text.rpartition(".")[2] if isinstance(kind, Name) else ""
        if storage_name not in STORAGES or not isinstance(key, str) or not _is_count(count):
            raise ValueError("it describes a storage wrongly")
        storage = PickledStorage(STORAGES[storage_name], key, count)
        self.push(storage, 120)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"it describes the storage {shorten(key)} in two ways")

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise ValueError("a dict gets a key without a value")
        self.room -= 100 * len(items)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if _check_key(key) in target:
                raise ValueError(f"a dict gets the key {shorten(key)} twice")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(items)


_Step = Callable[[_Machine], Any]
_STEPS: Mapping[int, _Step] = {
    0x80: lambda m: m._take(1),  # PROTO
    0x95: lambda m: m._take(8),  # FRAME
    ord("("): lambda m: m.push(_MARK),
    ord("0"): lambda m: m.pop(),
    ord("}"): lambda m: m.push({}, 72),
    ord("]"): lambda m: m.push([], 64),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.tuple(None),
    0x85: lambda m: m.tuple(1),
    0x86: lambda m: m.tuple(2),
    0x87: lambda m: m.tuple(3),
    ord("J"): lambda m: m.push(m.take_number("<i"), 36),
    ord("K"): lambda m: m.push(m.take_number("<B")),
    ord("M"): lambda m: m.push(m.take_number("<H"), 36),
    0x8A: lambda m: m.long(m.take_number("<B")),
    ord("G"): lambda m: m.push(struct.unpack(">d", m._take(8))[0], 32),
    ord("X"): lambda m: m.text(m.take_number("<I")),
    0x8C: lambda m: m.text(m.take_number("<B")),
    ord("B"): lambda m: m.push(m._take(m.take_number("<I")), 40),
    ord("C"): lambda m: m.push(m._take(m.take_number("<B")), 40),
    ord("c"): lambda m: m.name(m.take_line(), m.take_line()),
    0x93: lambda m: m.name_from_stack(),
    ord("q"): lambda m: m.remember(m.take_number("<B")),
    ord("r"): lambda m: m.remember(m.take_number("<I")),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("h"): lambda m: m.recall(m.take_number("<B")),
    ord("j"): lambda m: m.recall(m.take_number("<I")),
    ord("R"): lambda m: m.call(),
    ord("b"): lambda m: m.build(),
    ord("Q"): lambda m: m.persistent(),
    ord("s"): lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.set_items(m.pop_to_mark()),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.pop_to_mark()),
}


def describe(data: bytes, path: str, limits: Limits) -> Any:
    """Return the described contents of a pickle: dicts, lists and tuples of tensors, numbers and texts."""
    limits.check_index(path, len(data))
    described = describe_next(data, 0, path, limits)
    if described is None:
        raise damaged(path, "its description of the tensors is wrong: it ends too early")
    return described.value


@dataclass(frozen=True)
class DescribedPickle:
    """The contents of a pickle, every storage in it, and the position where it ends in the data."""

    value: Any
    storages: Mapping[str, PickledStorage]
    end: int


def describe_next(data: bytes, start: int, path: str, limits: Limits) -> DescribedPickle | None:
    """Return the contents of the pickle that begins at ``start``; None if the data ends before it does."""
    machine = _Machine(data, path, limits.index_room)
    machine.at = start
    try:
        return DescribedPickle(machine.run(), machine.storages, machine.at)
    except _TooShortError:
        return None
    except MemoryError:
        raise refused(path, "its description of the tensors takes more memory than allowed") from None
    except (UnicodeDecodeError, RecursionError, OverflowError) as wrong:
        raise damaged(path, f"its description of the tensors can't be read: {type(wrong).__name__}") from None
    except ValueError as wrong:
        if hasattr(wrong, "reason") and hasattr(wrong, "path"):
            raise
        raise damaged(path, f"its description of the tensors is wrong: {wrong}") from None
