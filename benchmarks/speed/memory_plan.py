"""What `tpdm train --dry-run` estimates for the recipes of SD3 Medium and FLUX.1-dev, at their published shapes.

No weight is computed or downloaded: the folders contain only configurations, with the sizes of the published files.
Prompts are 10,000 of tinyworld's, because only their number counts.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, T5Config

from benchmarks.command import RECIPES
from benchmarks.page import table
from benchmarks.shapes import autoencoder, flux, sd3
from tpdm.config.loader import load_recipe
from tpdm.core.io import write_json
from tpdm.training.planning.memory import GIB, memory_peaks
from tpdm.training.planning.plan import Plan, make_plan

CLIP_L = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
CLIP_G = CLIPTextConfig(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
)
T5_XXL = T5Config(
    vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
)
PROJECTED = "CLIPTextModelWithProjection"


PIPELINES = {
    "sd3-medium": ("StableDiffusion3Pipeline", partial(sd3, 24, 24), [(PROJECTED, CLIP_L), (PROJECTED, CLIP_G)]),
    "flux1-dev": ("FluxPipeline", flux, [("CLIPTextModel", CLIP_L)]),
}


def write_folder(name: str, folder: Path) -> None:
    """A pipeline's configuration files without its weights."""
    pipeline, denoiser, encoders = PIPELINES[name]
    with torch.device("meta"):
        networks = {"transformer": denoiser(), "vae": autoencoder()}
    index: dict[str, Any] = {"_class_name": pipeline}
    for part, network in networks.items():
        network.save_config(folder / part)
        index[part] = ["diffusers", type(network).__name__]
    for i, (cls, config) in enumerate([*encoders, ("T5EncoderModel", T5_XXL)]):
        part = "text_encoder" + (f"_{i + 1}" if i else "")
        config.save_pretrained(folder / part)
        index[part] = ["transformers", cls]
    write_json(folder / "model_index.json", index)


def plan_of(name: str) -> Plan:
    with tempfile.TemporaryDirectory() as place:
        write_folder(name, Path(place))
        changes = [f"backbone.name_or_path={place}", "prompts.source=tinyworld", "prompts.limit=10000"]
        return make_plan(load_recipe(RECIPES / f"{name}.yaml", changes))


def facts_of(name: str) -> dict[str, Any]:
    plan = plan_of(name)
    return {
        "recipe": name,
        "trajectories": plan.trajectories,
        "parts": [{"name": p.name, "place": p.place, "phase": p.phase, "bytes": p.size} for p in plan.memory],
        "peaks": {place: memory_peaks(plan.memory, place) for place in ("device", "host")},
    }


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    return {"plans": [facts_of(name) for name in PIPELINES], "versions": {"torch": torch.__version__}}


def part(facts: dict[str, Any]) -> str:
    plans = facts["plans"]
    lines = []
    for key in dict.fromkeys((p["name"], p["place"], p["phase"]) for plan in plans for p in plan["parts"]):
        cells = []
        for plan in plans:
            found = [p["bytes"] for p in plan["parts"] if (p["name"], p["place"], p["phase"]) == key]
            cells.append(f"{found[0] / GIB:.2f}" if found and found[0] is not None else "")
        name, place, phase = key
        lines.append([name, "GPU" if place == "device" else place, phase, *cells])
    for place, title in (("device", "GPU"), ("host", "host")):
        peaks = [f"**{max(plan['peaks'][place].values()) / GIB:.1f}**" for plan in plans]
        lines.append(["**at most**", f"{title} |", *peaks])  # no part, no phase
    return table(" | ".join(["part | where | while", *(plan["recipe"] for plan in plans)]), lines, narrow=True)
