"""Recurrent layers: gates, double biases, stacks, directions, cells."""

from __future__ import annotations

import keras
import torch
from torch import nn

from zoo.conv import Own, chain
from zoo.making import pair, vectors

L = keras.layers


def sequence(m, x):
    return m.head(m.rnn(x)[0])


def last(m, x):
    return m.head(m.rnn(x)[0][:, -1])


def torch_rnn(kind, *args, forward=sequence, out=3, **options):
    rnn = kind(*args, batch_first=options.pop("batch_first", True), **options)
    width = rnn.hidden_size * (2 if rnn.bidirectional else 1)
    return Own(forward, rnn=rnn, head=nn.Linear(width, out))


@pair(vectors(2, 3, 4), bitwise=False)
def simple_rnn():
    return chain((3, 4), L.SimpleRNN(6, return_sequences=True), L.Dense(3)), torch_rnn(nn.RNN, 4, 6)


@pair(vectors(2, 3, 4), bitwise=False)
def simple_rnn_with_relu():
    k = chain((3, 4), L.SimpleRNN(6, activation="relu"), L.Dense(3))
    return k, torch_rnn(nn.RNN, 4, 6, nonlinearity="relu", forward=last)


@pair(vectors(2, 3, 4), bitwise=False)
def lstm():
    return chain((3, 4), L.LSTM(6, return_sequences=True), L.Dense(3)), torch_rnn(nn.LSTM, 4, 6)


@pair(vectors(2, 3, 4), bitwise=False)
def lstm_square_last_output():
    return chain((3, 4), L.LSTM(4), L.Dense(3)), torch_rnn(nn.LSTM, 4, 4, forward=last)


@pair(vectors(2, 3, 4), bitwise=False)
def lstm_without_bias():
    k = chain((3, 4), L.LSTM(6, use_bias=False), L.Dense(3))
    return k, torch_rnn(nn.LSTM, 4, 6, bias=False, forward=last)


@pair(vectors(2, 3, 4))
def gru():
    return chain((3, 4), L.GRU(6, return_sequences=True), L.Dense(3)), torch_rnn(nn.GRU, 4, 6)


@pair(vectors(2, 3, 4))
def gru_square():
    return chain((3, 4), L.GRU(4), L.Dense(3)), torch_rnn(nn.GRU, 4, 4, forward=last)


@pair(vectors(2, 3, 4), bitwise=False)
def lstm_stacked_in_one_module():
    k = chain((3, 4), *(L.LSTM(4, return_sequences=True) for _ in range(3)), L.Dense(3))
    return k, torch_rnn(nn.LSTM, 4, 4, 3)


@pair(vectors(2, 3, 4), bitwise=False)
def lstm_in_both_directions():
    k = chain((3, 4), L.Bidirectional(L.LSTM(4, return_sequences=True)), L.Dense(3))
    return k, torch_rnn(nn.LSTM, 4, 4, bidirectional=True)


@pair(vectors(2, 3, 4))
def gru_stacked_in_both_directions():
    k = chain((3, 4), *(L.Bidirectional(L.GRU(4, return_sequences=True)) for _ in range(2)), L.Dense(3))
    return k, torch_rnn(nn.GRU, 4, 4, 2, bidirectional=True)


@pair(vectors(2, 3, 4), bitwise=False, to_torch=lambda x: x.swapaxes(0, 1), to_keras=lambda x: x.swapaxes(0, 1))
def lstm_with_time_first():
    k = chain((3, 4), L.LSTM(6, return_sequences=True), L.Dense(3))
    return k, torch_rnn(nn.LSTM, 4, 6, batch_first=False)


def run_cell(m, x):
    h = c = torch.zeros(x.shape[0], 6, dtype=x.dtype)
    for step in range(x.shape[1]):
        h, c = m.cell(x[:, step], (h, c))
    return m.head(h)


@pair(vectors(2, 3, 4), bitwise=False)
def lstm_cell_in_a_loop():
    k = chain((3, 4), L.LSTM(6), L.Dense(3))
    return k, Own(run_cell, cell=nn.LSTMCell(4, 6), head=nn.Linear(6, 3))


def run_two_cells(m, x):
    h = g = torch.zeros(x.shape[0], 4, dtype=x.dtype)
    for step in range(x.shape[1]):
        h = m.one(x[:, step], h)
        g = m.other(h, g)
    return m.head(g)


@pair(vectors(2, 3, 4))
def gru_cells_stacked():
    k = chain((3, 4), L.RNN([L.GRUCell(4), L.GRUCell(4)]), L.Dense(3))
    return k, Own(run_two_cells, one=nn.GRUCell(4, 4), other=nn.GRUCell(4, 4), head=nn.Linear(4, 3))


def backwards(m, x):
    return m.head(m.rnn(x.flip(1))[0])


@pair(vectors(2, 3, 4), bitwise=False)
def lstm_that_goes_backwards():
    k = chain((3, 4), L.LSTM(6, return_sequences=True, go_backwards=True), L.Dense(3))
    return k, torch_rnn(nn.LSTM, 4, 6, forward=backwards)
