"""keras_hub's models and their twins in transformers."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from xweights.errors import BackendMissingError, PortError, TargetError, XweightsError, got_expected, near
from xweights.porting.hub.protocol import Twins
from xweights_keras.hub.families import FAMILIES, Family, UnmappedError, find_family, list_lost, map_back, map_settings
from xweights_keras.hub.folders import check_folder, damaged_config, read_config
from xweights_keras.hub.samples import convert_sample, draw_sample


class KerasHub:
    """The hub of keras_hub (see ``xweights.porting.hub.protocol.Hub``)."""

    name = "keras_hub"

    def takes(self, model: Any) -> bool:
        return any(base.__module__.partition(".")[0] == self.name for base in type(model).__mro__)

    def make_twin(self, model: Any, sample: Any, settings: Mapping[str, Any]) -> Twins:
        transformers = import_library("transformers")
        backbone = getattr(model, "backbone", model)
        # get_config of LlamaBackbone leaves it out (keras_hub 0.32).
        ours = {**backbone.get_config(), "tie_word_embeddings": _is_tied(backbone)}
        kind = find_family([base.__name__ for base in type(backbone).__mro__], ours)
        if kind is None:
            raise TargetError(
                f"this family can't be mapped\n{got_expected(type(backbone).__name__, _list_families())}\n"
                "Fix: xw.port into a transformers model that you make yourself"
            )
        family = FAMILIES[kind]
        task = backbone is not model or not _is_tied(backbone)
        if (task and not family.causal) or (backbone is not model and not _is_causal(model)):
            raise TargetError(
                f"of a task only CausalLM is mapped\ngot: {type(model).__name__}\nFix: export its backbone"
            )
        try:
            theirs = {**map_settings(family, ours), **settings}
        except UnmappedError as wrong:
            raise TargetError(
                f"transformers' {family.model} doesn't have {wrong}\nmodel: {type(backbone).__name__}\n"
                "Fix: make the keras_hub model without it"
            ) from None
        with _quiet():
            try:
                twin = _make(transformers, family, theirs, task=task, dtype=_dtype_of(backbone))
                written = take(transformers, family.config)(**theirs)
            except XweightsError:
                raise
            except Exception as cause:  # any error of transformers for settings that it doesn't take
                raise TargetError(
                    f"transformers doesn't make a {family.model} of these settings\n"
                    f"cause: {type(cause).__name__}: {cause}\nFix: settings={{...}} for what keras_hub doesn't have"
                ) from cause
        written.architectures = [type(twin).__name__]
        written.dtype = _dtype_of(backbone)
        called = draw_sample(family, ours, theirs) if sample is None else sample
        return Twins(
            _as_task(backbone) if task and backbone is model else model,
            twin,
            called,
            convert_sample(family, called),
            {"output": "logits"} if task else family.outputs,
            written.to_json_string(),
        )

    def read_twin(self, twins: Twins, folder: str) -> Any:
        options = {"dtype": twins.twin.dtype, **twins.twin.xweights_options}
        return _load(type(twins.twin), folder, options, whole=True)

    def open_folder(self, folder: str, sample: Any, *, ignore: bool) -> Twins:
        transformers = import_library("transformers")
        config = read_config(folder)
        kind = config.get("model_type")
        if kind not in FAMILIES:
            raise TargetError(
                f"this family can't be mapped\n{got_expected(repr(kind), ', '.join(FAMILIES))}\n"
                f"{near(str(kind), list(FAMILIES))}folder: {folder}"
            )
        family = FAMILIES[kind]
        try:
            with _quiet():
                expected = take(transformers, family.config).from_dict(config).to_dict()
            ours = map_back(family, expected)
            lost = list_lost(expected, map_settings(family, ours))
        except UnmappedError as wrong:
            raise TargetError(
                f"keras_hub's {family.backbone} doesn't have {wrong}\nfolder: {folder}\nFix: use it in transformers"
            ) from None
        except XweightsError:
            raise
        except Exception as cause:  # settings of a file: whatever transformers or the table says to them
            raise damaged_config(
                folder, f"its settings are none of a {kind}: {type(cause).__name__}: {cause}"
            ) from cause
        notes = [
            f"{name} is {theirs} in the folder and {got} in keras_hub's {family.backbone}"
            for name, (theirs, got) in lost.items()
        ]
        if lost and not ignore:
            raise TargetError(
                "\n".join(["keras_hub's class doesn't have all settings of this folder", *(f"  - {n}" for n in notes)])
                + f"\nfolder: {folder}\nFix: ignore_settings=True to import the weights all the same"
            )
        keys = check_folder(folder)
        hub = import_library("keras_hub")
        backbone = getattr(hub.models, family.backbone)(**ours, dtype="float32")
        tied = _is_tied(backbone)
        headed = bool(family.causal) and not tied and "lm_head.weight" in keys
        if not tied and not headed:
            notes.append("the folder has no head, and that of the backbone's token_embedding stays as it was made")
        for note in notes:
            warnings.warn(note, UserWarning, stacklevel=4)
        changed = {name: got for name, (_, got) in lost.items()}
        options = {**_options(family, task=headed), **changed, **_silent(family)}
        twin = _load(take(transformers, family.causal if headed else family.model), folder, options, whole=False)
        called = draw_sample(family, ours, expected) if sample is None else sample
        return Twins(
            _as_task(backbone) if headed else backbone,
            twin,
            called,
            convert_sample(family, called),
            {"output": "logits"} if headed else family.outputs,
            returned=backbone,
        )


def import_library(name: str) -> Any:
    """Import an optional library; raise BackendMissingError."""
    packages = {"keras_hub": "keras-hub", "transformers": "transformers torch safetensors"}
    try:
        return importlib.import_module(name)
    except ImportError as cause:
        raise BackendMissingError(
            f"{name} can't be imported\ncause: {type(cause).__name__}: {cause}\n"
            f"Fix: python -m pip install {packages[name]}"
        ) from cause


def take(library: Any, name: str) -> Any:
    """Return a class of a library that imports its modules only now; raise BackendMissingError."""
    try:
        return getattr(library, name)
    except (ImportError, AttributeError) as cause:
        raise BackendMissingError(
            f"{library.__name__} {getattr(library, '__version__', '')} has no {name} here\n"
            f"cause: {str(cause.__cause__ or cause).splitlines()[0]}\n"
            f"Fix: make `python -c 'from {library.__name__} import {name}'` work"
        ) from cause


def _list_families() -> str:
    return ", ".join(dict.fromkeys(family.backbone for family in FAMILIES.values()))


def _is_tied(backbone: Any) -> bool:
    return bool(getattr(getattr(backbone, "token_embedding", None), "tie_weights", True))


def _is_causal(model: Any) -> bool:
    return any(base.__name__ == "CausalLM" for base in type(model).__mro__)


def _as_task(backbone: Any) -> Any:
    """Return a backbone with the head that is in its table of tokens."""
    module = importlib.import_module("keras_hub").models
    return getattr(module, type(backbone).__name__.replace("Backbone", "CausalLM"))(backbone, preprocessor=None)


def _dtype_of(backbone: Any) -> str:
    return str(backbone.weights[0].dtype)


def _options(family: Family, *, task: bool) -> dict[str, Any]:
    return {} if task else dict(family.options)


def _make(transformers: Any, family: Family, theirs: Mapping[str, Any], *, task: bool, dtype: str) -> Any:
    import torch

    config = take(transformers, family.config)(**{**theirs, **_silent(family)})
    # Soft caps and relative positions are computed by this implementation in every version.
    config._attn_implementation = "eager"
    options = _options(family, task=task)
    twin = take(transformers, family.causal if task else family.model)(config, **options)
    twin.xweights_options = {**options, **_silent(family)}
    return twin.to(getattr(torch, dtype)).eval()


def _silent(family: Family) -> dict[str, Any]:
    """Return the setting by which a decoder doesn't put out its cache."""
    return {"use_cache": False} if family.causal or "decoder_token_ids" in family.inputs else {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from writing to the terminal: what is wrong is an error here."""
    logging = importlib.import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load(kind: Any, folder: str, options: Mapping[str, Any], *, whole: bool) -> Any:
    """Load a model of transformers from a folder: no code of the folder, nothing from the network."""
    try:
        with _quiet():
            twin, told = kind.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation="eager",
                output_loading_info=True,
                **{"dtype": "float32", **options},
            )
    except Exception as cause:
        raise PortError(
            f"transformers can't load this folder\nfolder: {folder}\n"
            f"cause:  {type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"
        ) from cause
    wrong = {
        name: sorted(map(str, told.get(name, ()))) for name in ("missing_keys", "mismatched_keys", "unexpected_keys")
    }
    if not whole:
        del wrong["unexpected_keys"]  # heads that the backbone doesn't have
    if any(wrong.values()):
        shown = "\n".join(f"{name}: {', '.join(keys[:6])}" for name, keys in wrong.items() if keys)
        raise PortError(
            f"transformers finds other weights in this folder than its class has\nfolder: {folder}\n{shown}"
        )
    return twin.eval()
