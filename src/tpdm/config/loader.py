"""Reads recipes from YAML, applies dotted overrides (``rl.updates=50``), validates them, and writes them.

``tpdm.config.recipe`` defines the keys.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from yaml.constructor import ConstructorError

from tpdm.config.recipe import Recipe
from tpdm.config.renamed import with_first_names, with_present_names
from tpdm.core.errors import ConfigError
from tpdm.core.io import expand, write_text

_RECIPE = TypeAdapter(Recipe)


class _Strict(yaml.SafeLoader):
    """YAML that refuses repeated keys (PyYAML keeps the last) and octal integers (0100 is 64)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        digits = node.value.lstrip("+-").replace("_", "")
        if len(digits) > 1 and digits.isdecimal() and digits[0] == "0":
            raise ConstructorError(None, None, f"{node.value} would be octal; remove the leading zero", node.start_mark)
        return int(super().construct_yaml_int(node))


_Strict.add_constructor("tag:yaml.org,2002:int", _Strict.construct_yaml_int)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a YAML recipe, applies overrides in order, and validates the result.

    Args:
        path: YAML file in UTF-8.
        overrides: Changes ``section.key=value``. Values are YAML (``tpm.init_from=null``); a later one wins.

    Returns:
        The recipe.

    Raises:
        ConfigError: The file cannot be read, an override is malformed, or keys, types or ranges are wrong. One error
            lists all wrong keys.

    Example:
        >>> from importlib import resources
        >>> path = str(resources.files("tpdm.config") / "recipes" / "sd3-medium.yaml")
        >>> load_recipe(path, ["rl.updates=50"]).rl.updates
        50
    """
    values = with_present_names(_read_mapping(Path(expand(path))), str(path))
    for override in overrides:
        _apply(values, override)
    return make_recipe(values, origin=str(path))


def make_recipe(values: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Validates nested plain values and builds the recipe.

    Args:
        values: Sections and keys, as YAML gives them.
        origin: File that the values are from. It begins the error message.

    Raises:
        ConfigError: Keys, types or ranges are wrong.

    Example:
        >>> make_recipe({"name": "first", "rl": {"clip": 2}})
        Traceback (most recent call last):
        ...
        tpdm.core.errors.ConfigError: recipe: rl.clip is 2. It must be less than 1. The default is 0.2.
    """
    # A section with all lines commented out is None in YAML. It means the defaults.
    named = with_present_names(values, origin)
    filled = {key: {} if value is None and key in _SECTIONS else value for key, value in named.items()}
    try:
        return _RECIPE.validate_python(filled)
    except ValidationError as error:
        problems = [_explain(detail) for detail in error.errors(include_url=False)]
    if len(problems) == 1:
        raise ConfigError(f"{origin}: {problems[0]}")
    raise ConfigError("\n  ".join([f"{origin}: {len(problems)} problems:", *problems]))


def dump_recipe(recipe: Recipe, path: str | Path) -> Path:
    """Writes the recipe with all defaults as YAML. ``load_recipe`` reads an equal recipe from it."""
    return write_text(expand(path), yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True))


def recipe_hash(recipe: Recipe) -> str:
    """The first 12 hex digits of the sha256 of the recipe's canonical JSON, under the key names of version 0.1."""
    canonical = json.dumps(with_first_names(_plain(recipe)), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:12]


def _plain(recipe: Recipe) -> dict[str, Any]:
    # Validated again: a recipe built in Python may contain 0 for a float, and 0 and 0.0 have different hashes.
    return asdict(make_recipe(asdict(recipe)))


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Strict)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}). A recipe must be a YAML file in UTF-8. Correct the path or the file."
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML ({' '.join(str(error).split())}). Correct that line.") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} contains {values!r}. A recipe must be a mapping such as 'name: first'. Correct the file."
        )
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    """Sets one dotted key in place. The validation of the recipe checks later whether the key exists."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"Override {override!r} is malformed. It must be key=value. Write for example rl.updates=50.")
    try:
        value = yaml.load(text, Loader=_Strict)
    except yaml.YAMLError as error:
        why = f" ({error.problem})" if isinstance(error, ConstructorError) else ""
        raise ConfigError(
            f"Override {override!r} is malformed: {text!r} is not a YAML value{why}. Put it in quotes."
        ) from error
    if len(parts) == 2:
        named = with_present_names({parts[0]: {parts[1]: value}}, f"override {override!r}")
        ((parts[1], value),) = named[parts[0]].items()
    for depth, part in enumerate(parts[:-1], start=1):
        if values.get(part) is None:
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict):
            raise ConfigError(
                f"Override {override!r} does not fit: {'.'.join(parts[:depth])} is a value without keys. Set it "
                "directly."
            )
    values[parts[-1]] = value


def _known_keys(part: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a recipe: sections and values."""
    for item in fields(part):
        yield prefix + item.name
        if is_dataclass(item.default_factory):
            yield from _known_keys(item.default_factory, f"{prefix}{item.name}.")


_KEYS = tuple(_known_keys(Recipe))
_SECTIONS = frozenset(key.split(".")[0] for key in _KEYS if "." in key)


def _explain(detail: Mapping[str, Any]) -> str:
    """One line for one of pydantic's error records."""
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "unexpected_keyword_argument":
        return f"{key} is not a known key. {_did_you_mean(key)}"
    if detail["type"] == "missing":
        return f"{key} is missing. Add it."
    if detail["type"] == "dataclass_type":
        return f"{key} is {detail['input']!r}. It must be a mapping of keys. Write its keys on lines of their own."
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "value_error":  # a check of this package: of a value, a section, or the whole recipe
        of_section = key in _SECTIONS or key.rpartition(".")[2].isdigit()
        joint = " " if message.startswith("is ") else "." if of_section else ": "
        return f"{key}{joint if key else ''}{message}."
    return f"{key} is {detail['input']!r}. {message.replace('Input should', 'It must')}.{_default(detail['loc'])}"


def _default(loc: Sequence[Any]) -> str:
    """The default of a key as a sentence; empty for a key without one."""
    try:
        value = reduce(getattr, loc, Recipe(name="a"))
    except (AttributeError, TypeError):  # an item of a list
        return ""
    return "" if loc == ("name",) else f" The default is {json.dumps(value)}."


def _did_you_mean(key: str) -> str:
    # The right name in the wrong section is likelier than a similar spelling.
    near = [known for known in _KEYS if known.rpartition(".")[2] == key.rpartition(".")[2]]
    near = near or difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"The sections are {', '.join(sorted(_SECTIONS))}."
