"""State dicts of PyTorch's optimizers from files, read into the neutral optimizer state.

A state dict doesn't name the class that wrote it. It is told by the settings of its parameter groups, which are the
class's own defaults, and by its slots; what fits several classes, or none, is refused and not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from xweights.core.casting import is_number
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.errors import HandoffError, Problems, near
from xweights.optimizers.rules.slots import slots_of
from xweights.optimizers.saved import SavedOptimizer
from xweights.optimizers.state import OptimizerGroup, OptimizerState, SavedOrder
from xweights_torch.dtypes import from_host
from xweights_torch.optimizers.read import StateReading, read_group
from xweights_torch.optimizers.table import CLASSES, OptimizerRow
from xweights_torch.storage import tensor_of

# Classes of torch.optim whose rule isn't known here, with the slots by which they are told from the others.
_OTHERS: Mapping[type[Optimizer], frozenset[str]] = {
    torch.optim.RAdam: frozenset({"exp_avg", "exp_avg_sq"}),
    torch.optim.ASGD: frozenset({"eta", "mu", "ax"}),
    torch.optim.Rprop: frozenset({"prev", "step_size"}),
    torch.optim.SparseAdam: frozenset({"exp_avg", "exp_avg_sq"}),
    torch.optim.LBFGS: frozenset({"func_evals", "n_iter", "d", "t", "old_dirs", "old_stps", "ro", "H_diag", "al"})
    | {"prev_flat_grad", "prev_loss"},
}
# What groups also have: their parameters, a name, how a step is computed, and what schedulers put there.
_NO_SETTINGS = frozenset(
    {"params", "param_names", "name", "foreach", "fused", "capturable", "differentiable", "maximize"}
    | {"decoupled_weight_decay", "initial_lr", "swa_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"}
)
_SHOWN = 5


@dataclass
class _Contents:
    """The groups of a state dict, and its slots by the key of a parameter."""

    groups: list[dict[str, Any]]
    keys: list[list[str]]
    state: dict[str, dict[str, Any]]
    named: bool


def read_saved(
    saved: SavedOptimizer, model: Any, parameters: Sequence[Parameter], rule: Any, step: int | None
) -> OptimizerState:
    """Return the state by position, or by the names in the file; see ``Optimizing.read_saved``."""
    saved.check_framework("torch")
    problems = Problems(f"the optimizer state in {saved.label} can't be read, and nothing was changed")
    contents = _read_contents(saved.tree, rule, problems)
    problems.check()
    row = _find_class(contents, rule, problems)
    if any(group.get("maximize") for group in contents.groups):
        problems.add(HandoffError, "maximize=True has no counterpart", fix="train without it")
    problems.check()
    assert row is not None
    reading = StateReading(problems)
    groups: list[OptimizerGroup] = []
    for settings, keys in zip(contents.groups, contents.keys, strict=True):
        own = replace(_read_settings(row, settings, contents, problems), names=tuple(keys))
        problems.check()
        for key in keys:
            slots = contents.state.get(key)
            if slots:
                _read_slots(row, own, key, slots, reading)
        products = [slots["product"] for key in keys if (slots := reading.slots.get(key)) and "product" in slots]
        if own.rule == "nadam" and any(p.dtype == np.float32 for p in products) and _is_wide(reading, keys):
            own = replace(own, variant={**own.variant, "product": "float32"})
        groups.append(own)
    problems.check()
    updates = _count_updates(row, groups, reading, step, problems)
    problems.check()
    notes = []
    if any("initial_lr" in group for group in contents.groups):
        lrs = ", ".join(f"{lr:g}" for lr in dict.fromkeys(group.hyper["learning_rate"] for group in groups))
        notes.append(f"a scheduler has set the learning rate, and isn't read: it stays at {lrs}")
    return OptimizerState(
        groups=tuple(groups),
        slots=reading.slots,
        updates=updates,
        dtypes={key: _dtype_of(slots) for key, slots in reading.slots.items()},
        factored=reading.factored,
        notes=tuple(notes),
        saved=SavedOrder("torch", saved.label, contents.named),
    )


def trained_order(model: Any, parameters: Sequence[Parameter]) -> list[Parameter]:
    """Return the parameters in the order of ``model.parameters()``, in which optimizers take them."""
    known = {id(tensor_of(p.handle)): p for p in parameters}
    return [known[id(tensor)] for tensor in model.parameters() if id(tensor) in known]


def groups_of(optimizer: Any, parameters: Sequence[Parameter]) -> list[list[Parameter]]:
    """Return the parameters of each group of an optimizer; [] for one of another model."""
    known = {id(tensor_of(p.handle)): p for p in parameters}
    groups = optimizer.param_groups if isinstance(optimizer, Optimizer) else []
    if not all(id(tensor) in known for group in groups for tensor in group["params"]):
        return []
    return [[known[id(tensor)] for tensor in group["params"]] for group in groups]


def _read_contents(tree: Any, rule: Any, problems: Problems) -> _Contents:
    """Return the groups and slots of a state dict; add what isn't made as torch makes it."""
    groups, keys, named = [], [], False
    raw = tree.get("param_groups")
    if not isinstance(raw, list) or not raw or not all(isinstance(group, Mapping) and "lr" in group for group in raw):
        return _use_settings_of(tree, rule, problems)
    for group in raw:
        params, names = group.get("params"), group.get("param_names")
        if not isinstance(params, list) or not all(type(key) in (int, str) for key in params):
            problems.add(HandoffError, f"the parameters of a group aren't listed\ngot: {str(params)[:80]}")
            continue
        has_names = isinstance(names, list) and len(names) == len(params) and all(type(n) is str for n in names)
        named |= has_names or any(type(key) is str for key in params)
        keys.append([str(name) for name in (names if has_names and isinstance(names, list) else params)])
        groups.append({key: _plain(value) for key, value in group.items() if isinstance(key, str)})
    flat = [key for group in keys for key in group]
    numbers = [str(key) for group in raw if isinstance(group.get("params"), list) for key in group["params"]]
    if len(set(flat)) < len(flat) or len(set(numbers)) < len(numbers):
        problems.add(HandoffError, "a parameter is listed twice")
    renamed = dict(zip(numbers, flat, strict=False))
    state = {}
    for key, slots in tree["state"].items():
        if str(key) not in renamed or not isinstance(slots, Mapping):
            text = f"there are slots of {str(key)[:80]!r}, which is in no group"
            problems.add(HandoffError, text, fix="one that was saved whole: optimizer.state_dict()")
            break
        state[renamed[str(key)]] = {str(slot): value for slot, value in slots.items() if value is not None}
    return _Contents(groups, keys, state, named)


