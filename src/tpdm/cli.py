"""The command line: each command parses, calls one library function, and prints.

The library is imported inside the commands, so that ``tpdm --help`` answers without loading torch.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tpdm.cli_serve import serve as serve_pictures
from tpdm.cli_tpm import inspect, push
from tpdm.cli_watch import watch

if TYPE_CHECKING:
    from tpdm.prompts import Prompt

RESUMABLE = ("train", "eval", "demo")
DISTRIBUTED = ("train",)
INTERRUPTED = 130  # what shells give for SIGINT
USER_ERROR = 2


class _Commands(TyperGroup):
    """Turns the errors that a user can mend into one message on stderr, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            resumes = ctx.invoked_subcommand in RESUMABLE
            hint = "the same command goes on from the last checkpoint" if resumes else "nothing to clean up"
            typer.echo(f"Interrupted: {hint}.", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except Exception as error:
            from tpdm.types import TpdmError

            if not isinstance(error, TpdmError):
                raise
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(USER_ERROR) from error


# Plain help instead of rich boxes: examples keep their lines, and can be copied.
_PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "no_args_is_help": True}
app = typer.Typer(cls=_Commands, pretty_exceptions_enable=False, **_PLAIN)
tinyworld_app = typer.Typer(help="The embedded model.", **_PLAIN)
app.add_typer(tinyworld_app, name="tinyworld")
reward_app = typer.Typer(help="Rewards.", **_PLAIN)
app.add_typer(reward_app, name="reward")

for command in (watch, inspect, push):
    app.command()(command)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tpdm {version('tpdm')}")
        raise typer.Exit


@app.callback()
def tpdm(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Learned per-image denoising schedules for text-to-image pipelines.

    \b
    Example:
      tpdm doctor
      tpdm demo
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and context.invoked_subcommand not in DISTRIBUTED:
        from tpdm.types import ConfigError

        raise ConfigError(
            f"got several processes for tpdm {context.invoked_subcommand}, expected one; only training shares its work"
        )


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; load no weights, write nothing.")] = False,
) -> None:
    """Train a TPM, or go on where a run was interrupted.

    \b
    Example:
      tpdm train recipe.yaml rl.updates=50 optimizer.lr=3e-5
      tpdm train recipe.yaml --dry-run
      torchrun --nproc-per-node 2 -m tpdm train recipe.yaml
    """
    from tpdm.config import load_recipe

    loaded = load_recipe(recipe, overrides or [])  # a wrong recipe is answered before the rest is loaded
    if dry_run:
        from tpdm.train.plan import describe, make_plan

        typer.echo(describe(make_plan(loaded), loaded))
        return
    from tpdm.train.run import train as run

    run(loaded, resume="auto")
    if os.environ.get("RANK", "0") == "0":  # of several processes the first one speaks
        typer.echo(f"Trained: see {loaded.output}")


