"""Samples for models of keras_hub, and the same numbers under the names of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xweights.errors import ArgumentError, got_expected
from xweights_keras.hub.families import Family

# Tokens of a drawn sample: numbers below this one are often special (padding changes masks and positions).
_FIRST, _LENGTH = 3, 11
# A window of attention up to this size is exceeded by the sample, so that it is proved too.
_LARGEST_WINDOW = 128


def draw_sample(family: Family, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Any:
    """Return what a backbone is called with: random tokens or pixels, without padding."""
    draw = np.random.default_rng(0)
    special = {theirs.get(name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    size = int(ours.get("vocabulary_size", 0))
    allowed = [number for number in range(min(_FIRST, size - 1), size) if number not in special] if size else []

    def tokens(length: int) -> Any:
        return draw.choice(np.asarray(allowed[: 1 << 20], "int32"), (2, length))

    if "images" in family.inputs:
        return draw.normal(size=(2, *ours["image_shape"])).astype("float32")
    sample: dict[str, Any] = {}
    window = int(ours.get("sliding_window") or ours.get("sliding_window_size") or 0)
    usual = window + 3 if _LENGTH <= window <= _LARGEST_WINDOW else _LENGTH
    longest = int(ours.get("max_sequence_length", ours.get("max_decoder_sequence_length", usual)))
    for prefix, length in (("", usual), ("encoder_", _LENGTH), ("decoder_", _LENGTH - 2)):
        if f"{prefix}token_ids" in family.inputs and not (prefix == "encoder_" and "encoder_features" in family.inputs):
            sample[f"{prefix}token_ids"] = tokens(min(length, longest))
            sample[f"{prefix}padding_mask"] = np.ones_like(sample[f"{prefix}token_ids"])
    if "encoder_features" in family.inputs:
        shape = (2, int(ours["max_encoder_sequence_length"]), int(ours["num_mels"]))
        sample["encoder_features"] = draw.normal(size=shape).astype("float32")
    if "num_segments" in ours:
        sample["segment_ids"] = draw.integers(0, int(ours["num_segments"]), sample["token_ids"].shape).astype("int32")
    return sample


def convert_sample(family: Family, sample: Any) -> dict[str, Any]:
    """Return a sample of keras_hub as transformers is called; raise ArgumentError."""
    if not isinstance(sample, Mapping):
        (name,) = family.inputs if len(family.inputs) == 1 else ("",)
        if not name:
            raise ArgumentError(
                f"sample= is what the keras_hub model is called with\n"
                f"{got_expected(type(sample).__name__, 'a dict with ' + ', '.join(family.inputs))}"
            )
        sample = {name: sample}
    unknown = [name for name in sample if name not in family.inputs]
    if unknown:
        raise ArgumentError(
            f"sample= has inputs that a {family.backbone} doesn't have\n"
            f"{got_expected(', '.join(map(str, unknown)), ', '.join(family.inputs))}"
        )
    converted = {}
    for name, value in sample.items():
        array = np.asarray(value)
        if name == "images":
            array = np.moveaxis(array, -1, 1).copy()
        elif name == "encoder_features":
            array = array.transpose(0, 2, 1).copy()
        elif array.dtype.kind in "iub":
            array = array.astype("int64")
        converted[family.inputs[name]] = array
    if "encoder_features" in sample:
        converted.pop("decoder_attention_mask", None)  # a causal mask is what both have
    return converted
