"""Watch the operations of a model: every use of a parameter outside of a layer that is known."""

from __future__ import annotations

import contextlib
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from xweights_torch.porting.operations import recognize
from xweights_torch.porting.uses import Use, fit_addend, rows_use
from xweights_torch.porting.views import (
    KEEPING,
    Derived,
    Root,
    change_in_place,
    follow,
    name_of,
    remake,
    shares_memory,
    unwrap,
)

# Functions that look at a parameter's shape or dtype alone.
_SHAPE_ONLY = frozenset(
    {"size", "dim", "numel", "stride", "is_floating_point", "type_as", "view_as", "expand_as", "reshape_as", "to"}
    | {"result_type", "can_cast", "promote_types", "is_same_size", "broadcast_tensors", "register_hook", "equal"}
)
# Functions that are opened, because the operations in them are layers.
_OPENED = frozenset({"multi_head_attention_forward"})
_RESAMPLING = frozenset({"interpolate", "upsample", "grid_sample", "affine_grid"})
# Functions after which an output is still the output of its operation.
_PASSING = frozenset({"view", "reshape", "contiguous", "to", "float", "type_as", "unflatten", "view_as", "reshape_as"})
_ADDING = frozenset({"add", "add_", "__radd__"})
_JOINING = frozenset({"cat", "concat", "concatenate"})
_BUILTIN = frozenset({"batch_norm", "instance_norm", "embedding"})


class Pending:
    """The output of an operation to which a parameter may be added next."""

    def __init__(self, tensor: torch.Tensor, use: Use, token: Any) -> None:
        self.tensor, self.use, self.token = weakref.ref(tensor), use, token


