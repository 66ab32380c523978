"""What pairs of keras_hub and transformers share: settings, tokens, and keras_hub's converters.

keras_hub's own tables of settings and its own converters are used where it has them.
"""

import importlib

import numpy as np

from pairs.making import Twins, converter, numbers

HUB = ("keras_hub", "transformers")
SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
# Of decoders: no cache among the outputs, and no token that is special.
DECODER = {**SMALL, "use_cache": False, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}


def backbone(name):
    """The class of a keras_hub backbone."""
    return getattr(importlib.import_module("keras_hub").models, f"{name}Backbone")


def hub(name, config, **more):
    """A keras_hub backbone as its converter makes it of a config of transformers, and that converter."""
    module = f"keras_hub.src.utils.transformers.convert_{name}"
    made = importlib.import_module(module)
    settings = {"num_hidden_layers": getattr(config, "num_hidden_layers", None), **config.to_dict()}
    return made.backbone_cls(**{**made.convert_backbone_config(settings), **more}), converter(module, settings)


def sequences_first(found):
    return sorted(found, key=lambda a: -a.ndim)


def text(ours, theirs, *, segments=False, convert=None, first=False, positions=False, **more):
    """Twins that take token ids and a mask; `first`: only torch's first output has a twin."""
    ids = numbers(100, 2, 9, low=3)
    mask = np.ones_like(ids)
    here = {"token_ids": ids, "padding_mask": mask}
    there = {"input_ids": ids.astype("int64"), "attention_mask": mask.astype("int64")}
    if segments:
        here["segment_ids"] = numbers(2, *ids.shape, low=0)
        there["token_type_ids"] = here["segment_ids"].astype("int64")
    names = {i.name for i in ours.inputs}
    return Twins(
        ours,
        theirs,
        {name: value for name, value in here.items() if name in names},
        there,
        keras_outputs=sequences_first,
        torch_outputs=(lambda a: a[:1]) if first else sequences_first,
        convert=convert,
        **more,
    )
