"""Recipes: what to merge or to edit, read from a YAML or JSON file.

Merges are read in mergekit's format as far as it says what can be done here; what it says beyond that is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xweights.errors import Problems

_LARGEST = 1 << 20  # bytes
_MOST_NODES = 20_000  # with aliases, a few lines of YAML may stand for billions
METHODS = {"linear": "average", "nuslerp": "", "passthrough": ""}
# mergekit's name of a setting, and ours.
SETTINGS = {
    "weight": "weights", "density": "density", "lambda": "scale", "gamma": "gamma", "epsilon": "epsilon", "t": "t",
    "normalize": "normalize", "rescale": "rescale",
}  # fmt: skip
_PER_MODEL = ("weight", "density", "gamma", "epsilon")
_NOTHING_HERE = ("int8_mask", "tokenizer_source", "tokenizer", "chat_template")
_EDITS = ("set", "fill", "scale", "add", "clip", "max_norm", "noise", "prune")


def read_recipe(path: Path) -> Mapping[str, Any]:
    """Return the mapping in a recipe; nothing in it is executed."""
    from xweights.cli.targets import missing_file_error
    from xweights.errors import ArgumentError, BackendMissingError

    if not path.is_file():
        raise missing_file_error(path)
    if path.stat().st_size > _LARGEST:
        raise ArgumentError(f"a recipe is no larger than 1 MB\ngot: {path.stat().st_size:,} bytes in {str(path)!r}")
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".json":
        try:
            content: Any = json.loads(text)
        except (ValueError, RecursionError) as wrong:
            raise ArgumentError(f"{str(path)!r} is no JSON\ncause: {wrong}") from None
    else:
        try:
            import yaml
        except ImportError:
            fix = "python -m pip install 'xweights-nn[recipes]', or write the recipe as .json"
            raise BackendMissingError(f"a recipe in YAML needs PyYAML, which isn't installed\nFix: {fix}") from None
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError) as wrong:
            cause = " ".join(str(wrong).split())
            raise ArgumentError(f"{str(path)!r} is no YAML\ncause: {cause[:300]}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ArgumentError(
            f"{str(path)!r} is no recipe\ngot:      {type(content).__name__}\nexpected: models: or edits:"
        )
    if sum(1 for _ in _nodes(content)) >= _MOST_NODES:
        raise ArgumentError(f"{str(path)!r} has more than {_MOST_NODES:,} values, or contains itself")
    return content


def _nodes(content: Any) -> Iterator[None]:
    pending, seen = [content], 0
    while pending and seen < _MOST_NODES:
        node = pending.pop()
        seen += 1
        yield None
        if isinstance(node, dict):
            pending += node.values()
        elif isinstance(node, list):
            pending += node


def merge_recipe(path: Path) -> dict[str, Any]:
    """Return ``targets``, ``method``, ``base`` and the options of a merge that a recipe describes."""
    from xweights.errors import ArgumentError, Problems, near

    recipe = read_recipe(path)
    problems = Problems(f"{str(path)!r} can't be merged as it is")
    known = (
        "models",
        "merge_method",
        "base_model",
        "parameters",
        "dtype",
        "out_dtype",
        "where",
        "names",
        *_NOTHING_HERE,
    )
    for key in recipe:
        if key in ("slices", "modules"):
            fix = "merge the models whole, or choose parameters with where:"
            problems.add(ArgumentError, f"{key}: layers of models in another order are no merge of weights", fix=fix)
        elif key not in known:
            problems.add(ArgumentError, f"{key}: isn't known\n{near(key, known)}")
    for key in ("dtype", "out_dtype"):
        if recipe.get(key) is not None:
            fix = f"leave it out; afterwards: xweights cast MERGED --dtype {recipe[key]}"
            problems.add(ArgumentError, f"{key}: a merge keeps the dtype of the first model", fix=fix)
    models = recipe.get("models")
    if not isinstance(models, list) or not models:
        problems.add(ArgumentError, "models: is a list of - model: FILE")
        models = []
    method = recipe.get("merge_method", "linear")
    ours = METHODS.get(method, method) if isinstance(method, str) else ""
    if not ours:
        problems.add(ArgumentError, f"merge_method: {method} isn't among the methods here", fix="xweights merge --help")
    base = recipe.get("base_model")
    targets, settings = [], []
    for model in models:
        entry = model if isinstance(model, dict) else {"model": model}
        if not isinstance(entry.get("model"), str):
            problems.add(ArgumentError, f"models: has an entry without model:\ngot: {model!r:.80}")
            continue
        # The base may be listed, without any say.
        if entry["model"] == base and ours not in ("average", "slerp", "lerp"):
            continue
        targets.append(_resolve(entry["model"], path))
        settings.append(entry.get("parameters") or {})
    options = _settings(recipe.get("parameters") or {}, settings, problems)
    if isinstance(base, str):
        if ours in ("slerp", "lerp"):
            # There the base is the model at t = 0.
            first = _resolve(base, path)
            targets = [first, *(target for target in targets if target != first)]
        elif ours != "average":
            options["base"] = _resolve(base, path)
    elif base is not None:
        problems.add(ArgumentError, f"base_model: is the name of a file\ngot: {base!r:.80}")
    problems.check()
    return {"targets": targets, "method": ours, "where": recipe.get("where"), "names": recipe.get("names")} | options


def _resolve(name: str, recipe: Path) -> str:
    """Return a path beside the recipe as it is from here; anything else as it stands."""
    beside = recipe.parent / name
    return str(beside) if not Path(name).exists() and beside.exists() else name


def _settings(shared: Any, of_models: Sequence[Any], problems: Problems) -> dict[str, Any]:
    from xweights.errors import ArgumentError, near

    options: dict[str, Any] = {}
    if not all(isinstance(one, dict) for one in (shared, *of_models)):
        problems.add(ArgumentError, "parameters: are NAME: VALUE")
        return options
    for key in dict.fromkeys(key for one in (shared, *of_models) for key in one):
        if key in _NOTHING_HERE:
            continue
        if key not in SETTINGS:
            problems.add(ArgumentError, f"parameters: {key} isn't known\n{near(str(key), SETTINGS)}")
            continue
        own = [one.get(key, shared.get(key)) for one in of_models]
        if key == "rescale":
            options["rescale"] = "density" if shared.get(key, True) else None
        elif key == "normalize":
            options["normalize"] = bool(shared.get(key))
        elif key in _PER_MODEL and any(key in one for one in of_models):
            if any(value is None for value in own):
                problems.add(ArgumentError, f"parameters: {key} is missing in some of the models", fix="give all one")
            else:
                options[SETTINGS[key]] = _by_where([_conditions(key, value, problems) for value in own])
        else:
            options[SETTINGS[key]] = _by_where([_conditions(key, shared[key], problems)], single=True)
    return options


def _conditions(key: str, value: Any, problems: Problems) -> list[tuple[str, float]]:
    """Return (filter, number) pairs; the first filter that is in a name counts, and an empty one is in every name."""
    from xweights.errors import ArgumentError

    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [("", float(value))]
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        pairs = [(one.get("filter") or "", one.get("value")) for one in value]
        if all(isinstance(number, (int, float)) and isinstance(name, str) for name, number in pairs):
            return [(name, float(number)) for name, number in pairs if isinstance(number, (int, float))]
    fix = "a number, or a list of filter: and value:"
    problems.add(
        ArgumentError, f"parameters: {key} can't be understood (a gradient over layers?)\ngot: {value!r:.80}", fix=fix
    )
    return [("", 0.0)]


def _by_where(of_models: Sequence[Sequence[tuple[str, float]]], *, single: bool = False) -> Any:
    """Return numbers for all, or by selection: in a mapping the last match counts, so filters go in from the end."""
    filters = dict.fromkeys(name for conditions in of_models for name, _ in conditions)
    if list(filters) == [""]:
        numbers = tuple(conditions[0][1] for conditions in of_models)
        return numbers[0] if single or len(numbers) == 1 else numbers
    from xweights.core.selection import native

    found: dict[Any, Any] = {}
    for name in reversed([*(one for one in filters if one), *([""] if "" in filters else [])]):
        numbers = tuple(
            next((number for own, number in conditions if own in (name, "")), 0.0) for conditions in of_models
        )
        found["*" if not name else native(f"*{name}*")] = numbers[0] if single else numbers
    return found


def edit_recipe(path: Path, default_where: Any) -> list[tuple[Any, Any]]:
    """Return the (rule, where) pairs of the edits that a recipe lists."""
    from xweights.cli.option_values import parse_entries
    from xweights.cli.options import parse_where
    from xweights.errors import ArgumentError, Problems, XweightsError

    recipe = read_recipe(path)
    edits = recipe.get("edits")
    if not isinstance(edits, list) or not edits or set(recipe) != {"edits"}:
        raise ArgumentError(
            f"{str(path)!r} lists no edits\nFix: edits: as a list of - scale: 0.5, - clip: [-1, 1], ..."
        )
    problems = Problems(f"{str(path)!r} can't be done as it is")
    found: list[tuple[Any, Any]] = []
    for number, edit in enumerate(edits, 1):
        names = [name for name in edit if name != "where"] if isinstance(edit, dict) else []
        if len(names) != 1 or names[0] not in _EDITS:
            problems.add(ArgumentError, f"edit {number} is none of {', '.join(_EDITS)}\ngot: {edit!r:.120}")
            continue
        where = edit.get("where")
        texts = [where] if isinstance(where, str) else where
        try:
            value = edit[names[0]]
            if names[0] == "set" and isinstance(value, str):
                value = parse_entries(value, "set")
            found.append((_rule(names[0], value), parse_where(texts, default_where)))
        except XweightsError as wrong:
            problems.add(type(wrong), f"edit {number}: {wrong}")
        except (TypeError, ValueError, AttributeError):
            problems.add(ArgumentError, f"edit {number} can't be understood\ngot: {edit!r:.120}")
    problems.check()
    return found


def _rule(name: str, value: Any) -> Any:
    from xweights import api

    if name == "set":
        return api.SetEntries(*value) if isinstance(value, tuple) else api.Fill(value)
    kinds: dict[str, Any] = {
        "fill": api.Fill, "scale": api.Scale, "add": api.Add, "clip": api.Clip, "max_norm": api.MaxNorm,
        "noise": api.Noise, "prune": api.Prune,
    }  # fmt: skip
    if isinstance(value, dict):
        if name == "prune" and isinstance(value.get("pattern"), list):
            value = value | {"pattern": tuple(value["pattern"])}
        return kinds[name](**value)
    if isinstance(value, list):
        return kinds[name](*value)
    if name == "max_norm":
        return api.MaxNorm(value, per="out")
    return api.Prune(fraction=value) if name == "prune" else kinds[name](value)
