"""What a backend tells and does about its optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for
from xweights.errors import HandoffError, TargetError
from xweights.optimizers.state import OptimizerState

Grade = Literal["stock", "exact", "weights"]
Step = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Training:
    """One side of a hand-off, where more than an optimizer belongs to it.

    Attributes:
        model: Module or model.
        optimizer: Its optimizer; None for the side that is handed to: one is built.
        scheduler: PyTorch: the learning-rate scheduler that is stepped once after each update.
        clip: How gradients are clipped outside of the optimizer: ``("global_norm", 1.0)``, ``("norm", 1.0)`` or
            ``("value", 1.0)``, as PyTorch's ``clip_grad_norm_`` and ``clip_grad_value_`` do.
        ema: PyTorch: an ``AveragedModel`` that keeps an exponential average with ``ema_momentum``.
        ema_momentum: 0 <= momentum < 1; an ``AveragedModel`` doesn't tell it.
        micro_steps, micro_done: Gradients that are summed up for one update, and how many of the next are in ``.grad``.

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
    """One part of an experiment, how it went over, and why so."""

    name: str
    grade: str
    why: str


@dataclass(frozen=True)
class Route:
    """How a state gets into an optimizer: the framework's own class ("stock"), with a hook before its step ("hook"),
    or a class of ours that follows the foreign rule ("shim").
    """

    kind: str
    parts: tuple[Part, ...]
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def rows_part(state: OptimizerState) -> list[Part]:
    """Return what to say of embeddings whose source squares the gradients of a row before it adds them up."""
    names = [name for group in state.groups if group.variant.get("rows") for name in group.names]
    embeddings = ", ".join(name for name in names if name.rpartition("/")[2] == "embeddings")
    if not embeddings:
        return []
    why = (
        f"{embeddings}: Keras on TensorFlow squares (or clips) the gradients of a row one by one where a batch has it "
        "twice; from here on they are added up first, as everywhere else"
    )
    return [Part("embedding gradients", "impossible", why)]


def added_up(state: OptimizerState) -> OptimizerState:
    """Return the state as it is where the gradients of a row are added up first."""
    groups = [
        replace(group, variant={key: word for key, word in group.variant.items() if key != "rows"})
        for group in state.groups
    ]
    return replace(state, groups=tuple(groups))


@dataclass(frozen=True, eq=False)
class WrittenState:
    """What was built or filled, and how to take off again what was attached to it."""

    optimizer: Any
    scheduler: Any = None
    ema: Any = None
    release: Callable[[], None] = field(default=lambda: None)


@runtime_checkable
class Optimizing(Protocol):
    """What a backend's ``optimizing()`` returns."""

    name: str

    def read(self, side: Training, parameters: Sequence[Parameter], step: int | None) -> OptimizerState:
        """Return the state of an optimizer; raise HandoffError or NotBuiltError, everything wrong at once."""

    def plan(self, state: OptimizerState, parameters: Sequence[Parameter], optimizer: Any, grade: str) -> Route:
        """Return how a state would get into an optimizer (None: a new one) and what stands against it."""

    def write(
        self, side: Training, state: OptimizerState, parameters: Sequence[Parameter], route: Route, grade: str
    ) -> WrittenState:
        """Build or fill an optimizer."""

    def backup(self, optimizer: Any) -> Callable[[], None]:
        """Return what brings an optimizer back to what it is now, to the bit."""

    def unbiased(self, layers: Sequence[Any]) -> bool:
        """Return whether these batch normalizations collect the unbiased variance."""

    def statistics(self, model: Any, layers: Sequence[Any], *, unbiased: bool) -> Callable[[], None]:
        """Have batch normalizations collect the other kind of variance; return what takes it off."""

    def drops(self, layer: Any) -> bool:
        """Return whether a layer changes at random in training what goes through it."""

    def copy(self, model: Any, dtype: np.dtype[Any] | None) -> Any:
        """Return a copy of a model, of another dtype if one is given; raise PortError where there can be none."""

    def computed(self, dtype: str) -> str:
        """Return the dtype that a model of a dtype computes in: float64 may be float32 in places."""

    def trainer(self, side: Training, loss: Any, *, compiled: bool) -> Step:
        """Return a function that makes one training step on (inputs, wanted), host arrays, and returns the loss."""


def optimizing_for(model: Any, what: str) -> Optimizing:
    """Return what knows the optimizers of a model's framework, or raise TargetError."""
    made = getattr(backend_for(model), "optimizing", None)
    if made is None:
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise TargetError(
            f"the {what} of a hand-off is a model of a framework that trains\ngot:      {kind}\n"
            "expected: a PyTorch module or a Keras model"
        )
    found: Optimizing = made()
    return found


def side_of(given: Any, what: str) -> Training:
    """Return a side as it may be given: ``(model, optimizer)`` or :class:`Training`."""
    if isinstance(given, Training):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        return Training(*given)
    raise HandoffError(
        f"the {what} of a hand-off is (model, optimizer) or Training(model, optimizer, ...)\n"
        f"got: {type(given).__name__}"
    )


def by_name(parameters: Sequence[Parameter]) -> Mapping[str, Parameter]:
    """Return parameters by their neutral name."""
    return {p.name: p for p in parameters}