class OperationWatch(TorchFunctionMode):
    """A mode in which every use of a parameter is given to ``compute``.

    ``inside`` is the number of known layers that are computing; what they do is theirs. ``stack`` are the other modules
    that are, each with its first input.
    """

    # Whether parameters may be written meanwhile, so that copies of them have to be made again when they are used.
    remakes = False

    def __init__(self, roots: Sequence[Root]) -> None:
        super().__init__()
        self.roots = roots
        self.derived = {id(tensor): Derived(root, tensor) for root in roots for tensor in root.tensors}
        self.inside = 0
        self.stack: list[tuple[nn.Module, torch.Tensor | None]] = []
        self.pending: dict[int, Pending] = {}

    # What a subclass does with them

    def compute(self, uses: Sequence[Use], call: Callable[[], Any]) -> Any:
        """Do a call that is one or several uses of parameters, and return its result."""
        raise NotImplementedError

    def add(self, pending: Pending, beta: Derived, addend: Derived, call: Callable[[], Any]) -> Any:
        """Do the addition of a parameter to the output of an operation, and return its result."""
        raise NotImplementedError

    # The mode

    def __torch_function__(
        self, function: Any, _: Any, args: tuple[Any, ...] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if self.inside:
            return function(*args, **named)
        name = name_of(function)
        if name in _OPENED:
            with self:
                return _open(function)(*args, **named)
        found: list[Derived] = []
        wrapped, wrapped_named = self._wrap(args, found), {key: self._wrap(part, found) for key, part in named.items()}
        if not found:
            result = function(*args, **named)
            makes = isinstance(result, (torch.Tensor, tuple, list))
            if self.pending and makes and not self._pass_on(name, args, result):
                self.note_uses((args, named))
            return result
        return self._use(name, function, wrapped, wrapped_named, found)

    def _use(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        named: dict[str, Any],
        found: list[Derived],
    ) -> Any:
        def call() -> Any:
            # What is changed in place, or viewed, has to stay the tensor that the model has.
            if self.remakes and not _changes(name):
                return function(*remake(args), **remake(named))
            return function(*unwrap(args), **unwrap(named))

        is_first = bool(args) and isinstance(args[0], Derived)
        if name.endswith("_like") or name.startswith("new_") or (name in _SHAPE_ONLY and not is_first):
            return call()
        if name in _BUILTIN and not isinstance(function, types.FunctionType):
            name = f"native_{name}"
        others = [part for part in _iterate((args, named)) if isinstance(part, torch.Tensor)]
        is_scalar_index = name == "__getitem__" and all(not part.dim() and part.dtype != torch.bool for part in others)
        if is_first and (name in _SHAPE_ONLY or is_scalar_index):
            others = []
        added = self._find_added(name, args, others, named)
        if added is not None:
            result = self.add(*added, call)
            if result is others[0]:
                self.pending.pop(id(result), None)  # from now on it is the sum
            return result
        self.note_uses(others)
        uses = recognize(name, args, named)
        if not uses and not others:
            done, result = self._derive(name, function, args, named, found)
            if done:
                return result
        used = {id(one.root) for use in uses for one in use.arrays.values()}
        uses += _list_rows(found, used)
        result = self.compute(uses, call) if uses else call()
        if is_first and _changes(name):
            self._change(args[0], function, args, named)
        return result

    def _change(
        self, changed: Derived, function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]
    ) -> None:
        """Note that a copy of a parameter was changed in place."""
        for key, one in list(self.derived.items()):
            if one.made is not None and shares_memory(one.tensor, changed.tensor):
                if one.copied and _is_made_of(changed, one):
                    self.derived[key] = change_in_place(one, changed, function, args, named)
                else:
                    del self.derived[key]

    def _derive(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        named: dict[str, Any],
        found: list[Derived],
    ) -> tuple[bool, Any]:
        """Return whether the result depends on one parameter alone, and the result."""
        joined = name in _JOINING and _is_along_first(args, named)
        if _changes(name):
            return False, None
        result = function(*unwrap(args), **unwrap(named))
        source = next((one for one in found if not one.root.is_buffer), found[0])
        members = tuple(dict.fromkeys(member for one in found for member in one.members or (one,)))
        made = follow(name, function, args, named, result) if len({id(one.root) for one in found}) == 1 else []
        if not made:
            parts = result if isinstance(result, (tuple, list)) else [result]
            for position, part in enumerate(parts):
                if isinstance(part, torch.Tensor) and part.is_floating_point():
                    at = None if part is result else position
                    made.append(Derived(source.root, part, None, 0, (function, args, named, at), True, members, joined))
            self._describe(name, args, source, made)
        for one in made:
            one.resampled |= any(part.resampled for part in found)
            one.joined |= source.joined and one.tensor.shape == source.tensor.shape and name in KEEPING
            self.derived.setdefault(id(one.tensor), one)
        return True, result

    def _describe(self, name: str, args: tuple[Any, ...], source: Derived, made: list[Derived]) -> None:
        """Note what is known of a computed tensor: 1 was added, or it was resampled."""
        if len(made) != 1:
            return
        one = made[0]
        plain = source.steps is not None and not source.offset and not source.root.is_buffer
        if plain and name in ("add", "__radd__") and any(type(part) in (int, float) and part == 1 for part in args):
            one.steps, one.offset, one.members = source.steps, 1, ()
        if name in _RESAMPLING:
            same = one.tensor.shape == source.tensor.shape and torch.equal(one.tensor, source.tensor)
            one.steps, one.resampled = (source.steps, source.resampled) if same else (None, True)
            one.members = source.members if same else one.members

    def _wrap(self, value: Any, found: list[Derived]) -> Any:
        """Return arguments in which the tensors that were made from parameters are known as such."""
        if isinstance(value, torch.Tensor):
            one = self.derived.get(id(value))
            if one is None:
                return value
            found.append(one)
            return one
        if type(value) in (tuple, list):
            return type(value)(self._wrap(part, found) for part in value)
        return value

    # Additions

    def _find_added(
        self, name: str, args: tuple[Any, ...], others: list[torch.Tensor], named: Mapping[str, Any]
    ) -> tuple[Pending, Derived, Derived] | None:
        if name not in _ADDING or len(args) != 2 or len(others) != 1 or named.get("alpha", 1) != 1:
            return None
        pending = self.pending.get(id(others[0]))
        addend = next(part for part in args if isinstance(part, Derived))
        if pending is None or pending.tensor() is not others[0]:
            return None
        role = "beta" if pending.use.kind in ("multiply", "rms_norm") else "bias"
        if role in pending.use.arrays or addend.root.parameter is None:
            return None
        beta = fit_addend(pending.use, others[0], addend)
        return None if beta is None else (pending, beta, addend)

    def expect_addition(self, result: Any, use: Use, token: Any) -> None:
        """Note the output of an operation to which a parameter may be added."""
        if isinstance(result, torch.Tensor) and use.kind in ("dense", "conv", "conv_transpose", "multiply"):
            self.pending[id(result)] = Pending(result, use, token)

    def _pass_on(self, name: str, args: tuple[Any, ...], result: Any) -> bool:
        """Return whether a function's result is the output that it was given."""
        pending = self.pending.get(id(args[0])) if args and name in _PASSING else None
        tensor = None if pending is None else pending.tensor()
        if pending is None or tensor is None or tensor is not args[0] or not isinstance(result, torch.Tensor):
            return False
        if result.shape != tensor.shape or not shares_memory(result, tensor):
            return False
        self.pending[id(result)] = Pending(result, pending.use, pending.token)
        return True

    def note_uses(self, tensors: Any) -> None:
        """Note that outputs were used by something else than an addition."""
        for tensor in _iterate(tensors):
            pending = self.pending.get(id(tensor)) if isinstance(tensor, torch.Tensor) else None
            if pending is not None and pending.tensor() is tensor:
                self.note_use(pending)

    def note_use(self, pending: Pending) -> None:
        """Note that the output of an operation was used by something else than an addition."""

    # Modules

    def list_given(self, args: Any, named: Any) -> list[Use]:
        """Return the uses of the parameters, or of what was made of them, among the inputs of a layer."""
        found: list[Derived] = []
        self._wrap((args, list(named.values())), found)
        return _list_rows(found, set())


