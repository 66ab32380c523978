"""Models of different vocabularies merge by their tokens, and others by the adapters of ``adapt=``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw

A = xw.adapt
AXES = {"embed/embeddings": ("vocab", "dim"), "head/kernel": ("in", "out")}
FIRST, SECOND, THIRD = ["<s>", "a", "b", "c"], ["<s>", "c", "a"], ["b", "<s>", "x", "a", "c"]


def model(tokens: list[str], seed: int, shift: float = 0.0) -> xw.Params:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(len(tokens), 2)).astype(np.float32) + np.float32(shift)
    arrays = {"embed/embeddings": table, "mid/kernel": rng.normal(size=(2, 2)).astype(np.float32)}
    return xw.Params({**arrays, "head/kernel": table.T.copy()}, axes=AXES)


def matched(tokens: list[str], *, init: str = "keep") -> dict[str, Any]:
    """Return the adapters for a target of these tokens."""
    rows = {"old": tokens, "new": FIRST, "init": init}
    return {"embed/*": A.Rows(**rows), "head/kernel": A.Rows(**rows, axis="out")}


A1, B1, C1 = model(FIRST, 0), model(SECOND, 1), model(THIRD, 2)


def row(params: xw.Params, tokens: list[str], token: str) -> np.ndarray:
    return params["embed/embeddings"][tokens.index(token)].astype(np.float64)


def test_rows_in_common_are_averaged_and_the_first_ones_others_stay() -> None:
    merged = xw.merge([A1, B1], adapt=matched(SECOND))
    for token in FIRST:
        mine = row(A1, FIRST, token)
        expected = (mine + row(B1, SECOND, token)) / 2 if token in SECOND else mine
        assert np.array_equal(row(merged, FIRST, token), expected.astype(np.float32)), token
    assert np.array_equal(merged["head/kernel"], merged["embed/embeddings"].T)
    assert merged["embed/embeddings"].shape == (4, 2)


def test_each_target_may_have_its_own_vocabulary() -> None:
    merged = xw.merge([A1, B1, C1], weights=(1, 1, 2), adapt=[matched(SECOND), matched(THIRD)])
    for token in FIRST:
        rows = [row(A1, FIRST, token)]
        rows.append(row(B1, SECOND, token) if token in SECOND else rows[0])
        rows.append(row(C1, THIRD, token) if token in THIRD else rows[0])
        expected = (rows[0] + rows[1] + 2 * rows[2]) / 4
        assert np.allclose(row(merged, FIRST, token), expected, rtol=1e-6), token


def test_a_task_vector_is_taken_between_the_rows_of_one_token() -> None:
    base, tuned = model(SECOND, 5), model(SECOND, 6)
    first = model(FIRST, 7)
    options = {"weights": (0, 1)}
    merged = xw.merge([first, tuned], "task_arithmetic", base=base, adapt=matched(SECOND), **options)
    for token in SECOND:
        # The base is what a vector is added to, so that the first one's rows come back through weight 0.
        assert np.allclose(row(merged, FIRST, token), row(tuned, SECOND, token), atol=1e-6)
    assert np.array_equal(row(merged, FIRST, "b"), row(first, FIRST, "b").astype(np.float32))


def test_leave_keeps_the_first_ones_parameter_to_the_bit() -> None:
    left = {"embed/*": A.Leave(), "head/*": A.Leave()}
    for method, options in (("average", {}), ("lerp", {"t": 0.3}), ("slerp", {"t": 0.3})):
        merged = xw.merge([A1, B1], method, adapt=left, **options)
        if method != "slerp":
            assert merged["embed/embeddings"].tobytes() == A1["embed/embeddings"].tobytes()
        assert np.allclose(merged["embed/embeddings"], A1["embed/embeddings"], rtol=1e-6)
        assert not np.array_equal(merged["mid/kernel"], A1["mid/kernel"])
    headless = {name: B1[name] for name in ("mid/kernel",)}
    assert np.array_equal(xw.merge([A1, headless], adapt=left)["head/kernel"], A1["head/kernel"])


def test_files_are_merged_into_a_file_and_the_report_says_what_was_adapted(tmp_path: Path) -> None:
    for name, params in (("a", A1), ("b", B1)):
        xw.save(params, tmp_path / f"{name}.safetensors")
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    report = xw.merge(files, out=tmp_path / "out.safetensors", adapt=matched(SECOND))
    assert xw.equal(tmp_path / "out.safetensors", xw.merge([A1, B1], adapt=matched(SECOND)))
    assert isinstance(report, xw.MergeReport)
    assert set(report.adapted["target 1"]) == {"embed/embeddings", "head/kernel"}
    assert "'embed/embeddings': (3, 2) -> (4, 2) by Rows(old=3 tokens, new=4 tokens, init='keep'): 3" in str(report)
    assert report.as_dict()["adapted"]["target 1"]["head/kernel"][1:] == [[2, 3], [2, 4]]


def test_a_live_model_merges_with_a_state_dict_of_another_vocabulary(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    def network(vocabulary: int, seed: int) -> Any:
        torch.manual_seed(seed)
        parts = {"embed": torch.nn.Embedding(vocabulary, 2), "head": torch.nn.Linear(2, vocabulary, bias=False)}
        return torch.nn.ModuleDict(parts)

    first, second = network(4, 0), network(3, 1)
    expected = xw.merge([first, second], adapt=matched(SECOND))
    torch.save(second.state_dict(), tmp_path / "b.pt")
    assert xw.equal(xw.merge([first, tmp_path / "b.pt"], adapt=matched(SECOND)), expected)
    assert xw.equal(xw.merge([first, dict(second.state_dict())], layout="native", adapt=matched(SECOND)), expected)
    with pytest.raises(xw.LayoutError, match="no axis names"):
        xw.merge([first, dict(second.state_dict())], adapt=matched(SECOND))
    xw.merge([first, second], into=first, adapt=matched(SECOND))
    assert xw.equal(first, expected)


def test_other_shapes_without_adapt_are_refused_with_the_line_that_fits() -> None:
    with pytest.raises(xw.ShapeError, match=r"Fix: adapt=\{'embed/embeddings': xweights.adapt.Rows\(old=its tokens"):
        xw.merge([A1, B1])


@pytest.mark.parametrize(
    ("adapt", "kind", "text"),
    [
        ({"nothing": A.Rows()}, xw.SelectionError, "'nothing'"),
        ([None, None], xw.ArgumentError, "a mapping \\(or None\\) for each target"),
        ({"embed/*": A.Rows(SECOND, ["z"], init="keep"), "head/*": A.Leave()}, xw.SelectionError, "no token in common"),
        ({"embed/*": A.Sum("vocab"), "head/*": A.Leave()}, xw.ShapeError, "target 1: Sum"),
        ({"embed/*": "rows"}, xw.ArgumentError, "needs an adapter"),
        ({"mid/kernel": A.Rows(), **matched(SECOND)}, xw.LayoutError, "axis=0"),
    ],
)
def test_what_can_not_be_adapted_is_refused_by_name(adapt: Any, kind: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=text):
        xw.merge([A1, B1], adapt=adapt, out=tmp_path / "out.npz")
    assert not list(tmp_path.iterdir())
