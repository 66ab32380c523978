"""Tied parameters in selections: each of their names selects them, and names that contradict each other are refused."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw


def tied_mapping() -> dict[str, np.ndarray]:
    table = np.ones((9, 4), np.float32)
    return {"emb/embeddings": table, "mid/kernel": np.ones((4, 4), np.float32), "lm_head/kernel": table}


def tied_module():
    torch = pytest.importorskip("torch", reason="torch isn't installed")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = torch.nn.Embedding(9, 4)
            self.mid = torch.nn.Linear(4, 4, bias=False)
            self.lm_head = torch.nn.Linear(4, 9, bias=False)
            self.lm_head.weight = self.emb.weight

    return Net()


TARGETS = {"arrays": tied_mapping, "module": tied_module}
tied_targets = pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)


def names(target, where) -> list[str]:
    return [p.name for p in xw.parameters(target, where=where)]


@tied_targets
@pytest.mark.parametrize(
    "where",
    ["lm_head/kernel", "lm_head/*", xw.native("lm_head*"), xw.layer("lm_head"), "emb/*", xw.layer("emb"), xw.layer(0)],
    ids=repr,
)
def test_every_name_selects_the_array(make, where):
    assert names(make(), where) == ["emb/embeddings"]


def test_a_native_name_in_full_selects_the_array_too():
    assert names(tied_module(), "lm_head.weight") == ["emb/embeddings"]
    assert names(tied_module(), xw.native("lm_head.weight")) == ["emb/embeddings"]


@tied_targets
@pytest.mark.parametrize(
    "where",
    [
        ~xw.native("lm_head*"),
        ~xw.native("emb*"),
        ~xw.layer("lm_head"),
        ... & ~xw.layer("emb"),
        "emb/*" & ~xw.native("lm_head*"),
        xw.trainable() & ~xw.native("lm_head*"),
        ["mid/*", "emb/*" & ~xw.layer("lm_head")],
    ],
    ids=repr,
)
def test_taken_by_one_name_and_left_out_by_another_is_refused_with_both_names(make, where):
    with pytest.raises(xw.SelectionError, match="by one of its names, and leaves it out by another") as caught:
        names(make(), where)
    assert "'emb/embeddings'" in str(caught.value)
    assert "'lm_head/kernel'" in str(caught.value)


@tied_targets
def test_both_ways_out_work_as_they_are_written(make):
    target = make()
    where = ~xw.native("lm_head*")
    with pytest.raises(xw.SelectionError) as caught:
        names(target, where)
    fix = next(line for line in str(caught.value).splitlines() if line.startswith("Fix: "))
    take, leave = fix.removeprefix("Fix: ").split(", ")
    namespace = {"xweights": xw, "where": where}
    assert names(target, eval(take.removesuffix(" takes it"), namespace)) == ["emb/embeddings", "mid/kernel"]
    assert names(target, eval(leave.removesuffix(" leaves it out"), namespace)) == ["mid/kernel"]


@tied_targets
@pytest.mark.parametrize(
    ("where", "selected"),
    [
        (~xw.native("*mid*"), ["emb/embeddings"]),
        ("mid/*" & ~xw.native("lm_head*"), ["mid/kernel"]),
        (~xw.role("embeddings"), ["mid/kernel"]),
        (~xw.layer(0), ["mid/kernel"]),
        (~xw.layer(-1), ["emb/embeddings"]),
        (~(xw.native("lm_head*") | "emb/*"), ["mid/kernel"]),
        (~xw.native("lm_head*") | "emb/*", ["emb/embeddings", "mid/kernel"]),
        (~~xw.native("lm_head*"), ["emb/embeddings"]),
    ],
    ids=repr,
)
def test_names_that_agree_are_no_contradiction(make, where, selected):
    assert names(make(), where) == selected


@tied_targets
def test_a_parameter_given_as_an_object_is_the_array_whatever_its_names(make):
    target = make()
    table = xw.parameters(target, where="emb/embeddings")[0]
    assert names(target, ... & ~(table | xw.native("lm_head*"))) == ["mid/kernel"]
    assert names(target, xw.trainable() & ~(xw.role("none") | table)) == ["mid/kernel"]


def test_freezing_all_but_a_tied_head_is_refused_and_freezes_nothing():
    model = tied_module()
    with pytest.raises(xw.SelectionError):
        xw.freeze(model, where=~xw.native("lm_head*"))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_list_of_models_that_share_an_array_has_all_its_names():
    model = tied_module()
    assert names([model.mid, model.emb, model.lm_head], xw.native("weight") & "2/*") == ["1/embeddings"]
    with pytest.raises(xw.SelectionError, match="leaves it out"):
        names([model.emb, model.lm_head, model.mid], ... & ~xw.layer("1"))


def test_a_tied_array_of_a_file_is_known_by_every_name(tmp_path):
    torch = pytest.importorskip("torch", reason="torch isn't installed")
    path = str(tmp_path / "tied.pt")
    torch.save(tied_module().state_dict(), path)
    first = names(path, xw.native("lm_head*"))
    assert first == names(path, xw.native("emb*"))
    with pytest.raises(xw.SelectionError, match="leaves it out"):
        names(path, ~xw.native("lm_head*"))


def test_a_tied_variable_of_a_tensorflow_module_is_known_by_every_path():
    tf = pytest.importorskip("tensorflow", reason="TensorFlow isn't installed")
    module = tf.Module()
    module.emb = tf.Variable(np.ones((9, 4), np.float32))
    module.mid = tf.Variable(np.ones((4, 4), np.float32))
    module.head = {"w": module.emb}
    assert names(module, xw.native("head['w']")) == ["emb"]
    with pytest.raises(xw.SelectionError, match="leaves it out"):
        names(module, ~xw.native("head*"))
