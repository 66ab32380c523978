"""Read pickles that describe tensors, without running them.

A pickle is a program for a small stack machine. The machine here has no instruction that imports, calls or builds
anything but dicts, lists, sets, tuples, texts, numbers and the descriptions below; a name in the program is looked up
in :data:`CALLS` and :data:`TYPES` and nowhere else. Python's ``pickle`` isn't used.

An object of any other class (the settings of a training run, a whole module) is *described*, never made: its class's
name, its arguments and its attributes are data like all else in the file. A name that only an attack needs is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xweights.files.formats.pt_names import (
    CALLS,
    NUMPY_ARRAYS,
    REASONS,
    STORAGES,
    TYPES,
    Name,
    OpaqueObject,
    PickledStorage,
    Tensor,
    check_key,
    describe_array,
    is_count,
    is_refused,
    names_a_class,
)
from xweights.files.io.limits import Limits
from xweights.files.io.open_file import damaged, refused, shorten


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

    def top_of(self, kind: type, attribute: str) -> Any:
        """Return the dict or list on the stack, or that of a described object, whose class is a kind of it."""
        if self.stack and isinstance(self.stack[-1], OpaqueObject):
            return getattr(self.stack[-1], attribute)
        return self.top(kind)

    def text(self, count: int) -> None:
        self.push(self._take(count).decode("utf-8", "surrogatepass"), 64 + 2 * count)

    def old_text(self, count: int) -> None:
        # What Python 2 wrote: texts, or bytes in texts' place.
        data = self._take(count)
        self.push(data.decode("ascii") if data.isascii() else data, 64 + 2 * count)

    def long(self, count: int) -> None:
        if not 0 <= count <= 64:
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
        if text not in CALLS and text not in TYPES and is_refused(text):
            why = next((why for part, why in REASONS if part in name.lower()), None)
            reason = f"it names {shorten(text)}"
            raise refused(self.path, f"{reason}, {why}" if why else f"{reason}, which is no part of weights: "
                          "nothing of it was imported or run", fix="save a state dict of plain tensors")  # fmt: skip
        self.push(Name(text), 64 + 2 * len(text))

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
            raise ValueError("it has a name that is no text")  # noqa: TRY004 - the file's fault, not the caller's
        self.name(module, name)

    def tuple(self, count: int | None) -> None:
        items = self.pop_to_mark() if count is None else [self.pop() for _ in range(count)][::-1]
        self.push(tuple(items), 56 + 8 * len(items))

    def call(self) -> None:
        args, name = self.pop(), self.pop()
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise ValueError(f"it calls {shorten(getattr(name, 'text', name))}")  # noqa: TRY004 - the file's fault
        if name.text not in CALLS:
            if not names_a_class(name.text):
                reason = (
                    f"it calls {shorten(name.text)}, which is no part of weights: nothing of it was imported or run"
                )
                raise refused(self.path, reason, fix="save a state dict of plain tensors")
            self.describe_object(name, args)
            return
        try:
            self.push(CALLS[name.text](*args), 200)
        except (TypeError, IndexError):
            raise ValueError(f"it calls {name.text} with wrong arguments") from None

    def describe_object(self, name: Any, args: Any) -> None:
        """Push the description of an object of a class, or of what a function returns: neither is made or called."""
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise ValueError(f"it makes an object of {shorten(getattr(name, 'text', name))}")  # noqa: TRY004
        text = name.text
        if text in ("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__") and args:
            text, args = args[0].text if isinstance(args[0], Name) else text, args[1:]
        if text in TYPES or text in CALLS:
            raise ValueError(f"it calls {shorten(text)} as a class")
        self.push(OpaqueObject(text, args), 200)

    def describe_object_with_keywords(self) -> None:
        keywords, args, name = self.pop(), self.pop(), self.pop()
        self.describe_object(name, (*args, keywords) if isinstance(args, tuple) else args)

    def build(self) -> None:
        state = self.pop()
        if not self.stack or not isinstance(self.stack[-1], (dict, Tensor, OpaqueObject)):
            raise ValueError("it sets attributes of what has none")
        # The metadata of a state dict, and attributes of tensors: neither is weights.
        top = self.stack[-1]
        if isinstance(top, OpaqueObject):
            top.state = state
            if top.type in NUMPY_ARRAYS:
                self.fill_numpy_array(top, state)

    def fill_numpy_array(self, described: OpaqueObject, state: Any) -> None:
        """Note the contents of a NumPy array, whose state is (version, shape, dtype, order, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5:
            return
        _, shape, dtype, fortran, data = state
        described.state = describe_array(data, dtype, shape, fortran is True)

    def persistent(self) -> None:
        reference = self.pop()
        if isinstance(reference, tuple) and len(reference) == 4 and reference[0] == "module":
            # A class beside its source code, which the older format keeps for a module that is saved as a whole.
            self.push(reference[1] if isinstance(reference[1], Name) else Name("?"))
            return
        # Before PyTorch 1.6 a sixth item named a part of a shared storage.
        if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
            raise ValueError("it refers to something else than a storage")
        _, kind, key, _, count = reference[:5]
        if reference[5:] not in ((), (None,)):
            raise ValueError("it refers to a part of a storage")
        storage_name = kind.text.rpartition(".")[2] if isinstance(kind, Name) else ""
        if storage_name not in STORAGES or not isinstance(key, str) or not is_count(count):
            raise ValueError("it describes a storage wrongly")
        storage = PickledStorage(STORAGES[storage_name], key, count)
        self.push(storage, 120)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"it describes the storage {shorten(key)} in two ways")

    def set_items(self, items: list[Any]) -> None:
        target = self.top_of(dict, "entries")
        if len(items) % 2:
            raise ValueError("a dict gets a key without a value")
        self.room -= 100 * len(items)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if check_key(key) in target:
                raise ValueError(f"a dict gets the key {shorten(key)} twice")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        self.top_of(list, "items").extend(items)

    def add(self, items: list[Any]) -> None:
        self.top_of(list, "items").extend(items)

    def drop_to_mark(self) -> None:
        self.pop_to_mark()

    def repeat(self) -> None:
        value = self.pop()
        self.stack.append(value)
        self.push(value)


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
    0x8B: lambda m: m.long(m.take_number("<i")),
    ord("G"): lambda m: m.push(struct.unpack(">d", m._take(8))[0], 32),
    ord("X"): lambda m: m.text(m.take_number("<I")),
    0x8C: lambda m: m.text(m.take_number("<B")),
    0x8D: lambda m: m.text(m.take_number("<Q")),
    ord("U"): lambda m: m.old_text(m.take_number("<B")),
    ord("T"): lambda m: m.old_text(m.take_number("<i")),
    ord("B"): lambda m: m.push(m._take(m.take_number("<I")), 40),
    ord("C"): lambda m: m.push(m._take(m.take_number("<B")), 40),
    0x8E: lambda m: m.push(m._take(m.take_number("<Q")), 40),
    0x96: lambda m: m.push(m._take(m.take_number("<Q")), 40),
    0x8F: lambda m: m.push([], 64),  # a set: only its items matter here
    0x90: lambda m: m.add(m.pop_to_mark()),
    0x91: lambda m: m.tuple(None),  # a frozen set
    ord("1"): lambda m: m.drop_to_mark(),
    ord("2"): lambda m: m.repeat(),
    ord("c"): lambda m: m.name(m.take_line(), m.take_line()),
    0x93: lambda m: m.name_from_stack(),
    ord("q"): lambda m: m.remember(m.take_number("<B")),
    ord("r"): lambda m: m.remember(m.take_number("<I")),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("h"): lambda m: m.recall(m.take_number("<B")),
    ord("j"): lambda m: m.recall(m.take_number("<I")),
    ord("R"): lambda m: m.call(),
    0x81: lambda m: m.describe_object(*[m.pop(), m.pop()][::-1]),
    0x92: lambda m: m.describe_object_with_keywords(),
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
