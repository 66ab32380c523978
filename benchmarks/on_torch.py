"""Time calls on PyTorch modules and mappings of arrays against hand-written loops.

A peer starts from the model, as xweights does: ``model.parameters()`` is part of it. The neutral order of a Linear
layer is the transpose of the stored one. "C order" below means an array that was made in neutral order: its memory
order differs from the stored one, for xweights and for a peer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from shapes import Shape, arrays, masks, name_values, shapes, shapes_with_bert, torch_model
from timing import Call, Memory, Timing, compare
from torch.nn.utils import prune

import xweights as xw
from xweights.rules.order_statistics import order_statistic

# How many times as long as the best loop by hand a call may take, of each shape.
GOALS = {
    "edit": {"many": 1.25, "bert": 1.15, "mid": 1.1},
    "bound": {"many": 1.1, "bert": 1.1, "mid": 1.05},
    "get_params": {"many": 1.25, "bert": 1.1, "mid": 1.05},
    "views": {"many": 1.5, "bert": 1.5, "mid": 1.5},
    "unchecked": {"many": 1.3, "bert": 1.15, "mid": 1.1},
    "checked": {"many": 1.5, "bert": 1.4, "mid": 1.3},
    "prune": {"many": 1.5, "bert": 1.3, "mid": 1.2},
}


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    for shape in shapes_with_bert(quick):
        model = torch_model(shape)
        yield from _time_reads(model, shape)
        yield from _time_writes(model, shape)
        yield from _time_edits(model, shape)
        yield from _time_bound(model, shape)
    for shape in shapes(quick):
        yield from _time_pruning(shape)
    yield from _time_mappings(torch_model(shapes(quick)[0]))


def _time_reads(model: Any, shape: Shape) -> Iterator[Timing]:
    yield compare(
        "get_params(copy=False)", "torch", shape.name,
        lambda: xw.get_params(model, copy=False),
        {"p.detach().numpy()": lambda: [p.detach().numpy() for p in model.parameters()]},
        GOALS["views"][shape.name],
        idiom=("state_dict, .numpy()", lambda: {k: v.numpy() for k, v in model.state_dict().items()}),
    )  # fmt: skip
    yield compare(
        "get_params()", "torch", shape.name,
        lambda: xw.get_params(model),
        {"p.detach().numpy().copy()": lambda: [p.detach().numpy().copy() for p in model.parameters()],
         "p.detach().clone().numpy()": lambda: [p.detach().clone().numpy() for p in model.parameters()]},
        GOALS["get_params"][shape.name],
        idiom=("state_dict, .numpy().copy()", lambda: {k: v.numpy().copy() for k, v in model.state_dict().items()}),
    )  # fmt: skip
    home = xw.get_params(model)
    stored = _in_stored_order(model, home.values())

    def copy_out() -> None:
        for out, p in zip(stored, model.parameters(), strict=True):
            np.copyto(out, p.detach().numpy())

    yield compare(
        "get_params(out=)", "torch", shape.name, lambda: xw.get_params(model, out=home),
        {"np.copyto": copy_out}, GOALS["get_params"][shape.name],
    )  # fmt: skip


def _time_mappings(model: Any) -> Iterator[Timing]:
    mapping = dict(xw.get_params(model, layout="native"))
    yield compare(
        "get_params(copy=False)", "numpy", "many",
        lambda: xw.get_params(mapping, copy=False),
        {"read-only views": lambda: {k: _read_only(v) for k, v in mapping.items()}},
        None,
    )  # fmt: skip
    yield compare(
        "get_params()", "numpy", "many",
        lambda: xw.get_params(mapping),
        {"v.copy()": lambda: {k: v.copy() for k, v in mapping.items()}},
        1.25,
    )  # fmt: skip


def _in_stored_order(model: Any, values: Any) -> list[Any]:
    return [p.layout.to_stored(value) for p, value in zip(xw.parameters(model), values, strict=True)]


def _read_only(array: Any) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view


def _time_writes(model: Any, shape: Shape) -> Iterator[Timing]:
    params = xw.get_params(model)
    stored = _in_stored_order(model, params.values())
    across = name_values(model, arrays(shape))
    across_stored = _in_stored_order(model, across.values())
    state = {p.native_name: torch.from_numpy(array) for p, array in zip(xw.parameters(model), stored, strict=True)}
    idiom = ("load_state_dict", lambda: model.load_state_dict(state))
    for how, options, goal in (
        ("allow_nonfinite=True", {"allow_nonfinite": True}, GOALS["unchecked"][shape.name]),
        ("checked", {}, GOALS["checked"][shape.name]),
    ):
        yield compare(
            f"set_params({how})", "torch", shape.name,
            lambda options=options: xw.set_params(model, params, **options),
            {"np.copyto": lambda: _copyto(model, stored), "_foreach_copy_": lambda: _foreach(model, stored)},
            goal, idiom=idiom,
        )  # fmt: skip
        yield compare(
            f"set_params({how}), C order", "torch", shape.name,
            lambda options=options: xw.set_params(model, across, **options),
            {"np.copyto(view, a.T)": lambda: _copyto(model, across_stored),
             "p.copy_(t.T)": lambda: _copy(model, across_stored)},
            None,
        )  # fmt: skip


def _copyto(model: Any, values: list[Any]) -> None:
    for p, value in zip(model.parameters(), values, strict=True):
        np.copyto(p.detach().numpy(), value)


@torch.no_grad()
def _copy(model: Any, values: list[Any]) -> None:
    for p, value in zip(model.parameters(), values, strict=True):
        p.copy_(torch.from_numpy(value))


@torch.no_grad()
def _foreach(model: Any, values: list[Any]) -> None:
    torch._foreach_copy_(list(model.parameters()), [torch.from_numpy(value) for value in values])


def _time_edits(model: Any, shape: Shape) -> Iterator[Timing]:
    goal = GOALS["edit"][shape.name]

    def each(edit: Any) -> Call:
        @torch.no_grad()
        def call() -> None:
            for p in model.parameters():
                edit(p)

        return call

    def views(edit: Any) -> Call:
        def call() -> None:
            for p in model.parameters():
                edit(p.detach().numpy())

        return call

    yield compare(
        "clip", "torch", shape.name, lambda: xw.clip(model, -0.05, 0.05),
        {"p.clamp_": each(lambda p: p.clamp_(-0.05, 0.05)),
         "np.clip(out=)": views(lambda v: np.clip(v, np.float32(-0.05), np.float32(0.05), out=v))},
        goal,
        idiom=("p.data = torch.clamp(p.data)", each(lambda p: setattr(p, "data", torch.clamp(p.data, -0.05, 0.05)))),
    )  # fmt: skip
    yield compare(
        "scale", "torch", shape.name, lambda: xw.scale(model, 0.999),
        {"p.mul_": each(lambda p: p.mul_(0.999)),
         "_foreach_mul_": torch.no_grad()(lambda: torch._foreach_mul_(list(model.parameters()), 0.999)),
         "np.multiply(out=)": views(lambda v: np.multiply(v, np.float32(0.999), out=v))},
        goal,
        idiom=("p.data = p.data * s", each(lambda p: setattr(p, "data", p.data * 0.999))),
    )  # fmt: skip
    across = masks(shape)
    # As prune returns them: their memory is in stored order.
    along = [
        p.layout.to_neutral(np.ascontiguousarray(p.layout.to_stored(mask)))
        for p, mask in zip(xw.parameters(model), across, strict=True)
    ]
    for title, neutral in (("mask (as prune returns it)", along), ("mask, C order", across)):
        keep, stored = name_values(model, neutral), _in_stored_order(model, neutral)
        tensors = [torch.from_numpy(mask) for mask in stored]

        def multiply(stored: Any = stored) -> None:
            for p, mask in zip(model.parameters(), stored, strict=True):
                view = p.detach().numpy()
                np.multiply(view, mask, out=view)

        @torch.no_grad()
        def fill(tensors: Any = tensors) -> None:
            for p, mask in zip(model.parameters(), tensors, strict=True):
                p.masked_fill_(~mask, 0.0)

        yield compare(
            title, "torch", shape.name, lambda keep=keep: xw.mask(model, keep),
            {"np.multiply(v, bool, out=v)": multiply}, goal if title != "mask, C order" else None,
            idiom=("p.masked_fill_(~keep, 0)", fill),
        )  # fmt: skip
    scratch = np.empty(max(p.numel() for p in model.parameters()), np.float32)
    rng = np.random.default_rng(0)

    def noise() -> None:
        for p in model.parameters():
            view = p.detach().numpy().reshape(-1)
            drawn = scratch[: view.size]
            rng.standard_normal(dtype=np.float32, out=drawn)
            np.multiply(drawn, np.float32(1e-9), out=drawn)
            np.add(view, drawn, out=view)

    def seed_idiom() -> None:
        for p in model.parameters():
            p.data = p.data + torch.tensor(np.random.normal(0.0, 1e-9, p.shape), dtype=p.dtype)  # noqa: NPY002

    if shape.name == "bert":
        return
    yield compare(
        "noise", "torch", shape.name, lambda: xw.noise(model, 1e-9, seed=0),
        {"standard_normal(f4) into a scratch": noise}, 1.15,
        idiom=("np.random.normal", seed_idiom), idiom_goal=2.0, most=10,
    )  # fmt: skip


def _time_bound(model: Any, shape: Shape) -> Iterator[Timing]:
    keep = name_values(model, masks(shape))
    keep_masks = [np.ascontiguousarray(mask) for mask in _in_stored_order(model, keep.values())]
    goal = GOALS["bound"][shape.name]

    @torch.no_grad()
    def clamp() -> None:
        for p in model.parameters():
            p.clamp_(-0.05, 0.05)

    def multiply() -> None:
        for p, mask in zip(model.parameters(), keep_masks, strict=True):
            view = p.detach().numpy()
            np.multiply(view, mask, out=view)

    rules: dict[str, tuple[xw.Rule, dict[str, Call]]] = {
        "clip, bound": (xw.Clip(-0.05, 0.05), {"p.clamp_": clamp}),
        "scale, bound": (
            xw.Scale(0.999),
            {"_foreach_mul_": torch.no_grad()(lambda: torch._foreach_mul_(list(model.parameters()), 0.999))},
        ),
        "mask, bound": (xw.Mask(keep), {"np.multiply(v, bool, out=v)": multiply}),
    }
    for title, (rule, peers) in rules.items():
        yield compare(title, "torch", shape.name, xw.bind(model, rule, where=...), peers, goal)


def _time_pruning(shape: Shape) -> Iterator[Timing]:
    model = torch_model(shape)
    first = xw.snapshot(model)
    views = [p.detach().numpy() for p in model.parameters()]
    drop = int(0.9 * sum(view.size for view in views) + 0.5)
    yield compare(
        "prune 90 % global: threshold alone", "numpy", shape.name,
        lambda: order_statistic(views, drop, absolute=True),
        {"np.partition(concatenated)": lambda: _partition(views, drop),
         "bracket by hand": lambda: _bracket(views, drop)},
        1.15, idiom=("torch.kthvalue(cat)", lambda: _magnitudes(model).kthvalue(drop)),
    )  # fmt: skip

    def kth() -> None:
        with torch.no_grad():
            edge = _magnitudes(model).kthvalue(drop).values
            for p in model.parameters():
                p.mul_(p.abs() > edge)

    def partition() -> None:
        edge = _partition(views, drop)
        for view in views:
            np.multiply(view, np.abs(view) > edge, out=view)

    def whole() -> None:
        prune.global_unstructured([(layer, "weight") for layer in others.pop()], prune.L1Unstructured, amount=0.9)

    def bracket() -> list[Any]:
        edge, masks = _bracket(views, drop), []
        for view in views:
            masks.append(np.abs(view) > edge)
            np.multiply(view, masks[-1], out=view)
        return masks

    yield compare(
        "prune 90 % global", "torch", shape.name, lambda: xw.prune(model, fraction=0.9, scope="global"),
        {"bracket, mask, np.multiply": bracket}, GOALS["prune"][shape.name], before=first.restore, most=10,
    )  # fmt: skip
    if shape.name != "many":
        return
    others = [torch_model(shape) for _ in range(3)]
    for idiom, call, factor in (("kthvalue, p.mul_(bool)", kth, 2.5), ("prune.global_unstructured", whole, 20.0)):
        yield compare(
            "prune 90 % global", "torch", shape.name, lambda: xw.prune(model, fraction=0.9, scope="global"),
            {"np.partition, np.multiply": partition}, None, idiom=(idiom, call), idiom_goal=factor,
            before=first.restore, most=10,
        )  # fmt: skip


@torch.no_grad()
def _magnitudes(model: Any) -> Any:
    return torch.cat([p.abs().flatten() for p in model.parameters()])


def _partition(views: list[Any], drop: int) -> Any:
    joined = np.concatenate([view.ravel() for view in views])
    np.abs(joined, out=joined)
    joined.partition(drop - 1)
    return joined[drop - 1]


def _bracket(views: list[Any], drop: int) -> Any:
    """Return the threshold by the best known way: a sample brackets it, one pass counts below and gathers inside."""
    total = sum(view.size for view in views)
    sampled = np.sort(np.abs(np.concatenate([view.ravel()[:: max(1, total >> 16)] for view in views])))
    rank, margin = drop / total * sampled.size, 4 * np.sqrt(drop / total * (1 - drop / total) * sampled.size) + 1
    low, high = sampled[int(rank - margin)], sampled[min(sampled.size - 1, int(rank + margin))]
    below, inside, scratch = 0, [], np.empty(1 << 15, np.float32)
    for view in views:
        flat = view.ravel()
        for start in range(0, flat.size, 1 << 15):
            part = flat[start : start + (1 << 15)]
            size = np.abs(part, out=scratch[: part.size])
            below += np.count_nonzero(size < low)
            inside.append(size[(size >= low) & (size <= high)])
    candidates = np.concatenate(inside)
    candidates.partition(drop - below - 1)
    return candidates[drop - below - 1]
