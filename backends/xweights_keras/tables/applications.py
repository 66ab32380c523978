"""Layers of keras.applications that aren't among Keras' own."""

from __future__ import annotations

from xweights.core.package_tables import Row

LAYERS: dict[str, dict[str, Row]] = {
    # ConvNeXt's; its variable has no name of its own.
    "LayerScale": {"gamma": Row("gamma", "channel", "scale")},
}
