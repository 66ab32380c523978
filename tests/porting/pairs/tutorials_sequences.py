"""Text, sound and time series as tutorials write them: recurrent and convolutional networks over time."""

import keras
import torch
import torch.nn.functional as f
from torch import nn

from pairs.making import Twins, floats, in_order, numbers, pair

layers = keras.layers


@pair("character RNN (Embedding, GRU, Dense)", "character RNN (Embedding, GRU, Linear)")
def char_rnn():
    ours = keras.Sequential(
        [
            keras.Input((15,), dtype="int32"),
            layers.Embedding(40, 16),
            layers.GRU(32, return_sequences=True),
            layers.Dense(40),
        ]
    )

    class CharRNN(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.rnn = nn.Embedding(40, 16), nn.GRU(16, 32, batch_first=True)
            self.decoder = nn.Linear(32, 40)

        def forward(self, x):
            return self.decoder(self.rnn(self.encoder(x))[0])

    return Twins(ours, CharRNN(), numbers(40, 2, 15), convert=in_order)


@pair("stacked LSTMs", "one nn.LSTM of two layers")
def stacked_lstm():
    ours = keras.Sequential(
        [keras.Input((12, 4)), layers.LSTM(16, return_sequences=True), layers.LSTM(16), layers.Dense(1)]
    )

    class Forecast(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.linear = nn.LSTM(4, 16, num_layers=2, batch_first=True), nn.Linear(16, 1)

        def forward(self, x):
            out, _ = self.lstm(x)
            return self.linear(out[:, -1, :])

    return Twins(ours, Forecast(), floats(3, 12, 4))


@pair("GRU classifier, last state", "GRU classifier, h_n")
def gru_classifier():
    ours = keras.Sequential(
        [keras.Input((10,), dtype="int32"), layers.Embedding(30, 8), layers.GRU(12), layers.Dense(3)]
    )

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.gru, self.fc = nn.Embedding(30, 8), nn.GRU(8, 12), nn.Linear(12, 3)

        def forward(self, x):
            _, state = self.gru(self.embedding(x.t()))
            return self.fc(state[-1])

    return Twins(ours, Classifier(), numbers(30, 2, 10), convert=in_order)


@pair("GRU of the other kind (reset_after=False)", "GRU classifier", different=r"reset")
def gru_reset_before():
    ours = keras.Sequential([keras.Input((10, 6)), layers.GRU(12, reset_after=False), layers.Dense(3)])

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.fc = nn.GRU(6, 12, batch_first=True), nn.Linear(12, 3)

        def forward(self, x):
            return self.fc(self.gru(x)[1][-1])

    return Twins(ours, Classifier(), floats(2, 10, 6))


@pair("bidirectional LSTM for IMDB (Keras example)", "bidirectional LSTM")
def bidirectional_lstm():
    x = inputs = keras.Input((12,), dtype="int32")
    x = layers.Embedding(50, 16)(x)
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(x)
    x = layers.Bidirectional(layers.LSTM(8))(x)
    ours = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))

    class Sentiment(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.fc = nn.Embedding(50, 16), nn.Linear(16, 1)
            self.lstm = nn.LSTM(16, 8, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x):
            _, (h, _) = self.lstm(self.embedding(x))
            return torch.sigmoid(self.fc(torch.cat([h[-2], h[-1]], 1)))

    return Twins(ours, Sentiment(), numbers(50, 2, 12))


@pair("sequence to sequence (Keras example)", "sequence to sequence (encoder, decoder)")
def seq2seq():
    source, target = keras.Input((9, 20)), keras.Input((7, 24))
    _, h, c = layers.LSTM(16, return_state=True)(source)
    y = layers.LSTM(16, return_sequences=True)(target, initial_state=[h, c])
    ours = keras.Model([source, target], layers.Dense(24, activation="softmax")(y))

    class Seq2Seq(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.LSTM(20, 16, batch_first=True), nn.LSTM(24, 16, batch_first=True)
            self.fc = nn.Linear(16, 24)

        def forward(self, source, target):
            _, state = self.encoder(source)
            return f.softmax(self.fc(self.decoder(target, state)[0]), -1)

    return Twins(ours, Seq2Seq(), [floats(2, 9, 20), floats(2, 7, 24)], convert=in_order)


@pair("translation with additive attention", "translation with Bahdanau attention")
def additive_attention():
    source, target = keras.Input((8,), dtype="int32"), keras.Input((6,), dtype="int32")
    memory, state = layers.GRU(16, return_sequences=True, return_state=True)(layers.Embedding(30, 16)(source))
    y = layers.GRU(16, return_sequences=True)(layers.Embedding(35, 16)(target), initial_state=state)
    query = keras.ops.expand_dims(layers.Dense(12, use_bias=False)(y), 2)
    key = keras.ops.expand_dims(layers.Dense(12, use_bias=False)(memory), 1)
    score = layers.Dense(1, use_bias=False)(keras.ops.tanh(query + key))
    share = keras.ops.softmax(keras.ops.squeeze(score, -1), -1)
    context = keras.ops.matmul(share, memory)
    ours = keras.Model([source, target], layers.Dense(35)(layers.concatenate([y, context])))

    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.source, self.target = nn.Embedding(30, 16), nn.Embedding(35, 16)
            self.encoder, self.decoder = nn.GRU(16, 16, batch_first=True), nn.GRU(16, 16, batch_first=True)
            self.wa, self.ua = nn.Linear(16, 12, bias=False), nn.Linear(16, 12, bias=False)
            self.va, self.out = nn.Linear(12, 1, bias=False), nn.Linear(32, 35)

        def forward(self, source, target):
            memory, state = self.encoder(self.source(source))
            y, _ = self.decoder(self.target(target), state)
            score = self.va(torch.tanh(self.wa(y).unsqueeze(2) + self.ua(memory).unsqueeze(1))).squeeze(-1)
            return self.out(torch.cat([y, torch.bmm(f.softmax(score, -1), memory)], -1))

    return Twins(ours, Attentive(), [numbers(30, 2, 8), numbers(35, 2, 6, seed=4)])


@pair("temporal convolutional network (causal)", "TCN (locuslab's, chomped)")
def temporal_convolutions():
    x = inputs = keras.Input((20, 4))
    for n, filters in enumerate((8, 8)):
        y = x
        for _ in range(2):
            y = layers.Conv1D(filters, 3, padding="causal", dilation_rate=2**n, activation="relu")(y)
        x = layers.ReLU()(layers.add([y, x if n else layers.Conv1D(filters, 1)(x)]))
    ours = keras.Model(inputs, layers.Dense(2)(x[:, -1]))

    class Block(nn.Module):
        def __init__(self, a, b, dilation):
            super().__init__()
            self.chomp = 2 * dilation
            self.conv1 = nn.Conv1d(a, b, 3, padding=self.chomp, dilation=dilation)
            self.conv2 = nn.Conv1d(b, b, 3, padding=self.chomp, dilation=dilation)
            self.downsample = nn.Conv1d(a, b, 1) if a != b else None

        def forward(self, x):
            y = f.relu(self.conv1(x)[:, :, : -self.chomp])
            y = f.relu(self.conv2(y)[:, :, : -self.chomp])
            return f.relu(y + (x if self.downsample is None else self.downsample(x)))

    class Tcn(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.linear = nn.Sequential(Block(4, 8, 1), Block(8, 8, 2)), nn.Linear(8, 2)

        def forward(self, x):
            return self.linear(self.network(x.transpose(1, 2))[:, :, -1])

    return Twins(ours, Tcn(), floats(2, 20, 4), convert=in_order)


@pair("time series FCN (Keras example)", "time series FCN")
def timeseries_fcn():
    x = inputs = keras.Input((24, 1))
    for _ in range(2):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(16, 3, padding="same")(x)))
    ours = keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling1D()(x)))
    theirs = nn.Sequential(
        nn.Conv1d(1, 16, 3, padding=1),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Conv1d(16, 16, 3, padding=1),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
        nn.Softmax(-1),
    )
    x = floats(3, 24, 1)
    return Twins(ours, theirs, x, x.transpose(0, 2, 1).copy(), convert=in_order)


