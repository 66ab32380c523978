"""All errors of xweights, and `Problems`, which raises several as one.

The tree:

    XweightsError
    ├── SelectionError (LookupError)          nothing, or something ambiguous, was selected; a key is missing or unknown
    ├── ShapeError (ValueError)               got one shape, expected another
    ├── DtypeError (TypeError)                a dtype that can't hold the values, or a cast that would change them
    ├── NonfiniteError (ValueError)           NaN or infinity where it was not asked for
    ├── LayoutError (ValueError)              an axis that isn't known, or an order that can't be settled by name
    ├── ArgumentError (ValueError, TypeError) an argument out of its range, or of the wrong kind
    ├── WriteError (RuntimeError)             a parameter that can't safely be written
    ├── TraceError (RuntimeError)             a call that can't be part of a compiled step
    │   ├── UseBindError                      ... but works when bound first
    │   └── StaleDrawError                    a bound random rule was called again without a new draw
    ├── HoldError (RuntimeError)              a rule that can't be held, or isn't true although it is held
    │   └── StaleTrainFunctionError           a step compiled before the hold, which goes on without it
    ├── PortError (RuntimeError)              a port that is wrong, or that can't be proved right
    ├── CheckpointError (RuntimeError)        a file that can't be read or written as weights
    │   ├── DamagedFileError (ValueError)     ... because it breaks the rules of its format
    │   ├── RefusedFileError (ValueError)     ... because it holds parts that are never loaded, or more than was allowed
    │   └── FileAccessError                   ... because the system refuses: no such file, no permission, no space
    ├── HandoffError (RuntimeError)           an optimizer whose state can't be read, or can't go on as it was elsewhere
    ├── RankError (RuntimeError)              ranks that disagree about a call, or one that doesn't take part in it
    ├── TargetError (TypeError)               an object that holds no weights xweights can reach
    │   └── NotBuiltError                     a model whose weights don't exist yet
    └── BackendMissingError (ImportError)     the backend of a framework is not installed
        └── BackendBrokenError                ... or is installed and fails to import

and one warning, UnknownRoleWarning (UserWarning): a default selection left out arrays whose role nothing says.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn


class XweightsError(Exception):
    """Every error that xweights raises on purpose."""

    # TensorFlow's AutoGraph raises an error again at the user's line, and keeps its type only if its __init__ is this
    # function.
    if not TYPE_CHECKING:
        __init__ = Exception.__init__

    def _render_traceback_(self) -> list[str]:
        """Return the lines that a notebook shows; IPython calls this, if an error has it."""
        short = user_traceback(self.__traceback__)
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        if shell is not None:
            lines: list[str] = shell.InteractiveTB.structured_traceback(type(self), self, short)
            return lines
        import traceback

        return "".join(traceback.format_exception(type(self), self, short)).splitlines()


class SelectionError(XweightsError, LookupError):
    """A selection, a name or a key that matches nothing, or more than it should."""


class ShapeError(XweightsError, ValueError):
    """A value whose shape isn't the parameter's."""


class DtypeError(XweightsError, TypeError):
    """A value whose dtype can't be stored without changing it."""


class NonfiniteError(XweightsError, ValueError):
    """NaN or infinity where it was not asked for."""


class LayoutError(XweightsError, ValueError):
    """An axis order that can't be known, or an axis that isn't there."""


class ArgumentError(XweightsError, ValueError, TypeError):
    """An argument out of its range, or of the wrong kind."""


class WriteError(XweightsError, RuntimeError):
    """A parameter that can't safely be written."""


class TraceError(XweightsError, RuntimeError):
    """A call that can't be part of a compiled step."""


class UseBindError(TraceError):
    """A verb called inside a compiled step that needs it bound first."""


class StaleDrawError(TraceError):
    """A bound random rule that was called again without a new draw."""


class HoldError(XweightsError, RuntimeError):
    """A rule that can't be held, or that isn't true although it is held."""


class StaleTrainFunctionError(HoldError):
    """A training step that was compiled before a hold began, and goes on without it."""


class PortError(XweightsError, RuntimeError):
    """A port that is wrong, or that can't be proved right."""


class CheckpointError(XweightsError, RuntimeError):
    """A file that can't be read or written as weights.

    ``path``, ``key`` (the array concerned, if any) and ``reason`` are the parts of the message.
    """

    path: str = ""
    key: str | None = None
    reason: str = ""


class DamagedFileError(CheckpointError, ValueError):
    """A file that breaks the rules of its format: cut short, made of parts that contradict each other."""


class RefusedFileError(CheckpointError, ValueError):
    """A file with something that is never loaded (objects, links, sparse tensors), or larger than was allowed."""


class FileAccessError(CheckpointError):
    """A file that the system refused to read or write: it doesn't exist, permission is denied, or the disk is full.

    ``errno`` is the number of the system's error, from which this one is raised.
    """

    errno: int | None = None


