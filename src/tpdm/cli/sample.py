"""``tpdm sample``: makes images from prompts and writes them into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tpdm.data.prompts import Prompt


def sample(
    backbone: Annotated[str, typer.Option(help="tinyworld, a diffusers folder or a hub id")] = "tinyworld",
    tpm: Annotated[
        str | None, typer.Option(help="Folder or hub id of a TPM. Without it, the pipeline's own schedule runs")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt; may be repeated")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompt file: txt, jsonl, json, csv, tsv or parquet")] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="Column of prompts in the file. Default: prompt, text or caption")
    ] = None,
    negative_column: Annotated[
        str | None,
        typer.Option(help="Column of negative prompts in the file. Default: negative or negative_prompt, if any"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of prompts from the file")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image; image i gets seed + i")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for images and samples.jsonl")] = Path("runs/sample"),
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="dtype of the pipeline: fp32, bf16 or fp16")] = "fp32",
    variant: Annotated[str | None, typer.Option(help="Variant of the weight files, such as fp16")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=0, help="Guidance scale. Default: the pipeline's own")
    ] = None,
    true_cfg_scale: Annotated[
        float | None, typer.Option(min=0, help="Classifier-free guidance scale of FLUX.1 and Qwen-Image")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Maximum number of steps of the TPM")] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the pipeline's own schedule; not with --tpm")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, hidden=True)] = None,
    gamma: Annotated[
        float | None, typer.Option(help="Discount of a step, for a gamma-conditioned TPM; lower means fewer steps")
    ] = None,
    quality: Annotated[
        float | None, typer.Option(min=0, max=1, help="Quality from 0 (fewest steps) to 1 (most), instead of --gamma")
    ] = None,
) -> None:
    """Make images, with or without a TPM.

    \b
    Example:
      tpdm sample --tpm runs/demo/train/best --prompt "red circle top" --prompt "blue ring lower left"
      tpdm sample --backbone tinyworld --prompts prompts.txt --num-inference-steps 12
      tpdm sample --prompts captions.csv --prompt-column caption --limit 8
    """
    from tqdm.auto import tqdm

    from tpdm.core.errors import ConfigError
    from tpdm.data.prompts import load_prompts
    from tpdm.pipelines.loading.load import call_defaults
    from tpdm.sampling.generate import sample_to_folder

    of_file = {"--prompt-column": prompt_column, "--negative-column": negative_column, "--limit": limit}
    given = next((name for name, value in of_file.items() if value is not None), None)
    if prompts is None and given is not None:
        raise ConfigError(
            f"{given} is {of_file[given]} without --prompts. It applies to a prompt file. Give --prompts too."
        )
    if steps is not None:
        typer.echo("--steps is now called --num-inference-steps. Version 0.3 will refuse the old name.", err=True)
    wanted: list[str | Prompt] = list(prompt or [])
    if prompts is not None:
        wanted += load_prompts(prompts, prompt_column, limit, negative_column, distinct=False)

    def report(line: dict[str, Any]) -> None:
        flagged = "  (black image: flagged by the safety checker)" if line.get("nsfw_content_detected") else ""
        tqdm.write(f"{out / line['file']}  {line['steps']} steps  {line['prompt']}{flagged}")

    sample_to_folder(
        backbone=backbone,
        tpm=tpm,
        prompts=wanted,
        seed=seed,
        out=out,
        guidance_scale=guidance_scale,
        true_cfg_scale=true_cfg_scale,
        max_steps=max_steps,
        num_inference_steps=num_inference_steps or steps,
        dtype=dtype,
        device=device,
        variant=variant,
        gamma=gamma,
        quality=quality,
        defaults=call_defaults(backbone),
        callback=report,
    )
