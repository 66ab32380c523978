"""Encoders with decoders: keras_hub's backbones against transformers', in small configurations."""

import importlib

import numpy as np

from pairs.hub import HUB, backbone, hub
from pairs.making import Twins, floats, numbers, pair

BOTH = {"last_hidden_state": "decoder_sequence_output", "encoder_last_hidden_state": "encoder_sequence_output"}


def two_sequences(ours, theirs, here, there, convert=None):
    """Twins whose outputs are the decoder's and the encoder's sequences, by name."""
    order = list(ours.output) if isinstance(ours.output, dict) else []
    swapped = bool(order) and order[0] == "encoder_sequence_output"
    return Twins(
        ours,
        theirs,
        here,
        there,
        keras_outputs=lambda a: a[::-1] if swapped else a,
        torch_outputs=lambda a: [a[0], a[-1]],
        to_torch={"outputs": BOTH},
        to_keras={"outputs": {ours: theirs for theirs, ours in BOTH.items()}},
        convert=convert,
    )


def two_texts():
    ids, more = numbers(100, 2, 9, low=3), numbers(100, 2, 7, low=3, seed=9)
    here = {
        "encoder_token_ids": ids,
        "encoder_padding_mask": np.ones_like(ids),
        "decoder_token_ids": more,
        "decoder_padding_mask": np.ones_like(more),
    }
    names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    return here, {name: value.astype("int64") for name, value in zip(names, here.values(), strict=True)}


@pair("keras_hub BART", "transformers BartModel", needs=HUB)
def bart():
    """Tables of positions with two rows more in transformers; one table of tokens for both halves."""
    from transformers import BartConfig, BartModel

    config = BartConfig(
        vocab_size=100,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=32,
        use_cache=False,
    )
    ours, convert = hub("bart", config)
    return two_sequences(ours, BartModel(config), *two_texts(), convert)


@pair("keras_hub T5, gated", "transformers T5Model (v1.1)", needs=HUB)
def t5_gated():
    from transformers import T5Config, T5Model

    config = T5Config(
        vocab_size=100,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        use_cache=False,
    )
    tanh = importlib.import_module("keras_hub.src.utils.keras_utils").gelu_approximate  # as "gated-gelu" is
    ours = backbone("T5")(
        vocabulary_size=100,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        intermediate_dim=64,
        key_value_dim=8,
        activation=tanh,
        use_gated_activation=True,
    )
    return two_sequences(ours, T5Model(config), *two_texts())


@pair("keras_hub Whisper", "transformers WhisperModel", needs=HUB)
def whisper():
    from transformers import WhisperConfig, WhisperModel

    ours = backbone("Whisper")(
        vocabulary_size=100,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        intermediate_dim=64,
        num_mels=8,
        max_encoder_sequence_length=24,
        max_decoder_sequence_length=16,
    )
    config = WhisperConfig(
        vocab_size=100,
        num_mel_bins=8,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=12,
        max_target_positions=16,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    sound, ids = floats(2, 24, 8), numbers(100, 2, 7, low=3)
    here = {"encoder_features": sound, "decoder_token_ids": ids, "decoder_padding_mask": np.ones_like(ids)}
    there = {"input_features": sound.transpose(0, 2, 1).copy(), "decoder_input_ids": ids.astype("int64")}
    return two_sequences(ours, WhisperModel(config), here, there)
