"""The model card of a TPM, written from its config, its run and its evaluation; nothing in it is made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpdm.config.recipe import Recipe
from tpdm.core.formatting import signed_interval
from tpdm.policies.hub.provenance import RunProvenance
from tpdm.policies.pretrained import HUB_ID
from tpdm.policies.pretrained_config import PretrainedConfig

SHOWN_VALIDATIONS = 12
PAPER = "https://arxiv.org/abs/2412.01243"


def model_card(facts: RunProvenance, name: str, place: str, curves: Sequence[str] = ()) -> str:
    """README.md: metadata that the hub understands, then text.

    Args:
        facts: of the TPM.
        name: title.
        place: what ``attach`` is to be given, a hub id or a folder.
        curves: file names of pictures beside the card.
    """
    from huggingface_hub import ModelCard

    sections = [_use(facts.config, name, place), _purpose(facts.config), _training(facts, curves)]
    if facts.evaluation is not None:
        sections.append(_evaluation(facts.evaluation))
    # The card's own parser has the last word on whether this is one.
    return str(ModelCard(f"---\n{_metadata(facts, name)}\n---\n\n" + "\n\n".join(sections) + "\n"))


def _metadata(facts: RunProvenance, name: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    backbone = facts.config.backbone_name
    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type="held-out-prompts",
            dataset_name="held-out prompts of the training set's source",
            metric_type=metric,
            metric_name=words,
            metric_value=round(float(facts.evaluation["rows"][0][key]), 4),
        )
        for metric, words, key in (("steps", "mean steps", "steps_mean"), ("reward", "mean reward", "reward_mean"))
        if facts.evaluation is not None
    ]
    data = ModelCardData(
        library_name="tpdm",
        pipeline_tag="text-to-image",
        base_model=backbone if HUB_ID.fullmatch(backbone) and not Path(backbone).exists() else None,
        tags=["tpdm", "diffusers", "reinforcement-learning"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _use(config: PretrainedConfig, name: str, place: str) -> str:
    return f"""# {name}

A Time Prediction Module for `{config.backbone_name}`: after each denoising step it reads the denoiser's features and
decides the time of the next one, so that every image gets the steps it needs. The pipeline itself stays as it is
([TPDM]({PAPER})).

```python
import tpdm

pipe = tpdm.load_pipeline("{config.backbone_name}")
fast = tpdm.attach(pipe, "{place}")
out = fast(["a prompt"], seeds=[0])
print(out.steps)
```"""


def _purpose(config: PretrainedConfig) -> str:
    call = ", ".join(f"{key} {value}" for key, value in config.call_defaults.items()) or "the pipeline's own"
    steps = "not measured" if config.mean_steps is None else f"{config.mean_steps:.1f} in validation"
    return "## What it is for\n\n" + table(
        ("", ""),
        [
            ("denoiser", f"`{config.backbone_class}`, tokens of width {config.shape.feature_channels}"),
            ("reads", config.features),
            ("guidance", f"{config.guidance_scale:g}: another one moves the features"),
            ("arguments of the call", call),
            ("solver", config.solver),
            ("cap on steps", str(config.max_steps)),
            ("mean steps", steps),
            *((f"dial, gamma {gamma:g}", f"{mean:.1f} steps") for gamma, mean in config.gamma_steps or ()),
        ],
    )


def _training(facts: RunProvenance, curves: Sequence[str]) -> str:
    config = facts.config
    price = f"discounted, eq. (9): gamma {config.gamma:g}"
    if facts.recipe is not None and facts.recipe.reward.form == "additive":
        price = f"additive, {facts.recipe.reward.step_cost:g} a step"
    elif facts.recipe is None and config.reward_form == "additive":
        price = "additive"  # what a step cost stands in the recipe alone
    rows = [
        ("reward", config.reward),
        ("price of steps", price),
        *(_of_recipe(facts.recipe) if facts.recipe is not None else []),
        *((key, str(value)) for key, value in config.trained.items() if isinstance(value, int | float | str)),
        ("tpdm", config.tpdm_version),
    ]
    parts = ["## Training", table(("", ""), rows)]
    validations = [row for row in facts.metrics if row["kind"] == "validation"]
    if validations:
        keys = {"steps": ("steps_mean", ".1f"), "score": ("score_mean", ".4f"), "objective": ("objective_mean", ".4f")}
        lines = [
            [row["update"], *(format(row[key], form) for key, form in keys.values())]
            for row in _spread(validations, SHOWN_VALIDATIONS)
        ]
        parts += ["Held-out prompts, the same noise each time:", table(("update", *keys), lines)]
    parts += [f"![{Path(curve).stem}]({curve})" for curve in curves]
    return "\n\n".join(parts)


def _of_recipe(recipe: Recipe) -> list[tuple[str, str]]:
    return [
        ("prompts", f"`{_source(recipe.prompts.source)}`, {recipe.prompts.held_out_fraction:g} of them held out"),
        ("learning rate", f"{recipe.optimizer.lr:g}, {recipe.optimizer.lr_schedule}"),
        ("noise within a group", recipe.rl.noise),
        ("passes over a rollout", str(recipe.rl.epochs)),
    ]


def _source(source: str) -> str:
    """A local path says something of its author's machine: its last name is enough."""
    return source if source.startswith("hub:") else Path(source).name


def _evaluation(summary: Mapping[str, Any]) -> str:
    paired = summary.get("paired", {})
    rows = [
        (
            row["name"],
            f"{row['steps_mean']:.2f}",
            f"{row['reward_mean']:.4f}",
            signed_interval(paired.get(row["name"], {}).get("reward")),
        )
        for row in summary["rows"]
    ]
    measured = ", ".join(f"{key} {value}" for key, value in summary.get("versions", {}).items())
    return "\n\n".join(
        [
            "## Evaluation",
            "Fixed schedules on the same held-out prompts and the same noise, which training has not seen. Last "
            "column: mean of the paired differences with its 95 % bootstrap interval.",
            table(("policy", "steps", "reward", "this TPM minus it"), rows),
            f"Measured {_count(summary)}on {summary.get('hardware', 'unknown hardware')} with {measured}.",
        ]
    )


def _count(summary: Mapping[str, Any]) -> str:
    return f"with {summary['images']} images of each " if "images" in summary else ""


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; a bar inside a cell would end it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
