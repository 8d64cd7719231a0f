"""Images of prompts in a folder, with a TPM or with the stock schedule of the pipeline."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tqdm.auto import tqdm

from tpdm.core.errors import BackboneError, ConfigError, PromptError
from tpdm.core.io import expand, write_atomically, write_text
from tpdm.core.types import Policy
from tpdm.data.prompts import Prompt
from tpdm.data.truncation import warn_truncated

BATCH = 8  # images per pipeline call. It changes memory only: an image depends on its seed, not on its batch.


def sample_to_folder(
    backbone: str,
    tpm: Policy | str | Path | None,
    prompts: Sequence[str | Prompt],
    seed: int,
    out: str | Path,
    guidance_scale: float | None = None,
    max_steps: int | None = None,
    num_inference_steps: int | None = None,
    dtype: str = "fp32",
    device: str = "auto",
    variant: str | None = None,
    defaults: Mapping[str, object] | None = None,
    gamma: float | None = None,
    quality: float | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    true_cfg_scale: float | None = None,
) -> list[dict[str, Any]]:
    """Writes images ``0000.png`` ... and ``samples.jsonl`` (prompt, seed, steps, times, file) into a folder.

    ``samples.jsonl`` contains only images that are already written, also if the run is interrupted. A pipeline with a
    safety checker adds ``nsfw_content_detected`` to each line. An image that it flags is black.

    Args:
        backbone: "tinyworld", a diffusers folder or a hub id.
        tpm: Folder of a TPM, or a policy. None runs the pipeline with its stock schedule.
        prompts: Prompts, one per image. Image i gets the seed ``seed + i``.
        seed: Seed of the first image, >= 0. The last seed must be below 2**63.
        out: Output folder, created if missing. Files of the same name are replaced.
        guidance_scale: Scale of classifier-free guidance, or the guidance input of distilled models (FLUX.1-dev). For
            Qwen-Image it is ``true_cfg_scale``. None (the default) keeps that of the pipeline.
        max_steps: Maximum number of steps of a TPM, >= 1. None (the default) keeps that of the TPM.
        num_inference_steps: Number of steps of the stock schedule, >= 1, only without ``tpm``. None (the default) keeps
            that of the pipeline.
        dtype: Dtype of the pipeline: "fp32" (the default), "bf16" or "fp16".
        device: "auto" (the default), "cpu", "cuda" ...
        variant: Variant of the weight files, such as "fp16". None (the default) reads the files without a variant.
        defaults: Default arguments of the pipeline call. Those of the TPM override them, and the scales override both.
        gamma: Discount per step for a gamma-conditioned TPM. Default: that of the TPM.
        quality: Quality setting from 0 (fewest steps) to 1 (most steps), instead of ``gamma``.
        callback: Called with each line after its image is written.
        true_cfg_scale: Guidance scale of pipelines with this argument (FLUX.1, Qwen-Image), against the negative prompt
            or the empty text. None (the default) keeps that of the pipeline.

    Returns:
        The lines of ``samples.jsonl``.

    Raises:
        PromptError: There is no prompt, or a prompt is empty.
        ConfigError: ``num_inference_steps`` is given with a TPM, or ``max_steps``, ``gamma`` or ``quality`` without
            one. A seed or a guidance scale is out of range, the two scales contradict each other, or the device is
            missing.
        BackboneError: The pipeline is missing, makes no images, or does not use an argument.

    Example:
        >>> sample_to_folder("tinyworld", "tinyworld", ["red circle top"], seed=0, out="samples")  # doctest: +SKIP
        [{'prompt': 'red circle top', 'seed': 0, 'steps': 7, 'times': [1.0, ...], 'file': '0000.png'}]
    """
    images = [prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in prompts]
    if not images:
        raise PromptError("There is no prompt. At least one is needed. Use --prompt or --prompts.")
    if tpm is not None and num_inference_steps is not None:
        raise ConfigError(
            f"num_inference_steps is {num_inference_steps}, but a TPM chooses the steps. Use max_steps, or no TPM."
        )
    for name, value in (("max_steps", max_steps), ("gamma", gamma), ("quality", quality)):
        if tpm is None and value is not None:
            raise ConfigError(
                f"{name} is {value}, but there is no TPM. Use a TPM, or num_inference_steps for the stock schedule."
            )
    if not 0 <= seed <= 2**63 - len(images):
        raise ConfigError(f"seed is {seed} for {len(images)} images. Seeds must be in [0, 2**63 - 1].")
    scales = {"guidance_scale": guidance_scale, "true_cfg_scale": true_cfg_scale}
    for name, value in scales.items():
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"{name} is {value}. It must be a finite number.")
    folder = Path(expand(out))
    folder.mkdir(parents=True, exist_ok=True)  # fails before the pipeline is loaded if nothing can be written

    # Imported here, so that a wrong argument is refused before diffusers is imported.
    from tpdm.pipelines.compatibility import check_generates_images
    from tpdm.pipelines.guidance import Guidance, named_scales
    from tpdm.pipelines.loading.load import ALL, load_pipeline
    from tpdm.pipelines.truncation import count_truncated

    pipe = load_pipeline(backbone, dtype, device, ALL, variant)
    named, negative = named_scales(Guidance.find(pipe), **scales)
    given = {"num_inference_steps": num_inference_steps, "gamma": gamma, "quality": quality}
    options = {**named, **{name: value for name, value in given.items() if value is not None}}
    check_generates_images(pipe)
    draw, arguments = _drawing(pipe, tpm, max_steps, {**(defaults or {}), **negative})
    warn_truncated(count_truncated(pipe, arguments, [prompt.text for prompt in images]), len(images))
    lines: list[dict[str, Any]] = []
    for line in _draw_all(partial(draw, **options), images, seed, folder):
        lines.append(line)
        if callback is not None:
            callback(line)
    return lines


def _draw_all(draw: Callable[..., Any], prompts: Sequence[Prompt], seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Makes the images call by call. Yields the lines of a call after its images and lines are written."""
    # A property of all prompts (see SampleRequest.of), so that an image does not depend on its call.
    with_negatives = any(prompt.negative is not None for prompt in prompts)
    lines: list[dict[str, Any]] = []
    path = folder / "samples.jsonl"
    path.unlink(missing_ok=True)  # of earlier images
    bar = tqdm(total=len(prompts), desc="sample", unit="image", dynamic_ncols=True, disable=len(prompts) <= BATCH)
    for first in range(0, len(prompts), BATCH):
        batch = prompts[first : first + BATCH]
        seeds = [seed + first + i for i in range(len(batch))]
        result = draw(seeds=seeds, **_texts(batch, with_negatives))
        for i, prompt in enumerate(batch):
            name = f"{first + i:04d}.png"
            write_atomically(folder / name, partial(result.images[i].save, format="PNG"))
            line = {
                "prompt": prompt.text,
                "seed": seeds[i],
                "steps": result.steps[i],
                "times": result.times[i],
            }
            if result.nsfw_content_detected is not None:
                line["nsfw_content_detected"] = bool(result.nsfw_content_detected[i])
            lines.append({**line, "file": name})
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        bar.update(len(batch))
        yield from lines[first:]
    bar.close()


