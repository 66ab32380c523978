"""Tell what the arrays of a TensorFlow checkpoint are, and how they are called: weights, averages, optimizer slots.

TensorFlow 2 keeps a graph of the saved objects in the checkpoint: its nodes are objects, and its edges the names of
their attributes. TensorFlow 1 has names alone, and its optimizers add a word to a variable's name for each slot.

The functions here are pure. Facts are from TensorFlow's ``trackable_object_graph.proto`` and from files that
TensorFlow 2.21, Keras 3 and tf_keras 2.21 wrote.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from xweights.files.formats.protobuf import MalformedError, get_number, get_text, iter_messages, parse_message

Kind = Literal["weights", "average", "optimizer", "ignored"]
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_MOST_PATHS = 4  # of one variable
_DEEPEST = 60

# What is written after a variable's name: by tf.compat.v1's optimizers, by BERT's and by ALBERT's.
_SLOT = re.compile(
    r"(?P<variable>.+)/(?P<slot>(adam_m|adam_v|lamb_m|lamb_v|Adam|AdaMax|AMSGrad|LAMB|AdamWeightDecayOptimizer|Momentum|"
    r"RMSProp|Adagrad|AdagradDA|Adadelta|Ftrl|ProximalAdagrad|Adafactor|YellowFin|LARSOptimizer|LARS|vr|vc|SM3)(_\d+)?|"
    r"\w*[Oo]ptimizer_\d+)"
)
_AVERAGE = re.compile(r"(?P<variable>.+)/(ExponentialMovingAverage|MovingAverage|ema)(_\d+)?")
_COUNTER = re.compile(
    r"(.+/)?(global_step|beta[12]_power(_\d+)?|current_loss_scale|loss_scale|good_steps|num_good_steps|"
    r"(learning_rate|lr)(_\d+)?|save_counter)|step|epoch|iterations?"
)
# What TensorFlow calls a variable that was given no name.
_UNNAMED = re.compile(r"(.*/)?Variable(_\d+)?")
# Where Keras keeps variables by their numbers, which says less than the names that they have of their own.
_NUMBERED = re.compile(
    r"(.*/)?(layer_with_weights-\d+|layer-\d+|_?(all_|trainable_)?variables/\d+|_operations/\d+|_layers/\d+)(/.*)?"
)
_OPTIMIZER_ATTRIBUTES = ({"_iterations", "_learning_rate"}, {"iter", "learning_rate"}, {"_variables", "_iterations"})
_OF_THE_MODEL = frozenset({"_trainable_variables", "_model_variables"})
_BESIDE_THE_MODEL = frozenset({"keras_api", "metrics", "_metrics"})


@dataclass(frozen=True, slots=True)
class Variable:
    """What an array of a checkpoint is: its kind, its names (the first is preferred), and its place in an optimizer."""

    kind: Kind
    names: tuple[str, ...]
    place: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One object that was saved: its attributes, its arrays as (name, key), and its slots' variables."""

    children: tuple[tuple[int, str], ...]
    arrays: tuple[tuple[str, str], ...]
    slots: tuple[int, ...]


def parse_graph(data: bytes) -> list[Node]:
    """Return the nodes of a graph of objects, the root first."""
    nodes = []
    for node in iter_messages(parse_message(data), 1):
        children = tuple((get_number(child, 1), get_text(child, 2)) for child in iter_messages(node, 1))
        arrays = tuple((get_text(array, 2), get_text(array, 3)) for array in iter_messages(node, 2))
        slots = tuple(get_number(slot, 3) for slot in iter_messages(node, 3))
        nodes.append(Node(children, arrays, slots))
    if any(not 0 <= position < len(nodes) for node in nodes for position in _iter_references(node)):
        raise MalformedError("its graph of objects refers to an object that isn't there")
    return nodes


def _iter_references(node: Node) -> Iterable[int]:
    return [*(position for position, _ in node.children), *node.slots]


def describe_by_graph(nodes: Sequence[Node], keys: Iterable[str]) -> dict[str, Variable]:
    """Return what the arrays under these keys are, by the graph of the objects that were saved."""
    optimizers = {position for position, node in enumerate(nodes) if _is_optimizer(node)}
    slots = {slot for node in nodes for slot in node.slots}
    paths = _find_paths(nodes, optimizers)
    node_of = {key: position for position, node in enumerate(nodes) for _, key in node.arrays}
    own_name = {key: name for node in nodes for name, key in node.arrays}
    of_model = _find_model_variables(nodes, optimizers)
    described: dict[str, Variable] = {}
    for key in keys:
        path = key.removesuffix(VALUE)
        position = node_of.get(key)
        if position is None:
            described[key] = describe_by_name(path)
        elif _BESIDE_THE_MODEL & set(path.split("/")) and position not in paths:
            described[key] = Variable("ignored", (path,))
        elif position in slots or (position not in paths and position not in of_model):
            described[key] = Variable("optimizer", (path,), _find_place(path))
        elif _is_left_out(path, paths.get(position, ())):
            described[key] = Variable("ignored", (path,))
        else:
            described[key] = Variable("weights", tuple(dict.fromkeys(paths.get(position) or (path,))))
    return _prefer_own_names(described, own_name)