def _use_settings_of(tree: Any, rule: Any, problems: Problems) -> _Contents:
    """Return the contents of a state without settings (a sharded checkpoint's, by name), which an optimizer tells."""
    state = {str(key): dict(slots) for key, slots in tree["state"].items() if isinstance(slots, Mapping)}
    if not isinstance(rule, Optimizer) or len(rule.param_groups) != 1:
        problems.add(
            HandoffError,
            "it has no settings that can be read: no learning rate, no betas",
            fix="rule=optimizer, with an optimizer of one group that has the same ones",
        )
        return _Contents([], [], state, True)
    return _Contents([dict(rule.param_groups[0])], [list(state)], state, True)


def _plain(value: Any) -> Any:
    """Return a setting as a plain value: a number may have been saved as a tensor."""
    if hasattr(value, "shape") and hasattr(value, "item"):
        return value.item() if not value.shape else value
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@cache
def _own_settings(name: str) -> frozenset[str]:
    kind = getattr(torch.optim, name)
    return frozenset(kind([torch.zeros((1, 1), requires_grad=True)]).defaults)


def _fits(kind: type[Optimizer], groups: Sequence[Mapping[str, Any]], slots: set[str]) -> bool:
    """Return whether a class may have written groups with these settings, and these slots."""
    row = CLASSES.get(kind)
    needed = _own_settings(kind.__name__) - _NO_SETTINGS
    known = _OTHERS[kind] if row is None else frozenset(row.slots.values())
    settings = [set(group) - _NO_SETTINGS for group in groups]
    return all(own == needed for own in settings) and slots <= known | {"step"}


def _find_class(contents: _Contents, rule: Any, problems: Problems) -> OptimizerRow | None:
    """Return the row of the class that wrote a state dict; add a problem if none or several may have."""
    slots = {slot for slots in contents.state.values() for slot in slots}
    kinds = {kind.__name__: kind for kind in (*CLASSES, *_OTHERS)}
    if rule is not None:
        name = rule if isinstance(rule, str) else (rule if isinstance(rule, type) else type(rule)).__name__
        same = [kind for kind in kinds if kind.lower() == name.lower()]
        chosen = CLASSES.get(kinds[same[0]]) if same else None
        if chosen is None:
            known = [kind.__name__ for kind in CLASSES]
            problems.add(HandoffError, f"{name} is no optimizer whose rule is known\n{near(name, known)}")
            return None
        lacking = {key.partition(".")[0] for key in chosen.hyper.values()} - set(contents.groups[0])
        strange = slots - set(chosen.slots.values()) - {"step"}
        if lacking or strange:
            what = f"no setting {min(lacking)!r}" if lacking else f"a slot {min(strange)!r}"
            text = f"{chosen.kind.__name__} hasn't written this state: it has {what}"
            problems.add(HandoffError, f"{text}\n{_show(contents, slots)}")
        return chosen
    fitting = [kind for kind in (*CLASSES, *_OTHERS) if _fits(kind, contents.groups, slots)]
    if set(fitting) == {torch.optim.Adam, torch.optim.AdamW}:
        # Since 2.7 the group says which of the two; without decay they are one.
        decoupled = {group.get("decoupled_weight_decay") for group in contents.groups}
        if None not in decoupled or not any(group.get("weight_decay") for group in contents.groups):
            fitting = [torch.optim.AdamW if decoupled == {True} else torch.optim.Adam]
    if len(fitting) == 1 and fitting[0] in CLASSES:
        return CLASSES[fitting[0]]
    names = " or ".join(sorted(kind.__name__ for kind in fitting))
    if not fitting:
        text, fix = "its settings and slots are those of no class of torch.optim", 'rule="AdamW" if you know it'
    elif len(fitting) == 1:
        text, fix = f"{names} wrote it, whose rule isn't known", None
    else:
        text, fix = f"{names} may have written it", f'rule="{fitting[0].__name__}", or the other'
    problems.add(HandoffError, f"{text}\n{_show(contents, slots)}", fix=fix)
    return None


