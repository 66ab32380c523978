"""Opening of ``.pt2`` files, which hold programs of ``torch.export``, as modules with layers.

A program has lost its layers: it is a list of operations on parameters. Where an operation does the same as a layer of
``torch.nn``, the layer is restored under its old name, with the program's own parameters in it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from xweights.errors import ArgumentError
from xweights_torch.pt2.layers import BUILDERS, RECURRENT, OperationCall, build_recurrent, is_zeros


def open_model(path: Path) -> nn.Module:
    """Return the program of a ``.pt2`` file as a module."""
    try:
        program = torch.export.load(path)
    except Exception as error:  # noqa: BLE001 - torch raises anything for a file that is none
        message = (str(error).strip().splitlines() or ["(no message)"])[0]
        raise ArgumentError(
            f"{str(path)!r} can't be made a model\ncause: {type(error).__name__}: {message}\n"
            "Fix: torch.export.save(torch.export.export(model.eval(), (x,)), path)"
        ) from None
    return restore_layers(program.module(check_guards=False))


def restore_layers(program: fx.GraphModule) -> fx.GraphModule:
    """Return a program with layers in place of their operations."""
    graph = program.graph
    paths: dict[tuple[Any, ...], str] = {}  # a layer that is called twice is one layer
    layers: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        name = str(node.target).removeprefix("aten.").partition(".")[0]
        build: Callable[[OperationCall], nn.Module | None] | None = BUILDERS.get(name)
        if build is None and name not in RECURRENT:
            continue
        call = OperationCall(node, program)
        layer = (
            build_recurrent(call, RECURRENT[name]) if name in RECURRENT else build(call) if build is not None else None
        )
        path = _layer_path(call, layers)
        if layer is None or path is None:
            continue
        key = (*call.used, repr(layer)) if call.used else (path,)
        path = paths.setdefault(key, path)
        layers.setdefault(path, layer)
        with graph.inserting_before(node):
            layer_node = graph.create_node("call_module", path, tuple(call.inputs))
        if name == "lstm":
            _unpack_states(graph, node, layer_node)
        node.replace_all_uses_with(layer_node)
        layer_node.meta = dict(node.meta)
        graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if not node.users and (node.op == "get_attr" or is_zeros(node)):
            graph.erase_node(node)
    root = _build_root(program, layers)
    module = fx.GraphModule(root, graph, "Program")
    # The state dict also contains arrays that the program never uses.
    registered = {name for name, _ in [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]}
    for name, array in [*root.named_parameters(remove_duplicate=False), *root.named_buffers()]:
        if name not in registered:
            _register(module, name, array)
    return module


def _layer_path(call: OperationCall, taken: dict[str, nn.Module]) -> str | None:
    """Return the name of the layer: that of its parameters, or of the exported module.

    Return None where the layer would name its parameters differently: a state dict has to fit both.
    """
    if call.used:
        path, dot, _ = call.used[0].rpartition(".")
        same_prefix = all(name.rpartition(".")[0] == path for name in call.used)
        return path if dot and same_prefix and not call.used[0].endswith("in_proj_weight") else None
    module_paths = [str(name) for name, _ in (call.node.meta.get("nn_module_stack") or {}).values()]
    arrays = [name.split(".")[:-1] for name in call.program.state_dict()]
    owners = {".".join(parts[:depth]) for parts in arrays for depth in range(len(parts) + 1)}
    names = (*module_paths[-1:], call.node.name, f"{call.node.name}_layer")
    return next((name for name in names if name and name not in owners and name not in taken), None)


def _unpack_states(graph: fx.Graph, node: fx.Node, layer_node: fx.Node) -> None:
    """Redirect the users of one of the operation's three results to the layer's nested results."""
    with graph.inserting_after(layer_node):
        states = graph.call_function(_item, (layer_node, 1))
    for user in list(node.users):
        if user.op == "call_function" and len(user.args) == 2 and user.args[1] in (1, 2):
            user.args = (states, int(str(user.args[1])) - 1)


def _item(values: Any, index: int) -> Any:
    return values[index]


def _build_root(program: fx.GraphModule, layers: dict[str, nn.Module]) -> nn.Module:
    """Return the program's modules with these layers among them."""
    root = nn.Module()
    for name, parameter in program.named_parameters(remove_duplicate=False):
        _register(root, name, parameter)
    persistent = program.state_dict(keep_vars=True)
    for name, buffer in program.named_buffers(remove_duplicate=False):
        _register(root, name, buffer, persistent=name in persistent)
    for name, value in vars(program).items():
        if isinstance(value, torch.Tensor):
            setattr(root, name, value)
    for path, layer in sorted(layers.items()):
        parent, _, last = path.rpartition(".")
        owner = _owner(root, parent)
        existing = getattr(owner, last, None)
        if isinstance(existing, nn.Module):
            for name, child in existing.named_children():
                layer.add_module(name, child)
        owner.add_module(last, layer)
    return root


def _owner(root: nn.Module, path: str) -> nn.Module:
    for part in filter(None, path.split(".")):
        if not isinstance(getattr(root, part, None), nn.Module):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    return root


def _register(root: nn.Module, name: str, value: Any, *, persistent: bool = True) -> None:
    parent, _, last = name.rpartition(".")
    owner = _owner(root, parent)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(last, value)
    else:
        owner.register_buffer(last, value, persistent=persistent)
