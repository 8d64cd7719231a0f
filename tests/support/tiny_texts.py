"""The tiny pipelines with random text encoders of their real classes, so that they are called with plain prompts.

The tokenizer of all is the letter-by-letter one, with a chat template: what counts are the classes of the weights and
the pipelines' own ways of reading them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.support.families import FAMILIES, tiny_pipe
from tests.support.tiny_sd3 import WIDTH, make_tiny_sd3, make_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{{ m['content'][0]['text'] }}{% endif %} {% endfor %}"
)
SMALL = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}


def _clip(cls: Any, tokens: int, width: int = WIDTH) -> Any:
    return cls(
        CLIPTextConfig(
            vocab_size=tokens,
            **{**SMALL, "hidden_size": width},
            num_attention_heads=2,
            projection_dim=WIDTH,
            max_position_embeddings=12,
            bos_token_id=tokens - 2,
            eos_token_id=tokens - 1,
            pad_token_id=tokens - 1,
        )
    )


def _qwen_vl(tokens: int) -> Any:
    text = {"vocab_size": tokens, **SMALL, "num_attention_heads": 2, "num_key_value_heads": 1}
    # The names of transformers 4, which 5 takes too.
    rope = {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}, "rope_theta": 1e4}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": WIDTH}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config={**text, **rope}, vision_config=vision))


def _mistral(tokens: int) -> Any:
    text = {"model_type": "mistral", "vocab_size": tokens, **SMALL, **HEADS}
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14, "head_dim": 8}
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))


def _encoders(name: str, n: int) -> dict[str, Any]:
    """Text encoders of a family for a vocabulary of n."""
    if name.startswith("FLUX.1"):
        return {"text_encoder": _clip(CLIPTextModel, n), "text_encoder_2": T5EncoderModel(T5Config(vocab_size=n, **T5))}
    if name.startswith("SDXL"):
        parts = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
        return {part: _clip(cls, n, width=WIDTH // 2) for part, cls in parts.items()}
    gemma = Gemma2Config(vocab_size=n, **SMALL, **HEADS, query_pre_attn_scalar=8)
    one: dict[str, Any] = {
        "FLUX.2": lambda: _mistral(n),
        "Qwen-Image": lambda: _qwen_vl(n),
        "Sana": lambda: Gemma2Model(gemma),
        "Lumina2": lambda: Gemma2Model(gemma),
        "Z-Image": lambda: Qwen3Model(Qwen3Config(vocab_size=n, **SMALL, **HEADS)),
        "Wan 2.1": lambda: UMT5EncoderModel(UMT5Config(vocab_size=n, **T5)),
        "SD1.5": lambda: _clip(CLIPTextModel, n),
        "PixArt-Sigma": lambda: T5EncoderModel(T5Config(vocab_size=n, **T5)),
    }
    return {"text_encoder": one[name.partition(",")[0]]()}


# Arguments of a call with prompts: short texts, and layers that these encoders have.
SPOKEN: dict[str, dict[str, Any]] = {
    "SD3": {"max_sequence_length": 4},
    "SD3.5": {"max_sequence_length": 4},
    "FLUX.2": {"text_encoder_out_layers": (1,), "max_sequence_length": 96},
    "Sana": {"max_sequence_length": 20, "complex_human_instruction": ["be precise"]},
    "Lumina2": {"max_sequence_length": 30, "system_prompt": "draw"},
    "Z-Image": {"max_sequence_length": 20},
    "Wan 2.1": {"max_sequence_length": 20},
    "PixArt-Sigma": {"max_sequence_length": 20},
}


def spoken_arguments(name: str) -> dict[str, Any]:
    """Arguments of a call with prompts, without them."""
    short = SPOKEN.get(name, {"max_sequence_length": 20} if name.startswith("FLUX.1") else {})
    # Where prompts are given as embeddings, an empty default of this has to be taken back.
    return {**{k: v for k, v in FAMILIES[name].arguments().items() if k != "negative_prompt"}, **short}


def make_speaking_pipe(name: str, folder: Path) -> Any:
    """The pipe of a family with text encoders; ``folder`` is for the tokenizer's files."""
    torch.manual_seed(1)
    if name in ("SD3", "SD3.5"):
        pipe = make_tiny_sd3(folder)
        if name == "SD3.5":
            config = dict(pipe.transformer.config) | {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
            pipe.register_modules(transformer=type(pipe.transformer).from_config(config).eval())
        return pipe
    tokenizer = make_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    silent = tiny_pipe(name)
    encoders = {part: encoder.eval() for part, encoder in _encoders(name, len(tokenizer)).items()}
    parts = {k: v for k, v in silent.components.items() if k in silent._get_signature_keys(silent)[0] or v is not None}
    tokenizers = {part.replace("text_encoder", "tokenizer"): tokenizer for part in encoders}
    extra = {"requires_safety_checker": False} if "safety_checker" in silent.components else {}
    extra |= {"add_watermarker": False} if type(silent).__name__ == "StableDiffusionXLPipeline" else {}
    pipe = type(silent)(**{**parts, **encoders, **tokenizers, **extra})
    pipe.set_progress_bar_config(disable=True)
    return pipe
