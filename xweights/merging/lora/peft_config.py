"""The configuration of an adapter as PEFT writes it: ``adapter_config.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xweights.errors import Problems, RefusedFileError
from xweights.files.formats.safetensors import json_object
from xweights.files.io.open_file import OpenFile, damaged, refused
from xweights.merging.lora.patterns import find_pattern, is_harmless

CONFIG = "adapter_config.json"
_LARGEST = 8 << 20

# Settings under which the product of the factors isn't what is added, or isn't added to one weight each.
_OTHER_MATH = {
    "alora_invocation_tokens": "activated LoRA is on for a part of each sequence, and can't be merged",
    "arrow_config": "Arrow routes each token to adapters of its own",
    "kasa_config": "KaSA scales by singular values of the base",
    "layer_replication": "it replicates layers of the base",
    "monteclora_config": "MonteCLoRA samples its factors",
    "target_parameters": "it adapts parameters that aren't a layer's weight",
    "trainable_token_indices": "it trains rows of an embedding",
    "use_bdlora": "its factors are block-diagonal",
    "use_qalora": "QA-LoRA pools the inputs of a quantised base",
}
# Settings of training, of loading, and of the names that the factors in the file say anyway.
_NO_MATTER = frozenset(
    {"auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config"}
    | {"exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"}
    | {"layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config"}
    | {"megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r"}
    | {"rank_pattern", "alpha_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora"}
    | {"use_rslora", "velora_config"}
)


@dataclass(frozen=True)
class PeftConfig:
    """What of a configuration the merge needs."""

    rank: int
    alpha: float
    ranks: Mapping[str, float] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    root: bool = False
    transposed: bool = False
    dora: bool = False

    def rank_of(self, module: str) -> int:
        """Return the rank that the configuration states for a module."""
        found = find_pattern(self.ranks, module)
        return self.rank if found is None else int(found)

    def scaling_of(self, module: str) -> float:
        """Return what the product of a module's factors is multiplied by."""
        found = find_pattern(self.alphas, module)
        alpha = self.alpha if found is None else found
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.root else alpha / rank


def read_config(path: str) -> PeftConfig:
    """Read a configuration; refuse an adapter of another kind, and settings that change the arithmetic, by name.

    Raises:
        FileAccessError, DamagedFileError, RefusedFileError.
    """
    file = OpenFile(path)
    try:
        if file.size > _LARGEST:
            raise refused(path, f"it is larger than a configuration\ngot: {file.size:,} bytes")
        config = json_object(path, file.read(0, file.size), "the configuration")
    finally:
        file.close()
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise refused(
            path,
            f"it is an adapter of the kind {str(kind)[:40]!r}, and LoRA is merged here",
            fix="merge it with PEFT: model = PeftModel.from_pretrained(base, folder).merge_and_unload()",
        )
    problems = Problems(f"{path!r} can't be merged")
    for key, why in _OTHER_MATH.items():
        if config.get(key):
            problems.add(RefusedFileError, f"{key!r}: {why}", fix="merge it with PEFT: model.merge_and_unload()")
    unknown = [key for key, value in config.items() if key not in _NO_MATTER and key not in _OTHER_MATH and value]
    for key in unknown[:8]:
        problems.add(RefusedFileError, f"{key[:60]!r} is a setting that isn't known, and it may change the arithmetic")
    problems.check()
    return PeftConfig(
        _whole(path, config, "r", 8),
        _number(path, "lora_alpha", config.get("lora_alpha", 8)),
        _patterns(path, config, "rank_pattern"),
        _patterns(path, config, "alpha_pattern"),
        _flag(path, config, "use_rslora"),
        _flag(path, config, "fan_in_fan_out"),
        _flag(path, config, "use_dora"),
    )


def _whole(path: str, config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if type(value) is not int or not 1 <= value <= 1 << 20:
        raise damaged(path, f"a rank is a whole number >= 1\ngot: {value!r:.60}", key=key)
    return value


def _number(path: str, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise damaged(path, f"it is no number\ngot: {value!r:.60}", key=key)
    return float(value) if abs(value) > 1 << 53 else value


def _flag(path: str, config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key) or False
    if not isinstance(value, bool):
        raise damaged(path, f"it is neither true nor false\ngot: {value!r:.60}", key=key)
    return value


def _patterns(path: str, config: Mapping[str, Any], key: str) -> dict[str, float]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise damaged(path, "it is no object of patterns and numbers", key=key)
    for pattern, number in value.items():
        if not is_harmless(pattern):
            reason = f"the pattern {pattern[:60]!r} is more than a name with \\d+, .* or (a|b) in it"
            raise refused(path, reason, key=key, fix="merge it with PEFT: model.merge_and_unload()")
        _number(path, key, number)
        if key == "rank_pattern":
            _whole(path, value, pattern, 1)
    return value
