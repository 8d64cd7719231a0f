"""The ``tpdm`` command: each subcommand parses its options, calls one library function, and prints.

Subcommands import the library when they run, so that ``tpdm --help`` does not load torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tpdm.cli.arguments import lead_to_options
from tpdm.cli.evaluate import evaluate, report
from tpdm.cli.hub import convert, inspect, push
from tpdm.cli.reward import serve as serve_reward
from tpdm.cli.sample import sample
from tpdm.cli.serve import serve
from tpdm.cli.system import build, doctor
from tpdm.cli.train import demo, train, watch

RESUMABLE = ("train", "eval", "demo")
DISTRIBUTED = ("train",)
INTERRUPTED = 130  # what shells give for SIGINT
USER_ERROR = 2


class _Commands(TyperGroup):
    """Prints errors that a user can fix as one message on stderr, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            resumes = ctx.invoked_subcommand in RESUMABLE
            hint = (
                "Run the same command again to resume from the last checkpoint"
                if resumes
                else "There is nothing to clean up"
            )
            typer.echo(f"Interrupted. {hint}.", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except Exception as error:
            if type(error).__name__ == "NoSuchOption":  # of typer's own click, or of the package
                lead_to_options(error)
                raise
            from tpdm.core.errors import TpdmError

            message = _file_message(error) if isinstance(error, OSError) else None
            if message is None and not isinstance(error, TpdmError):
                raise
            typer.echo(f"Error: {message or error}", err=True)
            raise typer.Exit(USER_ERROR) from error


def _file_message(error: OSError) -> str | None:
    """Message about a file or folder that cannot be read or written; None for other errors."""
    if not isinstance(
        error, FileExistsError | FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError
    ):
        return None
    if error.filename is None:
        return None
    reason = (error.strerror or type(error).__name__).lower()
    return f"{error.filename} cannot be used ({reason}). Correct the path, or its permissions."


# Plain help instead of rich boxes, so that examples keep their line breaks and can be copied.
_PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "no_args_is_help": True}
app = typer.Typer(cls=_Commands, pretty_exceptions_enable=False, **_PLAIN)
tinyworld_app = typer.Typer(help="The embedded model", **_PLAIN)
app.add_typer(tinyworld_app, name="tinyworld")
reward_app = typer.Typer(help="Rewards", **_PLAIN)
app.add_typer(reward_app, name="reward")

_COMMANDS: dict[str, Callable[..., None]] = {  # in the order of a first use
    "doctor": doctor,
    "demo": demo,
    "train": train,
    "watch": watch,
    "eval": evaluate,
    "report": report,
    "sample": sample,
    "serve": serve,
    "inspect": inspect,
    "push": push,
    "convert": convert,
}
for name, command in _COMMANDS.items():
    app.command(name=name)(command)
tinyworld_app.command()(build)
reward_app.command()(serve_reward)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tpdm {version('tpdm')}")
        raise typer.Exit


@app.callback()
def tpdm(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    """Learned per-image denoising schedules for text-to-image pipelines.

    \b
    Example:
      tpdm doctor
      tpdm demo
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and context.invoked_subcommand not in DISTRIBUTED:
        from tpdm.core.errors import ConfigError

        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} for tpdm {context.invoked_subcommand}. Only tpdm train "
            "runs on several processes. Start it without torchrun."
        )


def main() -> None:
    """Entry point of the ``tpdm`` command."""
    # Hints of the libraries (a missing torchvision, which is not needed) would hide the command's own output.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    # The heartbeat reports a lost process in one sentence; C++ stacks of the network would hide it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    app()
