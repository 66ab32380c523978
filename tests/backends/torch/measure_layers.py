"""Measure how many arrays of packages' models have a role and axes, and write docs/layers.md from it.

``python tests/backends/torch/measure_layers.py [--write]``: small random configurations on the meta device, so that no
memory is needed; a package that isn't installed is left out, and said so. Models that are made with Keras are measured
by ``tests/backends/keras/measure_keras_layers.py``, in a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import json
import logging
import re
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xweights.core.layer_rows import is_known_role
from xweights.core.parameter import Parameter
from xweights_torch import backend

PAGE = Path(__file__).resolve().parents[3] / "docs" / "layers.md"
MARK = "<!-- measured -->"
KERAS_SCRIPT = Path(__file__).resolve().parents[1] / "keras" / "measure_keras_layers.py"
OF_KERAS = ("keras", "keras_hub")  # keras: keras.applications

# On the meta device a model costs no memory, so most settings are the defaults.
TRANSFORMERS = (
    "AlbertForMaskedLM ASTModel AutoformerModel BartForConditionalGeneration BeitForImageClassification "
    "BertForMaskedLM BigBirdForMaskedLM BioGptForCausalLM BitModel BlenderbotForConditionalGeneration BlipModel "
    "BloomForCausalLM CamembertForMaskedLM CLIPModel CodeGenForCausalLM CohereForCausalLM ConvBertForMaskedLM "
    "ConvNextForImageClassification ConvNextV2ForImageClassification CvtForImageClassification CTRLLMHeadModel "
    "DebertaForMaskedLM DebertaV2ForMaskedLM DeiTForImageClassification DeepseekV3ForCausalLM "
    "DetrForObjectDetection Dinov2ForImageClassification Dinov2WithRegistersForImageClassification "
    "DistilBertForMaskedLM DPTForDepthEstimation EfficientNetForImageClassification ElectraForMaskedLM "
    "EsmForMaskedLM FalconForCausalLM FalconMambaForCausalLM FlaubertWithLMHeadModel FNetForMaskedLM "
    "FocalNetForImageClassification FunnelForMaskedLM GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM "
    "GlmForCausalLM GPT2LMHeadModel GPTBigCodeForCausalLM GPTNeoForCausalLM GPTNeoXForCausalLM GPTJForCausalLM "
    "GptOssForCausalLM GraniteForCausalLM GraniteMoeForCausalLM GroundingDinoForObjectDetection "
    "HieraForImageClassification HubertForCTC IBertForMaskedLM ImageGPTModel JambaForCausalLM JetMoeForCausalLM "
    "LayoutLMForMaskedLM LayoutLMv3Model LEDForConditionalGeneration LevitForImageClassification LlamaForCausalLM "
    "Llama4ForCausalLM LongformerForMaskedLM LongT5ForConditionalGeneration LukeForMaskedLM LxmertModel "
    "M2M100ForConditionalGeneration MambaForCausalLM Mamba2ForCausalLM MarianMTModel "
    "Mask2FormerForUniversalSegmentation MaskFormerForInstanceSegmentation MBartForConditionalGeneration "
    "MimiModel MistralForCausalLM MixtralForCausalLM MobileBertForMaskedLM MobileNetV2ForImageClassification "
    "MobileViTModel MPNetForMaskedLM MptForCausalLM MT5ForConditionalGeneration MusicgenForCausalLM "
    "NemotronForCausalLM NystromformerForMaskedLM OlmoForCausalLM Olmo2ForCausalLM OlmoeForCausalLM "
    "OPTForCausalLM Owlv2ForObjectDetection PegasusForConditionalGeneration PerceiverForMaskedLM "
    "PersimmonForCausalLM PhiForCausalLM Phi3ForCausalLM PhimoeForCausalLM PoolFormerForImageClassification "
    "PvtForImageClassification Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM "
    "Qwen3NextForCausalLM RecurrentGemmaForCausalLM RegNetForImageClassification RemBertForMaskedLM "
    "ResNetForImageClassification RobertaForMaskedLM RoFormerForMaskedLM RwkvForCausalLM SamModel "
    "SegformerForImageClassification SeamlessM4TModel SEWForCTC SiglipModel SmolLM3ForCausalLM "
    "Speech2TextForConditionalGeneration SpeechT5ForTextToSpeech SqueezeBertForMaskedLM StableLmForCausalLM "
    "Starcoder2ForCausalLM SwiftFormerForImageClassification SwinForImageClassification "
    "Swinv2ForImageClassification SwitchTransformersForConditionalGeneration T5ForConditionalGeneration "
    "TableTransformerForObjectDetection TapasForQuestionAnswering TimesformerForVideoClassification "
    "UMT5ForConditionalGeneration UniSpeechForCTC ViTForImageClassification ViTMAEForPreTraining ViltModel "
    "VisualBertModel VitDetModel VitsModel VideoMAEForVideoClassification Wav2Vec2ForPreTraining "
    "Wav2Vec2ConformerForCTC WavLMForCTC WhisperForConditionalGeneration XCLIPModel XGLMForCausalLM "
    "XLMRobertaForMaskedLM XLNetLMHeadModel XmodForMaskedLM YolosForObjectDetection ZambaForCausalLM "
    "Zamba2ForCausalLM"
)

DIFFUSERS = (
    "AutoencoderKL AutoencoderKLWan AutoencoderTiny AutoencoderDC AutoencoderKLLTXVideo AutoencoderKLMochi "
    "AutoencoderOobleck AsymmetricAutoencoderKL AuraFlowTransformer2DModel CogVideoXTransformer3DModel "
    "ControlNetModel ControlNetUnionModel ConsistencyDecoderVAE DiTTransformer2DModel FluxTransformer2DModel "
    "HunyuanDiT2DModel HunyuanVideoTransformer3DModel LTXVideoTransformer3DModel LatteTransformer3DModel "
    "LuminaNextDiT2DModel MochiTransformer3DModel MotionAdapter PixArtTransformer2DModel PriorTransformer "
    "SD3Transformer2DModel SanaTransformer2DModel StableAudioDiTModel StableCascadeUNet T2IAdapter "
    "Transformer2DModel TransformerTemporalModel UNet1DModel UNet2DConditionModel UNet2DModel "
    "UNet3DConditionModel UNetSpatioTemporalConditionModel UVit2DModel VQModel WanTransformer3DModel "
    "WanVACETransformer3DModel ZImageTransformer2DModel"
)


@dataclass
class Measured:
    """What was found in the models of one package."""

    package: str
    arrays: int = 0
    known: int = 0
    models: list[str] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)


def weights_of(model: nn.Module) -> Iterator[Parameter]:
    """Yield what counts: everything that isn't hidden, and no counters and indices."""
    for p in backend.adapter(model).parameters(model):
        if not p.hidden and p.floating:
            yield p


