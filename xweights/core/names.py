"""Find parameters by name or glob, and map the names of a target to its twin's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from xweights.core.parameter import Parameter
from xweights.errors import ArgumentError, SelectionError


def is_glob(pattern: str) -> bool:
    """Return True if the pattern has a wildcard."""
    return "*" in pattern or "?" in pattern


_matchers: dict[str, Callable[[str], Any]] = {}


def glob_matcher(pattern: str) -> Callable[[str], Any]:
    """Return a function that is truthy for names that match a glob."""
    if pattern not in _matchers:
        lead = "(?:.*/)?" if pattern.startswith("*/") else ""
        rest = pattern[2:] if lead else pattern
        body = "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in rest)
        _matchers[pattern] = re.compile(lead + body, re.DOTALL).fullmatch
    return _matchers[pattern]


class NameIndex:
    """The parameters by neutral and by native name."""

    def __init__(self, everything: Sequence[Parameter]) -> None:
        self.everything = everything

    @cached_property
    def neutral(self) -> dict[str, list[Parameter]]:
        return _group((name, p) for p in self.everything for name in dict.fromkeys((p.name, *p.aliases)))

    @cached_property
    def native(self) -> dict[str, list[Parameter]]:
        return _group((name, p) for p in self.everything for name in dict.fromkeys((p.native_name, *p.native_aliases)))

    @cached_property
    def shortened(self) -> dict[str, list[Parameter]]:
        return _group((name.partition("/")[2], p) for name, group in self.native.items() for p in group)


def _group(pairs: Iterable[tuple[str, Parameter]]) -> dict[str, list[Parameter]]:
    by_name: dict[str, list[Parameter]] = {}
    for name, parameter in pairs:
        by_name.setdefault(name, []).append(parameter)
    return by_name


def find_named(name: str, everything: Sequence[Parameter] | NameIndex) -> list[Parameter]:
    """Return the parameter with a full name, neutral or native, as a list; refuse a name that means two."""
    index = everything if isinstance(everything, NameIndex) else NameIndex(everything)
    neutral = index.neutral.get(name, [])
    # A native path may be given with or without the model's own name in front.
    by_native = index.native.get(name) or index.shortened.get(name, [])
    if neutral and by_native and neutral[0] is not by_native[0]:
        raise SelectionError(
            f"the name {name!r} means two parameters\n"
            f"neutral name: {neutral[0]!r}\n"
            f"native name:  {by_native[0]!r} (native {by_native[0].native_name!r})\n"
            f"Fix: where=native({by_native[0].native_name!r}) for the second, or "
            f"where=lambda p: p.name == {name!r} for the first"
        )
    if not neutral and len(by_native) > 1:
        paths = ", ".join(repr(p.name) for p in by_native)
        raise SelectionError(f"the native name {name!r} means {len(by_native)} parameters\nFix: use one of {paths}")
    return neutral or by_native


Names = Mapping[str, str]


def renamer(names: Names | None) -> Callable[[str], str]:
    """Return a function from a target's name to its twin's; the first glob that matches decides.

    Example:
        >>> from xweights.core.names import renamer
        >>> renamer({"0/*": "dense/0/*"})("0/kernel")
        'dense/0/kernel'
    """
    rules = []
    for glob, twin_glob in (names or {}).items():
        if glob.count("*") != twin_glob.count("*"):
            raise ArgumentError(f"names= needs as many * on both sides\ngot: {glob!r}: {twin_glob!r}")
        pattern = "".join("(.*)" if c == "*" else re.escape(c) for c in glob)
        rules.append((re.compile(pattern, re.DOTALL), twin_glob.split("*")))

    def rename(name: str) -> str:
        for pattern, pieces in rules:
            match = pattern.fullmatch(name)
            if match:
                matched = [*match.groups(), ""]
                return "".join(piece + part for piece, part in zip(pieces, matched, strict=True))
        return name

    return rename


_MOST_PAIRS = 6  # of globs that a message suggests


def suggest_names(wanted: Mapping[str, Any], known: Mapping[str, Any]) -> Names | None:
    """Return the ``names=`` that pairs names of one model with nearly the same ones of its twin; None if none does.

    Both map names to shapes. Names with the same last part and shape belong together, in their order.

    Example:
        >>> from xweights.core.names import suggest_names
        >>> suggest_names({"dense/kernel": (2, 3)}, {"dense/0/kernel": (2, 3)})
        {'dense/*': 'dense/0/*'}
    """
    theirs: dict[Any, list[str]] = {}
    for name, shape in known.items():
        if name not in wanted:
            theirs.setdefault((name.rpartition("/")[2], tuple(shape)), []).append(name)
    globs: dict[str, str] = {}
    pairs: dict[str, str] = {}
    for name, shape in wanted.items():
        if name in known:
            continue
        alike = theirs.get((name.rpartition("/")[2], tuple(shape)))
        if not alike:
            return None
        pairs[name] = alike.pop(0)
        ours, twins = name.split("/"), pairs[name].split("/")
        while ours and twins and ours[-1] == twins[-1]:
            ours.pop()
            twins.pop()
        globs["/".join([*ours, "*"])] = "/".join([*twins, "*"])
    rename = renamer(globs)
    agree = all(rename(name) == twin for name, twin in pairs.items())
    return globs if pairs and agree and len(globs) <= _MOST_PAIRS else None
