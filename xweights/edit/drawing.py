"""Edit with random numbers, which take longer to draw than to add: on several threads.

Each parameter has its own stream of numbers, so their bytes don't depend on who draws them, or when. Threads split the
work by parameter: within one, how far a number is along the stream depends on those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from xweights.core.blocks import BLOCK, any_overlap
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.threads import count_threads, run_all
from xweights.errors import XweightsError
from xweights.rules.base import Rule

EditParameter = Callable[[Rule, Parameter, tuple[Array, ...], Any], None]


def edit_with_draws(rule: Rule, chosen: Sequence[Parameter], positions: Sequence[int], edit: EditParameter) -> None:
    """Edit parameters by a random rule: in place where their memory is visible, else by numbers drawn ahead."""
    visible: list[tuple[Parameter, Array]] = []
    others: list[Parameter] = []
    for position in positions:
        p = chosen[position]
        memory = _visible_memory(p)
        if memory is None:
            others.append(p)
        else:
            visible.append((p, memory))
    # A thread takes as long to start as drawing some thousands of numbers.
    threads = count_threads() if sum(p.size for p in chosen) > BLOCK else 1
    # Those that may fail come first: nothing else has been written then.
    for start in range(0, len(others), threads):
        batch = others[start : start + threads]
        drawn: list[tuple[Array, ...]] = [()] * len(batch)
        run_all([partial(_draw, rule, p, drawn, at) for at, p in enumerate(batch)], threads=threads)
        for p, operands in zip(batch, drawn, strict=True):
            edit(rule, p, operands, None)
    if threads > 1 and any_overlap([native for _, native in visible]):
        threads = 1
    if threads > 1:  # the largest first, so that all threads end at about the same time
        visible.sort(key=lambda pair: -pair[1].size)
    run_all([partial(rule.on_host, p.layout.to_neutral(native), p) for p, native in visible], threads=threads)
    for p, native in visible:
        p.commit(native, native)


def _visible_memory(p: Parameter) -> Array | None:
    # In a function of its own, so that no other native array outlives it: TensorFlow would copy what is still held.
    native = None if p.storage.fallible else p.native()
    return native if isinstance(native, np.ndarray) and native.flags.writeable else None


def operands_ahead(rule: Rule, chosen: Sequence[Parameter]) -> dict[int, tuple[Array, ...]]:
    """Return the operands of those parameters for which a rule has them, by the id of the parameter.

    Whoever prepares the others meets what is wrong with them.
    """
    sizes = sum(p.size for p in chosen)
    threads = count_threads()
    if threads == 1 or sizes <= BLOCK:
        return {}
    made: dict[int, tuple[Array, ...]] = {}
    largest_first = sorted(chosen, key=lambda p: -p.size)
    run_all([partial(_try_to_draw, rule, p, made) for p in largest_first], threads=threads)
    return made


def _try_to_draw(rule: Rule, p: Parameter, made: dict[int, tuple[Array, ...]]) -> None:
    with suppress(XweightsError):
        made[id(p)] = rule.operands(p)


def _draw(rule: Rule, p: Parameter, drawn: list[tuple[Array, ...]], at: int) -> None:
    drawn[at] = rule.operands(p)
