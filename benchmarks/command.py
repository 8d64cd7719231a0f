"""The command line of all benchmarks: a name, its options, a results file, and sections of a page of docs/."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.page import write_sections
from tpdm.core.io import write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
RECIPES = ROOT / "src" / "tpdm" / "config" / "recipes"


@dataclass(frozen=True)
class Benchmark:
    """A line of ``--list``. The module of the same name contains what it does (see ``run``).

    Attributes:
        measures: What it measures, in one line.
        takes: How long it takes, and on what.
        results: File that it writes, relative to the repository.
        page: Page of docs/ that is written in part from the results; "" for none.
        section: Name of its marks on the page; "" if the module names several.
    """

    measures: str
    takes: str
    results: str
    page: str = ""
    section: str = ""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that every benchmark of this kind has."""
        parser.add_argument("--out", type=Path, help=f"results file instead of {self.results}; leaves the page alone")
        parser.add_argument("--print", action="store_true", help="print the results and write nothing")
        if self.page:
            parser.add_argument("--page", type=Path, help=f"page instead of docs/{self.page}")
            parser.add_argument("--render", action="store_true", help="write the page from the results, and no more")


def main(package: str, table: Mapping[str, Benchmark], words: Sequence[str] | None = None) -> None:
    """Runs ``NAME [OPTIONS]``, or lists all names."""
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("--list", "--help", "-h"):
        print(f"python -m {package} NAME [--help] [options]\n\n{listing(table)}")
        return
    name, *rest = words
    if name not in table:
        sys.exit(f"NAME is {name}. It must be one of {', '.join(table)}. Try --list.")
    module, benchmark = import_module(f"{package}.{name}"), table[name]
    shape = {"description": module.__doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog=f"python -m {package} {name}", **shape)
    benchmark.add_options(parser)
    if hasattr(module, "options"):
        module.options(parser)
    run(benchmark, module, parser.parse_args(rest))


def listing(table: Mapping[str, Benchmark]) -> str:
    """Every name with what it measures, how long it takes, and what it writes."""
    lines = []
    for name, one in table.items():
        page = f", docs/{one.page}" if one.page else ""
        lines.append(f"{name}: {one.measures}\n    {one.takes}; writes {one.results}{page}")
    return "\n".join(lines)


def run(benchmark: Benchmark, module: ModuleType, chosen: argparse.Namespace) -> None:
    """Measures, writes the results and the page, and exits with 1 if the results break a promise.

    A module provides ``measure(chosen)``, the results. It may provide ``options(parser)``; ``results(chosen)``, the
    results file, or None for a run that is only printed; ``part(results)``, the section of the page, or
    ``sections(results, folder)``, several by name; ``draw(results, chosen)``, a figure; and ``broken(results)``, the
    promises that were not kept. Paths are relative to the repository.
    """
    os.chdir(ROOT)
    default = module.results(chosen) if hasattr(module, "results") else benchmark.results
    chosen.file = chosen.out or Path(default or benchmark.results)
    writes = not chosen.print and bool(chosen.out or default)
    if getattr(chosen, "render", False):
        facts = json.loads(chosen.file.read_text(encoding="utf-8"))
    else:
        facts = module.measure(chosen)
        if writes:
            write_json(chosen.file, facts)
        else:
            print(json.dumps(facts, indent=2))
    page = benchmark.page and (chosen.page or (None if chosen.out else ROOT / "docs" / benchmark.page))
    if writes and page:
        if hasattr(module, "draw"):
            module.draw(facts, chosen)
        write_sections(page, sections_of(benchmark, module, facts, chosen.file.parent))
    if writes:
        print(json.dumps({"written": [str(path) for path in (chosen.file, page) if path]}))
    broken = module.broken(facts) if hasattr(module, "broken") else []
    if broken:
        sys.exit(f"Broken: {'; '.join(broken)}.")


def sections_of(benchmark: Benchmark, module: ModuleType, facts: Any, folder: Path) -> dict[str, str]:
    """The generated sections of a benchmark's page, by the name of their marks; ``folder`` contains its results."""
    return module.sections(facts, folder) if hasattr(module, "sections") else {benchmark.section: module.part(facts)}
