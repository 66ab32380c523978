"""A ``.pt2`` file, a program of ``torch.export``, as a module with layers.

A program has lost its layers: it is a list of operations on parameters. Where such an operation is what a layer of
``torch.nn`` does, the layer is put back, with the program's own parameters in it, under its old name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from xweights.errors import ArgumentError
from xweights_torch.pt2.layers import BUILDERS, RECURRENT, Call, is_zeros, recurrent


def open_model(path: Path) -> nn.Module:
    """Return the program of a ``.pt2`` file as a module."""
    try:
        program = torch.export.load(path)
    except Exception as wrong:  # noqa: BLE001 - whatever torch says to a file that is none
        said = (str(wrong).strip().splitlines() or ["(no message)"])[0]
        raise ArgumentError(
            f"{str(path)!r} can't be made a model\ncause: {type(wrong).__name__}: {said}\n"
            "Fix: torch.export.save(torch.export.export(model.eval(), (x,)), path)"
        ) from None
    return with_layers(program.module(check_guards=False))


def with_layers(program: fx.GraphModule) -> fx.GraphModule:
    """Return a program with layers in place of the operations that they are made of."""
    graph = program.graph
    made: dict[tuple[Any, ...], str] = {}  # a layer that is called twice is one layer
    layers: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        name = str(node.target).removeprefix("aten.").partition(".")[0]
        build: Callable[[Call], nn.Module | None] | None = BUILDERS.get(name)
        if build is None and name not in RECURRENT:
            continue
        call = Call(node, program)
        layer = recurrent(call, RECURRENT[name]) if name in RECURRENT else build(call) if build is not None else None
        path = _path(call, layers)
        if layer is None or path is None:
            continue
        key = (*call.used, repr(layer)) if call.used else (path,)
        path = made.setdefault(key, path)
        layers.setdefault(path, layer)
        with graph.inserting_before(node):
            replaced = graph.create_node("call_module", path, tuple(call.inputs))
        if name == "lstm":
            _unpack_states(graph, node, replaced)
        node.replace_all_uses_with(replaced)
        replaced.meta = dict(node.meta)
        graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if not node.users and (node.op == "get_attr" or is_zeros(node)):
            graph.erase_node(node)
    root = _rooted(program, layers)
    found = fx.GraphModule(root, graph, "Program")
    # What the program never uses is a part of its state dict all the same.
    kept = {name for name, _ in [*found.named_parameters(remove_duplicate=False), *found.named_buffers()]}
    for name, array in [*root.named_parameters(remove_duplicate=False), *root.named_buffers()]:
        if name not in kept:
            _place(found, name, array)
    return found


def _path(call: Call, taken: dict[str, nn.Module]) -> str | None:
    """Return the name of the layer: that of its parameters, or of the module that the program was made of.

    None where the layer would have other names for its parameters than the program has: a state dict has to fit both.
    """
    if call.used:
        path, dot, _ = call.used[0].rpartition(".")
        fitting = all(one.rpartition(".")[0] == path for one in call.used)
        return path if dot and fitting and not call.used[0].endswith("in_proj_weight") else None
    stack = [str(one) for one, _ in (call.node.meta.get("nn_module_stack") or {}).values()]
    arrays = [name.split(".")[:-1] for name in call.program.state_dict()]
    owners = {".".join(parts[:depth]) for parts in arrays for depth in range(len(parts) + 1)}
    names = (*stack[-1:], call.node.name, f"{call.node.name}_layer")
    return next((one for one in names if one and one not in owners and one not in taken), None)


def _unpack_states(graph: fx.Graph, node: fx.Node, replaced: fx.Node) -> None:
    """Have whoever took one of the three results of the operation take it from the layer's nested ones."""
    with graph.inserting_after(replaced):
        states = graph.call_function(_item, (replaced, 1))
    for user in list(node.users):
        if user.op == "call_function" and len(user.args) == 2 and user.args[1] in (1, 2):
            user.args = (states, int(str(user.args[1])) - 1)


def _item(values: Any, place: int) -> Any:
    return values[place]


def _rooted(program: fx.GraphModule, layers: dict[str, nn.Module]) -> nn.Module:
    """Return the program's modules with these layers among them."""
    root = nn.Module()
    for name, parameter in program.named_parameters(remove_duplicate=False):
        _place(root, name, parameter)
    lasting = program.state_dict(keep_vars=True)
    for name, buffer in program.named_buffers(remove_duplicate=False):
        _place(root, name, buffer, persistent=name in lasting)
    for name, value in vars(program).items():
        if isinstance(value, torch.Tensor):
            setattr(root, name, value)
    for path, layer in sorted(layers.items()):
        parent, _, last = path.rpartition(".")
        owner = _owner(root, parent)
        before = getattr(owner, last, None)
        if isinstance(before, nn.Module):
            for name, child in before.named_children():
                layer.add_module(name, child)
        owner.add_module(last, layer)
    return root


def _owner(root: nn.Module, path: str) -> nn.Module:
    for part in filter(None, path.split(".")):
        if not isinstance(getattr(root, part, None), nn.Module):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    return root


def _place(root: nn.Module, name: str, value: Any, *, persistent: bool = True) -> None:
    parent, _, last = name.rpartition(".")
    owner = _owner(root, parent)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(last, value)
    else:
        owner.register_buffer(last, value, persistent=persistent)
