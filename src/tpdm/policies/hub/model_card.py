"""The model card of a TPM, from its config, its run and its evaluation. The text is in ``model_card_template.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tpdm.config.recipe import Recipe
from tpdm.core.formatting import signed_interval
from tpdm.policies.hub.provenance import RunProvenance
from tpdm.policies.pretrained import HUB_ID
from tpdm.policies.pretrained_config import PretrainedConfig

MAX_VALIDATIONS = 12  # rows of the table of validations
TEMPLATE = Path(__file__).with_name("model_card_template.md")
Rows = list[tuple[str, ...]]


def model_card(facts: RunProvenance, name: str, place: str, curves: Sequence[str] = ()) -> str:
    """Write the README.md of a TPM, with metadata that the hub reads.

    Args:
        facts: Config of the TPM, and what is known about its run and its evaluation.
        name: Title of the card.
        place: Hub id or folder that the example passes to ``attach``.
        curves: File names of plots in the same folder.

    Example:
        >>> from tpdm.policies.hub.provenance import read_provenance
        >>> from tpdm.policies.pretrained import resolve_path
        >>> card = model_card(read_provenance(resolve_path("tinyworld")), "my-tpm", "me/my-tpm")
        >>> "library_name: tpdm" in card, 'tpdm.attach(pipe, "me/my-tpm")' in card
        (True, True)
    """
    validations = [row for row in facts.metrics if row["kind"] == "validation"]
    card = ModelCard.from_template(
        _metadata(facts, name),
        template_path=str(TEMPLATE),
        name=name,
        place=place,
        config=facts.config,
        purpose=_purpose(facts.config),
        training=_training(facts),
        validations=[_validation(row) for row in _spread(validations, MAX_VALIDATIONS)],
        curves=curves,
        evaluation=None if facts.evaluation is None else _evaluation(facts.evaluation),
    )
    return f"{card}\n"


def _metadata(facts: RunProvenance, name: str) -> ModelCardData:
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
    return ModelCardData(
        library_name="tpdm",
        pipeline_tag="text-to-image",
        base_model=backbone if HUB_ID.fullmatch(backbone) and not Path(backbone).exists() else None,
        tags=["tpdm", "diffusers", "reinforcement-learning"],
        model_name=name if results else None,
        eval_results=results or None,
    )


def _purpose(config: PretrainedConfig) -> Rows:
    call = ", ".join(f"{key} {value}" for key, value in config.call_defaults.items()) or "the pipeline's own"
    steps = "not measured" if config.mean_steps is None else f"{config.mean_steps:.1f} in validation"
    return [
        ("denoiser", f"`{config.backbone_class}`, tokens of width {config.shape.feature_channels}"),
        ("reads", config.features),
        ("guidance", f"{config.guidance_scale:g}: another one moves the features"),
        ("arguments of the call", call),
        ("solver", config.solver),
        ("cap on steps", str(config.max_steps)),
        ("mean steps", steps),
        *((f"mean steps at gamma {gamma:g}", f"{mean:.1f} in validation") for gamma, mean in config.gamma_steps or ()),
    ]


def _training(facts: RunProvenance) -> Rows:
    config = facts.config
    price = f"discounted, eq. (9): gamma {config.gamma:g}"
    if facts.recipe is not None and facts.recipe.reward.form == "additive":
        price = f"additive, {facts.recipe.reward.step_cost:g} a step"
    elif facts.recipe is None and config.reward_form == "additive":
        price = "additive"  # the cost of a step is only in the recipe
    return [
        ("reward", config.reward),
        ("price of steps", price),
        *(_of_recipe(facts.recipe) if facts.recipe is not None else []),
        *((key, str(value)) for key, value in config.trained.items() if isinstance(value, int | float | str)),
        ("tpdm", config.tpdm_version),
    ]


def _of_recipe(recipe: Recipe) -> Rows:
    return [
        ("prompts", f"`{_source(recipe.prompts.source)}`, {recipe.prompts.held_out_fraction:g} of them held out"),
        ("learning rate", f"{recipe.optimizer.lr:g}, {recipe.optimizer.lr_schedule}"),
        ("noise within a group", recipe.rl.noise),
        ("passes over a rollout", str(recipe.rl.epochs)),
    ]


def _source(source: str) -> str:
    """The last part of a local path: the rest describes the author's machine."""
    return source if source.startswith("hub:") else Path(source).name


def _validation(row: Mapping[str, Any]) -> tuple[str, ...]:
    scores = (f"{row[key]:.4f}" for key in ("score_mean", "objective_mean"))
    return (str(row["update"]), f"{row['steps_mean']:.1f}", *scores)


def _evaluation(summary: Mapping[str, Any]) -> dict[str, Any]:
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
    return {
        "rows": rows,
        "count": f"with {summary['images']} images of each " if "images" in summary else "",
        "hardware": summary.get("hardware", "unknown hardware"),
        "versions": ", ".join(f"{key} {value}" for key, value in summary.get("versions", {}).items()),
    }


def _spread(rows: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` rows at even distances, with the first and the last."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]
