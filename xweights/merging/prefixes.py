"""See through the prefixes of wrappers where the names of targets differ by them."""

from __future__ import annotations

from collections.abc import Sequence

from xweights.core.parameter import Parameter
from xweights.core.readings import find_readings
from xweights.errors import Problems, SelectionError
from xweights.merging.groups import is_counter
from xweights.merging.inputs import MergeInput

_SHOWN = 8


def read_prefixes(inputs: Sequence[MergeInput], problems: Problems) -> dict[str, str]:
    """Let each input find what the first target names by other prefixes; return how, by label.

    Only where its names as they are don't find every parameter of the first target, and no mapping of names was given.
    Two prefixes that fit are a problem.
    """
    first, readings_of = inputs[0], {}
    wanted = [p for p in first.parameters if not p.hidden and not is_counter(p)]
    for merge_input in inputs[1:]:
        if merge_input.names is not None or all(_has(merge_input, p) for p in wanted):
            continue
        by_native = {p.native_name: p.name for p in first.parameters}
        natives = {
            name: p for p in merge_input.parameters for name in (p.native_name, *merge_input.list_native_aliases(p))
        }
        readings = find_readings(list(natives), by_native)
        found = sum(_has(merge_input, p) for p in wanted)
        if not readings or len(readings[0].pairs) <= found:
            continue
        names = {p.native_name for p in wanted}
        meant = {
            tuple((name, id(natives[key])) for name, key in reading.pairs.items() if name in names)
            for reading in readings
        }
        if len(meant) > 1:
            ways = "\n".join(f"  {reading}: {len(reading.pairs)} parameters" for reading in readings[:_SHOWN])
            problems.add(
                SelectionError,
                f"the names of {merge_input.label} fit those of target 0 in {len(readings)} ways\n{ways}",
                fix='names={"*": "encoder.*"} (target 0\'s names: its names)',
            )
            continue
        reading = readings[0]
        merge_input.read_as = {name: natives[key] for name, key in reading.pairs.items()}
        plain = not reading.source and not reading.target
        readings_of[merge_input.label] = "its names without what wrappers add" if plain else str(reading)
    return readings_of


def _has(merge_input: MergeInput, p: Parameter) -> bool:
    try:
        return any(merge_input.find_name(name, p.native_name) is not None for name in (p.name, *p.aliases))
    except SelectionError:  # raised again where the parameters are paired
        return True
