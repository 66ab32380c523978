"""Further names of one array in a file: tied weights."""

from __future__ import annotations

import json

import numpy as np
import pytest

import xweights as xw
from xweights.errors import RefusedFileError
from xweights.files.io.arrays_to_write import ArrayToWrite
from xweights.files.save import write_arrays


def array(key, aliases=()):
    value = np.arange(4, dtype=np.float32)
    return ArrayToWrite(key, value.dtype, value.shape, None, lambda: [value], aliases)


def header_of(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


@pytest.mark.parametrize("ending", ["pt", "safetensors", "safetensors.index.json"])
def test_an_array_with_further_names_is_one_parameter_with_aliases(ending, tmp_path):
    path = tmp_path / f"w.{ending}"
    write_arrays([array("a", ("b", "c")), array("d")], path)
    with xw.load(path) as checkpoint:
        assert {p.name: p.aliases for p in xw.parameters(checkpoint)} == {"a": ("b", "c"), "d": ()}
        np.testing.assert_array_equal(checkpoint["b"], np.arange(4, dtype=np.float32))


def test_a_name_of_two_arrays_is_refused(tmp_path):
    with pytest.raises(RefusedFileError, match="two arrays would have this key"):
        write_arrays([array("a", ("b",)), array("b")], tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_texts_that_name_no_array_are_no_aliases_and_those_of_the_user_stay(tmp_path):
    path = tmp_path / "w.safetensors"
    write_arrays([array("a", ("b",)), array("d")], path, metadata={"author": "someone", "d": "a", "b": "mine"})
    assert header_of(path)["__metadata__"] == {"author": "someone", "d": "a", "b": "mine"}
    with xw.load(path) as checkpoint:
        assert all(p.aliases == () for p in xw.parameters(checkpoint))


def test_a_selection_of_a_file_under_its_neutral_names_has_no_further_keys(tmp_path):
    write_arrays([array("a", ("b",)), array("d")], tmp_path / "w.pt")
    with xw.load(tmp_path / "w.pt") as checkpoint:
        xw.save(xw.get_params(checkpoint), tmp_path / "n.safetensors")
    assert set(header_of(tmp_path / "n.safetensors")) - {"__metadata__"} == {"a", "d"}
