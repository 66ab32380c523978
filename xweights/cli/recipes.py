"""Recipes: what to merge or to edit, read from a YAML or JSON file.

Merges are read in mergekit's format as far as it says what can be done here; what it says beyond that is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xweights.cli.recipe_settings import NOTHING_HERE, RESCALED, join_settings, read_settings, read_slices

if TYPE_CHECKING:
    from xweights.errors import Problems

_LARGEST = 1 << 20  # bytes
_MOST_NODES = 20_000  # with aliases, a few lines of YAML may stand for billions
METHODS = {"linear": "average", "nuslerp": "", "passthrough": ""}
_RESCALING = ("dare_linear", "dare_ties", "della", "della_linear")  # unless a recipe says otherwise
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
    """Return targets, method, base, where, names, layers, dtypes and the options of a merge that a recipe describes."""
    from xweights.errors import ArgumentError, Problems, near

    recipe = read_recipe(path)
    problems = Problems(f"{str(path)!r} can't be merged as it is")
    known = (
        "models",
        "slices",
        "merge_method",
        "base_model",
        "parameters",
        "dtype",
        "out_dtype",
        "where",
        "names",
        *NOTHING_HERE,
    )
    for key in recipe:
        if key == "modules":
            fix = "a recipe for each, with where:"
            problems.add(ArgumentError, "modules: are models in one, which aren't told apart here", fix=fix)
        elif key not in known:
            problems.add(ArgumentError, f"{key}: isn't known\n{near(key, known)}")
    models, shared, layers = recipe.get("models"), recipe.get("parameters") or {}, None
    if "slices" in recipe:
        if models is not None:
            problems.add(ArgumentError, "models: and slices: exclude each other", fix="leave one out")
        models, of_slice, layers = read_slices(recipe["slices"], problems)
        shared = join_settings(of_slice, shared)
    elif not isinstance(models, list) or not models:
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
        for key in set(entry) - {"model", "parameters"}:
            problems.add(ArgumentError, f"models: {key}: isn't known\ngot: {model!r:.80}", fix="parameters: {...}")
        # The base may be listed, without any say.
        if entry["model"] == base and ours not in ("average", "slerp", "lerp"):
            continue
        targets.append(_resolve(entry["model"], path, problems))
        settings.append(entry.get("parameters") or {})
    options = read_settings(shared, settings, problems)
    if isinstance(base, str):
        if ours in ("slerp", "lerp"):
            # There the base is the model at t = 0.
            first = _resolve(base, path, problems)
            targets = [first, *(target for target in targets if target != first)]
        elif ours != "average":
            options["base"] = _resolve(base, path, problems)
    elif base is not None:
        problems.add(ArgumentError, f"base_model: is the name of a file\ngot: {base!r:.80}")
    if ours in _RESCALING:
        options.setdefault("rescale", RESCALED)
    names = recipe.get("names")
    texts = [*names, *names.values()] if isinstance(names, dict) else [names]
    if names is not None and not all(isinstance(text, str) for text in texts):
        problems.add(ArgumentError, f"names: are GLOB: GLOB, the first model's first\ngot: {names!r:.80}")
    where = _texts(recipe.get("where"), "where:", problems)
    problems.check()
    dtypes = {key: recipe[key] for key in ("dtype", "out_dtype") if recipe.get(key) is not None}
    return {
        "targets": targets, "method": ours, "where": where, "names": names, "layers": layers, "dtypes": dtypes
    } | options  # fmt: skip


def _texts(value: Any, what: str, problems: Problems) -> list[str] | None:
    """Return one text or several as a list; None for what isn't there."""
    from xweights.errors import ArgumentError

    texts = [value] if isinstance(value, str) else value
    if texts is None or (isinstance(texts, list) and texts and all(isinstance(text, str) and text for text in texts)):
        return texts
    problems.add(ArgumentError, f"{what} is one selection, or a list of them\ngot: {value!r:.80}")
    return None


def _resolve(name: str, recipe: Path, problems: Problems) -> str:
    """Return a path beside the recipe as it is from here; anything else as it stands."""
    from xweights.cli.targets import is_factory
    from xweights.errors import ArgumentError

    beside = recipe.parent / name
    if is_factory(name) and not beside.exists():
        # A recipe comes from elsewhere, and a factory is code that would run.
        fix = "xweights convert PACKAGE.MODULE:FACTORY w.safetensors, and name that file"
        problems.add(ArgumentError, f"a recipe names files, and runs no code\ngot: {name!r:.80}", fix=fix)
    return str(beside) if not Path(name).exists() and beside.exists() else name


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
        texts = _texts(edit.get("where"), f"edit {number}: where:", problems)
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
    from xweights.errors import ArgumentError

    if name == "set":
        return api.SetEntries(*value) if isinstance(value, tuple) else api.Fill(value)
    kinds: dict[str, Any] = {
        "fill": api.Fill, "scale": api.Scale, "add": api.Add, "clip": api.Clip, "max_norm": api.MaxNorm,
        "noise": api.Noise, "prune": api.Prune,
    }  # fmt: skip
    if name == "noise" and not (isinstance(value, dict) and "seed" in value):
        raise ArgumentError("noise is drawn from a seed\nFix: noise: {std: 0.01, seed: 0}")
    if isinstance(value, dict):
        # YAML and JSON have no tuples.
        tuples = {key: tuple(value[key]) for key in ("pattern", "per") if isinstance(value.get(key), list)}
        return kinds[name](**value | tuples)
    if isinstance(value, list):
        return kinds[name](*value)
    if name == "max_norm":
        return api.MaxNorm(value, per="out")
    return api.Prune(fraction=value) if name == "prune" else kinds[name](value)
