"""Binding: select and check once, then edit again and again."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw


def model() -> dict[str, np.ndarray]:
    return {"a/kernel": np.array([[-3.0, 4.0]]), "b/kernel": np.array([[0.5, 12.0]])}


RULES = {
    "clip": xw.Clip(-1, 0),
    "scale": xw.Scale(0.9),
    "add": xw.Add(np.array([1.0, 2.0])),
    "fill": xw.Fill(0.5),
    "mask": xw.Mask(np.array([True, False])),
    "non-negative": xw.NonNegative(),
    "max norm": xw.MaxNorm(1.0, "out"),
    "unit norm": xw.UnitNorm("in"),
    "clip norm": xw.ClipNorm(1.0),
    "clip norm, global": xw.ClipNorm(1.0, "global"),
    "spectral norm": xw.SpectralNorm(1.0),
    "entries": xw.SetEntries((0, 1), 9.0),
    "prune": xw.Prune(fraction=0.5),
    "prune, global": xw.Prune(count=1, scope="global"),
    "init": xw.Init("normal", 3),
    "function": lambda w: w * 2 + 1,
}


@pytest.mark.parametrize("rule", RULES)
def test_a_bound_rule_does_what_the_rule_does_each_time(rule: str) -> None:
    axes = dict.fromkeys(model(), ("in", "out"))
    bound_target, target = xw.Params(model(), axes=axes), xw.Params(model(), axes=axes)
    homes = dict(bound_target)
    step = xw.bind(bound_target, RULES[rule], where="*/kernel")
    for _ in range(2):
        step()
        xw.apply(target, RULES[rule], where="*/kernel")
        assert xw.equal(bound_target, target)
    assert all(bound_target[name] is homes[name] for name in homes)


def test_everything_is_checked_when_it_is_bound() -> None:
    target = model()
    with pytest.raises(xw.ShapeError):
        xw.bind(target, xw.Add(np.ones(5)), where=...)
    with pytest.raises(xw.SelectionError):
        xw.bind(target, xw.Scale(2.0), where="nothing")
    target["a/kernel"].flags.writeable = False
    with pytest.raises(xw.WriteError):
        xw.bind(target, xw.Scale(2.0), where=...)


def test_a_bound_rule_shows_its_rule_and_parameters() -> None:
    step = xw.bind(model(), xw.Clip(-1, 1), where=...)
    assert repr(step) == "<Bound Clip(low=-1, high=1) on 2 parameters>"
    assert [p.name for p in step.parameters] == ["a/kernel", "b/kernel"]
    assert step.rule == step.rule


def test_a_random_rule_needs_a_draw_before_each_call() -> None:
    target = model()
    step = xw.bind(target, xw.Noise(0.1, seed=5), where=...)
    with pytest.raises(xw.StaleDrawError, match=r"bound\.draw\(step\)"):
        step()
    step.draw(3)
    step()
    expected = model()
    xw.noise(expected, 0.1, seed=5, step=3)
    assert xw.equal(target, expected)
    with pytest.raises(xw.StaleDrawError):
        step()
    step.draw(4)
    step()
    xw.noise(expected, 0.1, seed=5, step=4)
    assert xw.equal(target, expected)


def test_a_rule_that_draws_nothing_has_no_draw() -> None:
    with pytest.raises(xw.ArgumentError, match="draws nothing"):
        xw.bind(model(), xw.Scale(2.0), where=...).draw(1)


def test_a_step_that_is_no_whole_number_is_refused() -> None:
    with pytest.raises(xw.ArgumentError, match="step="):
        xw.bind(model(), xw.Noise(0.1), where=...).draw(1.5)


def test_parameters_bound_once_are_followed_through_writes_in_place() -> None:
    target = model()
    step = xw.bind(target, xw.Scale(2.0), where=...)
    xw.set_params(target, {name: np.ones((1, 2)) for name in target})
    step()
    assert target["a/kernel"].tolist() == [[2.0, 2.0]]


def test_a_bound_overflow_raises_nothing_where_numpy_is_set_to_raise() -> None:
    target = {"a": np.array([1e300])}
    step = xw.bind(target, xw.Scale(1e300), where=...)
    with np.errstate(all="raise"):
        step()
    assert target["a"][0] == np.inf


def test_a_rule_of_the_users_own_can_be_applied_and_bound() -> None:
    class Halve(xw.Rule):
        def operands(self, parameter):
            return (np.asarray(0.5, parameter.dtype),)

        def __call__(self, w, ops, parameter, half, shared=None):
            return ops.multiply(w, half)

    target = model()
    xw.apply(target, Halve(), where=...)
    xw.bind(target, Halve(), where=...)()
    assert target["a/kernel"].tolist() == [[-0.75, 1.0]]


def test_a_joint_rule_of_the_users_own_sees_all_before_any_is_changed() -> None:
    class Centre(xw.Rule):
        joint = True

        def measure(self, ws, ops, parameters, operands):
            return np.asarray(-sum(w.sum() for w in ws) / sum(w.size for w in ws))

        def __call__(self, w, ops, parameter, shared=None):
            return ops.add(w, shared)

    target, bound_target = model(), model()
    xw.apply(target, Centre(), where=...)
    xw.bind(bound_target, Centre(), where=...)()
    mean = np.concatenate([w.ravel() for w in model().values()]).mean()
    assert all(np.allclose(target[name], model()[name] - mean) for name in target)
    assert xw.equal(target, bound_target)


def test_a_rule_without_a_call_says_what_it_must_define() -> None:
    class Empty(xw.Rule):
        pass

    target = model()
    with pytest.raises(NotImplementedError, match="Empty must define __call__"):
        xw.apply(target, Empty(), where=...)


@pytest.mark.parametrize("rule", [xw.Fill(1.0), lambda w: w + 1])
def test_an_entry_of_a_mapping_that_was_replaced_is_not_written_unseen(rule) -> None:
    weights = {"a": np.zeros(3), "more": {"b": np.zeros(3)}}
    step = xw.bind(weights, rule, where=...)
    step()
    former = weights["more"]["b"]
    weights["more"]["b"] = np.full(3, 5.0)
    before = former.copy(), weights["a"].copy()
    with pytest.raises(xw.WriteError, match="'b' was replaced"):
        step()
    assert np.array_equal(former, before[0])
    assert np.array_equal(weights["a"], before[1])
