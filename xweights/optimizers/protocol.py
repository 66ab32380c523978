"""Protocol and data types of a hand-off, implemented by each backend for its optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for
from xweights.errors import HandoffError, TargetError
from xweights.optimizers.saved import SavedOptimizer
from xweights.optimizers.state import OptimizerState

Grade = Literal["stock", "exact", "weights"]
Step = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Training:
    """One side of a hand-off: a model, its optimizer, and what else belongs to its training.

    Attributes:
        model: Module or model.
        optimizer: Its optimizer; None on the target side: one is built.
        scheduler: PyTorch: the learning-rate scheduler that is stepped once after each update.
        clip: How gradients are clipped outside of the optimizer: ``("global_norm", 1.0)``, ``("norm", 1.0)`` or
            ``("value", 1.0)``, as PyTorch's ``clip_grad_norm_`` and ``clip_grad_value_`` do.
        ema: PyTorch: an ``AveragedModel`` that keeps an exponential average with ``ema_momentum``.
        ema_momentum: 0 <= momentum < 1; an ``AveragedModel`` doesn't expose it.
        micro_steps, micro_done: Gradients summed for one update, and how many of the next update are in ``.grad``.

    Example:
        >>> import torch, xweights as xw
        >>> model = torch.nn.Linear(1, 1)
        >>> xw.Training(model, torch.optim.SGD(model.parameters(), 0.1), clip=("value", 1.0)).clip
        ('value', 1.0)
    """

    model: Any
    optimizer: Any = None
    scheduler: Any = None
    clip: tuple[str, float] | None = None
    ema: Any = None
    ema_momentum: float | None = None
    micro_steps: int = 1
    micro_done: int = 0


@dataclass(frozen=True)
class Part:
    """One part of an experiment, the grade its transfer got, and why."""

    name: str
    grade: str
    why: str


@dataclass(frozen=True)
class Route:
    """How a state gets into an optimizer.

    ``kind``: the framework's own class ("stock"), that class with a hook before its step ("hook"), or a class of ours
    that follows the foreign rule ("shim").
    """

    kind: str
    parts: tuple[Part, ...]
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def embedding_gradient_parts(state: OptimizerState) -> list[Part]:
    """Return the report part on embeddings whose source squares the gradients of a row before it adds them up."""
    names = [name for group in state.groups if group.variant.get("rows") for name in group.names]
    embeddings = ", ".join(name for name in names if name.rpartition("/")[2] == "embeddings")
    if not embeddings:
        return []
    why = (
        f"{embeddings}: Keras on TensorFlow squares (or clips) the gradients of a row one by one where a batch has it "
        "twice; from here on they are added up first, as everywhere else"
    )
    return [Part("embedding gradients", "impossible", why)]


def drop_rows_variant(state: OptimizerState) -> OptimizerState:
    """Return the state without the variant that squares the gradients of a row before adding them up."""
    groups = [
        replace(group, variant={key: value for key, value in group.variant.items() if key != "rows"})
        for group in state.groups
    ]
    return replace(state, groups=tuple(groups))


@dataclass(frozen=True, eq=False)
class WrittenState:
    """The optimizer that was built or filled, and the function that detaches everything attached to it."""

    optimizer: Any
    scheduler: Any = None
    ema: Any = None
    release: Callable[[], None] = field(default=lambda: None)


@runtime_checkable
class Optimizing(Protocol):
    """The optimizer support of a backend, returned by its ``optimizing()``."""

    name: str

    def read(self, side: Training, parameters: Sequence[Parameter], step: int | None) -> OptimizerState:
        """Return the state of an optimizer; raise HandoffError or NotBuiltError with every cause at once."""

    def read_saved(
        self, saved: SavedOptimizer, model: Any, parameters: Sequence[Parameter], rule: Any, step: int | None
    ) -> OptimizerState:
        """Return the state that a file holds; raise HandoffError with every cause at once.

        ``model`` may be None. A state that tells its parameters by position, or by the framework's own names, is
        returned with these (``saved`` is set), and is placed by the caller.
        ``rule``: None, the name of a class, a class, or an optimizer made as the saved one was.
        """

    def trained_order(self, model: Any, parameters: Sequence[Parameter]) -> list[Parameter]:
        """Return the parameters that can be trained, frozen ones included, in the order in which optimizers take them.

        ``parameters`` are all of the model's.
        """

    def groups_of(self, optimizer: Any, parameters: Sequence[Parameter]) -> list[list[Parameter]]:
        """Return the parameters of each group of an optimizer, in its order; [] if they aren't the model's."""

    def plan(self, state: OptimizerState, parameters: Sequence[Parameter], optimizer: Any, grade: str) -> Route:
        """Return how a state would get into an optimizer (None: a new one), with the reasons for refusal."""

    def write(
        self, side: Training, state: OptimizerState, parameters: Sequence[Parameter], route: Route, grade: str
    ) -> WrittenState:
        """Build or fill an optimizer."""

    def backup(self, optimizer: Any) -> Callable[[], None]:
        """Return a function that restores the optimizer to its present state, to the bit."""

    def collects_unbiased(self, layers: Sequence[Any]) -> bool:
        """Return whether these batch normalizations collect the unbiased variance."""

    def set_statistics(self, model: Any, layers: Sequence[Any], *, unbiased: bool) -> Callable[[], None]:
        """Have batch normalizations collect the other kind of variance; return a function that undoes it."""

    def drops(self, layer: Any) -> bool:
        """Return whether a layer changes its inputs at random in training."""

    def copy(self, model: Any, dtype: np.dtype[Any] | None) -> Any:
        """Return a copy of a model, in ``dtype`` if given; raise PortError where none can be made."""

    def compute_dtype(self, dtype: str) -> str:
        """Return the dtype that a model of this dtype computes in: float64 may be float32 in places."""

    def make_trainer(self, side: Training, loss: Any, *, compiled: bool) -> Step:
        """Return a function that makes one training step on host arrays (inputs, expected) and returns the loss."""


@runtime_checkable
class Optimizes(Protocol):
    """A backend whose optimizers can be read, written and handed over."""

    def optimizing(self) -> Optimizing:
        """Return the optimizer support; its code is loaded only now."""


def optimizing_for(model: Any, what: str) -> Optimizing:
    """Return the optimizer support of a model's framework, or raise TargetError."""
    backend = backend_for(model)
    if not isinstance(backend, Optimizes):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise TargetError(
            f"the {what} of a hand-off is a model of a framework that trains\ngot:      {kind}\n"
            "expected: a PyTorch module or a Keras model"
        )
    return backend.optimizing()


def to_training(side: Any, what: str) -> Training:
    """Return a side, given as ``(model, optimizer)`` or :class:`Training`, as a :class:`Training`."""
    if isinstance(side, Training):
        return side
    if isinstance(side, tuple) and len(side) == 2:
        return Training(*side)
    raise HandoffError(
        f"the {what} of a hand-off is (model, optimizer) or Training(model, optimizer, ...)\ngot: {type(side).__name__}"
    )


def by_name(parameters: Sequence[Parameter]) -> Mapping[str, Parameter]:
    """Return parameters by their neutral name."""
    return {p.name: p for p in parameters}
