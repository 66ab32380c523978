"""Parts of a training run's checkpoint are told by what they contain."""

from __future__ import annotations

import numpy as np
import pytest

from xweights.core.parts import find_parts, is_run, show_parts

STATE = {"conv.weight": np.ones((2, 3)), "conv.bias": np.ones(2), "bn.num_batches_tracked": np.array(3)}
LAYER = {"weight": np.ones((2, 3)), "bias": np.ones(2)}
SLOTS = {"state": {0: {"step": np.array(1.0), "exp_avg": np.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
RANDOM = np.zeros(16, np.uint8)
TREE = {"dense": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}, "head": {"kernel": np.ones((3, 1))}}


def kinds(tree: object) -> dict[str, str]:
    return {part.name: part.kind for part in find_parts(tree)}


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (STATE, {"": "weights"}),
        (LAYER, {"": "weights"}),
        (TREE, {"": "weights"}),
        ({**STATE, "epoch": 3}, {"": "weights"}),
        ({"model": STATE, "optimizer": SLOTS, "epoch": 3}, {"model": "weights", "optimizer": "optimizer"}),
        ({"bobby": LAYER, "opt_G": SLOTS}, {"bobby": "weights", "opt_G": "optimizer"}),
        ({"bobby": STATE}, {"bobby": "weights"}),
        ({"model": LAYER, "epoch": 3}, {"model": "weights"}),
        ({"params": TREE}, {"params": "weights"}),
        ({"params": TREE, "batch_stats": {"bn": {"mean": np.ones(3)}}}, {"": "weights"}),
        ({"state": {"model": STATE, "optimizer": SLOTS}}, {"state/model": "weights", "state/optimizer": "optimizer"}),
        ({"model": STATE, "ema": {"module": STATE, "decay": 0.9}}, {"model": "weights", "ema/module": "weights"}),
        ({"encoder": STATE, "decoder": STATE}, {"encoder": "weights", "decoder": "weights"}),
        ([STATE, SLOTS], {"0": "weights", "1": "optimizer"}),
        ({"state_dict": STATE, "optimizer_states": [SLOTS]},
         {"state_dict": "weights", "optimizer_states": "optimizer"}),
        ({"model": STATE, "rng_state": RANDOM}, {"model": "weights", "rng_state": "other"}),
        ({"model": STATE, "cuda_rng_state": [RANDOM]}, {"model": "weights", "cuda_rng_state": "other"}),
        ({"model": STATE, "best_loss": np.array(0.5)}, {"model": "weights", "best_loss": "other"}),
        ({"model": STATE, "history": {"loss": np.ones(9)}}, {"model": "weights", "history": "other"}),
        ({"model_weights": TREE, "optimizer_weights": {"0": np.ones(2)}},
         {"model_weights": "weights", "optimizer_weights": "optimizer"}),
        (SLOTS, {"": "optimizer"}),
        ({"a": np.ones(2), "b": {"c": np.ones(3)}}, {"": "weights"}),
        ({"w": np.ones(2)}, {"": "weights"}),
        ({}, {}),
    ],
)  # fmt: skip
def test_a_part_is_what_it_contains(tree: object, expected: dict[str, str]) -> None:
    found = kinds(tree)
    assert {name: found.get(name) for name in expected} == expected
    assert set(found) <= set(expected) or all(found[name] == "other" for name in set(found) - set(expected))


def test_names_inside_of_a_part_are_those_of_the_state_dict() -> None:
    (model,) = (part for part in find_parts({"model": STATE, "optimizer": SLOTS}) if part.kind == "weights")
    assert list(model.arrays) == list(STATE)


@pytest.mark.parametrize("key", ["options", "optical_encoder", "optimum", "adopt"])
def test_a_word_that_begins_like_an_optimizer_is_none(key: str) -> None:
    assert kinds({key: {"a": {"kernel": np.ones(2)}}, "step": 1})[key] == "weights"


@pytest.mark.parametrize("key", ["model" + "1" * 5000 + "!", "opt" + "_1" * 3000 + "!", "ema_" * 3000 + "x"])
def test_no_name_takes_long_to_understand(key: str) -> None:
    assert len(find_parts({key: {"a": {"kernel": np.ones(2)}}, "step": 1})) == 1


def test_a_nested_mapping_of_weights_is_no_training_run() -> None:
    assert not is_run(TREE)
    assert not is_run({"model": TREE})
    assert is_run({"model": STATE})
    assert is_run({"w": TREE, "optimizer": SLOTS})


def test_many_parts_are_shown_in_few_lines() -> None:
    parts = find_parts({f"model_{i}": STATE for i in range(200)})
    assert len(parts) == 200
    assert len(show_parts(parts).splitlines()) == 31


def test_a_tree_that_is_too_deep_ends() -> None:
    tree: object = np.ones(2)
    for _ in range(500):
        tree = {"a": tree}
    assert kinds(tree) in ({}, {"": "weights"})
