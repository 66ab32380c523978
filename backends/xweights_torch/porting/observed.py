"""The records of a model as it was observed to compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from xweights.porting.protocol import LayerRecord
from xweights_torch.porting.layers import is_known
from xweights_torch.porting.norms import find_eps_name
from xweights_torch.porting.observing import Event, Observer
from xweights_torch.porting.uses import rows_use
from xweights_torch.porting.views import Derived, Root, Steps, StepsView, pick

_MAIN = ("kernel", "embeddings", "rows", "gamma", "beta", "alpha", "moving_mean")


@dataclass(eq=False, slots=True)
class Operation:
    """An operation of a module that uses parameters: the ``layer`` of its record.

    ``part`` is the matrix of a stack that this record is; ``waits``: its bias is added by an addition after it;
    ``from_module``: its input is that of the module. ``eps`` is the module and the setting that has its eps.
    """

    module: nn.Module
    key: tuple[Any, ...]
    part: int = 0
    waits: bool = False
    from_module: bool = False
    eps: tuple[nn.Module, str] | None = None


@dataclass(eq=False, slots=True)
class _Seen:
    """A record before it has its path. ``number`` orders the calls, ``part`` is its place in a stack."""

    number: float
    record: LayerRecord
    main: Root
    part: int | None = None


def make_records(model: nn.Module, observer: Observer, records: Sequence[LayerRecord]) -> list[LayerRecord]:
    """Return the records of a model in the order of their first calls; those that weren't called come last."""
    seen = list(_list_operations(observer))
    seen += list(_list_idle(seen))
    used = {one.identity() for each in seen for one in each.record.parameters.values()}
    kept: list[tuple[float, LayerRecord]] = []
    uncalled: list[LayerRecord] = []
    for record in records:
        number = observer.called.get(id(record.layer), float("inf"))
        if id(record.layer) in observer.found:
            kept.append((number, _to_batch_norm(record, observer.found[id(record.layer)])))
        elif not record.parameters or (is_known(record) and number != float("inf")):
            kept.append((number, record))
        else:
            uncalled.append(record)
    used |= {one.identity() for _, record in kept for one in record.parameters.values()}
    roots = {root.parameter.identity(): root for root in observer.roots if root.parameter is not None}
    for record in uncalled:
        rest = {role: one for role, one in record.parameters.items() if one.identity() not in used}
        if len(rest) == len(record.parameters) and id(record.layer) not in observer.called:
            kept.append((float("inf"), record))
        else:
            seen += _list_rest(record, [roots[key] for one in rest.values() if (key := one.identity()) in roots])
    layers = {id(record.layer) for _, record in kept}
    final = [*kept, *((each.number, record) for each, record in _name(model, seen, layers))]
    return [record for _, record in sorted(final, key=lambda pair: pair[0])]


def _list_operations(observer: Observer) -> Iterator[_Seen]:
    groups: dict[Any, list[Event]] = {}
    for event in observer.events:
        if event.addition is None:
            groups.setdefault(event.use.key, []).append(event)
    joined = {key for key, events in groups.items() if _have_one_addend(events)}
    for event in observer.events:
        if event.addition is not None and event.addend is not None and event.addition.use.key not in joined:
            event.use = rows_use(event.addend)
            groups.setdefault(event.use.key, []).append(event)
    for key, events in groups.items():
        yield from _to_records(key, events, joined=key in joined)


def _have_one_addend(events: Sequence[Event]) -> bool:
    """Return whether the output was used for one thing at every call, the addition of the same parameter."""
    addends = {(id(one.root), one.steps) for event in events for one in event.betas}
    return len(addends) == 1 and all(len(event.betas) == 1 and not event.used for event in events)


def _to_records(key: tuple[Any, ...], events: Sequence[Event], *, joined: bool) -> Iterator[_Seen]:
    first = events[0]
    use, kind, attributes = first.use, first.use.kind, dict(first.use.attributes)
    arrays = dict(use.arrays)
    if joined:
        arrays["beta" if kind == "multiply" else "bias"] = first.betas[0]
    main = next(arrays[role] for role in _MAIN if role in arrays).root
    module = first.modules[0] if first.modules else main.places[0][0]
    operation = Operation(module, key, waits=joined)
    norms = {event.norm for event in events}
    if kind == "multiply" and None not in norms and len(norms) == 1 and first.norm is not None:
        kind, owner, name, eps = first.norm
        attributes["eps"] = eps
        operation.eps, operation.from_module = (owner, name), True
    elif "eps" in attributes:
        operation.eps = find_eps_name([*first.modules[:1], *(place[0] for place in main.places)], attributes["eps"])
    if kind in ("rows", "multiply") and all(one.root.is_buffer for one in arrays.values()):
        attributes["constant"] = True
    parameters = {role: one.root.parameter for role, one in arrays.items() if one.root.parameter is not None}
    stack: dict[int, dict[str, Steps]] = {}
    for part in range(max(use.parts, 1)):
        ends = (pick(part),) if use.parts else ()
        stack[part] = {role: (*(one.steps or ()), *ends) for role, one in arrays.items()}
    for part, steps in stack.items():
        views = {role: StepsView(each) for role, each in steps.items()}
        layer = replace(operation, part=part)
        place = part if use.parts else _picked(steps)
        settings = attributes if place is None or kind == "rows" else {**attributes, "place": place}
        record = LayerRecord(kind, "", parameters, settings, layer, use.refused, views)
        yield _Seen(first.number, record, main, place)


