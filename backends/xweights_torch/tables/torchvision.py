"""Layers of torchvision 0.28, and the arrays that its models hold by themselves."""

from __future__ import annotations

from xweights_torch.tables import Row
from xweights_torch.tables.common import (
    BIAS,
    CHANNEL_SCALE,
    HEAD_SCALE,
    LAYER_NORM,
    POSITIONS,
    RELATIVE_BIAS,
    RELATIVE_DIM,
    STATISTICS,
    TOKEN,
)

LAYERS: dict[str, dict[str, Row]] = {
    "DeformConv2d": {"weight": Row("kernel", "out in h w -> h w in out"), "bias": BIAS},
    "FrozenBatchNorm2d": LAYER_NORM | STATISTICS,
}

FREE: dict[str, tuple[str, str]] = {
    "class_token": TOKEN,
    **dict.fromkeys(["pos_embedding", "spatial_pos", "temporal_pos", "class_pos"], POSITIONS),
    **dict.fromkeys(["rel_pos_h", "rel_pos_w", "rel_pos_t"], RELATIVE_DIM),
    "relative_position_bias_table": RELATIVE_BIAS,
    "logit_scale": HEAD_SCALE,
    "layer_scale": CHANNEL_SCALE,
    "scale_weight": CHANNEL_SCALE,
}
