"""Callbacks for transformers' Trainer: what they attach holds while `train` runs, and is released at its end.

Trainer tells no callback that an evaluation begins: `with callback.attached.swapped_in(): trainer.evaluate()`.

Example:
    >>> from xweights_torch.callbacks.transformers import Freeze
    >>> Trainer(model, args, train_dataset=data, callbacks=[Freeze(where="bert/embeddings/*")])  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import transformers

from xweights.training.while_training import WhileTraining, average, freeze, hold, hold_pruned, multiply_lr

__all__ = ["Average", "Freeze", "Hold", "MultiplyLR", "Prune"]


class _Attached(WhileTraining, transformers.TrainerCallback):
    """Attaches when training begins, and releases when it ends."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin(kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.end()


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
    """Average the weights; arguments as in :func:`xweights.average`."""

    attach = staticmethod(average)