@app.command()
def sample(
    backbone: Annotated[str, typer.Option(help="tinyworld, a diffusers folder or a hub id.")] = "tinyworld",
    tpm: Annotated[str | None, typer.Option(help="Folder of a TPM; without it the stock schedule runs.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A prompt file: txt, jsonl, json, csv, tsv, parquet.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Picture i gets seed + i.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for pictures and samples.jsonl.")] = Path("runs/sample"),
    guidance_scale: Annotated[float | None, typer.Option(min=0, help="The pipeline's own if left out.")] = None,
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
    """
    from tpdm.pipelines.load import call_defaults
    from tpdm.prompts import load_prompts
    from tpdm.sample import sample_to_folder

    wanted: list[str | Prompt] = [*(prompt or []), *(load_prompts(prompts) if prompts else [])]
    lines = sample_to_folder(
        backbone=backbone,
        tpm=tpm,
        prompts=wanted,
        seed=seed,
        out=out,
        guidance_scale=guidance_scale,
        max_steps=max_steps,
        steps=steps,
        gamma=gamma,
        quality=quality,
        defaults=call_defaults(backbone),
    )
    for line in lines:
        typer.echo(f"{out / line['file']}  {line['steps']} steps  {line['prompt']}")


@app.command(name="eval")
def evaluate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Evaluate a trained TPM against every schedule it has to beat, or go on where that was interrupted.

    \b
    Example:
      tpdm eval recipe.yaml backbone.device=cpu
    """
    from tpdm.config import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from tpdm.evals.run import evaluate as run

    run(loaded)
    typer.echo(f"Evaluated: see {loaded.output}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of an evaluation: OUTPUT/eval, or runs/demo.")],
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "tpdm",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of policies as Markdown.")] = False,
) -> None:
    """Write the report of an evaluation again, from its results.

    \b
    Example:
      tpdm report runs/demo --title "tpdm on tinyworld"
    """
    from tpdm.evals.report import markdown_table, write_report
    from tpdm.evals.results import load_results

    path = write_report(folder, title)
    if markdown:
        typer.echo(markdown_table(load_results(folder).summary), nl=False)
    typer.echo(f"Written: {path}", err=markdown)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT.safetensors", help="A file of the release.")],
    out: Annotated[Path, typer.Option(help="Folder of the converted TPM.")],
    backbone: Annotated[str, typer.Option(help="Pipeline it belongs to.")] = (
        "stabilityai/stable-diffusion-3-medium-diffusers"
    ),
    guidance_scale: Annotated[float, typer.Option(min=0, help="Of the pipeline: 7.0 for SD3, 3.5 for SD3.5.")] = 7.0,
    size: Annotated[int, typer.Option(min=32, help="Side of the images in pixels.")] = 1024,
    max_steps: Annotated[int, typer.Option(min=1, help="Cap on the steps.")] = 35,
    stop_below: Annotated[float, typer.Option(min=0, max=1, help="Time below which an image is finished.")] = 0.001,
) -> None:
    """Turn a checkpoint of the published TPDM release into a folder for --tpm.

    \b
    Example:
      tpdm convert tpm-sd3.safetensors --out tpm-sd3
    """
    from tpdm.convert import convert as run

    folder = run(
        checkpoint,
        out,
        backbone=backbone,
        guidance_scale=guidance_scale,
        size=size,
        max_steps=max_steps,
        stop_below=stop_below,
    )
    typer.echo(f"Converted: see {folder}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the whole run.")] = 0,
) -> None:
    """Train and evaluate on the embedded model.

    \b
    Example:
      tpdm demo --out runs/demo --seed 1
    """
    from tpdm.demo import run_demo

    run_demo(out=out, seed=seed)
    typer.echo(f"Done: see {out}")


@tinyworld_app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder for the weights.")] = Path("runs/tinyworld"),
    seed: Annotated[int, typer.Option(min=0, help="Of the whole build.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A few updates only: tests the path, not the model.")] = False,
) -> None:
    """Build the embedded model again from nothing.

    \b
    Example:
      tpdm tinyworld build --out runs/tinyworld --quick
    """
    from tpdm.tinyworld.build import build as run

    run(out=out, seed=seed, quick=quick)
    typer.echo(f"Built: see {out}")


app.command(name="serve")(serve_pictures)


@reward_app.command()
def serve(
    reward: Annotated[str, typer.Option(help="As reward.name in a recipe.")] = "tinyworld",
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8080,
    token_env: Annotated[str | None, typer.Option(help="Environment variable that holds the token to ask for.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
) -> None:
    """Answer remote:http://HOST:PORT with a reward of this machine.

    \b
    Example:
      tpdm reward serve --reward pickscore --host 127.0.0.1 --port 8080 --token-env REWARD_TOKEN
    """
    from tpdm.rewards.load import load_reward, read_token

    token = read_token(token_env)
    try:
        from tpdm.serve.reward import serve as run
    except ModuleNotFoundError as error:
        from tpdm.types import ConfigError

        raise ConfigError(f"got no package {error.name}, which serving needs; pip install 'tpdm[serve]'") from error
    from tpdm.pipelines.load import choose_device

    loaded = load_reward(reward, choose_device() if device == "auto" else device, batch)
    if token is None and host not in ("127.0.0.1", "localhost", "::1"):
        typer.echo(f"No --token-env: whoever reaches {host}:{port} may use this reward.", err=True)
    run(loaded, host, port, token)


@app.command()
def doctor() -> None:
    """Say what this machine has and lacks.

    The exit code is 1 if the demo cannot run.

    \b
    Example:
      tpdm doctor
    """
    from tpdm.doctor import report

    if not report(typer.echo):
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the ``tpdm`` command."""
    # The libraries' hints (a missing torchvision, which nothing here needs) would drown what the command says.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    # Where a process of a run is gone, one sentence says so: the stacks of the network's C++ would hide it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    app()


if __name__ == "__main__":
    main()
