"""``tpdm sample``: pictures into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tpdm.data.prompts import Prompt


def sample(
    backbone: Annotated[str, typer.Option(help="tinyworld, a diffusers folder or a hub id.")] = "tinyworld",
    tpm: Annotated[str | None, typer.Option(help="Folder of a TPM; without it the stock schedule runs.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A prompt file: txt, jsonl, json, csv, tsv, parquet.")] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="Its column of prompts; one called prompt, text or caption if left out.")
    ] = None,
    negative_column: Annotated[
        str | None, typer.Option(help="Its column of negative prompts; one called negative or negative_prompt if any.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts of the file at most.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Picture i gets seed + i.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for pictures and samples.jsonl.")] = Path("runs/sample"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    variant: Annotated[str | None, typer.Option(help="Of the weight files, such as fp16; else the plain ones.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0, help="The pipeline's own if left out.")] = None,
    true_cfg_scale: Annotated[
        float | None, typer.Option(min=0, help="Guidance against the negative prompt: FLUX.1, Qwen-Image.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Cap on the steps of the TPM.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the stock schedule (no --tpm).")] = None,
    gamma: Annotated[float | None, typer.Option(help="Price of a step, for a TPM with a dial.")] = None,
    quality: Annotated[
        float | None, typer.Option(min=0, max=1, help="Its dial: 0 fewest steps, 1 most; not with --gamma.")
    ] = None,
) -> None:
    """Make pictures, with or without a TPM.

    \b
    Example:
      tpdm sample --tpm runs/demo/train/best --prompt "red circle top" --prompt "blue ring lower left"
      tpdm sample --backbone tinyworld --prompts prompts.txt --steps 12
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
        raise ConfigError(f"got {given} {of_file[given]} alone, expected --prompts too; it is of a prompt file.")
    wanted: list[str | Prompt] = list(prompt or [])
    if prompts is not None:
        wanted += load_prompts(prompts, prompt_column, limit, negative_column, distinct=False)

    def tell(line: dict[str, Any]) -> None:
        flagged = "  (black: flagged by the safety checker)" if line.get("nsfw_content_detected") else ""
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
        steps=steps,
        dtype=dtype,
        device=device,
        variant=variant,
        gamma=gamma,
        quality=quality,
        defaults=call_defaults(backbone),
        tell=tell,
    )
