"""Layers of keras_cv 0.9, the package of image models before keras_hub took them over."""

from __future__ import annotations

from xweights.core.package_tables import Row

LAYERS: dict[str, dict[str, Row]] = {
    "AddRelativePositionalEmbedding": {
        name: Row(name, "position dim", "position_embeddings") for name in ("rel_pos_h", "rel_pos_w")
    },
    "AddPositionalEmbedding": {"pos_embed": Row("pos_embed", "batch h w dim", "position_embeddings")},
    "PatchingAndEmbedding": {"class_token": Row("class_token", "batch token dim", "token")},
    "CLIPPatchingAndEmbedding": {
        "class_embedding": Row("class_embedding", "dim", "token"),
        "positional_embedding": Row("positional_embedding", "position dim", "position_embeddings"),
    },
    "CLIPHead": {"logit_scale": Row("logit_scale", "", "scale")},
    "VideoSwinWindowAttention": {
        "relative_position_bias_table": Row("relative_position_bias_table", "position head", "relative_position_bias")
    },
    "RandomFrequencyPositionalEmbeddings": {
        "positional_encoding_gaussian_matrix": Row("positional_encoding_gaussian_matrix", "axis dim", "frequencies")
    },
}
