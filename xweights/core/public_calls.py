"""Answer calls of public functions that Python or the code inside would answer with an error of its own.

A call that works is passed on. Where an argument has another name, stands in another place or is missing, the error
shows the call that was meant; where an argument is of the wrong kind, an error from deep inside becomes one about it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from types import FunctionType, ModuleType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from xweights.errors import ArgumentError, TraceError, XweightsError, got_expected, hide_from_pytest, shorten, shown

# What people type, from other libraries' names of the same thing: the first of ours that the function has is meant.
_MEANT = {
    ("amount", "sparsity", "ratio", "rate", "share", "percent", "proportion", "p"): ("fraction", "density", "decay"),
    ("n", "k", "num", "number", "num_samples", "top"): ("count",),
    ("min", "minimum", "min_value", "minval", "a_min", "lower", "vmin"): ("low",),
    ("max", "maximum", "max_value", "maxval", "a_max", "upper", "vmax"): ("high",),
    ("norm", "max_norm", "bound", "limit", "c"): ("max",),
    ("sigma", "stddev", "scale", "stdev", "noise"): ("std",),
    ("axis", "dim", "axes", "dims", "unit"): ("per",),
    ("params", "parameters", "filter", "select", "only", "layer", "layers", "names", "name", "pattern", "glob", "keys",
     "include", "modules"): ("where",),
    ("model", "module", "net", "network", "tree", "weights", "params", "state_dict", "file", "x"): ("target",),
    ("models", "files", "states", "inputs"): ("targets",),
    ("state_dict", "weights", "params", "arrays", "file", "path", "state"): ("values",),
    ("file", "filename", "filepath", "f", "fname", "dst", "out", "output", "destination"): ("path", "dst"),
    ("input", "file", "filename", "model"): ("src", "source", "path"),
    ("output", "dst", "file", "path", "filename", "save_to"): ("out",),
    ("norm", "value", "threshold", "max"): ("max",),
    ("val", "fill_value", "constant", "number", "v"): ("value",),
    ("alpha", "by", "multiplier", "gamma"): ("factor", "scale", "weights"),
    ("method", "kind", "mode", "name", "fn", "init"): ("initializer", "method"),
    ("rng", "random_state", "key", "generator", "random_seed"): ("seed",),
    ("mask", "masks"): ("keep",),
    ("input", "inputs", "x", "example", "example_inputs", "sample_input", "batch"): ("sample",),
    ("dst", "to", "dest", "student"): ("target",),
    ("src", "from_", "teacher", "model"): ("source",),
    ("tol", "tolerance", "atol", "eps"): ("rtol",),
    ("mapping", "rename", "key_mapping", "map", "name_map"): ("names",),
    ("order", "data_format", "format"): ("layout",),
    ("dtype", "force", "safe"): ("cast",),
    ("allow_nan", "allow_inf", "nan_ok"): ("allow_nonfinite",),
    ("opt", "optim"): ("optimizer",),
    ("ignore_missing", "skip_mismatch"): ("strict",),
    ("function", "fn", "func", "f"): ("rule",),
    ("axis_size", "blocks", "block_size"): ("block",),
    ("idx", "indices", "entries", "at"): ("index",),
}  # fmt: skip
_MADE_OFTEN = {"Parameter"}  # one for each array, at each call
# Functions of (public name, arguments, keyword arguments, error) that hear of every call that fails.
told_of_refusals: list[Callable[[str, Sequence[Any], Mapping[str, Any], Exception], None]] = []
# For required arguments that were left out: what stands in the line that shows the call.
_SAMPLES = {"seed": "0", "where": "'*/kernel'", "per": "'out'", "max": "1.0", "path": "'w.safetensors'", "value": "0.0"}


def guard_in(home: ModuleType, own_name: str, name: str) -> Any:
    """Return a public object, guarded also for those who import it from the module that defines it."""
    value = getattr(home, own_name)
    if isinstance(value, FunctionType) and not hasattr(value, "__xweights_guarded__"):
        value = guard(value, name)
        vars(value)["__xweights_guarded__"] = True
        # Under the same name in its module, or it couldn't be pickled.
        setattr(home, own_name, value)
    elif isinstance(value, type) and not issubclass(value, BaseException) and name not in _MADE_OFTEN:
        guard_class(value, name)
    return value


def guard(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function that answers wrong calls in the words of the public function ``name``."""
    flags = tuple(
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.annotation in ("bool", bool) and parameter.default is not parameter.empty
    )

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        for flag in flags:
            # Any word is true, so strict="no" would mean strict=True.
            if flag in kwargs and type(kwargs[flag]).__name__ not in ("bool", "bool_"):
                raise _flag_error(name, flag, kwargs[flag])
        try:
            return function(*args, **kwargs)
        except TraceError:
            raise  # Dynamo, which traces this too, would stumble over what follows
        except Exception as wrong:
            better = explain(wrong, function, name, args, kwargs)
            if better is not None:
                # With the notes on the first one: ranks that have heard of it must not be told once more.
                vars(better).update({"explains": wrong} | vars(wrong))
            for tell in told_of_refusals:
                tell(name, args, kwargs, wrong if better is None else better)
            if better is not None:
                raise better from (None if isinstance(wrong, TypeError) and not _entered(wrong) else wrong)
            raise

    return guarded