def _is_optimizer(node: Node) -> bool:
    names = {name for _, name in node.children}
    return bool(node.slots) or any(attributes <= names for attributes in _OPTIMIZER_ATTRIBUTES)


def _find_model_variables(nodes: Sequence[Node], optimizers: Iterable[int]) -> set[int]:
    """Return the variables that optimizers hold because they train them."""
    lists = [child for position in optimizers for child, name in nodes[position].children if name in _OF_THE_MODEL]
    return {child for position in lists for child, _ in nodes[position].children}


def _find_paths(nodes: Sequence[Node], closed: Iterable[int]) -> dict[int, tuple[str, ...]]:
    """Return the shortest paths from the root to each object, a few for each; none goes through a closed one."""
    found: dict[int, list[str]] = {}
    waiting: deque[tuple[int, tuple[str, ...], tuple[int, ...]]] = deque([(0, (), ())] if nodes else [])
    closed = set(closed)
    while waiting:
        position, path, above = waiting.popleft()
        known = found.setdefault(position, [])
        if position in above or position in closed or len(known) >= _MOST_PATHS or len(path) > _DEEPEST:
            continue
        known.append("/".join(path))
        for child, name in nodes[position].children:
            if name not in _BESIDE_THE_MODEL:
                waiting.append((child, (*path, name), (*above, position)))
    return {position: tuple(known) for position, known in found.items() if known}


def _is_left_out(path: str, paths: Sequence[str]) -> bool:
    """Return whether a variable is no weight: a counter of saves or steps, a metric, the state of random draws."""
    return all(_COUNTER.fullmatch(name) is not None for name in (paths or (path,))) or "seed_generator" in path


def _prefer_own_names(described: dict[str, Variable], own_name: Mapping[str, str]) -> dict[str, Variable]:
    """Return the weights under the names that Keras gave them, where their paths are numbers."""
    weights = {key: found for key, found in described.items() if found.kind == "weights"}
    if not any(_NUMBERED.fullmatch(key.removesuffix(VALUE)) for key in weights):
        return described
    named = {key: own_name.get(key, "") for key in weights}
    for key, name in named.items():
        if "seed_generator" in name:
            described[key] = Variable("ignored", (key.removesuffix(VALUE),))
            del weights[key]
    # Keras' exports hold each variable twice.
    copies = {key for key in weights if key.startswith("_all_variables/")}
    if {named[key] for key in copies} <= {named[key] for key in weights.keys() - copies}:
        for key in copies:
            described[key] = Variable("ignored", (key.removesuffix(VALUE),))
            del weights[key]
    chosen = {
        key: found.names[0] if not named[key] or _UNNAMED.fullmatch(named[key]) else named[key]
        for key, found in weights.items()
    }
    distinct = len(set(chosen.values())) == len(chosen)
    for key, found in weights.items():
        described[key] = Variable("weights", (chosen[key] if distinct else found.names[0],))
    return described


def describe_by_name(name: str) -> Variable:
    """Return what an array is by its name alone, as TensorFlow 1 gives names."""
    if ".OPTIMIZER_SLOT" in name:
        return Variable("optimizer", (name,), _find_place(name))
    if _COUNTER.fullmatch(name):
        return Variable("ignored", (name,))
    average = _AVERAGE.fullmatch(name)
    if average is not None:
        return Variable("average", (average["variable"],))
    slot = _SLOT.fullmatch(name)
    if slot is not None:
        return Variable("optimizer", (name,), (slot["variable"], slot["slot"]))
    return Variable("weights", (name,))


def describe_by_names(names: Iterable[str]) -> dict[str, Variable]:
    """Return what arrays are by their names alone.

    A slot or an average has a variable beside it of the name that it begins with; anything else is a weight that is
    called like one. In BERT's own checkpoints the slots of ``kernel`` are ``kernel/adam_m`` and ``kernel/adam_v``.
    """
    described = {name: describe_by_name(name) for name in names}
    for name, found in described.items():
        variable = found.place[0] if found.kind == "optimizer" and found.place else found.names[0]
        if found.kind in ("optimizer", "average") and ".OPTIMIZER_SLOT" not in name and variable not in described:
            described[name] = Variable("weights", (name,))
    return described


def _find_place(path: str) -> tuple[str, ...]:
    """Return the place of a slot or a setting among the state of its optimizer."""
    variable, mark, slot = path.partition("/.OPTIMIZER_SLOT/")
    if mark:
        return (variable, slot.rpartition("/")[2])
    return tuple(path.split("/"))
