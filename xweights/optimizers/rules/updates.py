"""The update rules of optimizers, each written once as a pure function of arrays that every framework runs.

NumPy runs them as the reference in tests, PyTorch and Keras where an optimizer has to follow a rule that the
framework's own classes don't have.

A formula takes the weights, the gradient and the slots, and returns new weights and new slots. Where two frameworks
write a rule differently, a key of the rule's *variant* says how:

    eps           adam: "raw" (added to the root of the uncorrected average) or "corrected"
                  rmsprop, adagrad: "inside" the root or "outside"; adamax: "inside" the maximum or "outside"
                  adafactor: "added" to the squared gradient, or a "floor" under the estimate
    decay         weight decay is "decoupled" (w -= w * decay * lr, before the update) or "coupled" (g += decay * w)
    decays        a decoupled decay multiplies by a "factor" of its own rounding, or subtracts a "difference"
    rate_inside   the momentum of sgd and rmsprop contains the learning rate of each step
    scale         adafactor: the size of the weights is measured "before" or "after" they decay
    accumulate    muon: the momentum is a "sum" or a "mean"; adjust, narrow: how its step is scaled and computed
    product       nadam: the product of all momenta is kept in "float32", whatever the weights are
    rows          the gradients of an embedding's row are squared "apart", before they are summed
    counts        how often the gradient of a parameter counts in the norm of all of them
    cast, powers  how numbers reach the arrays: see ``scalars``

Sources: Kingma & Ba, arXiv:1412.6980 (adam, adamax); Loshchilov & Hutter, arXiv:1711.05101 (decoupled decay); Reddi et
al., arXiv:1904.09237 (amsgrad); Dozat 2016 (nadam); Duchi et al. 2011 (adagrad); Zeiler, arXiv:1212.5701 (adadelta);
Shazeer & Stern, arXiv:1804.04235 (adafactor); Chen et al., arXiv:2302.06675 (lion); McMahan et al. 2013 (ftrl); You et
al., arXiv:1904.00962 (lamb); Jordan et al. 2024 (muon).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from xweights.optimizers.rules.array_math import ArrayMath

Slots = dict[str, Any]


class Numbers(Protocol):
    """The scalars of one step, as the rule's framework has them: floats on the host, or traced."""

    factored: tuple[int, int] | None

    @property
    def lr(self) -> Any:
        """The learning rate."""

    def __getitem__(self, name: str) -> Any:
        """Return a hyperparameter, or the value of a key of the variant."""

    def cast(self, name: str) -> Any:
        """Return a hyperparameter as the framework casts it to the dtype of the weights."""

    def complement(self, name: str) -> Any:
        """Return 1 - beta ** t, where t counts this update."""

    def after_first(self, value: float, first: float) -> Any:
        """Return ``first`` in the first update, ``value`` in all others."""

    def nadam_momentum(self, ahead: int) -> Any:
        """Return nadam's momentum at t + ahead: beta_1 * (1 - 0.5 * 0.96 ** ((t + ahead) * momentum_decay))."""

    def product_factor(self) -> Any:
        """Return nadam's momentum at t, as it goes into the product of all momenta."""

    def step_power(self, exponent: float) -> Any:
        """Return t ** exponent."""

    def sqrt(self, x: Any) -> Any: ...
    def minimum(self, x: Any, y: Any) -> Any: ...
    def clock(self) -> Any:
        """Return t - 1."""


Formula = Callable[[ArrayMath, Numbers, Any, Any, Slots], tuple[Any, Slots]]


def apply_update(rule: str, m: ArrayMath, n: Numbers, w: Any, g: Any, slots: Mapping[str, Any]) -> tuple[Any, Slots]:
    """Return the weights and the slots after one update by a rule.

    Example:
        >>> import numpy as np
        >>> from xweights.optimizers.rules.updates import apply_update
        >>> from xweights.optimizers.rules.array_math import NumpyMath
        >>> from xweights.optimizers.rules.scalars import HostNumbers
        >>> n = HostNumbers({"learning_rate": 0.5, "momentum": 0.0}, {}, t=1)
        >>> apply_update("sgd", NumpyMath(), n, np.array([1.0]), np.array([1.0]), {})[0]
        array([0.5])
    """
    before = w
    decay = n["weight_decay"]
    if decay and n["decay"] == "coupled":
        g = g + w * decay
    elif decay and n["decays"] == "factor":
        w = w * (1.0 - n.cast("weight_decay") * n.lr)
    elif decay:
        w = w - w * (n.cast("weight_decay") * n.lr)
    if rule == "adafactor":
        return _adafactor(m, n, w, g, dict(slots), before if n["scale"] == "before" else w)
    return FORMULAS[rule](m, n, w, g, dict(slots))


def _sgd(m: ArrayMath, n: Numbers, w: Any, g: Any, s: Slots) -> tuple[Any, Slots]:
    if not n["momentum"]:
        return m.less(w, g, n.lr), {}
    mu = n.cast("momentum")
    if n["rate_inside"]:
        velocity = m.slot_mix(s["momentum"], mu, g, -n.lr)
        return w + (m.mix(velocity, mu, g, -n.lr) if n["nesterov"] else velocity), {"momentum": velocity}
    damping = n["dampening"]
    damped = g * n.after_first(1.0 - damping, 1.0) if damping else g
    buffer = m.slot_mix(s["momentum"], mu, damped, 1.0)
    return m.less(w, g + buffer * mu if n["nesterov"] else buffer, n.lr), {"momentum": buffer}


def _adam(m: ArrayMath, n: Numbers, w: Any, g: Any, s: Slots) -> tuple[Any, Slots]:
    new = {
        "momentum": m.slot_blend(s["momentum"], g, 1.0 - n["beta_1"]),
        "velocity": m.slot_blend_square(s["velocity"], g, 1.0 - n["beta_2"]),
    }
    size = new["velocity"]
    if n["amsgrad"]:
        size = new["velocity_hat"] = m.maximum(s["velocity_hat"], size)
    bias_1, bias_2 = n.complement("beta_1"), n.complement("beta_2")  # bias corrections
    if n["eps"] == "raw":
        return m.less_ratio(w, new["momentum"], n.lr * n.sqrt(bias_2) / bias_1, m.root(size, n["epsilon"])), new
    size = m.root(size, n["epsilon"], over=n.sqrt(bias_2))
    return m.less_ratio(w, new["momentum"], n.lr / bias_1, size), new


def _adamax(m: ArrayMath, n: Numbers, w: Any, g: Any, s: Slots) -> tuple[Any, Slots]:
    momentum = m.slot_blend(s["momentum"], g, 1.0 - n["beta_1"])
    if n["eps"] == "inside":
        norm = m.maximum(s["norm"] * n["beta_2"], m.abs(g) + n["epsilon"])
        size = norm
    else:
        norm = m.maximum(s["norm"] * n["beta_2"], m.abs(g))
        size = norm + n["epsilon"]
    return m.less_ratio(w, momentum, n.lr / n.complement("beta_1"), size), {"momentum": momentum, "norm": norm}


def _nadam(m: ArrayMath, n: Numbers, w: Any, g: Any, s: Slots) -> tuple[Any, Slots]:
    now, following = n.nadam_momentum(0), n.nadam_momentum(1)
    product = m.like(s["product"], w) * n.product_factor()
    if n["product"] == "float32":
        product = m.like(m.cast(product, "float32"), w)
    momentum = m.slot_blend(s["momentum"], g, 1.0 - n.cast("beta_1"))
    velocity = m.slot_blend_square(s["velocity"], g, 1.0 - n.cast("beta_2"))
    ahead = m.mix(momentum, following / (1.0 - product * following), g, (1.0 - now) / (1.0 - product))
    size = m.root(velocity, n["epsilon"], under=n.complement("beta_2"))
    return m.less_ratio(w, ahead, n.lr, size), {"momentum": momentum, "velocity": velocity, "product": product}


def _rmsprop(m: ArrayMath, n: Numbers, w: Any, g: Any, s: Slots) -> tuple[Any, Slots]:
    rho = n["rho"]
    new = {"velocity": m.slot_mix_square(s["velocity"], rho, g, 1.0 - rho)}
    size = new["velocity"]
    if n["centered"]:
        new["average_gradient"] = m.slot_mix(s["average_gradient"], rho, g, 1.0 - rho)
        size = m.less_square(size, new["average_gradient"])
    inside = n["eps"] == "inside"
    size = m.root_sum(size, n["epsilon"]) if inside else m.root(size, n["epsilon"])
    if not n["momentum"]:
        return m.less_ratio(w, g, n.lr, size), new
    if n["rate_inside"]:
        new["momentum"] = m.slot_mix_ratio(s["momentum"], n["momentum"], g, n.lr, size)
        return m.less(w, new["momentum"], 1.0), new
    new["momentum"] = m.slot_mix_ratio(s["momentum"], n["momentum"], g, 1.0, size)
    return m.less(w, new["momentum"], n.lr), new


def _adagrad(m: ArrayMath, n: Numbers, w: Any, g: Any, s: Slots) -> tuple[Any, Slots]:
    total = s["accumulator"] + m.square(g)
    size = m.root_sum(total, n["epsilon"]) if n["eps"] == "inside" else m.root(total, n["epsilon"])
    lr = n.lr / (1.0 + n.clock() * n["lr_decay"]) if n["lr_decay"] else n.lr
    return m.less_ratio(w, g, lr, size), {"accumulator": total}


def _adadelta(m: ArrayMath, n: Numbers, w: Any, g: Any, s: Slots) -> tuple[Any, Slots]:
    rho, eps = n["rho"], n["epsilon"]
    total = m.slot_mix_square(s["accumulated_grad"], rho, g, 1.0 - rho)
    delta = g * m.root_sum(s["accumulated_delta_var"], eps) / m.root_sum(total, eps)
    deltas = m.slot_mix_square(s["accumulated_delta_var"], rho, delta, 1.0 - rho)
    return m.less(w, delta, n.lr), {"accumulated_grad": total, "accumulated_delta_var": deltas}


def _adafactor(m: ArrayMath, n: Numbers, w: Any, g: Any, s: Slots, scale: Any) -> tuple[Any, Slots]:
    added = n["eps"] == "added"
    share = n.step_power(n["beta_2_decay"])  # of the new values
    alpha = m.maximum(m.rms(scale), n.cast("epsilon_2"))
    alpha = alpha * n.minimum(n.lr, n.step_power(-0.5))
    squared, eps = m.square(g), n["epsilon_1"] if added else 0.0
    if n.factored is None:
        size = m.slot_mix(s["velocity"], 1.0 - share, squared + eps, share)
        new = {"velocity": size}
    else:
        # The row has the first of these axes, the column the second; each keeps the other with length 1.
        first, second = n.factored
        row = m.slot_mix(s["row"], 1.0 - share, m.mean(squared, second) + eps, share)
        column = m.slot_mix(s["column"], 1.0 - share, m.mean(squared, first) + eps, share)
        middle = m.mean(row, first)
        size = row / (middle if added else m.maximum(middle, n["epsilon_1"])) * column
        new = {"row": row, "column": column}
        if added:
            new["velocity"] = size
    if not added:
        size = m.maximum(size, n["epsilon_1"] * n["epsilon_1"])
    step = g / m.sqrt(size)
    return m.less(w, step, alpha / m.maximum(m.rms(step) / n["clip_threshold"], 1.0)), new


def _lion(m: ArrayMath, n: Numbers, w: Any, g: Any, s: Slots) -> tuple[Any, Slots]:
    beta_1, beta_2 = n.cast("beta_1"), n.cast("beta_2")
    step = m.sign(m.mix(s["momentum"], beta_1, g, 1.0 - beta_1))
    return m.less(w, step, n.lr), {"momentum": m.slot_mix(s["momentum"], beta_2, g, 1.0 - beta_2)}


def _ftrl(m: ArrayMath, n: Numbers, w: Any, g: Any, s: Slots) -> tuple[Any, Slots]:
    power = -n["learning_rate_power"]
    l1, l2 = n["l1_regularization_strength"], n["l2_regularization_strength"] + n["beta"] / (2.0 * n.lr)
    total = s["accumulator"] + m.square(g)
    raised = m.power(total, power)
    shrinkage = n["l2_shrinkage_regularization_strength"]
    shrunk = g + w * (2.0 * shrinkage) if shrinkage else g
    linear = s["linear"] + (shrunk - (raised - m.power(s["accumulator"], power)) / n.lr * w)
    new = {"accumulator": total, "linear": linear}
    return (m.clip(linear, -l1, l1) - linear) / (raised / n.lr + 2.0 * l2), new


def _lamb(m: ArrayMath, n: Numbers, w: Any, g: Any, s: Slots) -> tuple[Any, Slots]:
    momentum = m.slot_blend(s["momentum"], g, 1.0 - n["beta_1"])
    velocity = m.slot_blend_square(s["velocity"], g, 1.0 - n["beta_2"])
    size = m.root(velocity, n["epsilon"], under=n.complement("beta_2"))
    step = m.ratio(momentum, n.complement("beta_1"), size)
    weight, length = m.length(w), m.length(step)
    nonzero = (weight > 0) & (length > 0)
    ratio = m.where(nonzero, weight / m.where(nonzero, length, length + 1.0), length * 0.0 + 1.0)
    return m.less(w, step, ratio * n.lr), {"momentum": momentum, "velocity": velocity}


def _muon(m: ArrayMath, n: Numbers, w: Any, g: Any, s: Slots) -> tuple[Any, Slots]:
    mu = n["momentum"]
    if n["accumulate"] == "sum":
        momentum = s["momentum"] + (g + s["momentum"] * (mu - 1.0))
        step = g + momentum * mu if n["nesterov"] else momentum
    else:
        momentum = m.slot_blend(s["momentum"], g, 1.0 - mu)
        # As PyTorch's lerp, which starts from the nearer end.
        step = momentum - (momentum - g) * (1.0 - mu) if n["nesterov"] else momentum
    step = m.like(_orthogonalize_bfloat16(m, n, step) if n["narrow"] else _orthogonalize(m, n, step), w)
    return m.less(w, step, n.lr * _step_scale(n, w.shape)), {"momentum": momentum}


def _orthogonalize(m: ArrayMath, n: Numbers, x: Any) -> Any:
    """Approximate the nearest orthogonal matrix by Newton-Schulz steps."""
    tall = x.shape[0] > x.shape[1]
    x = m.swap(x) if tall else x
    x = x / (m.length(x) + 1e-7)
    for _ in range(n["ns_steps"]):
        square = x @ m.swap(x)
        x = x * n["muon_a"] + (square * n["muon_b"] + (square * n["muon_c"]) @ square) @ x
    return m.swap(x) if tall else x


def _orthogonalize_bfloat16(m: ArrayMath, n: Numbers, x: Any) -> Any:
    """Orthogonalize as PyTorch does: sums are float32, and their results are rounded to bfloat16."""
    tall = x.shape[0] >= x.shape[1]  # PyTorch has outputs first, and transposes a matrix that has more of them
    x = m.round_to_bfloat16(m.cast(m.swap(x) if tall else x, "float32"))
    x = m.round_to_bfloat16(x / m.maximum(m.round_to_bfloat16(m.length(x)), n["epsilon"]))
    for _ in range(n["ns_steps"]):
        square = m.round_to_bfloat16(x @ m.swap(x))
        inner = m.round_to_bfloat16(square * n["muon_b"] + (square @ square) * n["muon_c"])
        x = m.round_to_bfloat16(x * n["muon_a"] + inner @ x)
    return m.swap(x) if tall else x


def _step_scale(n: Numbers, shape: tuple[int, ...]) -> float:
    ins, outs = int(shape[0]), int(shape[1])
    if n["adjust"] == "original":
        return float(max(1.0, outs / ins) ** 0.5)
    rms = n["rms_rate"]
    return 1.0 if rms is None else float(max(ins, outs) ** 0.5 * rms)


# Rules that work on an array as a whole; the others work on each entry by itself.
NON_ELEMENTWISE_RULES = frozenset({"adafactor", "lamb", "muon"})
FORMULAS: dict[str, Formula] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamax": _adamax,
    "nadam": _nadam,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "adadelta": _adadelta,
    "adafactor": lambda m, n, w, g, s: _adafactor(m, n, w, g, s, w),
    "lion": _lion,
    "ftrl": _ftrl,
    "lamb": _lamb,
    "muon": _muon,
}