def _show(contents: _Contents, slots: set[str]) -> str:
    settings = sorted(set().union(*contents.groups) - _NO_SETTINGS)
    return f"settings: {', '.join(settings)[:200]}\nslots:    {', '.join(sorted(slots))[:200] or 'none'}"


def _read_settings(
    row: OptimizerRow, settings: Mapping[str, Any], contents: _Contents, problems: Problems
) -> OptimizerGroup:
    """Return a group with its numbers; add a problem for what is no number."""
    first = next((value for slots in contents.state.values() for value in slots.values() if _rank(value)), None)
    dtype = torch.float32 if first is None else from_host(np.empty(0, first.dtype)).dtype
    try:
        group = read_group(row, {**settings, "params": [torch.empty(0, dtype=dtype)]})
    except (KeyError, IndexError, TypeError, ValueError) as wrong:
        problems.add(HandoffError, f"its settings are damaged: {type(wrong).__name__}: {str(wrong)[:80]}")
        return OptimizerGroup(row.rule, (), {})
    for name, value in group.hyper.items():
        if value is not None and not isinstance(value, bool) and not is_number(value):
            problems.add(HandoffError, f"its {name} is no number\ngot: {str(value)[:80]}")
    return group


def _rank(value: Any) -> int:
    return len(getattr(value, "shape", ()))


def _read_slots(
    row: OptimizerRow, group: OptimizerGroup, key: str, slots: Mapping[str, Any], reading: StateReading
) -> None:
    """Read the slots of one parameter; add what is missing, or of another shape than the others."""
    arrays = {name: np.asarray(value) for name, value in slots.items() if _is_array(value)}
    rank = max((array.ndim for name, array in arrays.items() if name in row.slots.values()), default=0)
    read: dict[str, Array] = {}
    for slot in slots_of(group.rule, group.hyper, rank, variant=group.variant, among=row.slots):
        name = row.slots[slot]
        if name in arrays:
            read[slot] = arrays[name]
        else:
            fix = "one that was saved whole: optimizer.state_dict()"
            reading.problems.add(HandoffError, f"parameter {key} has no {name!r}, though it has others", fix=fix)
    shapes = {array.shape for slot, array in read.items() if slot not in ("product", "row", "column")}
    if len(shapes) > 1:
        reading.problems.add(HandoffError, f"the slots of parameter {key} have several shapes: {sorted(shapes)}")
    reading.slots[key] = read
    if group.rule == "adafactor" and rank > 1:
        reading.factored[key] = (rank - 2, rank - 1)
    count = slots.get("step")
    if count is None:
        return
    try:
        reading.steps[key] = int(float(np.asarray(count).item()))
    except (TypeError, ValueError, OverflowError):
        reading.problems.add(HandoffError, f"the step of parameter {key} is no number\ngot: {str(count)[:80]}")


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_wide(reading: StateReading, keys: Sequence[str]) -> bool:
    return any(_dtype_of(reading.slots[key]) == "float64" for key in keys if key in reading.slots)


def _dtype_of(slots: Mapping[str, Array]) -> str:
    return next((value.dtype.name for value in slots.values() if value.ndim), "float32")


def _count_updates(
    row: OptimizerRow, groups: Sequence[OptimizerGroup], reading: StateReading, step: int | None, problems: Problems
) -> int:
    """Return how many updates were made; add a problem if parameters had different numbers, or nothing says it."""
    counts = set(reading.steps.values())
    if len(counts) > 1:
        key, count = min(reading.steps.items(), key=lambda pair: pair[1])
        text = f"parameters were updated different numbers of times: {key} {count} times, others {max(counts)} times"
        problems.add(HandoffError, text, fix="load it with torch: there is no such state outside of it")
    elif counts:
        (count,) = counts
        if step is not None and step != count:
            problems.add(HandoffError, f"step= isn't what the optimizer counted\ngot:      {step}\nexpected: {count}")
        return count
    elif step is not None:
        return step
    elif row.counts or (not reading.slots and any(slots_of(g.rule, g.hyper, 1, among=row.slots) for g in groups)):
        return 0  # its first update would have left something
    else:
        text = f"{row.kind.__name__} doesn't count its updates"
        problems.add(HandoffError, text, fix="pass step=, the number of updates so far")
    return 0
