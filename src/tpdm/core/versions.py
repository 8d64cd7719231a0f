"""Version requirements of other packages, as tpdm's own metadata states them, against what is installed."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version


def required(package: str) -> str:
    """Return the versions of a package that tpdm supports.

    Args:
        package: Name of the package in pyproject.toml, also in an extra.

    Returns:
        A specifier such as ">=0.37". Empty if every version fits.

    Example:
        >>> required("no-such-package")
        ''
    """
    try:
        lines = metadata.requires("tpdm") or []
    except metadata.PackageNotFoundError:  # a source tree that was not installed
        return ""
    return next((str(entry.specifier) for entry in map(Requirement, lines) if entry.name == package), "")


def misfit(package: str) -> str | None:
    """Return what to install if the installed version of a package does not fit.

    Args:
        package: Name of the package in pyproject.toml, also in an extra.

    Returns:
        A requirement such as "diffusers>=0.37". None if the installed version fits.

    Raises:
        PackageNotFoundError: The package is not installed.

    Example:
        >>> misfit("packaging") is None
        True
    """
    requirement = Requirement(package + required(package))
    # A development version counts as the release that it leads to: diffusers is often installed from source.
    installed = Version(metadata.version(package)).base_version
    return None if requirement.specifier.contains(installed) else str(requirement)


def check_versions(*packages: str) -> None:
    """Raise an error for the first package whose version does not fit.

    Without this check, an import would fail in the middle of another package. A package that is not installed is
    skipped. Its import raises the error.

    Args:
        packages: Names of packages in pyproject.toml.

    Raises:
        TpdmError: An installed version does not fit.

    Example:
        >>> check_versions("packaging", "no-such-package")
    """
    for package in packages:
        try:
            requirement = misfit(package)
        except metadata.PackageNotFoundError:
            continue
        if requirement is not None:
            from tpdm.core.errors import TpdmError  # late: `tpdm doctor` checks versions where torch may be missing

            raise TpdmError(
                f"{package} {metadata.version(package)} is installed. It must be {requirement}. Run pip install -U "
                f"'{requirement}'."
            )
