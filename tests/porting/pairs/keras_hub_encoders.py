"""Encoders of text: keras_hub's backbones against transformers', in small configurations."""

import importlib

from pairs.hub import HUB, SMALL, backbone, hub, text
from pairs.making import pair


@pair("keras_hub BERT, gelu by tanh", "transformers BertModel, exact gelu", needs=HUB, different="gelu")
def bert():
    from transformers import BertConfig, BertModel

    config = BertConfig(**SMALL)
    ours, convert = hub("bert", config)
    return text(ours, BertModel(config), segments=True, convert=convert)


@pair("keras_hub RoBERTa", "transformers RobertaModel", needs=HUB)
def roberta():
    """The table of positions has two rows more in transformers."""
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(**{**SMALL, "max_position_embeddings": 34}, type_vocab_size=1, layer_norm_eps=1e-5)
    ours, _ = hub("roberta", config)
    return text(ours, RobertaModel(config, add_pooling_layer=False), first=True)


@pair("keras_hub XLM-RoBERTa", "transformers XLMRobertaModel", needs=HUB)
def xlm_roberta():
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(**{**SMALL, "max_position_embeddings": 34}, type_vocab_size=1, layer_norm_eps=1e-5)
    ours, _ = hub("xlm_roberta", config)
    return text(ours, XLMRobertaModel(config, add_pooling_layer=False), first=True)


@pair("keras_hub DistilBERT", "transformers DistilBertModel", needs=HUB)
def distilbert():
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=32)
    ours, convert = hub("distilbert", config)
    return text(ours, DistilBertModel(config), convert=convert)


@pair("keras_hub ALBERT", "transformers AlbertModel", needs=HUB)
def albert():
    """One group of layers that is called twice."""
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(**SMALL, embedding_size=16, hidden_act="gelu_new")
    ours, convert = hub("albert", config)
    return text(ours, AlbertModel(config), segments=True, convert=convert)


@pair("keras_hub ELECTRA", "transformers ElectraModel", needs=HUB, different="gelu")
def electra():
    """keras_hub has a pooler, transformers none, and the gelu is another one (as of BERT)."""
    from transformers import ElectraConfig, ElectraModel

    ours = backbone("Electra")(
        vocab_size=100,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        embedding_dim=16,
        intermediate_dim=64,
        max_sequence_length=32,
    )
    return text(
        ours,
        ElectraModel(ElectraConfig(**SMALL, embedding_size=16)),
        segments=True,
        to_torch={"outputs": {"last_hidden_state": "sequence_output"}},
        to_keras={"outputs": {"sequence_output": "last_hidden_state"}},
    )


@pair("keras_hub ESM", "transformers EsmModel", needs=HUB)
def esm():
    from transformers import EsmConfig, EsmModel

    config = EsmConfig(**SMALL, position_embedding_type="rotary", pad_token_id=1, mask_token_id=2, token_dropout=False)
    ours, convert = hub("esm", config)
    return text(ours, EsmModel(config, add_pooling_layer=False), convert=convert, first=True)


@pair("keras_hub FNet", "transformers FNetModel", needs=HUB)
def fnet():
    from transformers import FNetConfig, FNetModel

    settings = {key: value for key, value in SMALL.items() if key != "num_attention_heads"}
    ours = backbone("FNet")(
        vocabulary_size=100, num_layers=2, hidden_dim=32, intermediate_dim=64, max_sequence_length=32
    )
    found = text(ours, FNetModel(FNetConfig(**settings, type_vocab_size=4)), segments=True)
    del found.torch_x["attention_mask"]
    return found


@pair("keras_hub DeBERTa-v3", "transformers DebertaV2Model", needs=HUB)
def deberta_v3():
    from transformers import DebertaV2Config, DebertaV2Model

    ours = backbone("DebertaV3")(
        vocabulary_size=100,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        intermediate_dim=64,
        max_sequence_length=32,
        bucket_size=16,
    )
    config = DebertaV2Config(
        **SMALL,
        relative_attention=True,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type="p2c|c2p",
        position_biased_input=False,
        type_vocab_size=0,
    )
    return text(ours, DebertaV2Model(config))


@pair("keras_hub CLIP's text encoder", "transformers CLIPTextModel", needs=HUB)
def clip_text():
    from transformers import CLIPTextConfig, CLIPTextModel

    encoder = importlib.import_module("keras_hub.src.models.clip.clip_text_encoder").CLIPTextEncoder
    ours = encoder(100, 32, 32, 2, 4, 64, max_sequence_length=9)
    config = CLIPTextConfig(**{**SMALL, "max_position_embeddings": 9}, eos_token_id=99, bos_token_id=98, pad_token_id=1)
    found = text(ours, CLIPTextModel(config), first=True)
    del found.torch_x["attention_mask"]
    return found
