"""The ``tpdm`` command."""

from tpdm.cli.app import app, main

__all__ = ["app", "main"]
