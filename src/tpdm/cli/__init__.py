"""The command line; ``app`` has its commands, each room beside it some of them."""

from tpdm.cli.app import app, main

__all__ = ["app", "main"]