class HandoffError(XweightsError, RuntimeError):
    """An optimizer whose state can't be read, or that can't go on elsewhere as if nothing had happened."""


class RankError(XweightsError, RuntimeError):
    """Ranks of one group that disagree about a call, or one that doesn't take part in it."""


class TargetError(XweightsError, TypeError):
    """An object that holds no weights xweights can reach."""


class NotBuiltError(TargetError):
    """A model whose weights don't exist yet."""


class BackendMissingError(XweightsError, ImportError):
    """The backend that a target needs is not installed."""


class BackendBrokenError(BackendMissingError):
    """The backend that a target needs is installed but fails to import."""


class UnknownRoleWarning(UserWarning):
    """A default selection left out arrays of two or more axes, because nothing says what they are for.

    Example:
        >>> import warnings, numpy as np, xweights as xw
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     masks = xw.prune({"a/kernel": np.ones((2, 2)), "w": np.ones((2, 2))}, fraction=0.5)
        >>> caught[0].category.__name__, list(masks)
        ('UnknownRoleWarning', ['a/kernel'])
    """


_combined: dict[tuple[type[XweightsError], ...], type[XweightsError]] = {}


# An error is read at a terminal, above a traceback that has pushed everything else out of sight.
_MOST_LINES, _MOST_FIXES, _MOST_CHARACTERS = 40, 6, 500
_MOST_ALIKE = 3  # so many faults of one kind are shown each by itself; of more, the first, and the names of the others


class Problems:
    """A collection of everything wrong with a call, to be raised as one error.

    The error is of *every* kind it lists, so ``except ShapeError`` catches a call that had
    a wrong shape among other things.
    """

    def __init__(self, headline: str) -> None:
        self.headline = headline
        self._found: list[tuple[type[XweightsError], str]] = []
        self._consequences: list[tuple[type[XweightsError], str]] = []
        self._fixes: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._found or self._consequences)

    def add(self, kind: type[XweightsError], text: str, *, fix: str | None = None, consequence: bool = False) -> None:
        """Add one problem, and its fix; what is only a consequence of other problems stands behind them."""
        (self._consequences if consequence else self._found).append((kind, text))
        if fix is not None and fix not in self._fixes:
            self._fixes.append(fix)

    def add_fix(self, fix: str) -> None:
        """Add a fix of several problems together, before those of each."""
        self._fixes.insert(0, fix)

    def extend(self, others: Problems) -> None:
        """Add the problems of another collection."""
        self._found += others._found
        self._consequences += others._consequences
        self._fixes += [fix for fix in others._fixes if fix not in self._fixes]

    def check(self) -> None:
        """Raise everything found so far, or do nothing."""
        if self:
            self.throw()

    def throw(self) -> NoReturn:
        """Raise everything found so far as one error: equal problems once, every fix once and last."""
        found = self._found + self._consequences
        fixes, shown = list(self._fixes), []
        for alike in _group_alike([text for _, text in found]):
            first, *rest = alike[0].splitlines() or [""]
            same = len(set(alike)) == 1
            lines = [f"  - {first}" + (f" ({len(alike)} times)" if same and len(alike) > 1 else "")]
            for line in rest:
                if line.startswith("Fix: "):
                    fixes.append(line.removeprefix("Fix: "))
                else:
                    lines.append(f"    {line}")
            if not same:
                lines.append(_describe_others(alike))
            shown.append((lines, len(alike)))
        fixes = [f"Fix: {fix}" for fix in dict.fromkeys(fixes)][:_MOST_FIXES]
        lines = [*self.headline.splitlines()]
        room = _MOST_LINES - len(lines) - sum(len(fix.splitlines()) for fix in fixes) - 1
        listed = 0
        for problem, _ in shown:
            if listed and len(problem) > room - (listed + 1 < len(shown)):
                break
            room -= len(problem)
            lines += problem
            listed += 1
        left_out = sum(count for _, count in shown[listed:])
        if left_out:
            lines.append(f"  ... and {left_out:,} more")
        lines += fixes
        raise combine_kinds(tuple(dict.fromkeys(kind for kind, _ in found)))(shorten("\n".join(lines)))


