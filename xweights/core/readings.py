"""Read the names in a file as the names of a model: through wrappers' prefixes, and where one is a part of the other.

Pure functions of names. A name is compared by its words (between ``/`` and ``.``), without the words that wrappers add.
Shapes never decide; whoever uses a reading checks them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Words = tuple[str, ...]

# What wrappers put between the words of a name: torch.compile, FSDP, activation checkpointing, and PEFT's adapters
# around a layer of the model (base_layer) or in its place (modules_to_save).
_WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module"}
    | {"base_layer", "module"}
)
_ADAPTER_TABLES = frozenset(
    {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "modules_to_save"}
    | {"ia3_l", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "oft_r", "vera_lambda_b", "vera_lambda_d"}
)


@dataclass(frozen=True)
class Reading:
    """One way to read the names of a file as those of a model.

    Attributes:
        source: The words in front of every name in the file that the model's names don't have.
        target: The words in front of every name of the model that the file's names don't have.
        pairs: For each name of the model that was found, the name in the file.
    """

    source: Words
    target: Words
    pairs: Mapping[str, str]

    def rename(self, name: str) -> str | None:
        """Return a name of the file as the model would have it; None for one that the reading leaves out."""
        words = words_of(name)
        if words[: len(self.source)] != self.source or len(words) == len(self.source):
            return None
        return ".".join((*self.target, *words[len(self.source) :]))

    def __str__(self) -> str:
        if self.source:
            return f"the names that begin with {join_words(self.source)!r}"
        if self.target:
            return f"its names behind {join_words(self.target)!r} of the model"
        return "its names as they are"


def join_words(words: Sequence[str]) -> str:
    """Return the beginning of a name that consists of these words."""
    return "".join(f"{word}." for word in words)


@lru_cache(maxsize=100_000)
def words_of(name: str) -> Words:
    """Return the words of a name without what wrappers add.

    Example:
        >>> from xweights.core.readings import words_of
        >>> words_of("module._orig_mod.0.weight"), words_of("h.lora_A.default.weight"), words_of("dense/kernel")
        (('0', 'weight'), ('h', 'lora_A', 'weight'), ('dense', 'kernel'))
    """
    parts = name.replace("/", ".").split(".")
    words: list[str] = []
    position = 0
    while position < len(parts):
        part = parts[position]
        position += 1
        if part in _WRAPPERS and position < len(parts):
            continue
        if part in _ADAPTER_TABLES and position < len(parts) - 1:
            # The adapter's name follows: "default" in the model, nothing in the file that PEFT saves.
            if part == "modules_to_save":
                position += 1
                continue
            words.append(part)
            position += 1
            continue
        words.append(part)
    return tuple(words)


def find_readings(sources: Sequence[str], targets: Mapping[str, Any]) -> list[Reading]:
    """Return the readings that find most names, the plain one first; several if they find equally many.

    Args:
        sources: The names in the file.
        targets: The names of the model, each with a key that says which parameter it means: of several names of one
            parameter it is enough to find one.

    Example:
        >>> from xweights.core.readings import find_readings
        >>> [reading.pairs for reading in find_readings(["module.a.weight"], {"a.weight": 0})]
        [{'a.weight': 'module.a.weight'}]
    """
    by_source = _index(sources)
    by_target = _index(targets)
    plain = {words: name for words, name in by_target.items() if words in by_source}
    if len({targets[name] for name in plain.values()}) == len(set(targets.values())):
        return [_make_reading((), (), by_source, by_target)]
    hits: Counter[tuple[Words, Words]] = Counter()
    found: dict[tuple[Words, Words], set[Any]] = {}

    def count(source: Words, target: Words, name: str) -> None:
        meant = found.setdefault((source, target), set())
        if targets[name] not in meant:
            meant.add(targets[name])
            hits[source, target] += 1

    for name in plain.values():
        count((), (), name)
    for words in by_source:
        for cut in range(1, len(words)):
            meant = by_target.get(words[cut:])
            if meant is not None:
                count(words[:cut], (), meant)
    for words, name in by_target.items():
        for cut in range(1, len(words)):
            if words[cut:] in by_source:
                count((), words[:cut], name)
    # Each wrapped in something of its own
    # (a module around the model, and another one in the file).
    ahead, target_ahead = _common_beginning(by_source), _common_beginning(by_target)
    for cut in range(1, len(ahead) + 1):
        for target_cut in range(1, len(target_ahead) + 1):
            for words, name in by_target.items():
                if ahead[:cut] + words[target_cut:] in by_source:
                    count(ahead[:cut], target_ahead[:target_cut], name)
    if not hits:
        return []
    most = max(hits.values())
    best = [pair for pair, number in hits.items() if number == most]
    if ((), ()) in best:
        best = [((), ())]
    return [_make_reading(source, target, by_source, by_target) for source, target in _drop_longer(best)]


def _index(names: Iterable[str]) -> dict[Words, str]:
    """Return the names by their words; where two would have equal words, by all of their words."""
    index: dict[Words, str] = {}
    twice: set[Words] = set()
    for name in names:
        words = words_of(name)
        if index.setdefault(words, name) != name:
            twice.add(words)
    for words in twice:
        del index[words]
    if twice:
        for name in names:
            if words_of(name) in twice:
                index[tuple(name.replace("/", ".").split("."))] = name
    return index


def _common_beginning(names: Iterable[Words]) -> Words:
    beginning: Words | None = None
    for words in names:
        if beginning is None:
            beginning = words[:-1]
        length = 0
        while length < min(len(beginning), len(words) - 1) and beginning[length] == words[length]:
            length += 1
        beginning = beginning[:length]
    return (beginning or ())[:4]


def _drop_longer(pairs: list[tuple[Words, Words]]) -> list[tuple[Words, Words]]:
    """Leave out the readings that drop the same words as another one and some more on both sides."""
    return [
        (source, target)
        for source, target in pairs
        if not any(
            (source, target) != other and source[: len(other[0])] == other[0] and target[: len(other[1])] == other[1]
            and bool(source) and bool(target)
            for other in pairs
        )
    ]  # fmt: skip


def _make_reading(
    source: Words, target: Words, by_source: Mapping[Words, str], by_target: Mapping[Words, str]
) -> Reading:
    pairs = {}
    for words, name in by_target.items():
        if words[: len(target)] == target and len(words) > len(target):
            found = by_source.get(source + words[len(target) :])
            if found is not None:
                pairs[name] = found
    return Reading(source, target, pairs)
