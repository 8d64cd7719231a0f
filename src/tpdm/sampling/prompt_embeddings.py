"""Prompts encoded once: what text encoders make of each text lies in a folder, and the encoders may leave."""

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

# What ``encode_prompt`` of a pipeline class returns, in its order, by the names under which a call takes it back. None
# is what a call makes anew (position ids). A name with "negative_" depends on the negative prompt alone; where there is
# none, ``encode_prompt`` is asked for the negative prompt as for any other.
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
LISTED = frozenset({"ZImagePipeline"})  # embeddings are a list with one tensor for each image
NEGATIVE = "negative_"
Text = tuple[str, str | None]  # a prompt and its negative prompt; None leaves the pipeline's own


@dataclass(frozen=True)
class TextStore:
    """Embeddings of texts in a folder, one file for each, under a hash of everything they depend on.

    On disk and not in memory, because ten thousand prompts of SD3 are 27 GB. A run that goes on finds them there.

    Attributes:
        folder: of the files.
        pipeline: class of the pipeline, in ``ENCODED``.
        encoder: what else the embeddings depend on, in words: name, variant and dtype of the pipeline.
        arguments: of the pipeline's call (``max_sequence_length`` ...).
    """

    folder: Path
    pipeline: str
    encoder: str
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.pipeline not in ENCODED:
            raise BackboneError(
                f"got {self.pipeline}, expected one of {', '.join(ENCODED)} where text encoders leave: set "
                "backbone.precompute_prompt_embeddings to false, or add what its encode_prompt returns to "
                "tpdm.sampling.prompt_embeddings."
            )

    @classmethod
    def of(cls, folder: Path, backbone: BackboneConfig, arguments: Mapping[str, Any]) -> TextStore:
        """The store of a run.

        Args:
            folder: of its files.
            backbone: says which pipeline, in which dtype.
            arguments: of every call of it.

        Raises:
            BackboneError: this pipeline's class has no row in ``ENCODED``, or it cannot be found.
        """
        pipeline = pipeline_class(backbone.name_or_path)
        # Its sizes and its guidance change no text, and a negative one is a text of its own.
        others = ("height", "width", "guidance_scale", "true_cfg_scale", "negative_prompt")
        kept = {k: v for k, v in arguments.items() if k not in others}
        files = "" if backbone.variant is None else f" of the variant {backbone.variant}"
        return cls(folder, pipeline, f"{backbone.name_or_path}{files} in {backbone.dtype}", kept)

    @property
    def apart(self) -> bool:
        """Whether the negative prompt is encoded by a call of its own."""
        return not any(name and name.startswith(NEGATIVE) for name in ENCODED[self.pipeline])

    def missing(self, texts: Iterable[Text]) -> list[Text]:
        """Those that have not been encoded, each once, in their order."""
        return [text for text in dict.fromkeys(texts) if not all(p.exists() for p in self._files(text))]

    def add(self, pipe: Any, texts: Iterable[Text]) -> None:
        """Encodes the missing ones, one at a time: what a text becomes does not depend on its neighbours.

        Args:
            pipe: with its text encoders; the denoiser may lack its weights.
            texts: any number.
        """
        missing = self.missing(texts)
        for text, negative in tqdm(missing, desc="encode prompts", disable=not missing, dynamic_ncols=True):
            positive_file, *negative_files = self._files((text, negative))
            ask = any(not file.exists() for file in negative_files)
            rows = _encode(pipe, self.pipeline, text, negative, self.arguments, ask)
            save_tensors(positive_file, {name: row for name, row in rows.items() if not name.startswith(NEGATIVE)})
            if not ask:
                continue
            if self.apart:
                assert negative is not None
                seen = _encode(pipe, self.pipeline, negative, None, self.arguments, False)
                rows = {NEGATIVE + name: row for name, row in seen.items()}
            save_tensors(negative_files[0], {name: row for name, row in rows.items() if name.startswith(NEGATIVE)})

    def call(self, texts: Sequence[Text], device: torch.device | str) -> dict[str, Any]:
        """Arguments of one pipeline call for these images, in place of ``prompt`` and ``negative_prompt``."""
        rows = [{k: v for f in self._files(text) for k, v in load_tensors(f)[0].items()} for text in texts]
        names = dict.fromkeys(name for row in rows for name in row)
        # None takes back the defaults that stand beside embeddings in no pipeline.
        call: dict[str, Any] = {"prompt": None}
        if not self.apart or any(name.startswith(NEGATIVE) for name in names):
            call["negative_prompt"] = None
        for name in names:
            if self.pipeline in LISTED:
                call[name] = [row[name].to(device) for row in rows]
            else:
                call |= {k: v.to(device) for k, v in _stack(name, [row[name] for row in rows]).items()}
        return call

    def _files(self, text: Text) -> list[Path]:
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
    """One text through ``encode_prompt``, with what a call would hand it: tensors without a dimension for images."""
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
        found = pipe.encode_prompt(**given)
    named = zip(ENCODED[pipeline], found, strict=True)
    return {name: value[0] for name, value in named if name and value is not None and len(value)}


def _stack(name: str, rows: list[Tensor]) -> dict[str, Tensor]:
    """Rows of one batch; those of different lengths (Qwen-Image) are filled up with zeros, and a mask says where."""
    if len({row.shape for row in rows}) == 1:
        return {name: torch.stack(rows)}
    mask = [torch.ones(len(row), dtype=torch.long, device=row.device) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence
    return {name: padded(rows, batch_first=True), f"{name}_mask": padded(mask, batch_first=True)}