def is_known(p: Parameter) -> bool:
    """Return True for an array with a role and axes."""
    return p.axes is not None and is_known_role(p.role)


def measure(package: str, builders: dict[str, Callable[[], nn.Module]]) -> Measured:
    """Build each model on the meta device, and count."""
    found = Measured(package)
    for name, build in builders.items():
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.device("meta"):
                warnings.simplefilter("ignore")
                model = build()
            weights = list(weights_of(model))
        except Exception as cause:  # noqa: BLE001 - whatever a package's constructor raises
            found.failed[name] = f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"[:100]
            continue
        found.models.append(name)
        found.arrays += len(weights)
        for p in weights:
            if is_known(p):
                found.known += 1
            else:
                kind = type(getattr(p.handle, "owner", model)).__name__
                role = "" if is_known_role(p.role) else ", role unknown"
                found.unknown[f"{kind}.{p.native_name.rpartition('.')[2]} {p.layout.stored}{role}"] += 1
    return found


def transformers_models() -> dict[str, Callable[[], nn.Module]]:
    """Return a builder for each class of transformers."""
    import transformers

    return {name: lambda name=name: build_small(getattr(transformers, name)) for name in TRANSFORMERS.split()}


def build_small(cls: Any) -> nn.Module:
    # The settings that a configuration knows are shrunk where it allows that, else it is taken as it is: on the meta
    # device a large model costs no memory.
    config = cls.config_class()
    for setting in ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers", "n_layers"):
        value = getattr(config, setting, None)
        if isinstance(value, int) and value > 4:
            smaller = cls.config_class()
            with contextlib.suppress(Exception):
                setattr(smaller, setting, 4)
                config = smaller
    try:
        return cls(config)
    except Exception:  # noqa: BLE001 - whatever a package's constructor raises
        return cls(cls.config_class())


