"""Optimizers of both frameworks, by their names in the table of results."""

from __future__ import annotations

from functools import partial

import keras
import torch

O, S = keras.optimizers, keras.optimizers.schedules  # noqa: E741
LR = S.LearningRateSchedule

KERAS = {
    "sgd": lambda: O.SGD(0.05),
    "sgd, decay": lambda: O.SGD(0.05, weight_decay=0.02),
    "sgd, momentum": lambda: O.SGD(0.05, momentum=0.9),
    "sgd, nesterov": lambda: O.SGD(0.05, momentum=0.9, nesterov=True),
    "sgd, momentum, decay": lambda: O.SGD(0.05, momentum=0.9, weight_decay=0.02),
    "sgd, momentum, exponential": lambda: O.SGD(S.ExponentialDecay(0.05, 10, 0.7), momentum=0.9),
    "sgd, nesterov, warm cosine": lambda: O.SGD(
        S.CosineDecay(0.0, 30, alpha=0.1, warmup_target=0.05, warmup_steps=8), momentum=0.9, nesterov=True
    ),
    "sgd, momentum, to zero": lambda: O.SGD(S.PolynomialDecay(0.05, 25, 0.0), momentum=0.9),
    "adam": lambda: O.Adam(0.01),
    "adam, eps 1e-3": lambda: O.Adam(0.01, epsilon=1e-3),
    "adam, cosine": lambda: O.Adam(S.CosineDecay(0.01, 40)),
    "adam, restarts": lambda: O.Adam(S.CosineDecayRestarts(0.01, 12, t_mul=1.5, m_mul=0.8)),
    "adam, decay": lambda: O.Adam(0.01, weight_decay=0.02),
    "adamw": lambda: O.AdamW(0.01, weight_decay=0.02),
    "amsgrad": lambda: O.Adam(0.01, amsgrad=True),
    "adamax": lambda: O.Adamax(0.01),
    "adamax, eps 1e-3": lambda: O.Adamax(0.01, epsilon=1e-3),
    "nadam": lambda: O.Nadam(0.01),
    "rmsprop": lambda: O.RMSprop(0.005),
    "rmsprop, eps 1e-3": lambda: O.RMSprop(0.005, epsilon=1e-3),
    "rmsprop, momentum": lambda: O.RMSprop(0.003, momentum=0.9),
    "rmsprop, centered": lambda: O.RMSprop(0.005, centered=True),
    "rmsprop, centered, momentum, polynomial": lambda: O.RMSprop(
        S.PolynomialDecay(0.003, 60, 1e-4, power=2.0), centered=True, momentum=0.9
    ),
    "adagrad": lambda: O.Adagrad(0.05),
    "adadelta": lambda: O.Adadelta(0.5),
    "adafactor": lambda: O.Adafactor(0.02),
    "lion": lambda: O.Lion(0.002),
    "ftrl": lambda: O.Ftrl(0.05, l1_regularization_strength=1e-4, l2_regularization_strength=1e-3, beta=0.1),
    "lamb": lambda: O.Lamb(0.01),
    "muon": lambda: O.Muon(0.01, adam_lr_ratio=0.5),
    "adam, clipnorm": lambda: O.Adam(0.01, clipnorm=0.1),
    "sgd, momentum, global_clipnorm": lambda: O.SGD(0.05, momentum=0.9, global_clipnorm=0.3),
    "sgd, momentum, clipvalue": lambda: O.SGD(0.05, momentum=0.9, clipvalue=0.02),
    "adam, ema": lambda: O.Adam(0.01, use_ema=True, ema_momentum=0.9),
    "adam, ema, overwriting": lambda: O.Adam(0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=7),
    "adam, accumulation": lambda: O.Adam(0.01, gradient_accumulation_steps=3),
    "adam, accumulation, ema": lambda: O.Adam(
        S.InverseTimeDecay(0.01, 10, 0.5), gradient_accumulation_steps=3, use_ema=True, ema_momentum=0.9
    ),
}

T = torch.optim
TORCH = {
    "SGD": partial(T.SGD, lr=0.05),
    "SGD, momentum": partial(T.SGD, lr=0.05, momentum=0.9),
    "SGD, dampening": partial(T.SGD, lr=0.05, momentum=0.9, dampening=0.3),
    "SGD, nesterov": partial(T.SGD, lr=0.05, momentum=0.9, nesterov=True),
    "SGD, momentum, L2": partial(T.SGD, lr=0.05, momentum=0.9, weight_decay=0.02),
    "Adam": partial(T.Adam, lr=0.01),
    "Adam, eps 1e-3": partial(T.Adam, lr=0.01, eps=1e-3),
    "Adam, L2": partial(T.Adam, lr=0.01, weight_decay=0.02),
    "AdamW": partial(T.AdamW, lr=0.01, weight_decay=0.02),
    "AMSGrad": partial(T.Adam, lr=0.01, amsgrad=True),
    "Adamax": partial(T.Adamax, lr=0.01),
    "NAdam": partial(T.NAdam, lr=0.01),
    "NAdam, decoupled": partial(T.NAdam, lr=0.01, momentum_decay=1.0, weight_decay=0.02, decoupled_weight_decay=True),
    "RMSprop": partial(T.RMSprop, lr=0.005),
    "RMSprop, centered, momentum": partial(T.RMSprop, lr=0.003, centered=True, momentum=0.9),
    "Adagrad": partial(T.Adagrad, lr=0.05),
    "Adagrad, lr_decay": partial(T.Adagrad, lr=0.05, lr_decay=0.01),
    "Adadelta": partial(T.Adadelta, lr=0.5),
    "Adafactor": partial(T.Adafactor, lr=0.02),
    "Adafactor, decay": partial(T.Adafactor, lr=0.02, weight_decay=0.02),
}
# For the model whose weights have two axes only. Older releases lack it, which is seen when it is made.
MUON = {
    "Muon": lambda *args, **kwargs: T.Muon(*args, lr=0.02, **kwargs),
    "Muon, match_rms_adamw": lambda *args, **kwargs: T.Muon(*args, lr=0.02, adjust_lr_fn="match_rms_adamw", **kwargs),
    "Muon, no nesterov": lambda *args, **kwargs: T.Muon(*args, lr=0.02, nesterov=False, weight_decay=0.0, **kwargs),
}
