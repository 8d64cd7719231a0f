"""``tpdm doctor``: versions, processors, disk space, weights and extras of this machine."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, resources
from importlib.util import find_spec

from tpdm.core.versions import misfit, required

PACKAGES = ("torch", "diffusers", "transformers", "numpy")
REFUSED = ("diffusers", "transformers")  # refused if too old; others may still work
EXTRAS = {
    "matplotlib": "eval",
    "jinja2": "eval",
    "filelock": "eval",
}  # module -> extra of this package that installs it
# Not needed by the demo: module -> extra, and its use.
OPTIONAL = {
    "accelerate": ("train", "training on several processes"),
    "tensorboard": ("track", "curves in tensorboard, wandb or trackio"),
    "fastapi": ("serve", "serving images and rewards"),
    "ray": ("ray", "serving on several machines"),
    "datasets": ("data", "prompts from parquet files and the hub"),
}
DISK_WANTED_GB = 1.0  # more than a demo run with its checkpoints and images needs


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: Name of the check.
        value: Its result.
        fix: What to do about it; None if nothing is wrong.
        stops_demo: Whether the demo cannot run without the fix.
    """

    name: str
    value: str
    fix: str | None = None
    stops_demo: bool = False


def examine() -> list[Finding]:
    """Runs all checks. Loads torch, but neither diffusers nor transformers."""
    findings = [Finding("python", ".".join(map(str, sys.version_info[:3])))]
    findings += [_package(name) for name in PACKAGES]
    findings += [_extra(module, extra) for module, extra in EXTRAS.items()]
    findings += [_optional(module, extra, use) for module, (extra, use) in OPTIONAL.items()]
    if find_spec("torch") is not None:
        findings += _processors()
    return [*findings, _disk(), _weights()]


def report(echo: Callable[[str], object] = print) -> bool:
    """Prints the findings.

    Args:
        echo: Called with each line.

    Returns:
        Whether the demo can run.
    """
    findings = examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        echo(f"{finding.name:<{width}}  {finding.value}" + (f"  -> {finding.fix}" if finding.fix else ""))
    ready = not any(finding.stops_demo for finding in findings)
    echo("The demo can run: tpdm demo" if ready else "The demo cannot run yet: see the arrows above.")
    return ready


def _package(name: str) -> Finding:
    try:
        return _version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", f"pip install {name}", stops_demo=True)


def _version(name: str) -> Finding:
    """The installed version, and the fix if it is too old."""
    wanted, fits = misfit(name), required(name)
    value = metadata.version(name) + (f" ({fits})" if fits else "")
    return Finding(name, value, wanted and f"pip install -U '{wanted}'", bool(wanted) and name in REFUSED)


def _extra(module: str, extra: str) -> Finding:
    if find_spec(module) is not None:
        return _version(module)
    # The demo draws its report.
    return Finding(module, "missing", f"pip install 'tpdm[{extra}]'", stops_demo=True)


def _optional(module: str, extra: str, use: str) -> Finding:
    if find_spec(module) is not None:
        return _version(module)
    return Finding(module, f"missing ({use})", f"pip install 'tpdm[{extra}]'")


def _processors() -> list[Finding]:
    import torch

    cores = os.cpu_count() or 1
    threads = torch.get_num_threads()
    fix = f"more threads than cores are slow: set OMP_NUM_THREADS={cores}" if threads > cores else None
    found = [Finding("cpu", f"{cores} cores, {threads} torch threads", fix)]
    if not torch.cuda.is_available():
        return [*found, Finding("gpu", "none (the demo needs none)")]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found.append(Finding(f"gpu {index}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"))
    return found


def _disk() -> Finding:
    free_gb = shutil.disk_usage(".").free / 1e9
    fix = f"free at least {DISK_WANTED_GB:g} GB here" if free_gb < DISK_WANTED_GB else None
    return Finding("disk", f"{free_gb:.1f} GB free", fix, stops_demo=fix is not None)


def _weights() -> Finding:
    folder = resources.files("tpdm") / "tinyworld" / "weights"
    if (folder / "pipeline" / "model_index.json").is_file():
        return Finding("tinyworld", "weights are there")
    fix = f"reinstall tpdm, which brings them, or: tpdm tinyworld build --out {folder}"
    return Finding("tinyworld", "no weights", fix, stops_demo=True)
