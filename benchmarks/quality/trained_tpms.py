"""TPMs that the experiments trained, named by the hash of their recipe. Each took hours and is a megabyte.

    python -m benchmarks.quality.trained_tpms               lists them, with what their recipes change
    python -m benchmarks.quality.trained_tpms --from-git    takes them out of the history of this repository

They are read from the folder that TPDM_TRAINED names, by default runs/trained. What is not there is trained again.
benchmarks/trained.json lists those of the committed results, with the digest of every file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import ROOT
from tpdm.core.io import sha256, write_atomically, write_json

MANIFEST = ROOT / "benchmarks" / "trained.json"
FILES = (
    "recipe.yaml",
    "metrics.jsonl",
    *(f"{which}/{name}" for which in ("best", "last") for name in ("config.json", "model.safetensors")),
    "run.json",  # written last: if it exists, the others do
)


def folder() -> Path:
    """The folder of trained TPMs."""
    return Path(os.environ.get("TPDM_TRAINED", ROOT / "runs" / "trained"))


def fetch(name: str, run: Path) -> bool:
    """Copies the files of the training with that hash to a run; returns False if the folder does not have it.

    Raises:
        ValueError: A file differs from the one of the committed results.
    """
    kept = folder() / name
    if not (kept / "run.json").exists():
        return False
    for file, digest in manifest().get(name, {}).get("sha256", {}).items():
        if sha256(kept / file) != digest:
            raise ValueError(f"{kept / file} is not the file of {MANIFEST.name}. Delete {kept} to train it again.")
    shutil.copytree(kept, run, dirs_exist_ok=True)
    return True


def keep(name: str, run: Path, changes: dict[str, Any]) -> Path:
    """Copies the files of a training to the folder, and adds their digests to the manifest; returns their folder."""
    kept = folder() / name
    for file in FILES:
        write_atomically(kept / file, partial(shutil.copyfile, run / file))
    known = manifest()
    known[name] = {"changes": changes, "sha256": {file: sha256(kept / file) for file in FILES}}
    write_json(MANIFEST, dict(sorted(known.items())))
    return kept


def manifest() -> dict[str, Any]:
    """Changes, digests and commit of each TPM, by hash."""
    found: dict[str, Any] = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return found


def from_git() -> None:
    """Takes every TPM of the manifest that names a commit out of the history."""
    for name, known in manifest().items():
        if "commit" not in known or (folder() / name / "run.json").exists():
            continue
        place = f"{known['commit']}:benchmarks/trained/{name}"
        with tempfile.TemporaryDirectory() as room:
            packed = Path(room) / "tpm.tar"
            subprocess.run(["git", "archive", "-o", packed, place], cwd=ROOT, check=True)
            with tarfile.open(packed) as files:
                files.extractall(folder() / name, filter="data")
        print(f"{folder() / name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from-git", action="store_true", help="restore them from the commits that had them")
    if parser.parse_args().from_git:
        from_git()
    for name, known in manifest().items():
        here = "here" if (folder() / name / "run.json").exists() else "to train"
        print(f"{name}  {here:8}  {json.dumps(known['changes'])}")


if __name__ == "__main__":
    main()
