"""The command line; ``app`` has its commands, each room beside it some of them."""

from tpdm.cli.commands import app, main

__all__ = ["app", "main"]