@contextlib.contextmanager
def watch_modules(model: nn.Module, watch: OperationWatch, known: set[int]) -> Iterator[None]:
    """Tell a watch which modules are computing, but for those that are known."""

    def before(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = args[0] if args else next(iter(named.values()), None)
        watch.stack.append((module, first if isinstance(first, torch.Tensor) else None))

    def after(module: nn.Module, args: Any, named: Any, output: Any) -> None:
        watch.stack.pop()

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if id(module) not in known and not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield


def _iterate(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _iterate(part)
    else:
        yield value


def _list_rows(found: Sequence[Derived], used: set[int]) -> list[Use]:
    """Return the parameters that tensors were made of, but for those that are used already, as they are."""
    uses = []
    for one in found:
        for member in one.members or (one,):
            if member.root.parameter is not None and id(member.root) not in used:
                used.add(id(member.root))
                uses.append(rows_use(member, resampled=one.resampled))
    return uses


def _changes(name: str) -> bool:
    """Return whether a function changes its first argument."""
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _is_made_of(one: Any, base: Derived) -> bool:
    """Return whether a tensor is a copy of a parameter, or a view of that copy."""
    return one is base or (
        isinstance(one, Derived) and one.made is not None and any(_is_made_of(part, base) for part in one.made[1])
    )


def _is_along_first(args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    tensors, rest = args[0] if args else (), args[1:]
    axis = rest[0] if rest else named.get("dim", named.get("axis", 0))
    return axis == 0 and all(isinstance(one, Derived) and one.steps is not None and not one.offset for one in tensors)


def _open(function: Any) -> Callable[..., Any]:
    """Return a function of torch that doesn't hand over to a mode as a whole, so that what it calls is seen."""
    never = dict.fromkeys(("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), _never)
    opened = types.FunctionType(
        function.__code__, {**vars(functional), **never}, function.__name__, function.__defaults__, function.__closure__
    )
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


def _never(*_: Any) -> bool:
    return False
