"""Decoders of text: keras_hub's backbones against transformers', in small configurations."""

from pairs.hub import DECODER, HUB, backbone, hub, text
from pairs.making import pair


@pair("keras_hub GPT-2", "transformers GPT2Model", needs=HUB)
def gpt2():
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=32, use_cache=False)
    ours, convert = hub("gpt2", config)
    return text(ours, GPT2Model(config), convert=convert)


@pair("keras_hub OPT", "transformers OPTModel", needs=HUB)
def opt():
    """The table of positions has two rows more in transformers."""
    from transformers import OPTConfig, OPTModel

    ours = backbone("OPT")(
        vocabulary_size=100, num_layers=2, num_heads=4, hidden_dim=32, intermediate_dim=64, max_sequence_length=32
    )
    settings = {key: value for key, value in DECODER.items() if key != "intermediate_size"}
    return text(ours, OPTModel(OPTConfig(**settings, ffn_dim=64, word_embed_proj_dim=32)))


@pair("keras_hub BLOOM", "transformers BloomModel", needs=HUB)
def bloom():
    """One matrix for query, key and value, interleaved by head, in transformers; ALiBi in both."""
    from transformers import BloomConfig, BloomModel

    ours = backbone("Bloom")(vocabulary_size=100, num_layers=2, num_heads=4, hidden_dim=32, intermediate_dim=128)
    return text(ours, BloomModel(BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=4, use_cache=False)))


@pair("keras_hub GPT-NeoX, gelu by tanh", "transformers GPTNeoXModel, exact gelu", needs=HUB, different="gelu")
def gpt_neox():
    from transformers import GPTNeoXConfig, GPTNeoXModel

    ours = backbone("GPTNeoX")(
        vocabulary_size=100, num_layers=2, num_heads=4, hidden_dim=32, intermediate_dim=64, rotary_percentage=0.5
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return text(ours, GPTNeoXModel(GPTNeoXConfig(**DECODER, rope_parameters=rope, rotary_pct=0.5)))


@pair("keras_hub Falcon", "transformers FalconModel", needs=HUB)
def falcon():
    from transformers import FalconConfig, FalconModel

    ours = backbone("Falcon")(
        vocabulary_size=100, num_layers=2, num_attention_heads=4, hidden_dim=32, intermediate_dim=128
    )
    config = FalconConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        alibi=True,
        bias=True,
        multi_query=False,
        parallel_attn=False,
        new_decoder_architecture=False,
        use_cache=False,
    )
    return text(ours, FalconModel(config))


@pair("keras_hub Llama", "transformers LlamaModel", needs=HUB)
def llama():
    from transformers import LlamaConfig, LlamaModel

    ours = backbone("Llama")(
        vocabulary_size=100,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
        layer_norm_epsilon=1e-6,
        tie_word_embeddings=True,
    )
    return text(ours, LlamaModel(LlamaConfig(**DECODER, num_key_value_heads=2)))


@pair("keras_hub Llama 3, untied", "transformers LlamaModel", needs=HUB)
def llama3_untied():
    """keras_hub keeps the head's matrix in the embedding, and the backbone never uses it."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(**DECODER, num_key_value_heads=1, tie_word_embeddings=False)
    ours, _ = hub("llama3", config)
    return text(ours, LlamaModel(config))


@pair("keras_hub Mistral", "transformers MistralModel", needs=HUB)
def mistral():
    from transformers import MistralConfig, MistralModel

    config = MistralConfig(**DECODER, num_key_value_heads=2, sliding_window=64, head_dim=8)
    ours, _ = hub("mistral", config)
    return text(ours, MistralModel(config))


@pair("keras_hub Mixtral", "transformers MixtralModel", needs=HUB)
def mixtral():
    """Experts in stacks on both sides, gate and up in one in transformers."""
    from transformers import MixtralConfig, MixtralModel

    config = MixtralConfig(**DECODER, num_key_value_heads=2, num_local_experts=4, sliding_window=64)
    ours, _ = hub("mixtral", config)
    return text(ours, MixtralModel(config), first=True)


@pair("keras_hub Qwen 2", "transformers Qwen2Model", needs=HUB)
def qwen2():
    from transformers import Qwen2Config, Qwen2Model

    config = Qwen2Config(**DECODER, num_key_value_heads=2, tie_word_embeddings=True)
    ours, convert = hub("qwen", config)
    return text(ours, Qwen2Model(config), convert=convert)


@pair("keras_hub Qwen 3", "transformers Qwen3Model", needs=HUB)
def qwen3():
    """With norms of query and key."""
    from transformers import Qwen3Config, Qwen3Model

    config = Qwen3Config(**DECODER, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True)
    ours, convert = hub("qwen3", config)
    return text(ours, Qwen3Model(config), convert=convert)


@pair("keras_hub Qwen MoE", "transformers Qwen2MoeModel", needs=HUB)
def qwen_moe():
    from transformers import Qwen2MoeConfig, Qwen2MoeModel

    config = Qwen2MoeConfig(
        **DECODER,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=48,
    )
    ours, _ = hub("qwen_moe", config)
    return text(ours, Qwen2MoeModel(config), first=True)


@pair("keras_hub SmolLM 3", "transformers SmolLM3Model", needs=HUB)
def smollm3():
    from transformers import SmolLM3Config, SmolLM3Model

    config = SmolLM3Config(**DECODER, num_key_value_heads=2, tie_word_embeddings=True)
    ours, convert = hub("smollm3", config)
    return text(ours, SmolLM3Model(config), convert=convert)


@pair("keras_hub Gemma", "transformers GemmaModel", needs=HUB)
def gemma():
    from transformers import GemmaConfig, GemmaModel

    config = GemmaConfig(**DECODER, num_key_value_heads=1, head_dim=8)
    ours, convert = hub("gemma", config)
    return text(ours, GemmaModel(config), convert=convert)


@pair("keras_hub Gemma 2", "transformers Gemma2Model", needs=HUB)
def gemma2():
    """Norms behind attention and feed-forward, soft caps, windows in every other layer."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(**DECODER, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=64)
    ours, convert = hub("gemma", config)
    return text(ours, Gemma2Model(config), convert=convert)


@pair("keras_hub Phi-3", "transformers Phi3Model", needs=HUB)
def phi3():
    from transformers import Phi3Config, Phi3Model

    ours = backbone("Phi3")(
        vocabulary_size=100,
        num_layers=2,
        hidden_dim=32,
        intermediate_dim=64,
        num_query_heads=4,
        num_key_value_heads=4,
        layer_norm_epsilon=1e-5,
        max_sequence_length=32,
        pretraining_sequence_length=32,
    )
    return text(ours, Phi3Model(Phi3Config(**DECODER, original_max_position_embeddings=32)))