def guard_class(kind: type, name: str) -> None:
    """Let a class answer wrong calls likewise; the class itself stays the same object."""
    made = vars(kind).get("__init__")
    if isinstance(made, FunctionType) and not hasattr(made, "__xweights_guarded__"):
        guarded = guard(made, name)
        vars(guarded)["__xweights_guarded__"] = True
        kind.__init__ = guarded  # type: ignore[misc]


def explain(
    wrong: Exception, function: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> XweightsError | None:
    """Return the error that says what is wrong with the arguments; None if ``wrong`` says it, or something else is."""
    explained = vars(wrong).get("explains")
    if explained is not None:
        # By a public function that this one calls, in the words of that one.
        return explain(explained, function, name, args, kwargs)
    if isinstance(wrong, XweightsError):
        if wrong.args and isinstance(wrong.args[0], str):
            wrong.args = (shorten(wrong.args[0]), *wrong.args[1:])
        _hide_own_frames(wrong)
        return None
    if not isinstance(wrong, (TypeError, ValueError, AttributeError, LookupError, NotImplementedError)):
        return None
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return _call_error(signature, name, args, kwargs)
    return _kind_error(function, name, bound.arguments, wrong)


def _entered(wrong: Exception) -> bool:
    traceback = wrong.__traceback__
    return traceback is not None and traceback.tb_next is not None


def _hide_own_frames(wrong: BaseException) -> None:
    # pytest asks the globals of each frame.
    traceback = wrong.__traceback__
    while traceback is not None:
        names = traceback.tb_frame.f_globals
        if str(names.get("__name__", "")).startswith(("xweights.", "xweights_")):
            names.setdefault("__tracebackhide__", hide_from_pytest)
        traceback = traceback.tb_next


def _flag_error(name: str, flag: str, value: Any) -> ArgumentError:
    return ArgumentError(
        f"{flag}= of {name}() is True or False\n{got_expected(shown(value), 'True or False')}\nFix: {flag}=True"
    )


def _call_error(
    signature: inspect.Signature, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ArgumentError:
    """Return the error for a call with too many, misnamed or missing arguments, and the call that was meant."""
    known = [p for p in signature.parameters.values() if p.name != "self"]
    given = list(args[1:] if "self" in signature.parameters else args)
    positional = [p for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    settled: dict[str, Any] = dict(zip((p.name for p in positional), given, strict=False))
    facts, hints = [], []
    unknown: dict[str, Any] = {}
    for word, value in kwargs.items():
        if word in settled:
            facts.append(f"{name}() got {word}= twice: by position and by name")
            hints.append("")
        elif word in signature.parameters:
            settled[word] = value
        else:
            unknown[word] = value
    open_names = [p.name for p in known if p.name not in settled and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for word, value in unknown.items():
        meant = _meant(word, open_names)
        facts.append(f"{name}() has no argument {word!r}")
        hints.append(meant)
        if meant:
            settled[meant] = value
            open_names.remove(meant)
    extra = given[len(positional) :]
    if extra:
        most = len(positional)
        facts.append(f"{name}() takes {most} argument{'s' * (most != 1)} by position, and got {len(given)}")
    for value in extra:
        meant = _by_kind(value, [signature.parameters[one] for one in open_names])
        hints.append(meant)
        if meant:
            settled[meant] = value
            open_names.remove(meant)
    required = [p.name for p in known if p.default is p.empty and p.name in open_names]
    if required:
        facts.append(f"{name}() needs {' and '.join(f'{one}=' for one in required)}")
    fact = "; ".join(facts)
    got = _line(name, positional, given, kwargs)
    expected = f"{name}({', '.join(_spell(p) for p in _with_star(known))})"
    text = f"{fact}\n{got_expected(got, expected if len(expected) < 240 else expected[:236] + ' ...')}"
    if all(hints):
        meant_call = {p.name: settled.get(p.name) for p in known if p.name in settled} | dict.fromkeys(required)
        text += f"\nFix: {_corrected('xweights.' + name, known, meant_call, required)}"
    return ArgumentError(text)


def _meant(word: str, names: Sequence[str]) -> str:
    from difflib import get_close_matches

    for words, ours in _MEANT.items():
        if word in words:
            for one in ours:
                if one in names:
                    return one
    return next(iter(get_close_matches(word, names, n=1, cutoff=0.6)), "")


def _by_kind(value: Any, candidates: Sequence[inspect.Parameter]) -> str:
    """Return which of the arguments that have to be named a value is meant for: a required one first, then by kind."""
    for p in candidates:
        if p.default is p.empty and p.kind is p.KEYWORD_ONLY:
            return p.name
    kind = type(value).__name__
    if kind not in ("int", "float", "bool", "tuple", "dict") and any(p.name == "where" for p in candidates):
        return "where"
    for p in candidates:
        if kind in str(p.annotation).replace("|", " ").split():
            return p.name
    return candidates[0].name if candidates and kind in ("int", "float") else ""


def _line(name: str, positional: Sequence[inspect.Parameter], given: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    words = [p.name for p in positional] + ["..."] * len(given)
    parts = [_source(value, word) for value, word in zip(given, words, strict=False)]
    return f"{name}({', '.join([*parts, *(f'{word}={_source(value, word)}' for word, value in kwargs.items())])})"


def _corrected(name: str, known: Sequence[inspect.Parameter], meant: Mapping[str, Any], required: Sequence[str]) -> str:
    parts = []
    for p in known:
        if p.name not in meant:
            continue
        source = _SAMPLES.get(p.name, "...") if p.name in required else _source(meant[p.name], p.name)
        plain = p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty
        parts.append(source if plain else f"{p.name}={source}")
    return f"{name}({', '.join(parts)})"


def _source(value: Any, word: str) -> str:
    """Return a value as it may stand in a line of code: a short literal, or the argument's own name."""
    plain = (str, int, float, complex, bool, type(None))
    text = repr(value) if isinstance(value, plain) else ""
    if isinstance(value, (tuple, list)) and len(value) < 5 and all(isinstance(one, plain) for one in value):
        text = repr(value)
    if 0 < len(text) <= 40:
        return text
    return "model" if word == "target" else word


def _with_star(known: Sequence[inspect.Parameter]) -> Iterator[inspect.Parameter | None]:
    starred = False
    for p in known:
        if p.kind is p.KEYWORD_ONLY and not starred:
            starred = True
            yield None
        starred = starred or p.kind is p.VAR_POSITIONAL
        yield p


def _spell(p: inspect.Parameter | None) -> str:
    if p is None:
        return "*"
    if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
        return ("*" if p.kind is p.VAR_POSITIONAL else "**") + p.name
    if p.default is p.empty:
        return str(p.name)
    return f"{p.name}={'...' if p.default is ... else repr(p.default)}"


def _kind_error(
    function: Callable[..., Any], name: str, arguments: Mapping[str, Any], wrong: Exception
) -> ArgumentError | None:
    """Return the error for arguments of another kind than their annotation says; None if all may be right."""
    defaults = inspect.signature(function).parameters
    off = [
        (word, value)
        for word, value in arguments.items()
        if value is not defaults[word].default and not fits(value, _hint(function, word))
    ]
    if not off:
        return None
    word, value = off[0]
    annotation = str(defaults[word].annotation)
    return ArgumentError(
        f"{word}= of {name}() is of the wrong kind\n{got_expected(shown(value), annotation)}\n"
        f"cause: {type(wrong).__name__}: {str(wrong).splitlines()[0] if str(wrong) else ''}\n"
        f"Fix: {word}= as help(xweights.{name}) shows it"
    )


def _hint(function: Callable[..., Any], word: str) -> Any:
    """Return what the annotation of one argument means, Any if only type checkers know it."""
    one = SimpleNamespace(__annotations__={word: function.__annotations__.get(word, Any)})
    try:
        return get_type_hints(one, getattr(inspect.unwrap(function), "__globals__", {}))[word]
    except Exception:  # noqa: BLE001 - a name that isn't imported at run time
        return Any


def fits(value: Any, hint: Any) -> bool:
    """Return False if a value is certainly not of the annotated kind."""
    origin = get_origin(hint)
    if hint is Any or hint is inspect.Parameter.empty:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if origin is Literal:
        return any(value is one or (type(value) is type(one) and value == one) for one in get_args(hint))
    if hint is None or hint is type(None):
        return value is None
    if origin is not None and isinstance(origin, type):
        return callable(value) if origin.__name__ == "Callable" else isinstance(value, origin)
    if not isinstance(hint, type):
        return True
    if hint in (int, float, complex):
        if isinstance(value, bool) or type(value).__name__ == "bool":
            return False
        words = {int: ("__index__",), float: ("__float__",), complex: ("__complex__", "__float__")}[hint]
        return not isinstance(value, str) and any(hasattr(value, word) for word in words)
    try:
        return isinstance(value, hint)
    except TypeError:  # a protocol that can't be asked at run time
        return True
