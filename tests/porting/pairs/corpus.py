"""Every pair, by family: importing this declares them all (the packages are imported by the pairs themselves)."""

from pairs import (  # noqa: F401
    keras_applications,
    keras_hub_both,
    keras_hub_decoders,
    keras_hub_encoders,
    keras_hub_images,
    tutorials_generative,
    tutorials_images,
    tutorials_sequences,
    tutorials_transformers,
)
from pairs.making import PAIRS

__all__ = ["PAIRS"]
