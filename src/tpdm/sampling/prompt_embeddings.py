"""Precomputed prompt embeddings in a folder, so that a run needs no text encoders."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tpdm.config.recipe import BackboneConfig
from tpdm.core.errors import BackboneError
from tpdm.core.io import load_tensors, save_tensors
from tpdm.pipelines.loading.load import pipeline_class

# The values that ``encode_prompt`` of a pipeline class returns, in its order, named as the arguments of a call. None is
# a value that the call computes itself (position ids). A name with "negative_" depends only on the negative prompt. If
# a class has no such name, ``encode_prompt`` is called with the negative prompt as if it were a prompt.
ENCODED: dict[str, tuple[str | None, ...]] = {
    "StableDiffusion3Pipeline": (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ),
    "FluxPipeline": ("prompt_embeds", "pooled_prompt_embeds", None),
    "Flux2Pipeline": ("prompt_embeds", None),
    "QwenImagePipeline": ("prompt_embeds", "prompt_embeds_mask"),
    "SanaPipeline": (
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    ),
    "Lumina2Pipeline": (
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    ),
    "ZImagePipeline": ("prompt_embeds", "negative_prompt_embeds"),
    "WanPipeline": ("prompt_embeds", "negative_prompt_embeds"),
    "StableDiffusionPipeline": ("prompt_embeds", "negative_prompt_embeds"),
    "StableDiffusionXLPipeline": (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ),
    "PixArtSigmaPipeline": (
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    ),
}
LISTED = frozenset({"ZImagePipeline"})  # their embeddings are a list with one tensor per image
NEGATIVE = "negative_"
PromptPair = tuple[str, str | None]  # a prompt and its negative prompt. None keeps that of the pipeline.


@dataclass(frozen=True)
class EmbeddingStore:
    """Prompt embeddings in a folder. The name of each file is a hash of everything that the embedding depends on.

    The embeddings are on the disk, because those of ten thousand prompts of SD3 take 27 GB. A resumed run reuses them.

    Attributes:
        folder: Folder of the files.
        pipeline: Class of the pipeline, a key of ``ENCODED``.
        encoder: Name, variant and dtype of the pipeline, as text.
        arguments: Arguments of the pipeline call (``max_sequence_length`` ...).
    """

    folder: Path
    pipeline: str
    encoder: str
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.pipeline not in ENCODED:
            raise BackboneError(
                f"The pipeline class is {self.pipeline}. Precomputed prompt embeddings support {', '.join(ENCODED)}. "
                "Set backbone.precompute_prompt_embeddings to false, or add the class to "
                "tpdm.sampling.prompt_embeddings."
            )

    @classmethod
    def of(cls, folder: Path, backbone: BackboneConfig, arguments: Mapping[str, Any]) -> EmbeddingStore:
        """The store of a run.

        Args:
            folder: Folder of the files.
            backbone: Backbone section of the recipe.
            arguments: Arguments of every pipeline call.

        Raises:
            BackboneError: The pipeline is missing, or its class has no entry in ``ENCODED``.
        """
        pipeline = pipeline_class(backbone.name_or_path)
        # Sizes and guidance do not change embeddings. The negative prompt is part of each pair.
        ignored = ("height", "width", "guidance_scale", "true_cfg_scale", "negative_prompt")
        relevant = {k: v for k, v in arguments.items() if k not in ignored}
        files = "" if backbone.variant is None else f" of the variant {backbone.variant}"
        return cls(folder, pipeline, f"{backbone.name_or_path}{files} in {backbone.dtype}", relevant)

    @property
    def apart(self) -> bool:
        """Whether the negative prompt needs a separate call of ``encode_prompt``."""
        return not any(name and name.startswith(NEGATIVE) for name in ENCODED[self.pipeline])

    def missing(self, texts: Iterable[PromptPair]) -> list[PromptPair]:
        """The pairs without embeddings, without duplicates, in their order."""
        return [text for text in dict.fromkeys(texts) if not all(p.exists() for p in self._files(text))]

    def add(self, pipe: Any, texts: Iterable[PromptPair]) -> None:
        """Encodes the missing pairs, one at a time, so that an embedding does not depend on other prompts.

        Args:
            pipe: The pipeline with its text encoders. The denoiser may have no weights.
            texts: Pairs of prompt and negative prompt.
        """
        missing = self.missing(texts)
        for text, negative in tqdm(missing, desc="encode prompts", disable=not missing, dynamic_ncols=True):
            positive_file, *negative_files = self._files((text, negative))
            guided = any(not file.exists() for file in negative_files)
            rows = _encode(pipe, self.pipeline, text, negative, self.arguments, guided)
            save_tensors(positive_file, {name: row for name, row in rows.items() if not name.startswith(NEGATIVE)})
            if not guided:
                continue
            if self.apart:
                assert negative is not None
                encoded = _encode(pipe, self.pipeline, negative, None, self.arguments, False)
                rows = {NEGATIVE + name: row for name, row in encoded.items()}
            save_tensors(negative_files[0], {name: row for name, row in rows.items() if name.startswith(NEGATIVE)})

    def call(self, texts: Sequence[PromptPair], device: torch.device | str) -> dict[str, Any]:
        """Arguments of a pipeline call that replace ``prompt`` and ``negative_prompt``.

        Args:
            texts: Pair of each image. All must be encoded.
            device: Device of the embeddings.
        """
        rows = [{k: v for f in self._files(text) for k, v in load_tensors(f)[0].items()} for text in texts]
        names = dict.fromkeys(name for row in rows for name in row)
        # None removes default prompts, because pipelines refuse prompts together with embeddings.
        call: dict[str, Any] = {"prompt": None}
        if not self.apart or any(name.startswith(NEGATIVE) for name in names):
            call["negative_prompt"] = None
        for name in names:
            if self.pipeline in LISTED:
                call[name] = [row[name].to(device) for row in rows]
            else:
                call |= {k: v.to(device) for k, v in _stack(name, [row[name] for row in rows]).items()}
        return call

    def _files(self, text: PromptPair) -> list[Path]:
        positive, negative = text
        files = [self._file("text", positive)]
        if not self.apart or negative is not None:
            files.append(self._file("negative", negative))
        return files

    def _file(self, kind: str, text: str | None) -> Path:
        arguments = {key: repr(value) for key, value in sorted(self.arguments.items())}
        content = json.dumps([self.pipeline, self.encoder, arguments, kind, text])
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.safetensors"


def _encode(
    pipe: Any, pipeline: str, text: str, negative: str | None, arguments: Mapping[str, Any], guided: bool
) -> dict[str, Tensor]:
    """Embeddings of one prompt, without an image axis, from ``encode_prompt`` with the arguments of a call."""
    takes = inspect.signature(pipe.encode_prompt).parameters
    call = inspect.signature(pipe.__call__).parameters
    given = {k: arguments.get(k, call[k].default) for k in takes if k in call and not k.endswith(("embeds", "mask"))}
    given |= {"prompt": [text], "device": pipe._execution_device}
    given |= {k: 1 for k in ("num_images_per_prompt", "num_videos_per_prompt") if k in takes}
    if "do_classifier_free_guidance" in takes:
        given["do_classifier_free_guidance"] = guided
    if negative is not None and "negative_prompt" in takes:
        given["negative_prompt"] = [negative]
    with torch.no_grad():
        encoded = pipe.encode_prompt(**given)
    named = zip(ENCODED[pipeline], encoded, strict=True)
    return {name: value[0] for name, value in named if name and value is not None and len(value)}


def _stack(name: str, rows: list[Tensor]) -> dict[str, Tensor]:
    """Rows of one batch. Rows of different lengths (Qwen-Image) are padded with zeros and get a mask."""
    if len({row.shape for row in rows}) == 1:
        return {name: torch.stack(rows)}
    mask = [torch.ones(len(row), dtype=torch.long, device=row.device) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence
    return {name: padded(rows, batch_first=True), f"{name}_mask": padded(mask, batch_first=True)}