def timm_models() -> dict[str, Callable[[], nn.Module]]:
    """Return a builder for one model of each architecture of timm, and for more until there are 300."""
    import timm

    names = timm.list_models()
    by_module: dict[str, list[str]] = {}
    for name in names:
        by_module.setdefault(timm.models._registry._model_to_module[name], []).append(name)
    # Four or five sizes and variants of each architecture.
    chosen = [name for group in by_module.values() for name in group[:: max(1, len(group) // 4)][:5]]
    return {name: lambda name=name: timm.create_model(name) for name in chosen[:320]}


def torchvision_models() -> dict[str, Callable[[], nn.Module]]:
    """Return a builder for each model of torchvision."""
    from torchvision import models

    names = [name for name in models.list_models() if "rcnn" not in name]
    return {
        name: lambda name=name: models.get_model(name, weights=None, **_no_backbone(models, name)) for name in names
    }


def _no_backbone(models: Any, name: str) -> dict[str, None]:
    # The parts of segmentation and detection models would be downloaded otherwise.
    options = inspect.signature(models.get_model_builder(name)).parameters
    return {"weights_backbone": None} if "weights_backbone" in options else {}


def diffusers_models() -> dict[str, Callable[[], nn.Module]]:
    """Return a builder for models of diffusers, with their defaults."""
    import diffusers

    return {name: lambda name=name: getattr(diffusers, name)() for name in DIFFUSERS.split()}


PACKAGES: dict[str, Callable[[], dict[str, Callable[[], nn.Module]]]] = {
    "transformers": transformers_models,
    "timm": timm_models,
    "torchvision": torchvision_models,
    "diffusers": diffusers_models,
}


def define_operators() -> None:
    """Declare torchvision's operators where its binary is of another build of torch, so that its classes load."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    text = (Path(spec.origin).parent / "_meta_registrations.py").read_text(encoding="utf-8")
    for name in re.findall(r'register_fake\("torchvision::(\w+)"\)', text):
        with contextlib.suppress(RuntimeError):
            _OPERATORS.define(f"{name}(Tensor x) -> Tensor")


_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def measure_all(packages: list[str]) -> list[Measured]:
    """Measure the packages that are installed."""
    logging.disable(logging.WARNING)
    define_operators()
    installed = [name for name in packages if importlib.util.find_spec(name) is not None]
    found = [measure(name, PACKAGES[name]()) for name in installed if name in PACKAGES]
    return found + [measure_in_keras(name) for name in installed if name in OF_KERAS]


def measure_in_keras(package: str) -> Measured:
    """Measure a package in a process of its own, where Keras runs on torch."""
    run = subprocess.run([sys.executable, str(KERAS_SCRIPT), package], check=True, stdout=subprocess.PIPE)
    (found,) = json.loads(run.stdout)
    return Measured(**found | {"unknown": Counter(found["unknown"])})


def show_share(found: Measured) -> str:
    """Return the share in percent, rounded down: what isn't all of it doesn't look like it."""
    return f"{int(100_000 * found.known / max(found.arrays, 1)) / 1000:.3f} %"


def write_page(results: list[Measured]) -> None:
    """Replace the measured part of the page."""
    lines = ["| package | version | models | arrays | with role and axes |", "|---|---|---:|---:|---:|"]
    for found in results:
        cells = [found.package, version(found.package), f"{len(found.models)}", f"{found.arrays:,}", show_share(found)]
        lines.append(f"| {' | '.join(cells)} |")
    for found in results:
        lines += ["", f"### {found.package}", "", *textwrap.wrap(", ".join(found.models) + ".", 118)]
        if found.unknown:
            lines += ["", "Without a role or axes:", ""]
            lines += [f"- `{name}`, {count} times" for name, count in sorted(found.unknown.items())]
        if found.failed:
            lines += ["", *textwrap.wrap(f"Not built with these settings: {', '.join(found.failed)}.", 118)]
    head = PAGE.read_text(encoding="utf-8").split(MARK)[0]
    PAGE.write_text(head + MARK + "\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Print what was found; with ``--write``, into the page too."""
    every = [*PACKAGES, *OF_KERAS]
    packages = [name for name in arguments if name in every] or every
    results = measure_all(packages)
    for found in results:
        print(f"{found.package}: {len(found.models)} models, {found.arrays:,} arrays, {show_share(found)}")
        for name, count in found.unknown.most_common():
            print(f"    {count:5} {name}")
        for name, why in found.failed.items():
            print(f"    not built: {name}: {re.sub(r'0x[0-9a-f]+', '0x...', why)}")
    if "--write" in arguments:
        write_page(results)


if __name__ == "__main__":
    main(sys.argv[1:])
