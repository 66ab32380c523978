"""Walk through a model or layer: every weight once, in definition order, with its neutral name.

Apart from public attributes, the walk uses the tracker's lists ``_layers``, ``_trainable_variables`` and
``_non_trainable_variables``: ``weights`` is built from them, without the owner of each weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from xweights.core.layer_table import Entry
from xweights_keras.declared import match_rows
from xweights_keras.layers import LayerSpec, Rows, spec_of
from xweights_keras.naming import find_attribute_paths, is_made_up, name_layers, to_snake

Path = str


@dataclass(slots=True)
class FoundWeight:
    """A variable, the layer that owns it, and its names. ``module`` is the parameter of a wrapped torch module."""

    variable: Any
    owner: Any
    name: str
    layer: str
    role: str
    entry: Entry | None = None
    module: Any = None
    aliases: list[str] = field(default_factory=list)


class Walk:
    """A visit to a layer and everything in it.

    Attributes:
        weights: The weights in order, by ``id`` of the variable.
        unbuilt: Paths and layers whose weights don't exist yet.
        unused: The same, but inside a built layer, whose call doesn't use them.
        statistics: ``id`` of each variable that was made untrainable.
    """

    def __init__(self) -> None:
        self.weights: dict[int, FoundWeight] = {}
        self.unbuilt: list[tuple[Path, Any]] = []
        self.unused: list[tuple[Path, Any]] = []
        self.statistics: set[int] = set()
        self._names: dict[str, int] = {}
        self._above: set[int] = set()

    def visit(
        self, layer: Any, path: Path = "", *, home: Path | None = None, rows: Rows | None = None, used: bool = True
    ) -> None:
        """Add the weights of ``layer``, with the path ``path``. ``home`` is the composite that it counts as a part of.

        ``used`` is False inside a built layer, whose call doesn't need the parts that aren't built.
        """
        if id(layer) in self._above:
            return  # a layer that refers to the one it is part of
        self._above.add(id(layer))
        spec = spec_of(layer)
        missing = needs_building(layer, spec)
        listed = self.unbuilt if used else self.unused
        if missing and not any(layer is known for _, known in listed):
            listed.append((path, layer))
        if not missing or not used:
            self._weights(layer, spec, path, home, rows, used and not layer.built)
        self._above.discard(id(layer))

    def _weights(
        self, layer: Any, spec: LayerSpec | None, path: Path, home: Path | None, rows: Rows | None, used: bool
    ) -> None:
        owner_path = path if home is None else home
        if is_module_wrapper(layer):
            self._module(layer, path)
            return
        inners = [] if spec is None else list(spec.inners(layer))
        inside = owner_path if spec is not None and spec.whole else home
        own = [*layer._trainable_variables, *layer._non_trainable_variables]
        self.statistics.update(map(id, layer._non_trainable_variables))
        if not inners:
            self._own(layer, own, path, owner_path, spec, rows)
        for inner in inners:
            self.visit(inner.layer, join(path, inner.path), home=inside, rows=inner.rows, used=used)
        if inners:
            self._own(layer, own, path, owner_path, spec, rows)
        for part, child in iter_children(layer, {id(inner.layer) for inner in inners}):
            self.visit(child, join(path, part), home=inside, used=used)

    def _own(
        self, layer: Any, own: Sequence[Any], path: Path, owner_path: Path, spec: LayerSpec | None, rows: Rows | None
    ) -> None:
        """Add a layer's own variables: first those in its table, in the table's order, then the rest."""
        if not own:
            return
        if rows is None:
            rows = () if spec is None else spec.rows(layer)
        known = match_rows(layer, own, rows)
        for row, variable in known:
            self._add(layer, variable, join(path, row.name), owner_path, row)
        listed = {id(variable) for _, variable in known}
        rest = [variable for variable in own if id(variable) not in listed]
        for name, variable in name_variables(layer, rest, taken=[row.name for row, _ in known]):
            self._add(layer, variable, join(path, name), owner_path, None)

    def _add(
        self, layer: Any, variable: Any, name: str, owner_path: Path, entry: Entry | None, module: Any = None
    ) -> None:
        key = id(variable) if module is None else id(module.handle)
        before = self.weights.get(key)
        if before is not None:
            if name != before.name and name not in before.aliases and self._names.setdefault(name, key) == key:
                before.aliases.append(name)
            return
        role = name.rpartition("/")[2] if module is None else module.role
        if entry is not None and entry.role is not None:
            role = entry.role
        name = make_unique(name, self._names)
        self._names[name] = key
        self.weights[key] = FoundWeight(variable, layer, name, owner_path, role, entry, module)

    def _module(self, wrapper: Any, path: Path) -> None:
        """Add the parameters of a torch module inside a Keras layer, as the torch backend sees them."""
        from xweights.core.registry import load

        adapter = load("torch").adapter(wrapper.module)
        variables = {id(v._value): v for v in wrapper._trainable_variables + wrapper._non_trainable_variables}
        natives = dict(wrapper.module.named_parameters(remove_duplicate=False))
        for parameter in () if adapter is None else adapter.parameters(wrapper.module):
            variable = variables.get(id(natives.get(parameter.native_name)))
            owner_path = join(path, parameter.layer)
            self._add(wrapper, variable, join(path, parameter.name), owner_path, None, parameter)


def name_variables(layer: Any, variables: Sequence[Any], taken: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield names for variables that are in no table: the name the user gave, else the attribute, else a position."""
    if not variables:
        return
    uses = Counter([*taken, *(variable.name for variable in variables)])
    paths = find_attribute_paths(layer, {id(variable) for variable in variables})
    nameless = 0
    for variable in variables:
        made_up = is_made_up(variable.name, type(variable))
        if not made_up and uses[variable.name] == 1:
            yield variable.name, variable
        elif id(variable) in paths:
            yield paths[id(variable)][0], variable
        elif made_up:
            yield f"variable/{nameless}", variable
            nameless += 1
        else:
            yield variable.name, variable


