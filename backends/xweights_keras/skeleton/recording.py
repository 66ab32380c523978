"""A Keras model as a graph of neutral operations, from two symbolic runs on batches of two sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from xweights.core.dtypes import Array
from xweights.errors import PortError
from xweights.porting.skeletons.graph import Graph, Operation, Reading, merge_runs, names_in, prune
from xweights.porting.skeletons.samples import resize
from xweights_keras.skeleton import tape_functions, tape_images, tape_layers, tape_shapes
from xweights_keras.skeleton.tape import Tape, recording
from xweights_keras.walk import Walk

BATCHES = (3, 5)
_HANDLERS = (tape_functions, tape_images, tape_layers, tape_shapes)  # importing them fills the tables


def record(model: Any, sample: Any) -> Reading:
    """Return the graph of a model as it computes a sample in inference mode. Raise PortError where there is none."""
    if not model.built:
        try:
            model(_tensors(sample), training=False)
        except Exception as error:
            raise PortError(f"the model can't be called with this sample: {type(error).__name__}: {error}") from error
    names = _name_variables(model)
    paths = _name_layers(model, names)
    runs = [_read(model, resize(sample, batch), names, paths) for batch in BATCHES]
    operations = prune(merge_runs(prune(runs[0]), prune(runs[1]), BATCHES))
    variables = {names[id(variable)]: variable for variable in model.variables if id(variable) in names}
    used = dict.fromkeys(names_in(operations))
    shapes = {name: tuple(variables[name].shape) for name in used}
    trainable = frozenset(name for name in used if variables[name].trainable)
    arrays: dict[str, Callable[[], Array]] = {name: _array(variables[name]) for name in used}
    return Reading(
        Graph(tuple(operations), shapes, trainable),
        arrays,
        lambda changed, x: _run(model, variables, changed, x),
    )


def _array(variable: Any) -> Callable[[], Array]:
    return lambda: np.asarray(keras.ops.convert_to_numpy(variable.value))


def _name_variables(model: Any) -> dict[int, str]:
    """Return a name for each variable: by the attributes that lead to it where they are known, or else its path."""
    walk = Walk()
    walk.visit(model)
    known = {id(found.variable): found.name for found in walk.weights.values()}
    names: dict[int, str] = {}
    taken: set[str] = set()
    for variable in model.variables:
        path = known.get(id(variable)) or variable.path.removeprefix(f"{model.name}/")
        path = path.replace("/", ".")
        fresh, number = path, 1
        while fresh in taken:
            number += 1
            fresh = f"{path}_{number}"
        taken.add(fresh)
        names[id(variable)] = fresh
    return names


def _name_layers(model: Any, names: Mapping[int, str]) -> dict[int, str]:
    """Return a path for each layer, by the names of its variables where it has some."""
    paths = {}
    for layer in model._flatten_layers():
        own = [*layer._trainable_variables, *layer._non_trainable_variables]
        named = next((names[id(variable)] for variable in own if id(variable) in names), None)
        paths[id(layer)] = layer.name if named is None else named.rpartition(".")[0]
    return paths


@contextlib.contextmanager
def _nodes_kept(model: Any) -> Iterator[None]:
    """Forget the nodes that symbolic calls add to the model's layers."""
    layers = [model, *model._flatten_layers()]
    counts = [(layer, len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in layers]
    try:
        yield
    finally:
        for layer, inbound, outbound in counts:
            del layer._inbound_nodes[inbound:]
            del layer._outbound_nodes[outbound:]


def _read(model: Any, sample: Any, names: Mapping[int, str], paths: Mapping[int, str]) -> list[Operation]:
    tape = Tape(names, paths)

    def enter(key: Any, array: Any) -> Any:
        dtype = str(array.dtype)
        dtype = "float32" if dtype == "float64" else dtype
        name = tape.fresh(str(key) if isinstance(key, str) else ("x" if key is None else f"x{key}"))
        tape.operations.append(Operation(name, "input", (), {"key": key}, array.shape, dtype))
        return tape.enter(name, keras.KerasTensor(array.shape, dtype=dtype))

    if isinstance(sample, Mapping):
        inputs: Any = {key: enter(key, np.asarray(value)) for key, value in sample.items()}
    elif isinstance(sample, (tuple, list)):
        inputs = [enter(place, np.asarray(value)) for place, value in enumerate(sample)]
    else:
        inputs = enter(None, np.asarray(sample))
    filtering = keras.config.is_traceback_filtering_enabled()
    try:
        keras.config.disable_traceback_filtering()
        with _nodes_kept(model), recording(tape):
            outputs = model(inputs, training=False)
    except PortError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise PortError(f"this model can't be called symbolically: {type(error).__name__}: {reason}") from error
    finally:
        if filtering:
            keras.config.enable_traceback_filtering()
    keys = tuple(outputs) if isinstance(outputs, Mapping) else None
    results = [tape.name_of(tensor) for tensor in keras.tree.flatten(list(outputs.values()) if keys else outputs)]
    tape.operations.append(Operation("results", "output", tuple(results), {"keys": keys}))
    return tape.operations


def _tensors(sample: Any) -> Any:
    if isinstance(sample, Mapping):
        return {key: keras.ops.convert_to_tensor(value) for key, value in sample.items()}
    if isinstance(sample, (tuple, list)):
        return [keras.ops.convert_to_tensor(value) for value in sample]
    return keras.ops.convert_to_tensor(sample)


def _run(model: Any, variables: Mapping[str, Any], changed: Mapping[str, Array] | None, sample: Any) -> list[Array]:
    """Return the model's outputs, with some of its variables replaced by others for this run."""
    scope = keras.StatelessScope(
        [(variables[name], keras.ops.convert_to_tensor(array)) for name, array in (changed or {}).items()]
    )
    with scope:
        outputs = model(_tensors(sample), training=False)
    flat = keras.tree.flatten(list(outputs.values()) if isinstance(outputs, Mapping) else outputs)
    return [np.asarray(keras.ops.convert_to_numpy(output)) for output in flat]
