"""What ``state_dict`` saves of a module, entry by entry, and how the keys of a file go into it.

The keys are those of ``module.state_dict()`` itself, whatever hooks and overrides make of it: it computes no
parametrization, so reading it changes nothing. A tensor's memory tells which parameter it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from xweights.core.layout import plain_layout
from xweights.core.parameter import Parameter
from xweights.core.state import State, StateEntry, StateMatch, StateWrite
from xweights.errors import TargetError
from xweights_torch.adapter import ModuleAdapter, wrapped_child
from xweights_torch.dtypes import numpy_dtype
from xweights_torch.parametrized import ComputedParameter
from xweights_torch.sharding.storage import ShardStorage
from xweights_torch.storage import RefusedStorage, TensorHandle, identity
from xweights_torch.tables.spellings import FileKeys, Kind, respell
from xweights_torch.weight_formulas import evaluate, usual_dim

_EXTRA = "_extra_state"
_DEPTH = 100

# Buffers that a version of their library began, or ceased, to save. torch itself fills in the first where a file lacks
# it (_NormBase._load_from_state_dict); the second is made by arange at construction, and transformers made it
# non-persistent in 4.31.
_COMES_AND_GOES = frozenset({"num_batches_tracked", "position_ids"})


class _MadeStorage(RefusedStorage):
    """Storage of tensors that state_dict() makes anew at each call: they can be read."""

    def refusal(self, handle: TensorHandle | torch.Tensor, *, writing: bool) -> str | None:
        return self.why if writing else super(RefusedStorage, self).refusal(handle, writing=False)


_MADE = _MadeStorage(
    "the module's own code makes it for state_dict(), so that a write would be lost\n"
    "Fix: module.load_state_dict({key: value}, strict=False)"
)


def read_state(module: nn.Module, adapter: ModuleAdapter) -> State:
    """Return the entries of ``module.state_dict()``, in its order, tied ones together.

    Raises NotBuiltError for lazy layers, TargetError for an override that returns no mapping.
    """
    return _read(module, adapter.parameters(module), _key_without_wrappers(module))


def _read(module: nn.Module, parameters: Sequence[Parameter], plain_key: Callable[[str], str]) -> State:
    if any(type(p.storage) in (RefusedStorage, ShardStorage) for p in parameters):
        # state_dict() of FSDP1 gathers the shards of all processes, and hangs where one of them doesn't take part; that
        # of FSDP2 has DTensors, which are these parameters.
        return State([StateEntry((p.native_name,), (plain_key(p.native_name),), p) for p in parameters if not p.hidden])
    saved = _call_state_dict(module)
    known = _Known(parameters)
    extra = set(_extra_keys(module))
    groups: dict[Hashable, list[str]] = {}
    for key, value in saved.items():
        groups.setdefault(identity(value) if isinstance(value, torch.Tensor) else (key,), []).append(key)
    entries = []
    for place, keys in groups.items():
        value = saved[keys[0]]
        plain = tuple(map(plain_key, keys))
        is_extra = keys[0] in extra
        if isinstance(value, torch.Tensor):
            parameter = known.parameter_of(keys[0], value, place)
            entries.append(StateEntry(tuple(keys), plain, parameter, known.computed.get(place), extra=is_extra))
        else:
            tree = known.tree(keys[0], value)
            entries.append(StateEntry(tuple(keys), plain, None, value=tree, extra=is_extra))
    versions = getattr(saved, "_metadata", None)
    return State(entries, list(saved), {} if versions is None else {"_metadata": versions})


def _call_state_dict(module: nn.Module) -> Mapping[str, Any]:
    try:
        saved: Any = module.state_dict(keep_vars=True)
    except TypeError:
        # An override that takes no such argument.
        saved = module.state_dict()
    if not isinstance(saved, Mapping) or not all(isinstance(key, str) for key in saved):
        raise TargetError(
            f"{type(module).__name__}.state_dict() returns no dict with names as keys\n"
            f"got: {type(saved).__name__}\n"
            'Fix: names="neutral", or save a mapping of arrays'
        )
    return saved


def _extra_keys(module: nn.Module) -> Iterator[str]:
    for path, child in module.named_modules(remove_duplicate=False):
        if type(child).get_extra_state is not nn.Module.get_extra_state:
            yield f"{path}.{_EXTRA}" if path else _EXTRA


def _wrapped(module: nn.Module) -> str | None:
    kind: Any = type(module)
    return wrapped_child(kind)


def _key_without_wrappers(root: nn.Module) -> Callable[[str], str]:
    """Return the function that leaves out of a key the attributes by which wrappers name what they wrap."""
    if not any(_wrapped(module) for module in root.modules()):
        return str

    def shorten(key: str) -> str:
        module: nn.Module | None = root
        kept = []
        for part in key.split("."):
            child = None if module is None else _wrapped(module)
            # Some wrappers' own hooks have removed their part of the key already.
            while module is not None and child is not None and part not in (child, *module._buffers):
                module = module._modules.get(child)
                child = None if module is None else _wrapped(module)
            if part != child:
                kept.append(part)
            module = None if module is None else module._modules.get(part)
        return ".".join(kept)

    return shorten


class _Known:
    """The parameters of a module, found by their memory."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.by_identity: dict[Hashable, Parameter] = {}
        self.by_native: dict[str, Parameter] = {}
        self.computed: dict[Hashable, Parameter] = {}
        self.names = {p.name for p in parameters}
        for p in parameters:
            self.by_native.setdefault(p.native_name, p)
            if isinstance(p.handle, ComputedParameter):
                for tensor in p.handle.inputs:
                    self.computed[identity(tensor)] = p
            else:
                for place in p.handle.places:
                    self.by_identity[identity(place.tensor)] = p

    def parameter_of(self, key: str, tensor: torch.Tensor, place: Hashable) -> Parameter:
        """Return the parameter of a tensor by its identity, or one for a tensor that isn't in the module."""
        found = self.by_identity.get(place)
        if found is not None:
            return found
        dtype = numpy_dtype(tensor.dtype)
        twin = self.by_native.get(key)
        if twin is not None and twin.layout.stored == tuple(tensor.shape):
            # An empty tensor of a ScriptModule, or what a hook made of the parameter, such as a cast.
            return twin.replace(dtype=dtype, storage=_MADE, handle=tensor, aliases=())
        name = key.replace(".", "/")
        name = key if name in self.names else name
        self.names.add(name)
        return Parameter(
            name=name,
            native_name=key,
            layout=plain_layout(tuple(tensor.shape)),
            dtype=dtype,
            storage=_MADE,
            handle=tensor.detach(),
            hidden=True,
        )

    def tree(self, key: str, value: Any, depth: int = 0) -> Any:
        """Return a tree of values with Parameters in place of tensors."""
        if isinstance(value, torch.Tensor):
            return self.parameter_of(key, value, identity(value))
        if depth > _DEPTH:
            return value
        if type(value) in (dict, OrderedDict):
            return type(value)((k, self.tree(f"{key}.{k}", v, depth + 1)) for k, v in value.items())
        if type(value) in (list, tuple):
            return type(value)(self.tree(f"{key}.{k}", v, depth + 1) for k, v in enumerate(value))
        return value


