"""Pictures of prompts into a folder, with a learned schedule or the pipeline's own."""

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
from tpdm.data.truncation import tell as say_over_long

BATCH = 8  # pictures per pipeline call; memory only: a picture depends on its seed and not on its batch


def sample_to_folder(
    backbone: str,
    tpm: Policy | str | Path | None,
    prompts: Sequence[str | Prompt],
    seed: int,
    out: str | Path,
    guidance_scale: float | None = None,
    max_steps: int | None = None,
    steps: int | None = None,
    dtype: str = "fp32",
    device: str = "auto",
    variant: str | None = None,
    defaults: Mapping[str, object] | None = None,
    gamma: float | None = None,
    quality: float | None = None,
    tell: Callable[[dict[str, Any]], object] | None = None,
    true_cfg_scale: float | None = None,
) -> list[dict[str, Any]]:
    """Writes ``0000.png`` ... and ``samples.jsonl`` (prompt, seed, steps, times, file) into ``out``.

    A pipeline with a safety checker adds ``nsfw_content_detected`` to each line: a picture that it flags is black.

    ``samples.jsonl`` grows with the pictures: what it says of is there, whenever the run ends.

    Args:
        backbone: ``tinyworld``, a diffusers folder or a hub id.
        tpm: folder of a TPM, or a policy; None runs the stock pipeline with its own schedule.
        prompts: one picture each; picture i gets the seed ``seed + i``.
        seed: from 0; the last picture's is below 2**63.
        out: made if missing; files of the same name are replaced, others are left alone.
        guidance_scale: w of classifier-free guidance, or the scale that guidance-distilled models (FLUX.1-dev) are
            told; for Qwen-Image it is ``true_cfg_scale``. None leaves the pipeline's own.
        max_steps: cap on the steps of a TPM; None leaves its own.
        steps: number of steps of the stock schedule; None leaves the pipeline's own. Not with ``tpm``.
        dtype: of the pipeline, ``fp32``, ``bf16`` or ``fp16``.
        device: ``auto``, ``cpu``, ``cuda`` ...
        variant: of the pipeline's weight files, such as ``fp16``; None reads the plain ones.
        defaults: arguments of the pipeline's call that this backbone wants; those that the TPM was trained with win,
            and the scales over both.
        gamma: price of a step for a TPM with a dial.
        quality: the dial from 0 (fewest steps) to 1 (most), instead of gamma.
        tell: called with each line, once its picture is written.
        true_cfg_scale: w of pipelines that call it so (FLUX.1, Qwen-Image), against the prompts' negative ones or the
            empty text; None leaves the pipeline's own.

    Returns:
        The lines of ``samples.jsonl``.

    Raises:
        PromptError: no prompt, or an empty one.
        ConfigError: ``steps`` with a TPM, or ``max_steps``, ``gamma`` or ``quality`` without one; a seed or a guidance
            scale out of range, both scales where they are the same, or a device that is not there.
        BackboneError: no such pipeline, or one that makes no pictures, does not know an argument, or does not use it.
    """
    wanted = [prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in prompts]
    if not wanted:
        raise PromptError("got no prompt, expected at least one: give --prompt or --prompts.")
    if tpm is not None and steps is not None:
        raise ConfigError(f"got steps={steps} with a TPM, which chooses its own: give max_steps, or no TPM.")
    for name, value in (("max_steps", max_steps), ("gamma", gamma), ("quality", quality)):
        if tpm is None and value is not None:
            raise ConfigError(f"got {name}={value} without a TPM: give a TPM, or steps for the stock schedule.")
    if not 0 <= seed <= 2**63 - len(wanted):
        raise ConfigError(f"got seed {seed} for {len(wanted)} pictures, expected seeds from 0 to 2**63 - 1.")
    scales = {"guidance_scale": guidance_scale, "true_cfg_scale": true_cfg_scale}
    for name, value in scales.items():
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"got {name}={value}, expected a finite number.")
    folder = Path(expand(out))
    folder.mkdir(parents=True, exist_ok=True)  # where nothing can be written is known before anything is drawn

    # Late, so that a wrong argument is answered before diffusers is imported.
    from tpdm.pipelines.compatibility import check_pictures
    from tpdm.pipelines.guidance import named_scales
    from tpdm.pipelines.loading.load import ALL, load_pipeline
    from tpdm.pipelines.truncation import over_long

    pipe = load_pipeline(backbone, dtype, device, ALL, variant)
    named, avoided = named_scales(pipe, **scales)
    given = {"num_inference_steps": steps, "gamma": gamma, "quality": quality}
    options = {**named, **{name: value for name, value in given.items() if value is not None}}
    check_pictures(pipe)
    draw, arguments = _drawing(pipe, tpm, max_steps, {**(defaults or {}), **avoided})
    say_over_long(over_long(pipe, arguments, [prompt.text for prompt in wanted]), len(wanted))
    lines: list[dict[str, Any]] = []
    for line in _draw_all(partial(draw, **options), wanted, seed, folder):
        lines.append(line)
        if tell is not None:
            tell(line)
    return lines


def _draw_all(draw: Callable[..., Any], wanted: Sequence[Prompt], seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Draws call by call; gives the line of each picture once all of its call are written, and their lines too."""
    # Of the run, as in training: to some pipelines an empty negative prompt is not none, and what a prompt is to them
    # must not depend on its neighbours of the call.
    with_negatives = any(prompt.negative is not None for prompt in wanted)
    lines: list[dict[str, Any]] = []
    log = folder / "samples.jsonl"
    log.unlink(missing_ok=True)  # it speaks of other pictures
    bar = tqdm(total=len(wanted), desc="sample", unit="image", dynamic_ncols=True, disable=len(wanted) <= BATCH)
    for first in range(0, len(wanted), BATCH):
        batch = wanted[first : first + BATCH]
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
        write_text(log, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        bar.update(len(batch))
        yield from lines[first:]
    bar.close()


def _drawing(
    pipe: Any, tpm: Policy | str | Path | None, max_steps: int | None, defaults: Mapping[str, Any]
) -> tuple[Callable[..., Any], Mapping[str, Any]]:
    """What draws pictures, and the arguments that it adds to every call."""
    if tpm is None:
        return partial(_draw_stock, pipe, defaults), defaults
    from tpdm.pipelines.attach import attach
    from tpdm.policies.pretrained import backbone_defaults, load_policy

    policy = load_policy(tpm).to(pipe._execution_device) if isinstance(tpm, str | Path) else tpm
    adaptive = attach(pipe, policy, max_steps=max_steps, defaults=backbone_defaults(defaults, policy))
    return adaptive, adaptive.defaults


def _draw_stock(pipe: Any, defaults: Mapping[str, Any], seeds: Sequence[int], **said: Any) -> SimpleNamespace:
    """The untouched pipeline, its result shaped like that of an attached one.

    Raises:
        BackboneError: the pipeline does not know an argument, or does not use it.
    """
    from tpdm.pipelines.guidance import settle

    known, options = inspect.signature(pipe.__call__).parameters, {**defaults, **said}
    # Pipelines that end in **kwargs drop what they do not name.
    if strange := [name for name in options if name not in known and "prompt" in known]:
        raise BackboneError(f"got {strange[0]} for {type(pipe).__name__}, whose call does not know it; leave it out.")
    options = settle(pipe, options, said)
    # Generators on the CPU: the same seed gives the same noise on every device.
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
    """The pipeline's prompt arguments of a call."""
    texts = {"prompt": [prompt.text for prompt in batch]}
    return {**texts, "negative_prompt": [prompt.negative or "" for prompt in batch]} if with_negatives else texts
