"""Callbacks for `fit`: what they attach holds while it runs, and is checked and released at its end.

Example:
    >>> from xweights_keras.callbacks import Prune
    >>> model.fit(x, y, callbacks=[Prune(fraction=0.9, schedule=xw.Cubic(begin=0, end=1000))])  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import keras

from xweights.training.while_training import WhileTraining, average, freeze, hold, hold_pruned, multiply_lr

__all__ = ["Average", "Freeze", "Hold", "MultiplyLR", "Prune"]


class _Attached(WhileTraining, keras.callbacks.Callback):  # type: ignore[misc] # Keras has no types
    """Attaches when `fit` begins, and releases when it ends."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.begin(self.model)

    def on_train_end(self, logs: Any = None) -> None:
        self.end()

    def on_test_begin(self, logs: Any = None) -> None:
        self.swap_in()

    def on_test_end(self, logs: Any = None) -> None:
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
    _evaluated: Any = None

    def begin(self, model: Any, **more: Any) -> None:
        """Attach it, and see to it that an evaluation that fails leaves the trained weights in the model."""
        super().begin(model, **more)
        evaluate = model.evaluate

        # Keras tells no callback of an error, nor of Ctrl-C: the averages would stay in the model.
        def swap_back_after_errors(*arguments: Any, **keywords: Any) -> Any:
            try:
                return evaluate(*arguments, **keywords)
            except BaseException:
                # On JAX fit would write the variables of the evaluation at its own end, after they were swapped back.
                if hasattr(model, "jax_state_sync"):
                    model.jax_state_sync()
                self.swap_back()
                raise

        model.evaluate = swap_back_after_errors
        self._evaluated = model

    def release(self) -> None:
        """Detach it, whatever happened; the handle stays readable."""
        super().release()
        model, self._evaluated = self._evaluated, None
        if model is not None:
            vars(model).pop("evaluate", None)
