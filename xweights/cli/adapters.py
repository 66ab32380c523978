"""Parse ``--adapt GLOB=how(axis, ...)`` into what ``adapt=`` takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from xweights.cli.option_values import parse_slice
from xweights.cli.vocabularies import read_vocabulary

_CALL = re.compile(r"(?P<name>[a-z]+)(?:\((?P<arguments>[^()]*)\))?")
_NUMBER = re.compile(r"-?(\d+\.\d*|\.?\d+)(e-?\d{1,3})?", re.ASCII)
_HELP = (
    "sum(in), mean(in), repeat(in, 3), take(in, 0:3), pad(out, 10), resample(14x14, 16x16, skip=1), "
    "rows(old.json, new.json), leave"
)


def parse_adapters(texts: Sequence[str] | None) -> dict[str, Any] | None:
    """Parse the values of ``--adapt``; several for one glob are applied in their order."""
    if not texts:
        return None
    from xweights.errors import ArgumentError, got_expected

    found: dict[str, list[Any]] = {}
    for text in texts:
        glob, equals, call = text.partition("=")
        match = _CALL.fullmatch(call.strip())
        if not equals or not glob or match is None:
            raise ArgumentError(f"--adapt can't be understood\n{got_expected(text, 'GLOB=HOW, where HOW is ' + _HELP)}")
        found.setdefault(glob, []).append(_adapter(text, match["name"], match["arguments"] or ""))
    return {glob: adapters[0] if len(adapters) == 1 else adapters for glob, adapters in found.items()}


def _adapter(text: str, name: str, arguments: str) -> Any:
    from xweights.edit import adapt
    from xweights.errors import ArgumentError, XweightsError, got_expected, near

    kinds: dict[str, Any] = {
        "sum": adapt.Sum, "mean": adapt.Mean, "repeat": adapt.Repeat, "take": adapt.Take, "pad": adapt.Pad,
        "resample": adapt.Resample, "rows": adapt.Rows, "leave": adapt.Leave,
    }  # fmt: skip
    if name not in kinds:
        raise ArgumentError(f"--adapt {text}: there is no {name}()\n{near(name, kinds)}\nFix: one of {_HELP}")
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in arguments.split(","))):
        word, equals, value = part.partition("=")
        if equals:
            named[word.strip()] = _value(value.strip())
        else:
            positional.append(_value(part))
    if name == "take" and len(positional) > 1 and not isinstance(positional[1], slice):
        positional = [positional[0], positional[1:]]
    if name == "rows":
        positional = [read_vocabulary(str(one)) for one in positional]
        named |= {key: read_vocabulary(str(named[key])) for key in ("old", "new") if key in named}
    try:
        return kinds[name](*positional, **named)
    except XweightsError as wrong:
        raise type(wrong)(f"--adapt {text}: {wrong}") from None
    except TypeError:
        raise ArgumentError(f"--adapt can't be understood\n{got_expected(text, _HELP)}") from None


def _value(text: str) -> Any:
    if re.fullmatch(r"-?\d{1,18}", text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    if re.fullmatch(r"\d{1,18}(x\d{1,18})+", text):
        return tuple(map(int, text.split("x")))
    if text in ("yes", "true", "no", "false"):
        return text in ("yes", "true")
    return parse_slice(text) or text
