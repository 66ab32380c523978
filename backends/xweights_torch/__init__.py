"""PyTorch backend of xweights: ``torch.nn`` modules and parameters as targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from xweights.core import former_paths
from xweights.core.backend import Adapter, HeldChain, HoldAttachment, StepState, Tracing
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops, Storage
from xweights.errors import TargetError
from xweights_torch.adapter import ModuleAdapter, TensorAdapter
from xweights_torch.checks import refusal_reason
from xweights_torch.dtypes import host_view
from xweights_torch.ops import TorchOps
from xweights_torch.overlaid import merge_factors
from xweights_torch.sharding.find import copy_reason
from xweights_torch.storage import storage_of
from xweights_torch.tables.spellings import respell

if TYPE_CHECKING:
    from xweights.core.state import State, StateMatch
    from xweights.optimizers.protocol import Optimizing
    from xweights.porting.protocol import Porting
    from xweights_torch.entries import SetEntries, init_entries_
    from xweights_torch.skeleton.describe import TorchDescribing
    from xweights_torch.training import hooks

__all__ = ["SetEntries", "TorchBackend", "backend", "init_entries_"]

# A pickled LambdaLR names the module of its factors.
former_paths.register("xweights_torch.optimizers_rates", "xweights_torch.optimizers.schedules", Share="ScheduleFactor")

_MODULES = ModuleAdapter()
_TENSORS = TensorAdapter()
_OPS = TorchOps()


class TorchBackend:
    """Backend of PyTorch; see :class:`xweights.backend.Backend`.

    Example:
        >>> from xweights_torch import backend
        >>> backend.name
        'torch'
    """

    name = "torch"
    file_names = "native"  # so that load_state_dict accepts a saved file
    # from_pretrained of transformers 4 refuses a .safetensors that doesn't say this.
    file_texts = MappingProxyType({"format": "pt"})

    def adapter(self, target: Any) -> Adapter | None:
        if isinstance(target, nn.Module):
            return _MODULES
        if isinstance(target, nn.Parameter):
            return _TENSORS
        return None

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter)

    def state(self, target: Any) -> State | None:
        from xweights_torch.state_dict import read_state

        return read_state(target, _MODULES) if isinstance(target, nn.Module) else None

    def match_state(self, file_keys: Iterable[str], target: Any, *, state: State | None = None) -> StateMatch | None:
        from xweights_torch.state_dict import match_state

        return match_state(file_keys, target, _MODULES, state) if isinstance(target, nn.Module) else None

    def plain_twin(self, target: Any, arrays: Mapping[Any, Array]) -> Any:
        from xweights_torch.sharding.twins import copy_plain, identity_of

        return copy_plain(target, {identity_of(p.handle): array for p, array in arrays.items()})

    def respell(self, keys: Iterable[str], wanted: Iterable[str]) -> Mapping[str, str]:
        return respell(keys, wanted)

    def storage(self, variable: Any) -> Storage:
        return storage_of(variable)

    def to_host(self, value: Any) -> Array:
        why = copy_reason(value) or refusal_reason(value, writing=False)
        if why is not None:
            raise TargetError(f"this tensor can't be read: {why}")
        return host_view(value)

    def ops(self, array: Any) -> Ops:
        return _OPS

    def tracing(self) -> Tracing:
        # Dynamo treats is_compiling() as a constant, so the rest is never traced.
        if torch.compiler.is_compiling():
            return "refuse"
        return "refuse" if _inside_compiled_code() else "no"

    def attach(
        self,
        chains: Sequence[HeldChain],
        *,
        target: Any,
        optimizer: Any,
        after_step: Callable[[Any], None] | None = None,
    ) -> HoldAttachment | None:
        from xweights_torch.training.holds import attach

        return attach(chains, optimizer, after_step)

    def is_statistic(self, parameter: Parameter) -> bool:
        from xweights_torch.training.hooks import is_statistic

        return is_statistic(parameter)

    def freeze(
        self,
        parameters: Sequence[Parameter],
        *,
        target: Any,
        optimizer: Any,
        whole: bool,
        inference: bool,
        owner: object,
    ) -> hooks.FrozenTensors:
        from xweights_torch.training.hooks import freeze

        return freeze(parameters, target=target, optimizer=optimizer, whole=whole, inference=inference, owner=owner)

    def multiply(
        self, pairs: Sequence[tuple[Parameter, float]], *, target: Any, optimizer: Any, owner: object
    ) -> hooks.LRFactorsHandle:
        from xweights_torch.training.hooks import multiply

        return multiply(pairs, target=target, optimizer=optimizer, owner=owner)

    def follow(
        self, parameters: Sequence[Parameter], call: Callable[[StepState | None], None], *, target: Any, optimizer: Any
    ) -> hooks.StepFollower | None:
        from xweights_torch.training.hooks import follow

        return follow(parameters, call, target=target, optimizer=optimizer)

    def merge_factors(self, parameters: Sequence[Parameter], target: Any) -> None:
        """Merge the active adapters of PEFT's layers into their bases, as PEFT itself does."""
        merge_factors(parameters)

    def porting(self) -> Porting:
        from xweights_torch.porting.port import TorchPorting

        return TorchPorting()

    def describing(self) -> TorchDescribing:
        from xweights_torch.skeleton.describe import TorchDescribing

        return TorchDescribing()

    def optimizing(self) -> Optimizing:
        from xweights_torch.optimizers.trainer import TorchOptimizing

        return TorchOptimizing()

    def compiled(self, function: Callable[[], None]) -> Callable[[], None]:
        # torch edits in place at full speed in eager code; compiling a step takes seconds and gains nothing.
        return function


def _inside_compiled_code() -> bool:
    """Return True where Dynamo gave up on a frame, which then runs as plain Python in the middle of a compiled step."""
    try:
        from torch._C._dynamo.eval_frame import get_eval_frame_callback
    except ImportError:
        return False
    # None: compiled code isn't running. False: it runs, and torch.compiler.disable lets plain code run inside of it.
    return get_eval_frame_callback() not in (None, False)


def __getattr__(name: str) -> Any:
    if name not in ("SetEntries", "init_entries_"):
        raise AttributeError(f"module 'xweights_torch' has no attribute {name!r}")
    from xweights_torch import entries

    return getattr(entries, name)


backend = TorchBackend()