def match_state(
    file_keys: Iterable[str], module: nn.Module, adapter: ModuleAdapter, state: State | None = None
) -> StateMatch:
    """Return where the arrays of a file with these keys go in a module.

    The keys may have the module's own wrappers in them or not; those of other wrappers are the caller's to remove. What
    a parameter is computed from is found under the keys of either version of torch.nn.utils; a plain parameter is
    computed from such arrays, and a computed one that the file has as a plain array is written as a whole.

    Args:
        file_keys: Keys of the arrays, each name of a tied one.
        module: The module.
        adapter: The adapter of modules.
        state: What :func:`read_state` returned for the module just now, to spare reading it again.

    Example:
        >>> from torch import nn
        >>> match = match_state(["weight_g", "weight_v", "bias"], nn.Linear(2, 2), ModuleAdapter())
        >>> [(write.parameter.name, write.sources) for write in match.writes]
        [('kernel', ('weight_g', 'weight_v')), ('bias', ('bias',))]
    """
    file = FileKeys(file_keys)
    parameters, plain_key = adapter.parameters(module), _key_without_wrappers(module)
    state = _read(module, parameters, plain_key) if state is None else state
    sources = _find_sources(file, state.entries)
    writes: dict[int, StateWrite] = {}
    left: list[StateEntry] = []
    for position, entry in enumerate(state.entries):
        keys = sources.get(position, ())
        if entry.parameter is None or entry.extra:
            left.append(entry)
        elif keys:
            writes[position] = StateWrite(entry.parameter, keys[:1], of=entry.of, same=keys[1:])
        else:
            write = None if entry.of is not None else _compute(entry.parameter, entry.keys + entry.plain_keys, file)
            if write is None:
                left.append(entry)
            else:
                writes[position] = write
    # A computed parameter none of whose inputs is in the file: written as a whole, if the file has its value.
    positions = {
        entry.parameter.identity(): position
        for position, entry in enumerate(state.entries)
        if entry.parameter is not None and entry.of is not None
    }
    whole: list[tuple[int, StateWrite]] = []
    for p in parameters:
        if not isinstance(p.handle, ComputedParameter):
            continue
        inputs = [positions[key] for key in map(identity, p.handle.inputs) if key in positions]
        if not writes.keys().isdisjoint(inputs):
            continue
        paths = (p.native_name, plain_key(p.native_name))
        found = next((path for path in paths if path in file.all), None)
        write = _compute(p, paths, file) if found is None else StateWrite(p, (found,))
        if write is not None:
            whole.append((min(inputs, default=len(state.entries)), write))
    whole_names = {write.parameter.name for _, write in whole}
    in_order = sorted([*writes.items(), *whole], key=lambda pair: pair[0])
    taken = {key for _, write in in_order for key in write.keys}
    return StateMatch(
        [write for _, write in in_order],
        _explain_file(file, taken, parameters, state, plain_key),
        [(entry, _explain(entry)) for entry in left if entry.of is None or entry.of.name not in whole_names],
    )


