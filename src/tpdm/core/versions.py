"""Which versions of other packages this one works with: what its own metadata says, and what is installed."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version


def required(package: str) -> str:
    """The versions that fit, such as ">=0.37"; empty where any does.

    Args:
        package: as pyproject.toml names it, in any of its extras.
    """
    try:
        lines = metadata.requires("tpdm") or []
    except metadata.PackageNotFoundError:  # a source tree that was not installed
        return ""
    return next((str(one.specifier) for one in map(Requirement, lines) if one.name == package), "")


def misfit(package: str) -> str | None:
    """What to install where the installed version does not fit, such as "diffusers>=0.37"; None where it does.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    wanted = Requirement(package + required(package))
    # Of a development version the release that it leads to: sources of diffusers are often installed.
    installed = Version(metadata.version(package)).base_version
    return None if wanted.specifier.contains(installed) else str(wanted)


def check_versions(*packages: str) -> None:
    """Refuses versions that do not fit, before an import fails in the middle of another package.

    A package that is not installed is left to the import that misses it.

    Raises:
        TpdmError: naming the first one.
    """
    for package in packages:
        try:
            wanted = misfit(package)
        except metadata.PackageNotFoundError:
            continue
        if wanted is not None:
            from tpdm.core.errors import TpdmError  # late: the doctor looks at versions where torch may be missing

            raise TpdmError(f"got {package} {metadata.version(package)}, expected {wanted}: pip install -U '{wanted}'.")