@pair("speech recognition: convolutions and bidirectional GRUs", "DeepSpeech2-like")
def deep_speech():
    x = inputs = keras.Input((24, 16, 1))
    for filters in (4, 4):
        x = layers.Conv2D(filters, 3, strides=(1, 2), use_bias=False)(layers.ZeroPadding2D(1)(x))
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Reshape((24, 4 * 4))(x)
    x = layers.Bidirectional(layers.GRU(12, return_sequences=True))(x)
    ours = keras.Model(inputs, layers.Dense(10)(layers.Dropout(0.5)(x)))

    class DeepSpeech(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Sequential(
                nn.Conv2d(1, 4, 3, stride=(1, 2), padding=1, bias=False),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Conv2d(4, 4, 3, stride=(1, 2), padding=1, bias=False),
                nn.BatchNorm2d(4),
                nn.ReLU(),
            )
            self.gru, self.fc = nn.GRU(16, 12, batch_first=True, bidirectional=True), nn.Linear(24, 10)

        def forward(self, x):
            x = self.conv(x)
            b, c, t, w = x.shape
            return self.fc(self.gru(x.permute(0, 2, 1, 3).reshape(b, t, c * w))[0])

    return Twins(ours, DeepSpeech(), floats(2, 24, 16, 1))


@pair("FastText: an average of embeddings", "FastText with EmbeddingBag")
def fasttext_bag():
    ours = keras.Sequential(
        [keras.Input((9,), dtype="int32"), layers.Embedding(50, 16), layers.GlobalAveragePooling1D(), layers.Dense(4)]
    )

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.fc = nn.EmbeddingBag(50, 16), nn.Linear(16, 4)

        def forward(self, text):
            return self.fc(self.embedding(text))

    return Twins(ours, Text(), numbers(50, 3, 9), convert=in_order)


@pair("WaveNet block with gates", "WaveNet block with gates")
def gated_convolutions():
    x = inputs = keras.Input((32, 8))
    skips = []
    for dilation in (1, 2, 4):
        gate = layers.Conv1D(8, 2, padding="causal", dilation_rate=dilation, activation="sigmoid")(x)
        value = layers.Conv1D(8, 2, padding="causal", dilation_rate=dilation, activation="tanh")(x)
        y = layers.multiply([value, gate])
        skips.append(layers.Conv1D(12, 1)(y))
        x = layers.add([x, layers.Conv1D(8, 1)(y)])
    ours = keras.Model(inputs, layers.Conv1D(5, 1)(layers.ReLU()(layers.add(skips))))

    class WaveNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.filters = nn.ModuleList([nn.Conv1d(8, 8, 2, dilation=d) for d in (1, 2, 4)])
            self.gates = nn.ModuleList([nn.Conv1d(8, 8, 2, dilation=d) for d in (1, 2, 4)])
            self.skips = nn.ModuleList([nn.Conv1d(8, 12, 1) for _ in range(3)])
            self.residuals = nn.ModuleList([nn.Conv1d(8, 8, 1) for _ in range(3)])
            self.end = nn.Conv1d(12, 5, 1)

        def forward(self, x):
            total = 0
            for n in range(3):
                padded = f.pad(x, (2**n, 0))
                y = torch.tanh(self.filters[n](padded)) * torch.sigmoid(self.gates[n](padded))
                total = total + self.skips[n](y)
                x = x + self.residuals[n](y)
            return self.end(f.relu(total))

    x = floats(2, 32, 8)
    return Twins(ours, WaveNet(), x, x.transpose(0, 2, 1).copy())