def _drawing(
    pipe: Any, tpm: Policy | str | Path | None, max_steps: int | None, defaults: Mapping[str, Any]
) -> tuple[Callable[..., Any], Mapping[str, Any]]:
    """The function that makes images, and the arguments that it adds to every call."""
    if tpm is None:
        return partial(_draw_stock, pipe, defaults), defaults
    from tpdm.pipelines.attach import attach

    adaptive = attach(pipe, tpm, max_steps=max_steps, pipeline_defaults=defaults)
    return adaptive, adaptive.defaults


def _draw_stock(pipe: Any, defaults: Mapping[str, Any], seeds: Sequence[int], **arguments: Any) -> SimpleNamespace:
    """Runs the stock pipeline. The result has the fields of an ``AdaptiveOutput``.

    Raises:
        BackboneError: The pipeline has no such argument, or does not use it.
    """
    from tpdm.pipelines.guidance import Guidance, settle

    known, options = inspect.signature(pipe.__call__).parameters, {**defaults, **arguments}
    # Pipelines with **kwargs would ignore unknown arguments.
    if unknown := [name for name in options if name not in known and "prompt" in known]:
        raise BackboneError(f"{type(pipe).__name__} has no argument {unknown[0]}. Remove it.")
    options = settle(Guidance.find(pipe), options, arguments)
    # On the CPU, so that a seed gives the same noise on every device.
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    output = pipe(generator=generators, **options)
    scheduler = pipe.scheduler
    times = [float(t) / scheduler.config.num_train_timesteps for t in scheduler.timesteps] + [0.0]
    return SimpleNamespace(
        images=output.images,
        steps=[len(times) - 1] * len(seeds),
        times=[times] * len(seeds),
        nsfw_content_detected=getattr(output, "nsfw_content_detected", None),
    )


def _texts(batch: Sequence[Prompt], with_negatives: bool) -> dict[str, list[str]]:
    """Prompt arguments of a pipeline call."""
    texts = {"prompt": [prompt.text for prompt in batch]}
    return {**texts, "negative_prompt": [prompt.negative or "" for prompt in batch]} if with_negatives else texts
