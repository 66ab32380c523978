"""Shorten long names so that they can still be told apart: in the middle, of what is common, never at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

_LEAST = 12  # a prefix shorter than this isn't worth a line of its own


def common_prefix(names: Sequence[str]) -> str:
    """Return the folders that all names begin with, with the last ``/``; empty if that is hardly anything.

    Example:
        >>> from xweights.core.short_names import common_prefix
        >>> common_prefix(["model/language_model/a/kernel", "model/language_model/b/kernel"])
        'model/language_model/'
    """
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    prefix = first[:shared].rpartition("/")[0]
    return f"{prefix}/" if len(prefix) >= _LEAST else ""


def shorten_names(names: Sequence[str], width: int, dots: str = "…") -> list[str]:
    """Return names of at most ``width`` characters, all different if the names are.

    The parts that most names have are left out first, then those in the middle; numbers and the last part stay.

    Example:
        >>> from xweights.core.short_names import shorten_names
        >>> shorten_names(["encoder/layers/0/attention/query/kernel", "encoder/layers/1/attention/query/kernel"], 24)
        ['encoder/…/0/…/kernel', 'encoder/…/1/…/kernel']
    """
    counts = Counter(part for name in names for part in set(name.split("/")[:-1]))
    shortened = [name if len(name) <= width else _drop_parts(name, width, counts, dots) for name in names]
    if len(set(shortened)) < len(set(names)):
        # What was left out told them apart: then a few characters less of each, and at worst a number.
        shortened = [name if len(name) <= width else _cut(name, width, dots) for name in names]
    taken = Counter(shortened)
    numbered: Counter[str] = Counter()
    for position, text in enumerate(shortened):
        if taken[text] > 1 and len(set(names)) == len(names):
            numbered[text] += 1
            mark = f"~{numbered[text]}"
            shortened[position] = text[: max(width - len(mark), 0)] + mark
    return shortened


def _drop_parts(name: str, width: int, counts: Counter[str], dots: str) -> str:
    parts = name.split("/")
    kept = [True] * len(parts)
    middle = len(parts) / 2
    # The most common part first; of equally common ones, the one nearest to the middle.
    order = sorted(
        (i for i in range(len(parts) - 1) if not parts[i].isdigit()),
        key=lambda i: (-counts[parts[i]], abs(i - middle)),
    )
    for position in order:
        kept[position] = False
        text = _join(parts, kept, dots)
        if len(text) <= width:
            return text
    return _cut(_join(parts, kept, dots), width, dots)


def _join(parts: Sequence[str], kept: Sequence[bool], dots: str) -> str:
    shown: list[str] = []
    for part, is_kept in zip(parts, kept, strict=True):
        if is_kept:
            shown.append(part)
        elif not shown or shown[-1] != dots:
            shown.append(dots)
    return "/".join(shown)


def _cut(name: str, width: int, dots: str) -> str:
    if len(name) <= width:
        return name
    head = max((width - len(dots)) // 3, 0)
    tail = width - len(dots) - head
    return name[:head] + dots + name[-tail:] if tail > 0 else name[-width:]
