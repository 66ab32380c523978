"""What tests are made of: weights that have to be equal, ports that have to be right, and the promises of a backend.

For anybody's tests, also as fixtures of the same names, which pytest finds by itself::

    assert_same_weights(a, b)
    assert_ported(keras_model, torch_model, sample)

For authors of backends; the toy in ``examples/xweights_toy`` passes it::

    from xweights.testing import check_backend
    check_backend(lambda: my_framework.Model(...))      # a fresh target each time, with the same names and shapes

or, one test for each promise::

    @pytest.mark.parametrize("promise", CHECKS)
    def test_my_backend_keeps_its_promises(promise):
        CHECKS[promise](make_target)

or a table of every promise, verb and dtype from a shell: ``python -m xweights.testing my_package:make_target``.

Targets should be small, and have a kernel with at least two axes and a bias. They are compared with the NumPy backend,
bit by bit where a rule is exact, else within the rtol of its docstring (or the dtype's eps where that is larger).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xweights.testing.comparisons import assert_ported as assert_ported
    from xweights.testing.comparisons import assert_same_weights as assert_same_weights
    from xweights.testing.conformance import Conformance as Conformance
    from xweights.testing.conformance import check_conformance as check_conformance
    from xweights.testing.promises import CHECKS as CHECKS
    from xweights.testing.promises import MakeTarget as MakeTarget
    from xweights.testing.promises import PromiseBrokenError as PromiseBrokenError
    from xweights.testing.promises import check_backend as check_backend
    from xweights.testing.promises import filled as filled
    from xweights.testing.promises import ordinary as ordinary
    from xweights.testing.promises import tricky as tricky

# Loaded on use: pytest imports the plugin of this package wherever xweights is installed.
_HOME = {
    "comparisons": ("assert_ported", "assert_same_weights"),
    "conformance": ("Conformance", "check_conformance"),
    "promises": ("CHECKS", "MakeTarget", "PromiseBrokenError", "check_backend", "filled", "ordinary", "tricky"),
}

__all__ = [
    "CHECKS", "Conformance", "MakeTarget", "PromiseBrokenError", "assert_ported", "assert_same_weights",
    "check_backend", "check_conformance", "filled", "ordinary", "tricky",
]  # fmt: skip


if not TYPE_CHECKING:  # or a checker would take any name

    def __getattr__(name: str) -> Any:
        for module, names in _HOME.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