def _picked(steps: Mapping[str, Steps]) -> int | None:
    """Return which entry of a stack is used, if every array is one."""
    picked = {each[0].settings if each and each[0].name == "pick" else None for each in steps.values()}
    only = picked.pop() if len(picked) == 1 else None
    return None if only is None else int(only)


def _list_idle(seen: Sequence[_Seen]) -> Iterator[_Seen]:
    """Yield the matrices of a stack that the sample didn't reach: experts to which nothing was sent."""
    stacks: dict[Any, dict[int, _Seen]] = {}
    for each in seen:
        views = {role: view.steps for role, view in each.record.views.items() if isinstance(view, StepsView)}
        picked = all(steps and steps[0].name == "pick" for steps in views.values())
        if picked and each.part is not None and each.record.kind != "rows":
            parameters = tuple(one.identity() for one in each.record.parameters.values())
            rest = tuple(steps[1:] for steps in views.values())
            stacks.setdefault((each.record.kind, parameters, rest), {})[each.part] = each
    for parts in stacks.values():
        first = next(iter(parts.values()))
        for part in set(range(first.main.shape[0])) - parts.keys():
            views = {role: view.steps[1:] for role, view in first.record.views.items() if isinstance(view, StepsView)}
            record = replace(
                first.record,
                attributes={**first.record.attributes, "place": part},
                views={role: StepsView((pick(part), *steps)) for role, steps in views.items()},
                layer=Operation(first.record.layer.module, ("idle", part, id(first)), eps=first.record.layer.eps),
            )
            yield _Seen(float("inf"), record, first.main, part)


def _to_batch_norm(record: LayerRecord, eps: float) -> LayerRecord:
    roles = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    parameters = {roles.get(name, name): one for name, one in record.parameters.items()}
    return replace(record, kind="batch_norm", parameters=parameters, attributes={"eps": eps})


def _list_rest(record: LayerRecord, rest: Sequence[Root]) -> Iterator[_Seen]:
    """Yield what a layer that was taken apart has besides: parameters that the call didn't use."""
    for root in rest:
        if root.parameter is None:
            continue
        use = rows_use(Derived(root, root.tensors[0]))
        attributes = {**use.attributes, **({"constant": True} if root.is_buffer else {})}
        views = {"rows": StepsView(use.arrays["rows"].steps or ())}
        layer = Operation(record.layer, use.key)
        found = LayerRecord("rows", "", {"rows": root.parameter}, attributes, layer, None, views)
        yield _Seen(float("inf"), found, root)


def _name(model: nn.Module, seen: Sequence[_Seen], layers: set[int]) -> Iterator[tuple[_Seen, LayerRecord]]:
    """Give records their paths: the module's, with the parameter's name where the module has several."""
    paths = {id(module): name.replace(".", "/") for name, module in model.named_modules()}
    owners = [_find_place(each) for each in seen]
    names: dict[int, set[str]] = {}
    for module, key in owners:
        names.setdefault(id(module), set()).add(key)
    several = layers | {id(module) for module, _ in owners if len(names[id(module)]) > 1 or _has_layers(module)}
    taken: dict[str, int] = {}
    for each, (module, key) in zip(seen, owners, strict=True):
        path = paths.get(id(module), "")
        if not path or id(module) in several:
            path = f"{path}/{key}".strip("/")
        if each.part is not None:
            path = f"{path}/{each.part}"
        taken[path] = taken.get(path, 0) + 1
        if taken[path] > 1:
            path = f"{path}/{taken[path] - 1}"
        yield each, replace(each.record, path=path)


def _has_layers(module: nn.Module) -> bool:
    return any(True for child in module.children() for _ in child.parameters())


def _find_place(seen: _Seen) -> tuple[nn.Module, str]:
    """Return the place of a parameter: that in the module that used it, if it has several."""
    places = seen.main.places
    return next((place for place in places if place[0] is seen.record.layer.module), places[0])
