"""Arrays of a file in other shapes, to be written to a new one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from xweights.core.casting import check_finite
from xweights.core.dtypes import Array
from xweights.core.layout import Layout
from xweights.core.parameter import Parameter
from xweights.edit.adapting import Adapt, AdaptedValue, adapted_alone, layout_of_neutral, read_adapters
from xweights.errors import NonfiniteError, Problems, WriteError, XweightsError
from xweights.files.io.arrays_to_write import ArrayToWrite, array_to_write


def adapt_arrays(chosen: Sequence[Parameter], adapt: Adapt) -> list[ArrayToWrite]:
    """Return the arrays of a file as they are to be written, those that ``adapt=`` names in their new shapes.

    Raises everything that can't be done before a value is read.
    """
    problems = Problems("these arrays can't be adapted, and nothing was written")
    adapters = read_adapters(adapt, chosen, problems)
    arrays = []
    for p in chosen:
        adapting = adapters.get(p.identity())
        key = p.handle.key_in_part
        if adapting is None:
            arrays.append(array_to_write(p, key=key))
            continue
        if adapting.leaves:
            text = f"Leave() keeps what a target has of {p.name!r}, and a new file has nothing yet"
            problems.add(WriteError, text, fix="where= to leave it out")
            continue
        try:
            adapted = adapted_alone(p, adapting.steps)
            layout = layout_of_neutral(p, adapted.shape)
        except XweightsError as wrong:
            problems.add(type(wrong), str(wrong))
            continue
        array = array_to_write(p.replace(layout=layout), key=key, pieces=partial(_compute, adapted, layout))
        arrays.append(array)
    problems.check()
    return arrays


def _compute(adapted: AdaptedValue, layout: Layout) -> list[Array]:
    result = adapted.compute()
    if not _is_finite(result) and _is_finite(adapted.read()):
        raise NonfiniteError(
            f"{adapted.how} of {adapted.wanted.name!r} isn't finite in {result.dtype.name}, and no file was written\n"
            "Fix: where= to leave it out, or adapt a file that has it in a wider dtype"
        )
    return [np.ascontiguousarray(layout.to_stored(result))]


def _is_finite(array: Array) -> bool:
    try:
        check_finite(array, "")
    except NonfiniteError:
        return False
    return True
