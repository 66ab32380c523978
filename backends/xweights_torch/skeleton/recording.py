"""A torch module as a graph of neutral operations, from two exported runs on batches of two sizes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from xweights.core.dtypes import Array
from xweights.errors import PortError
from xweights.porting.skeletons.graph import Graph, Operation, Reading, merge_runs, names_in, prune
from xweights.porting.skeletons.samples import resize
from xweights_torch.skeleton import aten_functions, aten_images, aten_layers, aten_shapes
from xweights_torch.skeleton.aten import ProgramReader

BATCHES = (3, 5)
_HANDLERS = (aten_functions, aten_images, aten_layers, aten_shapes)  # importing them fills the table


class _Found:
    """What a call of the model returned; not the module's own attributes, which an export puts back."""

    keys: list[str] | None = None


class _Called(nn.Module):
    """The model, called so that it returns its arrays only, with their names where it returns a mapping."""

    def __init__(self, model: nn.Module, found: _Found) -> None:
        super().__init__()
        self.model = model
        self.found = found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self.model(*args, **kwargs)
        if isinstance(result, Mapping):
            named = {key: value for key, value in result.items() if isinstance(value, torch.Tensor)}
            self.found.keys = list(named)
            return tuple(named.values())
        self.found.keys = None
        return tuple(_tensors(result))


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, (tuple, list)):
        for part in result:
            yield from _tensors(part)
    elif isinstance(result, Mapping):
        for part in result.values():
            yield from _tensors(part)


def record(model: nn.Module, sample: Any) -> Reading:
    """Return the graph of a module as it computes a sample in evaluation mode. Raise PortError where there is none."""
    called = _Called(model, _Found())
    with _evaluated(model):
        runs = [_read(called, resize(sample, batch)) for batch in BATCHES]
    merged = merge_runs(prune(runs[0]), prune(runs[1]), BATCHES)
    operations = prune(merged)
    state = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    used = dict.fromkeys(names_in(operations))
    shapes = {name: tuple(state[name].shape) for name in used}
    trainable = frozenset(name for name, _ in model.named_parameters(remove_duplicate=False))
    arrays: dict[str, Callable[[], Array]] = {name: _array(state[name]) for name in used}
    return Reading(
        Graph(tuple(operations), shapes, trainable),
        arrays,
        lambda changed, x: _run(called, state, changed, x),
    )


def _array(tensor: torch.Tensor) -> Callable[[], Array]:
    return lambda: _to_numpy(tensor)


def _to_numpy(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().cpu()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


@contextlib.contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluate in between; attention is computed step by step, as its fused forms have no recipe."""
    training = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    config: Any = getattr(model, "config", None)
    cached = getattr(config, "use_cache", None)
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        if cached:
            config.use_cache = False
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if cached:
            config.use_cache = cached
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in training:
            module.training = mode


@contextlib.contextmanager
def _attending_batch_first() -> Iterator[None]:
    """Let self-attention that is given batches first keep them there: torch turns them around and back."""
    usual = nn.MultiheadAttention.forward

    def forward(
        self: Any, query: Any, key: Any, value: Any, key_padding_mask: Any = None, need_weights: bool = True,
        attn_mask: Any = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> Any:  # fmt: skip
        same = query is key and key is value and query.dim() == 3 and self.batch_first
        known = self.in_proj_weight is not None and self.bias_k is None and not self.add_zero_attn
        masked = attn_mask is not None and (attn_mask.dim() != 2 or attn_mask.dtype == torch.bool)
        if not (same and known) or masked or key_padding_mask is not None or need_weights:
            return usual(
                self, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        packed = nn.functional.linear(query, self.in_proj_weight, self.in_proj_bias)
        heads = (*query.shape[:2], self.num_heads, self.head_dim)
        query, key, value = (part.reshape(heads).transpose(1, 2) for part in packed.chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None

    nn.MultiheadAttention.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.MultiheadAttention.forward = usual  # type: ignore[method-assign]


def _read(called: _Called, sample: Any) -> list[Operation]:
    args, kwargs = _arguments(sample)
    keys = list(kwargs) if kwargs else ([None] if len(args) == 1 else list(range(len(args))))
    try:
        with _attending_batch_first():
            program = torch.export.export(called, args, kwargs, strict=False)
        operations = _operations(program, keys)
    except PortError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise PortError(f"this module can't be exported: {type(error).__name__}: {reason}") from error
    if called.found.keys is not None:
        last = operations[-1]
        operations[-1] = Operation(last.name, last.kind, last.inputs, {"keys": tuple(called.found.keys)})
    return operations


def _operations(program: Any, keys: list[Any]) -> list[Operation]:
    """Return what a program computes; what it changes in place is first written as functions."""
    if not _changes(program.graph):
        try:
            return ProgramReader(program, keys).read()
        except PortError:  # of an operation that is made of others
            pass
    return ProgramReader(program.run_decompositions({}), keys).read()


def _changes(graph: Any) -> bool:
    """Return whether anything is changed in place that is used again."""
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            continue
        changed = node.args[0] if node.args else None
        if not schema.name.endswith("_") or not isinstance(changed, torch.fx.Node) or len(changed.users) != 1:
            return True
        made = getattr(changed.target, "_schema", None)
        if made is None or any(item.alias_info is not None and not made.is_mutable for item in made.returns):
            return True
    return False


def _arguments(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(sample, Mapping):
        return (), {key: _tensor(value) for key, value in sample.items()}
    if isinstance(sample, (tuple, list)):
        return tuple(_tensor(value) for value in sample), {}
    return (_tensor(sample),), {}


def _tensor(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else torch.as_tensor(value)


def _run(
    called: _Called, state: Mapping[str, torch.Tensor], changed: Mapping[str, Array] | None, sample: Any
) -> list[Array]:
    """Return the module's outputs, with some of its arrays replaced by others for this run."""
    args, kwargs = _arguments(sample)
    others = {
        f"model.{name}": torch.from_numpy(np.ascontiguousarray(array)).to(state[name].dtype)
        for name, array in (changed or {}).items()
    }
    with _evaluated(called.model):
        results = torch.func.functional_call(called, others, args, kwargs, tie_weights=True)
    return [_to_numpy(result) for result in results]
