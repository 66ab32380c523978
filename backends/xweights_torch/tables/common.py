"""Rows that tables of several packages share."""

from __future__ import annotations

from xweights_torch.tables import Row

SCALE = Row("scale", "channel | channel 1 1 | 1 channel 1 1 | 1 1 channel | 1 1 1 channel")
GAMMA = Row("gamma", "channel | channel 1 1 | 1 channel 1 1 | 1 1 channel | 1 1 1 channel | channel 1 1 1")
BETA = Row("beta", "channel | channel 1 1 | 1 channel 1 1 | 1 1 channel | 1 1 1 channel | channel 1 1 1")
BIAS = Row("bias", "out")

RMS_NORM = {"weight": SCALE, "bias": BETA}
LAYER_NORM = {"weight": GAMMA, "bias": BETA}
STATISTICS = {
    "running_mean": Row("moving_mean", "channel"),
    "running_var": Row("moving_variance", "channel"),
}
ROUTER = {"weight": Row("kernel", "out in -> in out"), "bias": BIAS}

# Experts in one array: an output is a number of one expert.
_EXPERT_OUT = ("expert", "out")


def expert_kernel(attribute: str, *, transposed: bool = False) -> Row:
    """Return the row of experts' kernels in one array: (expert, out, in), or (expert, in, out) if ``transposed``."""
    axes = "expert in out" if transposed else "expert out in -> expert in out"
    return Row(f"{attribute}/kernel", axes, outputs=_EXPERT_OUT)


def expert_bias(attribute: str) -> Row:
    """Return the row of experts' biases in one array."""
    return Row(f"{attribute.removesuffix('_bias')}/bias", "expert out")


TOKEN = ("token", "dim | token dim | batch token dim | batch frame token dim")
POSITIONS = (
    "position_embeddings",
    "dim | position dim | batch position dim | batch h w dim",
)
# Channels first, as a convolution's result that they are added to.
POSITION_MAP = ("position_embeddings", "batch dim h w -> batch h w dim | batch dim t h w -> batch t h w dim")
CHANNEL_SCALE = ("scale", "| channel | channel 1 1 | 1 channel 1 1 | 1 1 channel")
HEAD_SCALE = ("scale", "| head | head 1 1")
RELATIVE_BIAS = ("relative_position_bias", "position head")
RELATIVE_DIM = ("position_embeddings", "position dim")
SCALAR = ("scale", "| channel")
