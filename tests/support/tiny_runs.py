"""Training runs on a tiny SD3 pipeline with text encoders: the whole way of ``tpdm train``, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_sd3 import make_tiny_sd3
from tpdm.config.loader import dump_recipe, make_recipe
from tpdm.config.recipe import Recipe
from tpdm.core.io import read_metrics
from tpdm.policies.pretrained import load_policy

SECTIONS: dict[str, dict[str, Any]] = {
    "backbone": {"device": "cpu", "height": 16, "width": 16},
    "tpm": {"channels": 8, "grid": 2, "init_steps": 4},
    "sampling": {"max_steps": 6},
    "optimizer": {"lr": 1e-5},
    "rl": {"updates": 2, "prompts_per_update": 3, "samples_per_prompt": 2, "rollout_batch": 4},
    "validation": {"samples_per_prompt": 3, "every": 1},
    "checkpoint": {"every": 1},
}


def tiny_pipeline(folder: Path) -> Path:
    """The folder of a pipeline, and beside it ``prompts.csv``."""
    make_tiny_sd3(folder / "tokens").save_pretrained(folder / "pipe")
    prompts = [a + b for a in "abcd" for b in "abcd"]
    (folder / "prompts.csv").write_text("\n".join(["prompt", *prompts]))
    return folder / "pipe"


def tiny_recipe(pipe: Path, output: Path, **sections: Any) -> Recipe:
    """``SECTIONS`` for that pipeline, updated key by key."""
    values = {name: {**SECTIONS.get(name, {}), **sections.get(name, {})} for name in (*SECTIONS, *sections)}
    values["backbone"]["name_or_path"] = str(pipe)
    source = {"prompts": {"source": str(pipe.parent / "prompts.csv")}}
    return make_recipe({"name": "tiny", "output": str(output), **values, **source})


def brightness(images_B3HW: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A reward, as ``python:tests.support.tiny_runs:brightness``."""
    return images_B3HW.mean((1, 2, 3))


def write_recipe(recipe: Recipe, file: Path) -> Path:
    """The recipe as a file, for ``tpdm train``."""
    dump_recipe(recipe, file)
    return file


def assert_same_training(folder: Path, expected: Path) -> None:
    """Equal steps of every update and validation; trained weights to 1e-5, scores to 1e-4.

    One weight in a hundred may be off by a step of the optimizer: rounding decides the sign of a gradient of 0.
    What a TPM measures once of its features may differ more: they are kept in fp16, where a last bit is 1e-3.
    """
    rows, wanted = (read_metrics(run / "metrics.jsonl") for run in (folder, expected))
    assert [row["steps_histogram"] for row in rows] == [row["steps_histogram"] for row in wanted]
    assert [row["score_mean"] for row in rows] == pytest.approx([row["score_mean"] for row in wanted], abs=1e-4)
    trained, other = (load_policy(run / "last") for run in (folder, expected))
    for (name, one), two in zip(trained.named_parameters(), other.parameters(), strict=True):
        off = ~torch.isclose(one, two, rtol=1e-5, atol=1e-5)
        assert off.float().mean() <= 0.01, f"{name}: {(one - two).abs().max()}"
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    for one, two in zip(trained.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3)
