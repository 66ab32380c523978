"""Names of a file are read through wrappers' prefixes, and where one model is a part of the other."""

from __future__ import annotations

import pytest

from xweights.core.readings import Reading, find_readings, words_of

MODEL = ["emb.weight", "blocks.0.weight", "blocks.0.bias", "head.weight"]
WRAPPERS = [
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.",
    "model._orig_mod.module.",
    "a.b.c.",
]


def read(sources: list[str], targets: list[str] = MODEL) -> list[Reading]:
    return find_readings(sources, {name: position for position, name in enumerate(targets)})


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_a_stack_of_wrappers_is_seen_through_on_either_side(prefix: str) -> None:
    wrapped = [prefix + name for name in MODEL]
    (there,) = read(wrapped)
    assert there.pairs == dict(zip(MODEL, wrapped, strict=True))
    (back,) = read(MODEL, wrapped)
    assert back.pairs == dict(zip(wrapped, MODEL, strict=True))


def test_wrappers_inside_of_a_name_are_seen_through() -> None:
    inside = [name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.") for name in MODEL]
    (reading,) = read(inside)
    assert len(reading.pairs) == len(MODEL)


def test_both_sides_may_be_wrapped_in_something_of_their_own() -> None:
    (reading,) = read([f"model.net.{name}" for name in MODEL], [f"backbone.{name}" for name in MODEL])
    assert reading.pairs["backbone.emb.weight"] == "model.net.emb.weight"


def test_a_part_of_what_was_saved_and_a_whole_that_contains_it_are_found() -> None:
    (part,) = read(["encoder.emb.weight", *[f"encoder.{name}" for name in MODEL[1:]], "decoder.0.weight"])
    assert (part.source, len(part.pairs)) == (("encoder",), 4)
    (whole,) = read(MODEL, [*[f"encoder.{name}" for name in MODEL], "head2.bias"])
    assert (whole.target, len(whole.pairs)) == (("encoder",), 4)


def test_two_prefixes_that_fit_are_both_returned() -> None:
    readings = read([f"{side}.{name}" for side in ("q", "k") for name in MODEL])
    assert [reading.source for reading in readings] == [("q",), ("k",)]


def test_full_names_win_over_a_prefix() -> None:
    (reading,) = read([*MODEL, *[f"ema.{name}" for name in MODEL]])
    assert (reading.source, reading.pairs["emb.weight"]) == ((), "emb.weight")


def test_adapters_names_and_the_layers_they_wrap_are_seen_through() -> None:
    saved = ["base_model.model.h.lora_A.weight", "base_model.model.h.base_layer.weight"]
    live = ["base_model.model.h.lora_A.default.weight", "base_model.model.h.base_layer.weight"]
    (reading,) = read(saved, live)
    assert reading.pairs == dict(zip(live, saved, strict=True))
    (plain,) = read(live, ["h.weight"])
    assert plain.pairs == {"h.weight": "base_model.model.h.base_layer.weight"}


def test_two_names_that_differ_by_a_wrapper_alone_are_not_mixed_up() -> None:
    names = ["a.weight", "a.module.weight"]
    (reading,) = read(names, names)
    assert reading.pairs == {name: name for name in names}


def test_names_of_another_model_have_no_reading() -> None:
    assert read(["x.y", "z"]) == []


def test_slashes_and_dots_are_alike() -> None:
    assert words_of("a/b.c") == ("a", "b", "c")


def test_what_a_reading_makes_of_further_names_is_as_the_model_would_have_it() -> None:
    (reading,) = read([f"module.net.{name}" for name in MODEL])
    assert reading.rename("module.net.extra.weight_g") == "extra.weight_g"
    assert reading.rename("loss.weight") is None
