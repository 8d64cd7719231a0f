"""Reference pages that are computed when the site is built: recipe keys, and the help of every command."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

RECIPE, COMMANDS = "<!-- generated: recipe keys -->", "<!-- generated: command line -->"
_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the markers of a page; called by MkDocs."""
    if RECIPE in markdown:
        markdown = markdown.replace(RECIPE, recipe_keys())
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, command_line())
    return markdown


def recipe_keys() -> str:
    """A table of keys for every section of ``tpdm.config.recipe.Recipe``."""
    from tpdm.config.data import RewardPartConfig
    from tpdm.config.recipe import Recipe

    sections = [("", Recipe)]
    sections += [(field.name, field.default_factory) for field in dataclasses.fields(Recipe) if _is_section(field)]
    sections += [("reward.parts", RewardPartConfig)]
    return "\n\n".join(_section(name, cls) for name, cls in sections)


def _is_section(field: dataclasses.Field[Any]) -> bool:
    return dataclasses.is_dataclass(field.default_factory)


def _section(name: str, cls: Any) -> str:
    meanings = attributes(cls)
    lines = [f"## {name or 'The recipe itself'}", "", inspect.getdoc(cls).split("\n\n")[0].replace("\n", " "), ""]
    lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not _is_section(field):
            values = values_of(hints[field.name]).replace("|", "\\|")
            meaning = meanings[field.name].replace("|", "\\|")
            lines.append(f"| `{field.name}` | {values} | {_default(field)} | {meaning} |")
    return "\n".join(lines)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None:
        return "none"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def values_of(hint: Any) -> str:
    """What a key takes, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(values_of(one) for one in arguments if one is not type(None))
    if origin is tuple:
        inner = [values_of(one) for one in arguments if one is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in arguments else f"list of {len(inner)} ({inner[0]})"
    return _WORDS.get(hint, "table" if dataclasses.is_dataclass(hint) else getattr(hint, "__name__", str(hint)))


def attributes(cls: Any) -> dict[str, str]:
    """Name -> text of the ``Attributes`` (or ``Args``) section of a docstring."""
    text = re.split(r"^(?:Attributes|Args):\n", inspect.getdoc(cls), maxsplit=1, flags=re.MULTILINE)[-1]
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := re.match(r"    (\w+): (.*)", line):
            found[match[1]] = match[2]
        elif line.startswith("        ") and found:
            found[list(found)[-1]] += " " + line.strip()
        elif line.strip():
            break
    return {name: meaning.replace("``", "`") for name, meaning in found.items()}


def command_line() -> str:
    """The help of every command as it is printed."""
    return "\n\n".join(f"## {path}\n\n```text\n{text}\n```" for path, text in helps())


def helps() -> Iterator[tuple[str, str]]:
    """(command, its help) of the program and of everything below it."""
    import typer

    from tpdm.cli.app import app

    yield from _helps(typer.main.get_command(app), "tpdm", None)


def _helps(command: Any, path: str, parent: Any) -> Iterator[tuple[str, str]]:
    context = command.make_context(path.split()[-1], ["--help"], parent=parent, resilient_parsing=True)
    context.terminal_width = context.max_content_width = 100
    yield path, command.get_help(context).rstrip()
    for name, below in getattr(command, "commands", {}).items():
        yield from _helps(below, f"{path} {name}", context)
