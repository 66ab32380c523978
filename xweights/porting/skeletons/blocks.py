"""Equal blocks of a twin as one class and a loop, in the place of a hundred lines.

Works on the lines that a writer made, each ``name = code``: a run of lines that comes again and again, with other
layers of the same kind, becomes the ``forward`` of a class.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

# Shorter blocks are no easier to read as a class.
_SHORTEST, _LAYERS = 3, 2
_TRIES = 400


class Word(NamedTuple):
    """A name in a line: ``self.name`` if it is an attribute; where it begins and ends."""

    name: str
    attribute: bool
    start: int
    end: int


@dataclass(frozen=True)
class Line:
    """One line of the forward."""

    target: str
    code: str
    words: tuple[Word, ...]
    loop: bool = False

    def renamed(self, names: Mapping[str, str], attributes: Mapping[str, str]) -> str:
        """Return the line with other names."""
        code = self.code
        for word in reversed(self.words):
            new = attributes.get(word.name) if word.attribute else names.get(word.name)
            if new is not None:
                code = code[: word.start] + new + code[word.end :]
        return f"{names.get(self.target, self.target)} = {code}"


@dataclass(frozen=True)
class Block:
    """A class for several equal runs of lines, and the code that calls it."""

    name: str
    attribute: str
    made: Mapping[str, str]  # the code of each layer
    arguments: tuple[str, ...]
    lines: tuple[str, ...]
    results: tuple[str, ...]
    count: int
    moved: Mapping[str, str]  # where each attribute is now
    loop: tuple[str, ...]

    def called(self, name: str, attribute: str) -> Block:
        """Return it under another name."""
        if attribute == self.attribute:
            return replace(self, name=name)
        moved = {layer: f"{attribute}{path.removeprefix(self.attribute)}" for layer, path in self.moved.items()}
        loop = (*self.loop[:-2], f"for block in self.{attribute}:", self.loop[-1])
        return replace(self, name=name, attribute=attribute, moved=moved, loop=loop)


def read_line(text: str) -> Line:
    """Return a line with the names that it uses."""
    if text.startswith(("for ", " ")):  # of a block that was found before
        return Line("", text.strip(), tuple(_iter_words(text.strip())), loop=True)
    target, _, code = text.partition(" = ")
    return Line(target, code, tuple(_iter_words(code)))


def _iter_words(code: str) -> Iterator[Word]:
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(code).readline) if token.string]
    for place, token in enumerate(tokens):
        before = tokens[place - 1].string if place else ""
        after = tokens[place + 1].string if place + 1 < len(tokens) else ""
        if token.type != tokenize.NAME or before == "." or (after == "=" and before in ("(", ",")):
            continue
        if token.string == "self" and after == ".":
            name = tokens[place + 2]
            yield Word(name.string, True, token.start[1], name.end[1])
        else:
            yield Word(token.string, False, token.start[1], token.end[1])


class BlockFinder:
    """Finder of blocks among the lines of one forward."""

    def __init__(
        self,
        lines: Sequence[str],
        result: str,
        layers: Mapping[str, str],
        inputs: Sequence[str],
        reserved: Callable[[str], bool],
    ) -> None:
        self.lines = [read_line(line) for line in lines]
        self.inputs = {*inputs, "batch"}
        self.reserved = reserved
        self.result = {word.name for word in read_line(f"result = {result}").words}
        self.layers = dict(layers)

    def find(self) -> tuple[int, int, Block] | None:
        """Return where the block that saves most lines begins, how many lines its runs take, and the block."""
        local = {line.target for line in self.lines} | self.inputs
        forms = [f"loop {place}" if line.loop else self._form(line, local) for place, line in enumerate(self.lines)]
        found: list[tuple[int, int, int]] = []
        for length in range(_SHORTEST, len(forms) // 2 + 1):
            start = 0
            while start + length < len(forms):
                same = 0
                while start + same + length < len(forms) and forms[start + same] == forms[start + same + length]:
                    same += 1
                if same >= length:
                    # Any of the equal lines may be the first of a block: what it takes and gives decides.
                    found += [
                        (first, length, (start + same - first) // length + 1)
                        for first in range(start, start + same - length + 1)
                    ]
                start += same + 1
        found.sort(key=lambda one: (-(one[2] - 1) * one[1], one[1], one[0]))
        best: tuple[int, int, Block] | None = None
        worth = 0
        for first, length, count in found[:_TRIES]:
            if best is not None and (count - 1) * length < worth:
                break
            block = self._block(first, length, count)
            if block is not None and (best is None or len(block.arguments) < len(best[2].arguments)):
                best, worth = (first, length * count, block), (count - 1) * length
        return best

    def _form(self, line: Line, local: set[str]) -> str:
        attributes = {
            word.name: f"<{self._made(word.name)}>"
            for word in line.words
            if word.attribute and word.name in self.layers
        }
        return Line("", line.code, line.words).renamed(dict.fromkeys(local, "#"), attributes)

    def _made(self, attribute: str) -> str:
        """Return the code that makes a layer, without its own name in it."""
        return self.layers[attribute].replace(f'"{attribute}"', '"#"')

    def _block(self, first: int, length: int, count: int) -> Block | None:
        runs = [self.lines[first + number * length : first + (number + 1) * length] for number in range(count)]
        shared, own = self._attributes(runs)
        prefix = None if own is None else _prefix(own)
        if own is None or prefix is None or len(own[0]) < _LAYERS:
            return None
        taken = self._taken(runs, first)
        if taken is None:
            return None
        carried, fixed = taken
        after = self.lines[first + length * count :]
        used = {word.name for line in after for word in line.words if not word.attribute} | self.result
        places = {line.target: (number, place) for number, run in enumerate(runs) for place, line in enumerate(run)}
        given = sorted({places[name][1] for name in used if name in places and places[name][0] == count - 1})
        if any(name in used for name, (number, _) in places.items() if number < count - 1):
            return None
        passed = [place for _, place in carried]
        if set(given) - set(passed) or len(set(passed)) != len(passed):
            return None
        inside = [name.removeprefix(f"{prefix[0]}_") for name in prefix[1]]
        if len(set(inside)) < len(inside) or any(not name.isidentifier() or self.reserved(name) for name in inside):
            return None
        return self._written(runs, own, shared, carried, fixed, prefix[0], inside)

    def _attributes(self, runs: Sequence[Sequence[Line]]) -> tuple[list[str], list[list[str]] | None]:
        """Return the attributes that all runs share, and those that each has for itself."""
        slots: list[list[str]] = [[] for _ in runs]
        for number, run in enumerate(runs):
            for line in run:
                slots[number] += [word.name for word in line.words if word.attribute]
        shared: dict[str, None] = {}
        own: list[dict[str, None]] = [{} for _ in runs]
        for names in zip(*slots, strict=True):
            if len(set(names)) == 1:
                shared[names[0]] = None
            elif len(set(names)) < len(names):
                return [], None
            else:
                for number, name in enumerate(names):
                    own[number][name] = None
        everywhere = [name for line in self.lines for name in {word.name for word in line.words if word.attribute}]
        several = {name for names in own for name in names}
        inside = sum(
            name in several for run in runs for line in run for name in {w.name for w in line.words if w.attribute}
        )
        if sum(name in several for name in everywhere) != inside or several & set(shared):
            return [], None
        if len({len(names) for names in own}) > 1 or len(several) != sum(len(names) for names in own):
            return [], None
        return list(shared), [list(names) for names in own]

    def _taken(self, runs: Sequence[Sequence[Line]], first: int) -> tuple[list[tuple[str, int]], list[str]] | None:
        """Return what a run takes: (name at the start, place of the line that makes it in the run before), the rest."""
        before = {line.target for line in self.lines[:first]} | self.inputs
        uses = [[word.name for line in run for word in line.words if not word.attribute] for run in runs]
        made = [{line.target: place for place, line in enumerate(run)} for run in runs]
        carried: dict[str, int] = {}
        fixed: dict[str, None] = {}
        for names in zip(*uses, strict=True):
            inside = [made[number].get(name) for number, name in enumerate(names)]
            if all(place is not None for place in inside) and len(set(inside)) == 1:
                continue
            if len(set(names)) == 1 and (names[0] in before or inside == [None] * len(runs)):
                if names[0] in before:
                    fixed[names[0]] = None
                continue
            places = {made[number].get(name) for number, name in enumerate(names[1:])}
            place = next(iter(places))
            if len(places) > 1 or place is None or names[0] not in before:
                return None
            if carried.setdefault(names[0], place) != place:
                return None
        if not carried or set(carried) & set(fixed):
            return None
        return list(carried.items()), list(fixed)

    def _written(
        self,
        runs: Sequence[Sequence[Line]],
        own: Sequence[Sequence[str]],
        shared: Sequence[str],
        carried: Sequence[tuple[str, int]],
        fixed: Sequence[str],
        prefix: str,
        inside: Sequence[str],
    ) -> Block:
        first, last = runs[0], runs[-1]
        kept = dict(zip(own[0], inside, strict=True))
        attributes = {name: f"self.{new}" for name, new in kept.items()} | {name: name for name in shared}
        arguments = ([name for name, _ in carried], [*fixed, *shared])
        taken = {*arguments[0], *arguments[1], "self", "block", *_GLOBALS}
        # The numbers that the names of the first block have need not be told in all of them.
        names: dict[str, str] = {}
        for line in first:
            short = re.sub(r"_\d+$", "", line.target).removeprefix(f"{prefix}_")
            number = 1
            while (new := short if number == 1 else f"{short}_{number}") in taken:
                number += 1
            taken.add(new)
            names[line.target] = new
        group = _split(prefix)[0]
        attribute = group or "blocks"
        results = tuple(names[first[place].target] for _, place in carried)
        targets = [last[place].target for _, place in carried]
        # By their names: Keras takes nothing but tensors by position.
        named = [f"{name}={name}" for name in fixed] + [f"{name}=self.{name}" for name in shared]
        call = f"{', '.join(targets)} = block({', '.join([*targets, *named])})"
        starts = [f"{target} = {name}" for target, (name, _) in zip(targets, carried, strict=True)]
        moved = {
            name: f"{attribute}.{number}.{new}"
            for number, names_of in enumerate(own)
            for name, new in zip(names_of, inside, strict=True)
        }
        return Block(
            "".join(part.capitalize() for part in attribute.split("_")) + "Block",
            attribute,
            {new: self.layers[name].replace(f'"{name}"', f'"{new}"') for name, new in kept.items()},
            (*arguments[0], *arguments[1]),
            tuple(line.renamed(names, attributes) for line in first),
            results,
            len(runs),
            moved,
            (*starts, f"for block in self.{attribute}:", f"    {call}"),
        )


_GLOBALS = frozenset({"ops", "np", "layers", "keras", "torch", "functional", "nn", "float", "None", "True", "False"})


def _prefix(own: Sequence[Sequence[str]]) -> tuple[str, Sequence[str]] | None:
    """Return what the names of the first run's layers begin with, if those of each run differ in one number there."""
    common = ""
    parts = [name.split("_") for name in own[0]]
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        common = f"{common}_{column[0]}" if common else column[0]
    # The number of the run is the last one that all names of it share.
    while common and not common.rpartition("_")[2].isdigit():
        common = common.rpartition("_")[0]
    if not common:
        return None
    group, _ = _split(common)
    for names in own[1:]:
        number = {re.match(rf"{re.escape(group)}_(\d+)(_|$)", name) for name in names}
        if None in number or len({found[1] for found in number if found is not None}) > 1:
            return None
        new = next(found[1] for found in number if found is not None)
        if [name.replace(f"{group}_{new}_", f"{common}_", 1) for name in names] != list(own[0]):
            return None
    return common, own[0]


def _split(prefix: str) -> tuple[str, str]:
    group, _, number = prefix.rpartition("_")
    return group, number
