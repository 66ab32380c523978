"""keras_hub's families as folders of transformers, and back, with the libraries themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_models import SIZES, make_backbone

import xweights as xw

pytest.importorskip("keras_hub", reason="needs keras_hub, which CI doesn't have")
transformers = pytest.importorskip("transformers", reason="needs transformers")
pytestmark = pytest.mark.thorough
# Special tokens that a small vocabulary has, and what keras_hub's layers make otherwise than its class says.
MORE = {
    "Whisper": {"settings": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}},
    "Qwen3": {"ignore_settings": True},
}


def equal(one, other):
    return all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(one.weights, other.weights, strict=True))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SIZES)
def test_a_backbone_goes_to_transformers_and_comes_back_with_the_same_bits(name, tmp_path):
    backbone = make_backbone(name)
    report = xw.export_hf(backbone, tmp_path / "folder", **MORE.get(name, {}))
    assert report.max_error < 1e-4
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["config.json", "model.safetensors"]
    transformers.AutoModel.from_pretrained(tmp_path / "folder", local_files_only=True)
    again = xw.import_hf(tmp_path / "folder")
    assert equal(backbone, again)
    left_out = {"name", "head_dim"}  # None means what transformers writes as a number
    first, second = ({k: v for k, v in one.get_config().items() if k not in left_out} for one in (backbone, again))
    assert first == second


def test_a_causal_model_is_exported_with_its_head(tmp_path):
    import keras_hub

    backbone = make_backbone("Llama", tie_word_embeddings=False)
    task = keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)
    xw.export_hf(task, tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder", local_files_only=True)
    head = backbone.token_embedding.reverse_embeddings.numpy()
    assert np.array_equal(loaded.lm_head.weight.detach().numpy(), head.T)
    assert equal(backbone, xw.import_hf(tmp_path / "folder"))


def test_a_setting_that_keras_hub_lacks_is_refused_or_warned_of(tmp_path):
    xw.export_hf(make_backbone("Bert"), tmp_path / "folder")
    path = tmp_path / "folder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "gelu"}))
    with pytest.raises(xw.TargetError, match=r"(?s)hidden_act is gelu.*ignore_settings=True"):
        xw.import_hf(tmp_path / "folder")
    with pytest.warns(UserWarning, match="hidden_act is gelu"):
        assert equal(make_backbone("Bert"), xw.import_hf(tmp_path / "folder", ignore_settings=True))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{", xw.DamagedFileError),
        ("[1]", xw.DamagedFileError),
        ('{"model_type": 3}', xw.DamagedFileError),
        ('{"model_type": "no such"}', xw.TargetError),
        ('{"model_type": "bert", "hidden_size": "many"}', xw.XweightsError),
        ('{"model_type": "distilbert"}', xw.RefusedFileError),
    ],
)
def test_a_folder_that_isnt_what_it_says_is_refused_with_a_type(text, kind, tmp_path):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle, which is never opened")
    with pytest.raises(kind):
        xw.import_hf(tmp_path)


def test_a_shard_outside_of_the_folder_is_never_opened(tmp_path):
    xw.export_hf(make_backbone("Bert"), tmp_path / "folder")
    (tmp_path / "folder" / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"embeddings.LayerNorm.weight": "../model.safetensors"}}
    (tmp_path / "folder" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(xw.RefusedFileError, match="outside of the folder"):
        xw.import_hf(tmp_path / "folder")


def test_another_family_is_refused_with_the_known_ones(tmp_path):
    import keras_hub

    opt = keras_hub.models.OPTBackbone(
        vocabulary_size=50, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=16
    )
    with pytest.raises(xw.TargetError, match="BertBackbone, RobertaBackbone"):
        xw.export_hf(opt, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []
