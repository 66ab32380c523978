"""Merge methods that are weighted sums of the targets.

Each gets the :class:`Inputs` of one parameter and yields its merged blocks, in the working dtype; weights and sums
are computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from xweights.core.dtypes import Array
from xweights.merging.streams import Inputs, Stream, allocate_scratch

# Vectors with a larger cosine than this are interpolated linearly: the sine of their angle would be nearly 0.
PARALLEL = 0.9995


def average(inputs: Inputs) -> Iterator[Array]:
    """Average by weights: sum(w_i x_i) / sum(w_i); without ``normalize`` the sum alone.

    Model soups: Wortsman et al., arXiv:2203.05482.
    """
    weights = inputs.options["weights"]
    if not inputs.options["normalize"]:
        return combine(inputs.targets, weights)
    total = math.fsum(weights)
    return mean(inputs.targets, [weight / total for weight in weights])


def lerp(inputs: Inputs) -> Iterator[Array]:
    """Interpolate two targets along a line: (1 - t) a + t b.

    Linear mode connectivity: Frankle et al., arXiv:1912.05671.
    """
    t = inputs.options["t"]
    return mean(inputs.targets, [1.0 - t, t])


def ema(inputs: Inputs) -> Iterator[Array]:
    """Average over an ordered list, later ones more: m = x_0, then m = decay m + (1 - decay) x_i.

    Polyak & Juditsky, SIAM J. Control Optim. 30(4), 1992; of checkpoints: Izmailov et al., arXiv:1803.05407.
    """
    decay, last = inputs.options["decay"], len(inputs.targets) - 1
    weights = [decay**last] + [(1.0 - decay) * decay ** (last - i) for i in range(1, last + 1)]
    return mean(inputs.targets, weights)


def slerp(inputs: Inputs) -> Iterator[Array]:
    """Interpolate two targets along an arc: sin((1 - t) o) / sin(o) a + sin(t o) / sin(o) b, with o their angle.

    The parameter counts as one vector. Where |cos o| > 0.9995, or one of them is all zeros, along a line.
    Shoemake, SIGGRAPH 1985; of networks' vectors: White, arXiv:1609.04468.
    """
    t = inputs.options["t"]
    a, b = inputs.targets
    aa, ab, bb = dot_products([a, b])
    cosine = ab / math.sqrt(aa) / math.sqrt(bb) if aa and bb else 1.0
    if not abs(cosine) <= PARALLEL:
        return mean(inputs.targets, [1.0 - t, t])
    angle = math.acos(cosine)
    return combine(
        inputs.targets, [math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]
    )


def model_stock(inputs: Inputs) -> Iterator[Array]:
    """Draw the mean of k targets towards the base: t mean + (1 - t) base, t = k c / (1 + (k - 1) c).

    c is the mean cosine between two task vectors (0 where one of them is all zeros); where the denominator is 0, the
    base stays. Each parameter is a layer of its own. Jang et al., arXiv:2403.19522.
    """
    assert inputs.base is not None
    count = len(inputs.targets)
    sums = dot_products(inputs.targets, base=inputs.base)
    squares = [sums[i * count - i * (i - 1) // 2] for i in range(count)]
    cosines = []
    for i in range(count):
        for j in range(i + 1, count):
            norms = math.sqrt(squares[i]) * math.sqrt(squares[j])
            dot = sums[i * count - i * (i - 1) // 2 + j - i]
            cosines.append(max(-1.0, min(1.0, dot / norms)) if norms else 0.0)
    cosine = math.fsum(cosines) / len(cosines)
    denominator = 1.0 + (count - 1) * cosine
    t = count * cosine / denominator if abs(denominator) >= 1e-6 else 0.0
    return mean([inputs.base, *inputs.targets], [1.0 - t, *[t / count] * count])


def mean(streams: Sequence[Stream], weights: Sequence[float]) -> Iterator[Array]:
    """Yield sum(w_i x_i) for weights whose sum is 1, so that equal entries keep exactly the same bits.

    With f the first whose weight isn't 0: f - sum(w_i (f - x_i)). Streams of weight 0 aren't read.
    """
    used = [(stream, weight) for stream, weight in zip(streams, weights, strict=True) if weight]
    if [weight for _, weight in used] == [0.5, 0.5]:
        yield from _mean_of_two(*(stream for stream, _ in used))
        return
    result, scratch = np.empty(0), np.empty(0)
    for first, *others in zip(*(stream for stream, _ in used), strict=True):
        if result.size < first.size:
            result, scratch = allocate_scratch(first.size, first.dtype), allocate_scratch(first.size, first.dtype)
        out, so_far = result[: first.size], first
        for x, (stream, weight) in zip(others, used[1:], strict=True):
            gap = x if stream.writable else scratch[: first.size]
            np.subtract(first, x, out=gap)
            np.multiply(gap, weight, out=gap)
            so_far = np.subtract(so_far, gap, out=out)
        yield so_far


def _mean_of_two(first: Stream, second: Stream) -> Iterator[Array]:
    """Yield (x + y) / 2: rounded once, the same bits in either order, and the quickest way in the most common case."""
    result = np.empty(0)
    for x, y in zip(first, second, strict=True):
        if not first.writable and result.size < x.size:
            result = allocate_scratch(x.size, x.dtype)
        out = x if first.writable else result[: x.size]  # a third array would crowd the cache
        np.add(x, y, out=out)
        yield np.multiply(out, 0.5, out=out)


def combine(streams: Sequence[Stream], weights: Sequence[float]) -> Iterator[Array]:
    """Yield sum(w_i x_i) for any weights; streams of weight 0 aren't read, and without any weight it is zeros."""
    used = [(stream, weight) for stream, weight in zip(streams, weights, strict=True) if weight]
    if not used:
        yield from (np.zeros_like(block) for block in streams[0])
        return
    result, scratch = np.empty(0), np.empty(0)
    for first, *others in zip(*(stream for stream, _ in used), strict=True):
        if result.size < first.size:
            result, scratch = allocate_scratch(first.size, first.dtype), allocate_scratch(first.size, first.dtype)
        out, part = result[: first.size], scratch[: first.size]
        np.multiply(first, used[0][1], out=out)
        for x, (_, weight) in zip(others, used[1:], strict=True):
            np.multiply(x, weight, out=part)
            np.add(out, part, out=out)
        yield out


def dot_products(streams: Sequence[Stream], *, base: Stream | None = None) -> list[float]:
    """Return the dot products of all pairs of ``streams`` minus ``base``, squares included, row by row, in float64."""
    pairs = [(i, j) for i in range(len(streams)) for j in range(i, len(streams))]
    sums = [0.0] * len(pairs)
    for blocks in zip(*streams, *([base] if base is not None else []), strict=True):
        wide = [block.astype(np.float64) for block in blocks]
        if base is not None:
            origin = wide.pop()
            for vector in wide:
                np.subtract(vector, origin, out=vector)
        for position, (i, j) in enumerate(pairs):
            sums[position] += float(np.dot(wide[i], wide[j]))
    return sums
