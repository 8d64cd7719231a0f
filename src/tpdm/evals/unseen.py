"""Is what an evaluation asks for new to the TPM? Its recipe may have been changed since the training."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tpdm.config import load_recipe
from tpdm.evals.compare import Task
from tpdm.recipe import Recipe
from tpdm.train.build import choose_prompts
from tpdm.train.identity import differences, run_identity
from tpdm.types import ConfigError, PromptError

_LOG = logging.getLogger(__name__)
_TOLD = ("backbone.", "sampling.", "reward.")


def check_unseen(recipe: Recipe, tuning: Task, test: Task) -> None:
    """Refuses prompts that the TPM was trained or chosen on, and says what else differs from its training.

    Nothing is known, and nothing said, of a TPM that lies in no run.

    Args:
        recipe: of the evaluation.
        tuning: what controls are chosen on.
        test: what is compared.

    Raises:
        ConfigError: some of the prompts are not new.
    """
    path = Path(recipe.output) / "recipe.yaml"
    if not path.is_file():
        return
    made = load_recipe(path)
    before, now = _asked_of_training(made), _asked_of_training(recipe)
    if before != now and (seen := _known(made)):
        asked = [*tuning.prompts, *test.prompts]
        common = sum(prompt in seen for prompt in asked)
        if common:
            raise ConfigError(
                f"got {common} of {len(asked)} prompts that this TPM was trained or chosen on, expected none "
                f"({differences(before, now)}); give tpdm eval the recipe and the overrides of the training."
            )
    before, now = _settings(made), _settings(recipe)
    if before != now:
        _LOG.warning("evaluated otherwise than trained: %s", differences(before, now, most=9))


def _asked_of_training(recipe: Recipe) -> dict[str, Any]:
    """What decides which prompts are held out, and which of these a validation has."""
    prompts = {f"prompts.{key}": value for key, value in asdict(recipe.prompts).items()}
    return {**prompts, "validation.prompts": recipe.validation.prompts}


def _known(made: Recipe) -> set[str]:
    """Texts of training and validation; none where they cannot be read any more."""
    try:
        return {prompt.text for side in choose_prompts(made) for prompt in side}
    except PromptError as error:
        _LOG.warning("whether the prompts are new to the TPM is not known: %s", error)
        return set()


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in run_identity(recipe, [], []).items() if key.startswith(_TOLD)}
