"""Which layers of the source take part in a port, and what the report says of the others."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw

torch = pytest.importorskip("torch", reason="the twins are of torch")
nn = torch.nn


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        x = torch.relu(self.trunk(x))
        return self.first(x), self.second(x)


class OneHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.relu(self.trunk(x)))


@pytest.fixture
def sample():
    return np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


@pytest.mark.parametrize(("chosen", "other"), [("first", "second"), ("second", "first")])
def test_only_the_chosen_layers_of_the_source_are_used_and_the_others_are_listed(sample, chosen, other):
    source, target = TwoHeads(), OneHead()
    report = xw.port(source, target, sample=sample, where_source=["trunk/*", f"{chosen}/*"])
    assert torch.equal(target.head.weight, getattr(source, chosen).weight)
    assert set(report.unused) == {f"{other}/kernel", f"{other}/bias"}
    assert f"{other}/kernel" in str(report)


def test_a_source_that_is_used_as_a_whole_has_nothing_unused(sample):
    source, target = OneHead(), OneHead()
    assert xw.port(source, target, sample=sample).unused == ()
    assert xw.port(source, OneHead()).unused == ()


def test_a_layer_that_takes_part_only_partly_is_refused(sample):
    source, target = TwoHeads(), OneHead()
    before = target.head.weight.detach().clone()
    with pytest.raises(xw.errors.SelectionError, match="where_source= takes a part of 'first'"):
        xw.port(source, target, sample=sample, where_source=["trunk/*", "first/kernel"])
    assert torch.equal(target.head.weight, before)


def test_a_target_whose_twin_does_not_take_part_is_refused(sample):
    with pytest.raises(xw.errors.PortError):
        xw.port(TwoHeads(), OneHead(), sample=sample, where_source=["first/*"])


def test_a_selection_that_matches_nothing_names_its_own_argument(sample):
    with pytest.raises(xw.errors.SelectionError, match=r"where_source='third/\*' selects nothing in the source"):
        xw.port(TwoHeads(), OneHead(), sample=sample, where_source="third/*")
