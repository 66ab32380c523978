"""Callbacks for Lightning's Trainer: what they attach holds while `fit` runs, and is checked and released at its end.

Example:
    >>> from xweights_torch.callbacks.lightning import Prune
    >>> Trainer(callbacks=[Prune(fraction=0.9, where="net/*/kernel")]).fit(module, data)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

try:
    import lightning.pytorch as lightning
except ImportError:  # the package of before has another name
    import pytorch_lightning as lightning  # type: ignore[no-redef] # the same package's older name

from xweights.training.while_training import WhileTraining, average, freeze, hold, hold_pruned, multiply_lr

__all__ = ["Average", "Freeze", "Hold", "MultiplyLR", "Prune"]


class _Attached(WhileTraining, lightning.Callback):
    """Attaches when training begins, and releases when it ends, also by an error."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.begin(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.release()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        # Before a second training the averages are still those of the first.
        if not trainer.sanity_checking:
            self.swap_in()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.swap_back()


class Prune(_Attached):
    """Prune while a model trains, all at once or by `schedule=`; arguments as in :func:`xweights.prune`."""

    attach = staticmethod(hold_pruned)


class Hold(_Attached):
    """Keep a rule true while a model trains; arguments as in :func:`xweights.hold`."""

    attach = staticmethod(hold)


class Freeze(_Attached):
    """Keep arrays or entries as they are while a model trains; arguments as in :func:`xweights.freeze`."""

    attach = staticmethod(freeze)


class MultiplyLR(_Attached):
    """Train layers at rates of their own; arguments as in :func:`xweights.multiply_lr`."""

    attach = staticmethod(multiply_lr)


class Average(_Attached):
    """Average the weights, which validation then sees; arguments as in :func:`xweights.average`."""

    attach = staticmethod(average)
