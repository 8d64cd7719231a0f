"""Recipes in and out: read from YAML, changed by dotted overrides (``rl.updates=50``), checked whole, written back.

What a recipe may say stands in ``tpdm.config.recipe``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from yaml.constructor import ConstructorError

from tpdm.config.recipe import Recipe
from tpdm.core.errors import ConfigError
from tpdm.core.io import expand, write_text

_RECIPE = TypeAdapter(Recipe)


class _Strict(yaml.SafeLoader):
    """YAML whose mistakes are said: of a key that stands twice it would take the last, and 0100 for 64."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        digits = node.value.lstrip("+-").replace("_", "")
        if len(digits) > 1 and digits.isdecimal() and digits[0] == "0":
            raise ConstructorError(None, None, f"{node.value} would be octal: leave the zero out", node.start_mark)
        return int(super().construct_yaml_int(node))


_Strict.add_constructor("tag:yaml.org,2002:int", _Strict.construct_yaml_int)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a YAML recipe, applies ``a.b=value`` overrides in order, and checks the whole.

    Args:
        path: YAML file in UTF-8.
        overrides: values are YAML (``tpm.init_from=null``); a later one wins.

    Raises:
        ConfigError: unreadable file or malformed override; unknown keys, wrong types and ranges, all at once.
    """
    values = _read_mapping(Path(expand(path)))
    for override in overrides:
        _apply(values, override)
    return make_recipe(values, origin=str(path))


def make_recipe(values: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Checks nested plain values and builds the recipe; ``origin`` begins the error message."""
    # A section whose every line is commented out reads as None: it means the defaults.
    filled = {key: {} if value is None and key in _SECTIONS else value for key, value in values.items()}
    try:
        return _RECIPE.validate_python(filled)
    except ValidationError as error:
        problems = [_explain(detail) for detail in error.errors(include_url=False)]
    if len(problems) == 1:
        raise ConfigError(f"{origin}: {problems[0]}")
    raise ConfigError("\n  ".join([f"{origin}: {len(problems)} problems:", *problems]))


def dump_recipe(recipe: Recipe, path: str | Path) -> Path:
    """Writes the recipe, defaults included, as YAML that ``load_recipe`` reads back to an equal recipe."""
    return write_text(expand(path), yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True))


def recipe_hash(recipe: Recipe) -> str:
    """Twelve hex digits of the sha256 of the recipe's canonical JSON: equal recipes, equal hashes."""
    canonical = json.dumps(_plain(recipe), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:12]


def _plain(recipe: Recipe) -> dict[str, Any]:
    # Checked once more: a recipe built in Python may hold 0 for a float, and 0 and 0.0 would hash apart.
    return asdict(make_recipe(asdict(recipe)))


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Strict)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe ({error}): give a YAML file in UTF-8.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is no valid YAML ({' '.join(str(error).split())}): correct that line.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping such as 'name: first', got {values!r}.")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    """Sets one dotted key in place; whether the key exists is checked later, with everything else."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r}: expected key=value, for example rl.updates=50.")
    try:
        value = yaml.load(text, Loader=_Strict)
    except yaml.YAMLError as error:
        why = f" ({error.problem})" if isinstance(error, ConstructorError) else ""
        raise ConfigError(f"override {override!r}: {text!r} is no YAML value{why}, put it in quotes.") from error
    for depth, part in enumerate(parts[:-1], start=1):
        if values.get(part) is None:
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(parts[:depth])} is a value, it has no keys inside.")
    values[parts[-1]] = value


def _known_keys(part: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a recipe, sections and values alike."""
    for item in fields(part):
        yield prefix + item.name
        if is_dataclass(item.default_factory):
            yield from _known_keys(item.default_factory, f"{prefix}{item.name}.")


_KEYS = tuple(_known_keys(Recipe))
_SECTIONS = frozenset(key.split(".")[0] for key in _KEYS if "." in key)


def _explain(detail: Mapping[str, Any]) -> str:
    """One problem in one line, from one of pydantic's error records."""
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "unexpected_keyword_argument":
        return f"{key} is no known key: {_did_you_mean(key)}"
    if detail["type"] == "missing":
        return f"{key} is missing: add it."
    if detail["type"] == "dataclass_type":
        return f"{key}: expected a mapping of keys, got {detail['input']!r}."
    message = str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
    # A check that spans several keys says itself what it got.
    where = f"{key}: " if key else ""  # of the whole recipe
    return f"{where}{message}." if detail["type"] == "value_error" else f"{where}{message}, got {detail['input']!r}."


def _did_you_mean(key: str) -> str:
    # The right name in the wrong section is likelier than a spelling that happens to be near.
    near = [known for known in _KEYS if known.rpartition(".")[2] == key.rpartition(".")[2]]
    near = near or difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"the sections are {', '.join(sorted(_SECTIONS))}."
