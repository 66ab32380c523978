"""The names of arrays in a file of PEFT's: which module they are of, and which part of its adapter."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from xweights.core.parameter import Parameter
from xweights.errors import Problems, RefusedFileError, SelectionError

_PREFIX = "base_model.model."
# Words that tell another kind of adapter, or LoRA as other programs name it.
FOREIGN = {
    "lora_E": "AdaLoRA",
    "lora_down": "LoRA by kohya's names",
    "lora_up": "LoRA by kohya's names",
    "lora_mid": "LyCORIS",
    "hada_w1_a": "LoHa",
    "hada_w2_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w2": "LoKr",
    "ia3_l": "(IA)3",
    "oft_r": "OFT",
    "boft_R": "BOFT",
    "vera_lambda_b": "VeRA",
    "vera_lambda_d": "VeRA",
    "token_adapter": "trainable tokens",
    "prompt_embeddings": "prompt tuning",
}


class Part(str, Enum):
    """One array of a module's adapter."""

    A = "lora_A"
    B = "lora_B"
    EMBEDDING_A = "lora_embedding_A"
    EMBEDDING_B = "lora_embedding_B"
    MAGNITUDE = "lora_magnitude_vector"
    BIAS = "lora_B.bias"

    def __str__(self) -> str:  # StrEnum is new in Python 3.11
        return self.value


_PARTS = {part.value: part for part in Part if part is not Part.BIAS}


def read_names(
    arrays: Mapping[str, Parameter], problems: Problems
) -> tuple[dict[str, dict[str, Parameter]], dict[str, Parameter]]:
    """Return the parts of each module's adapter, and the arrays that take the place of the base's own, by its names."""
    modules: dict[str, dict[str, Parameter]] = {}
    rest: dict[str, Parameter] = {}
    adapters: set[str] = set()
    for key, p in arrays.items():
        words = key.removeprefix(_PREFIX).split(".")
        foreign = next((FOREIGN[word] for word in words if word in FOREIGN), None)
        if foreign is not None:
            fix = "merge it with the program that wrote it"
            problems.add(RefusedFileError, f"{key!r} is of {foreign}, and PEFT's LoRA is merged here", fix=fix)
            continue
        position = next((i for i in reversed(range(len(words))) if words[i] in _PARTS), None)
        if position is None:
            rest[_plain_name(words, adapters)] = p
            continue
        part: Part = _PARTS[words[position]]
        tail = words[position + 1 :]
        end = tail.pop() if tail and tail[-1] in ("weight", "bias") else "weight"
        adapters.update(tail)
        module = ".".join(word for word in words[:position] if word != "base_layer")
        if end == "bias":
            part, tail = Part.BIAS, tail if part is Part.B else ["bias", "bias"]
        if len(tail) > 1 or not module or part in modules.get(module, {}):
            problems.add(SelectionError, f"{key!r} is no name that PEFT gives to an array of an adapter")
            continue
        modules.setdefault(module, {})[part] = p
    if len(adapters) > 1:
        shown = ", ".join(sorted(map(repr, adapters))[:8])
        problems.add(SelectionError, f"it has {len(adapters)} adapters: {shown}", fix="save the one that is meant")
    return modules, rest


def _plain_name(words: list[str], adapters: set[str]) -> str:
    """Return a name as the base has it: without PEFT's wrapper of a module that is trained as a whole."""
    if "modules_to_save" in words[:-2]:
        position = words.index("modules_to_save")
        adapters.add(words[position + 1])
        words = words[:position] + words[position + 2 :]
    return ".".join(word for word in words if word != "base_layer")