def _find_sources(file: FileKeys, entries: Sequence[StateEntry]) -> dict[int, tuple[str, ...]]:
    """Return the keys of the file that hold an entry as it is, by its position."""
    found: dict[int, tuple[str, ...]] = {}
    exact = {key for entry in entries for key in entry.keys}
    for position, entry in enumerate(entries):
        keys = [key for key in entry.keys if key in file.all]
        # Two entries may differ by nothing but a wrapper: a key that is another's own isn't this one's.
        keys += [key for key in entry.plain_keys if key in file.all and key not in exact]
        if keys:
            found[position] = tuple(dict.fromkeys(keys))
    for names in ("keys", "plain_keys"):
        wanted = {
            getattr(entry, names)[0]: position
            for position, entry in enumerate(entries)
            if position not in found and entry.of is not None and _kind_of(entry.of.handle) is not None
        }
        for key, source in respell(file.all, wanted).items():
            found[wanted[key]] = (source,)
    return found


def _kind_of(computed: ComputedParameter) -> Kind | None:
    """Return which of torch's own formulas computes a parameter first, None for another one."""
    first: Any = computed.parametrization
    if isinstance(first, parametrize.ParametrizationList):
        first = first[0]
        # torch has no public name for these.
        names: dict[str, Kind] = {"_WeightNorm": "weight_norm", "_SpectralNorm": "spectral_norm"}
        return names.get(type(first).__name__) if type(first).__module__.startswith("torch.nn.utils.") else None
    if isinstance(first, WeightNorm):
        return "weight_norm"
    return "spectral_norm" if isinstance(first, SpectralNorm) else "prune"


def _compute(p: Parameter, paths: Iterable[str], file: FileKeys) -> StateWrite | None:
    """Return the write of a plain value that the file keeps as several arrays."""
    for path in dict.fromkeys(paths):
        product = file.product(path)
        if product is not None:
            handle = p.handle
            owner = handle.module if isinstance(handle, ComputedParameter) else getattr(handle, "owner", None)
            return StateWrite(p, product.keys, partial(evaluate, product, path=path, dim=usual_dim(owner)))
    return None


def _explain(entry: StateEntry) -> str | None:
    if entry.extra:
        return "extra state, which only the module's own code can set: load_state_dict does"
    if entry.parameter is None:
        return "no array, which only load_state_dict sets"
    is_buffer = isinstance(entry.parameter.handle, TensorHandle) and entry.parameter.handle.table == "buffer"
    if is_buffer and entry.keys[0].rpartition(".")[2] in _COMES_AND_GOES:
        return "a buffer that other versions of its module don't save"
    return None


def _explain_file(
    file: FileKeys,
    taken: set[str],
    parameters: Sequence[Parameter],
    state: State,
    plain_key: Callable[[str], str],
) -> dict[str, str | None]:
    left: dict[str, str | None] = dict.fromkeys(key for key in file.all if key not in taken)
    if not left:
        return left
    for p in parameters:
        if isinstance(p.handle, TensorHandle):
            for place in p.handle.places:
                if place.table == "buffer" and place.key in place.owner._non_persistent_buffers_set:
                    for key in (p.native_name, plain_key(p.native_name)):
                        if key in left:
                            left[key] = "a buffer that this version of the module makes itself, and doesn't save"
    for entry in state.entries:
        if entry.extra or entry.parameter is None:
            for key in (*entry.keys, *entry.plain_keys):
                if key in left:
                    left[key] = _explain(entry)
    return left
