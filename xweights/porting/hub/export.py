"""``export_hf``: write a model of a hub as a folder that the other library loads, proved by loading it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from xweights.core.openers import open_model_folder
from xweights.errors import PortError, Problems
from xweights.porting.hub.find import find_hub
from xweights.porting.hub.protocol import Twins
from xweights.porting.matching.outputs import compare_outputs
from xweights.porting.matching.samples import SilentWatcher
from xweights.porting.port import port
from xweights.porting.protocol import porting_for
from xweights.porting.reports import PortReport
from xweights.porting.shards import refuse_uncopied


def export_hf(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    sample: Any = None,
    settings: Mapping[str, Any] | None = None,
    ignore_settings: bool = False,
    overwrite: bool = False,
) -> PortReport:
    """Write a keras_hub model as a folder of Hugging Face transformers: ``config.json`` and ``model.safetensors``.

    The transformers model is made from the mapped settings, the weights are ported into it and proved, both files are
    written, and the folder is loaded with transformers and computes the sample once more, before it gets its name.

    Args:
        model: A backbone of BERT, RoBERTa, DistilBERT, GPT-2, Llama, Mistral, Qwen (2, 3), Gemma (1, 2), ViT, Whisper
            or T5, or a task ``CausalLM`` of one of the decoders, whose head is then exported too.
        folder: Where to; it is made, and may hold other files (a tokenizer's), which stay.
        sample: What the model is called with. Default: random numbers of a short length.
        settings: Further settings of transformers that keras_hub doesn't have (``max_position_embeddings``, special
            tokens).
        ignore_settings: Export a model although a setting of its layers can't be had in transformers (the eps of
            keras_hub's norms of query and key in Qwen 3): the report lists it. Default: refuse.
        overwrite: Replace the two files where there are any.

    Exact: exactly the same bits as the model's weights.
    Raises TargetError (a family or a setting that transformers doesn't have), PortError, BackendMissingError,
    FileAccessError; nothing is then left behind, and the model is unchanged.

    Example:
        >>> import xweights as xw
        >>> xw.export_hf({}, "folder")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        ...
        xweights.errors.TargetError: only a model of a hub has settings that can be mapped
    """
    hub = find_hub(model)
    refuse_uncopied(model, "an export")
    place = open_model_folder(folder, overwrite=overwrite)
    twins = hub.make_twin(model, sample, settings or {})
    outputs = {theirs: ours for ours, theirs in twins.outputs.items()} if twins.outputs else None
    report = port(
        twins.model,
        twins.twin,
        sample=twins.sample,
        sample_target=twins.twin_sample,
        outputs=outputs,
        attributes="ignore" if ignore_settings else "check",
    )

    def prove(made: str) -> None:
        _prove(hub.read_twin(twins, made), twins, outputs if report.ok else None, to_twin=not report.ok)

    place.write(twins.settings, twins.twin, prove)
    return replace(report, notes=(*report.notes, *twins.notes))


def _prove(loaded: Any, twins: Twins, outputs: Mapping[str, str] | None, *, to_twin: bool) -> None:
    """Compare the model (or its twin, if settings differ) with what the folder's files make; raise PortError."""
    arrays = []
    model = (twins.twin, twins.twin_sample) if to_twin else (twins.model, twins.sample)
    for (one, sample), what in ((model, "model"), ((loaded, twins.twin_sample), "folder")):
        porting = porting_for(one, what)
        arrays.append(porting.run(one, porting.records(one), sample, SilentWatcher()))
    first = porting_for(loaded, "folder").channels_first
    compared = compare_outputs(arrays[0], arrays[1], outputs, target_first=first)
    problems = Problems("the folder doesn't compute what the model does, and nothing was left behind")
    for name, (error, limit) in compared.items():
        if error > limit:
            problems.add(PortError, f"the output {name!r} differs after loading (error {error:.1e})")
    problems.check()
