"""What a pickle of tensors may name, and how each is described: none of it is imported or called."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xweights.files.io.open_file import shorten

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
DTYPES = frozenset(
    {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "uint16"}
    | {"complex64", "complex128"}
    | {"uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"}
)
REASONS = (
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


@dataclass(slots=True, eq=False)
class OpaqueObject:
    """An object of a class that isn't known here: its class's name, and whatever it was made of.

    ``state`` holds its attributes, ``entries`` what was put into it if its class is a kind of dict, ``items`` if it is
    a kind of list or set.
    """

    type: str
    arguments: tuple[Any, ...]
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class PickledArray:
    """A NumPy array inside the pickle itself."""

    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    data: bytes


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number that may count something."""
    return type(value) is int and 0 <= value < 1 << 62


def _are_counts(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= 64 and all(is_count(item) for item in value)


def _describe_tensor(*args: Any) -> Tensor:
    """Describe ``_describe_tensor(_v2)``: storage, offset, shape, strides, and arguments only for gradients."""
    if len(args) < 4:
        raise TypeError
    storage, offset, shape, strides = args[:4]
    if (
        not isinstance(storage, PickledStorage)
        or not is_count(offset)
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
    return {check_key(key): value for key, value in args[0]}


def _describe_default_dict(*args: Any) -> dict[Any, Any]:
    return _describe_mapping(*args[1:])


def _describe_counter(*args: Any) -> dict[Any, Any]:
    return dict(args[0]) if args and isinstance(args[0], dict) else _describe_mapping(*args)


def describe_array(data: Any, dtype: Any, shape: Any, fortran: bool) -> PickledArray | None:
    """Return the description of a NumPy array by its bytes, dtype, shape and order; None if it isn't one."""
    code = dtype.arguments[0] if isinstance(dtype, OpaqueObject) and dtype.arguments else None
    order = dtype.state[1] if isinstance(dtype, OpaqueObject) and isinstance(dtype.state, tuple) else "|"
    if not _are_counts(shape) or not isinstance(code, str) or not isinstance(data, bytes) or order not in tuple("<>|="):
        return None
    if not re.fullmatch(r"b1|[iuf][1248]|c8|c16", code):
        return None  # texts, dates, records: no numbers
    return PickledArray(f"{order}{code}", shape, fortran, data)


def _describe_array_of_buffer(*args: Any) -> PickledArray | OpaqueObject:
    """Describe ``_frombuffer``, by which protocol 5 makes an array: bytes, dtype, shape, order."""
    if len(args) < 4:
        raise ValueError("an array isn't described by bytes, a dtype, a shape and an order")
    return describe_array(args[0], args[1], args[2], args[3] == "F") or OpaqueObject("numpy.ndarray", ())


def _describe_bytes(*args: Any) -> bytes:
    """Describe the bytes that protocol 2 writes as a text."""
    if len(args) != 2 or not isinstance(args[0], str) or args[1] != "latin1":
        raise ValueError("it encodes something else than bytes")
    return args[0].encode("latin1")


def check_key(key: Any) -> Any:
    """Return the key of a dict; raise ValueError for one that is no name of anything."""
    if type(key) in (str, int, bool, float, bytes, type(None), Name, OpaqueObject):
        return key
    if type(key) is tuple:
        return tuple(map(check_key, key))
    raise ValueError(f"a dict has the key {shorten(key)}, which is no name of anything")


# Names that the program may call; all of these functions are ours.
CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _describe_mapping,
    "collections.defaultdict": _describe_default_dict,
    "collections.Counter": _describe_counter,
    "torch._utils._rebuild_tensor": _describe_tensor,
    "torch._utils._rebuild_tensor_v2": _describe_tensor,
    "torch._utils._rebuild_tensor_v3": _describe_tensor_of_dtype,
    "torch._utils._rebuild_parameter": _describe_parameter,
    "torch._utils._rebuild_parameter_with_state": _describe_parameter,
    "torch._tensor._rebuild_from_type_v2": _describe_from_type,
    "torch.Size": tuple,
    "_codecs.encode": _describe_bytes,
    "numpy.core.numeric._frombuffer": _describe_array_of_buffer,
    "numpy._core.numeric._frombuffer": _describe_array_of_buffer,
}
# Names that the program may use without calling them.
TYPES = frozenset(
    {f"torch.{name}" for name in (*STORAGES, *DTYPES, "Tensor")}
    | {"torch.storage.UntypedStorage", "torch.nn.parameter.Parameter"}
)


# Modules whose functions run code, reach other files or undo what this machine promises; no weights need their names.
_NEVER = frozenset(
    {"os", "nt", "posix", "posixpath", "ntpath", "subprocess", "sys", "shutil", "socket", "ssl", "importlib", "runpy"}
    | {"code", "codeop", "pty", "ctypes", "cffi", "pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal"}
    | {"types", "inspect", "operator", "_operator", "functools", "_functools", "webbrowser", "multiprocessing"}
    | {"threading", "_thread", "asyncio", "signal", "platform", "pip", "ensurepip", "venv", "site", "pkgutil", "pdb"}
    | {"bdb", "trace", "timeit", "cProfile", "profile", "doctest", "http", "urllib", "ftplib", "smtplib", "telnetlib"}
    | {"requests", "httpx", "aiohttp", "tempfile", "io", "_io", "builtins", "__builtin__", "__main__.__builtins__"}
    | {"linecache", "zipimport", "imp", "commands", "fileinput", "atexit", "gc", "tarfile", "zipfile", "sqlite3"}
)
# Of those, what holds data and does nothing.
_HARMLESS = frozenset(
    {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in
     ("set", "frozenset", "list", "dict", "tuple", "int", "long", "float", "complex", "bool", "str", "unicode", "bytes",
      "bytearray", "slice", "range", "xrange", "object")}
    | {"types.SimpleNamespace", "functools.partial", "operator.attrgetter", "operator.itemgetter"}
)  # fmt: skip
# Tensors that only torch can rebuild come by names of these modules: leaving them out would lose weights.
_TENSORS = (
    "torch._utils.",
    "torch._tensor.",
    "torch.storage.",
    "torch._C.",
    "torch.jit.",
    "torch._weights_only_unpickler.",
)


NUMPY_ARRAYS = frozenset({"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"})


def is_refused(text: str) -> bool:
    """Return whether a name is one that no weights need, or one of a tensor that would be lost."""
    module = text.rpartition(".")[0]
    if text in _HARMLESS:
        return False
    if text.startswith("torch.") and text.endswith("Storage"):
        return True
    return text.startswith(_TENSORS) or not text.isprintable() or bool({module, text.partition(".")[0]} & _NEVER)


# Functions in the place of classes; a class's name begins with a capital letter.
_MAKERS = frozenset(
    {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")}
    | {"numpy.ndarray", "numpy.dtype", "torch.device", "torch.dtype", "torch.layout", "torch.memory_format"}
    | {"torch.serialization._get_layout"}  # in the metadata of torch.distributed.checkpoint
    | {"torch._utils._get_restore_location", "collections.deque", "copyreg._reconstructor", "copy_reg._reconstructor"}
    | {"copyreg.__newobj__", "datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta"}
    | {"datetime.timezone", "functools.partial", "operator.attrgetter", "operator.itemgetter"}
)  # fmt: skip


def names_a_class(text: str) -> bool:
    """Return whether a name is that of a class, whose objects are described and not made."""
    module, _, name = text.rpartition(".")
    if text in _MAKERS or text in _HARMLESS or name.startswith("__pyx_unpickle_"):
        return True
    random_state = module in ("numpy.random", "numpy.random._pickle") and name.endswith("_ctor")
    return random_state or name.lstrip("_")[:1].isupper()
