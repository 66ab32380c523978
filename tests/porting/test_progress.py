"""The bar of a port: on a terminal it counts layers, elsewhere there is none."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

import xweights as xw
from xweights.porting.progress import hide_progress

torch = pytest.importorskip("torch", reason="needs torch")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def port(monkeypatch, stream):
    nets = [torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)) for _ in range(2)]
    monkeypatch.setattr(sys, "stderr", stream)
    assert xw.port(*nets, sample=np.eye(3, dtype="float32")).ok
    assert xw.verify(*nets, sample=np.eye(3, dtype="float32")).ok
    return stream.getvalue()


def test_a_bar_counts_the_layers_on_a_terminal(monkeypatch):
    shown = port(monkeypatch, Terminal())
    assert "running the target" in shown
    assert "2/2" in shown


def test_there_is_no_bar_in_a_pipe_and_none_inside_of_another(monkeypatch):
    assert port(monkeypatch, io.StringIO()) == ""
    with hide_progress():
        assert port(monkeypatch, Terminal()) == ""
