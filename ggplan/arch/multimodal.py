"""Models that also see or hear: their text part, which is a causal language model like any other.

Such a config.json has the text part's values in an object of their own, and its tensors stand beside those of
the other parts, which llama.cpp keeps in a file of their own (`mmproj`).

`load_hparams`, `get_model_architecture` and `TextModel.filter_tensors` in `conversion/base.py` of llama.cpp
b11434.
"""

from __future__ import annotations

from collections.abc import Mapping

# Where config.json has the values of the text part; the last that is there wins.
_TEXT_PARTS = ("text_config", "llm_config", "lm_config", "thinker_config", "language_config", "lfm")
_OTHER_PARTS = ("vision_config", "audio_config", "visual", "vision_encoder", "audio_encoder")
# Classes whose text part is converted by the class of the whole, whatever the text part's own is called.
_BY_THE_WHOLE = {
    "Exaone4_5_ForConditionalGeneration",
    "KimiK3ForConditionalGeneration",
    "Sarashina2VisionForCausalLM",
    "Step3p7ForConditionalGeneration",
    "StepVLForConditionalGeneration",
}
# How the names of tensors of other parts begin, and what they contain.
_BEGINNINGS = (
    *("mlp", "vit.", "vpm.", "siglip2.", "conformer.", "merger.", "resampler."),
    *("sound_encoder.", "sound_projection.", "speech_embeddings."),
)
_PIECES = (
    *("visual.", "vision.", "vision_", "audio.", "audio_", "talker.", "token2wav.", "code2wav."),
    *("projector.", "pre_mm_projector_norm", "image_newline", "view_seperator"),
    *("patch_embed", "patch_merger.", "patch_merge_mlp.", "model.connector."),
)


def _text_part(config: Mapping[str, object]) -> Mapping[str, object]:
    found: Mapping[str, object] = {}
    for key in _TEXT_PARTS:
        part = config.get(key)
        if key == "thinker_config" and isinstance(part, dict):
            part = part.get("text_config")
        if isinstance(part, dict):
            found = part
    return found


def text_values(config: Mapping[str, object]) -> Mapping[str, object]:
    """The values of the text part, those of the whole model where it has none of its own."""
    part = _text_part(config)
    return {**config, **part} if part else config


def model_class(config: Mapping[str, object]) -> str | None:
    """The first of `architectures`, the text part's before the whole model's; None where there is none."""
    whole = _first_class(config)
    return whole if whole in _BY_THE_WHOLE else _first_class(_text_part(config)) or whole


def _first_class(config: Mapping[str, object]) -> str | None:
    stated = config.get("architectures")
    name = stated[0] if isinstance(stated, list) and stated else None
    return name if isinstance(name, str) else None


def is_multimodal(config: Mapping[str, object]) -> bool:
    """Whether config.json is that of a model with more than a text part."""
    return bool(_text_part(config)) or any(isinstance(config.get(key), dict) for key in _OTHER_PARTS)


def is_of_another_part(name: str) -> bool:
    """Whether the tensor of this name does not belong to the text part of such a model."""
    return name.startswith(_BEGINNINGS) or any(piece in name for piece in _PIECES)
