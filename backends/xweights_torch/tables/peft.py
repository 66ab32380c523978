"""Adapters of PEFT 0.21: the factors of a linear LoRA are linear layers, those of an embedding free arrays."""

from __future__ import annotations

from xweights_torch.tables import Row

LAYERS: dict[str, dict[str, Row]] = {
    "DoraLinearLayer": {"weight": Row("scale", "out")},
}

FREE: dict[str, tuple[str, str]] = {
    # Of an embedding: B holds what a linear layer's B does, A a row for each entry of the vocabulary.
    "lora_embedding_A": ("lora_embeddings_a", "rank vocab -> vocab rank"),
    "lora_embedding_B": ("lora_embeddings_b", "dim rank -> rank dim"),
    # (IA)3 multiplies the features before or after a layer.
    "ia3_l": ("scale", "out 1 | 1 out"),
    "vera_lambda_b": ("scale", "out"),
    "vera_lambda_d": ("scale", "rank"),
}