def _group_alike(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield lists of problems that are shown as one: equal texts, and many that differ in names and numbers only."""
    groups: dict[str, list[str]] = {}
    many = len(texts) > _MOST_ALIKE  # few aren't looked at: Dynamo, which traces refusals, can't trace `re`
    for text in texts:
        alike = re.sub(r"\d+", "0", re.sub(r"'[^'\n]*'", "''", text)) if many else text
        groups.setdefault(alike, []).append(text)
    by_first: dict[str, list[str]] = {}
    for members in groups.values():
        if len(set(members)) > _MOST_ALIKE:
            by_first[members[0]] = members
        else:
            for text in members:
                by_first.setdefault(text, []).append(text)
    # In the order in which the first of each was found.
    yield from (by_first[text] for text in dict.fromkeys(texts) if text in by_first)


def _describe_others(alike: Sequence[str]) -> str:
    names = [match[0] for match in (re.search(r"'[^'\n]*'", text) for text in alike[1:]) if match is not None]
    names = [name for name in dict.fromkeys(names) if name not in alike[0]]
    listed = f": {', '.join(names[:6])}" if names else ""
    return f"    likewise {len(alike) - 1:,} more{listed}{', ...' if len(names) > 6 else ''}"


def shorten(text: str) -> str:
    """Return a message of at most 40 lines, whose last ones (the fix) are kept, none of them endless."""
    lines = text.splitlines()
    if len(lines) > _MOST_LINES:
        at = next((i for i, line in enumerate(lines) if line.startswith("Fix: ")), len(lines))
        end = lines[max(at, len(lines) - 12) :]
        begin = lines[: _MOST_LINES - len(end) - 1]
        lines = [*begin, f"  ... ({len(lines) - len(begin) - len(end):,} more lines)", *end]
    return "\n".join(
        line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 100]} ... {line[-90:]}"
        for line in lines
    )


def shown(value: object) -> str:
    """Return a value as one short line of a message: its repr, or else what it is."""
    kind = type(value)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{kind.__module__}.{kind.__qualname__} of {tuple(shape)}, {dtype}"
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a message must not fail on whatever a user's object raises
        text = ""
    if not text or "\n" in text or len(text) > 80:
        return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    return text if value is None or isinstance(value, (list, tuple, dict)) else f"{text} ({kind.__qualname__})"


_OWN = r"xweights(_torch|_keras|_tensorflow|_jax)?(\.|$)"


def user_traceback(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback without frames of xweights, but for the outermost one; all of it if a maintainer asks.

    With ``XWEIGHTS_FULL_TRACEBACKS`` in the environment nothing is left out.
    """
    if os.environ.get("XWEIGHTS_FULL_TRACEBACKS"):
        return traceback
    kept: list[TracebackType] = []
    own = False
    while traceback is not None:
        frame = traceback.tb_frame
        module = frame.f_globals.get("__name__", "")
        is_own = re.match(_OWN, module) is not None
        # The guard stands before every public function; the user called what is behind it.
        if not is_own or not (own or module == "xweights.core.public_calls"):
            kept.append(traceback)
            own = own or is_own
        traceback = traceback.tb_next
    short: TracebackType | None = None
    for entry in reversed(kept):
        short = TracebackType(short, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return short


def hide_from_pytest(info: Any) -> bool:
    """Return True for errors whose frames inside xweights say nothing to a user: ``__tracebackhide__`` of pytest."""
    wrong = getattr(info, "value", None)
    return isinstance(wrong, XweightsError) and not os.environ.get("XWEIGHTS_FULL_TRACEBACKS")


def combine_kinds(kinds: tuple[type[XweightsError], ...]) -> type[XweightsError]:
    """Return an error class that is a subclass of all ``kinds``."""
    # A kind adds nothing to one of its own subclasses, and listed before it would allow no method resolution order.
    kinds = tuple(dict.fromkeys(kinds))
    kinds = tuple(kind for kind in kinds if not any(other is not kind and issubclass(other, kind) for other in kinds))
    if len(kinds) == 1:
        return kinds[0]
    kinds = tuple(sorted(kinds, key=lambda kind: kind.__name__))
    if kinds not in _combined:
        name = "And".join(kind.__name__ for kind in kinds)
        _combined[kinds] = type(name, kinds, {"__module__": __name__, "__doc__": "Several kinds at once."})
    return _combined[kinds]


def got_expected(got: object, expected: object) -> str:
    """Return ``got`` and ``expected`` on aligned lines."""
    return f"got:      {got}\nexpected: {expected}"


def near(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Return a line that suggests the known names nearest to ``name``, or else lists the first of them."""
    from difflib import get_close_matches

    names = list(dict.fromkeys(known))
    if not names:
        return "There are no names to choose from."
    last = name.rsplit("/", 1)[-1].strip("*")
    close = get_close_matches(name, names, n=limit, cutoff=0.5)
    close = close or [candidate for candidate in names if last and last in candidate][:limit]
    if not close:
        ends = dict.fromkeys(candidate.rsplit("/", 1)[-1] for candidate in names)
        close = [f"*/{end}" for end in get_close_matches(last, ends, n=limit, cutoff=0.6)]
    if close:
        return "Near names: " + ", ".join(repr(candidate) for candidate in close)
    shown = ", ".join(repr(candidate) for candidate in names[:8])
    return f"Known names: {shown}" + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