def iter_children(layer: Any, known: set[int]) -> Iterator[tuple[Path, Any]]:
    """Yield the inner layers that no table names, with their paths; a layer with two paths comes twice."""
    tracked = [child for child in layer._layers if id(child) not in known]
    if not tracked:
        return
    if is_graph(layer):
        named = list(name_layers(layer.layers))
        yield from named
        inside = {id(child) for _, child in named}
        tracked = [child for child in tracked if id(child) not in inside and to_snake(type(child)) != "input_layer"]
    paths = find_attribute_paths(layer, {id(child) for child in tracked})
    for child in tracked:
        for path in paths.get(id(child), ()):
            yield path, child
    # Tracked, but in no attribute, list or dict: a layer that was replaced, or one in a set.
    yield from name_layers([child for child in tracked if id(child) not in paths])


def is_graph(layer: Any) -> bool:
    """Return True for functional and Sequential models."""
    return any(base.__name__ in ("Functional", "Sequential") and is_keras(base) for base in type(layer).__mro__)


def is_module_wrapper(layer: Any) -> bool:
    """Return True for a layer around a ``torch.nn.Module``."""
    return any(base.__name__ == "TorchModuleWrapper" and is_keras(base) for base in type(layer).__mro__)


def needs_building(layer: Any, spec: LayerSpec | None) -> bool:
    """Return True for a layer whose own weights don't exist yet; weights of inner layers don't count."""
    if layer.built:
        return False
    if spec is not None:
        return spec.has_weights(layer) or not is_keras(type(layer))
    if is_graph(layer) or is_keras(type(layer)):
        return False
    # A custom class: its build method, if it has one, makes weights.
    return not getattr(type(layer).build, "_is_default", False)


def is_keras(kind: type[Any]) -> bool:
    """Return True for a class that Keras itself defines."""
    return kind.__module__.partition(".")[0] == "keras"


def join(path: Path, part: str) -> Path:
    """Return ``path/part``; either may be empty."""
    return f"{path}/{part}" if path and part else path or part


def make_unique(name: str, taken: Iterable[str]) -> str:
    """Return the name, or with ``_1``, ``_2`` ... if another weight has it."""
    unique, number = name, 0
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique
