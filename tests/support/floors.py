"""Prints what `make test-floors` installs: every package of pyproject.toml at the lowest version that it allows.

torch is left out: older CPU builds of it are not on PyPI, so constraints.txt says which one is tried.

Usage: python floors.py pyproject.toml
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

FLOOR = re.compile(r'"(?P<name>[\w.-]+)(\[[\w,]+\])?>=(?P<version>[\w.]+)"')


def floors(pyproject: str) -> dict[str, str]:
    """Package -> lowest version, of the dependencies and of every extra."""
    lists = pyproject.split("\n[project.scripts]")[0].split("\ndependencies = ")[1]
    return {one["name"]: one["version"] for one in FLOOR.finditer(lists)}


if __name__ == "__main__":
    found = floors(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print("\n".join(f"{name}=={version}" for name, version in found.items() if name != "torch"))
