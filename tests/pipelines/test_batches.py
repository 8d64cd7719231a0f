"""An image depends on its prompt, seed and schedule, never on who else is in the batch."""

import pytest
import torch

from tests.support.policies import LookingPolicy
from tests.support.tiny_flux import text
from tpdm.core.solvers import SOLVERS
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule

PROMPTS = ["a", "red cat", "blue", "two dogs", "green", "night"]
STEPS = [2, 4, 7, 5, 3, 6]


def uneven(steps, power):
    return [(1 - i / steps) ** power for i in range(steps)] + [0.0]


LISTS = [uneven(n, 1 + 0.2 * b) for b, n in enumerate(STEPS)]


@pytest.fixture
def rows_computed(sd3):
    """Rows of every denoiser call, as the patch embedder sees them."""
    rows = []
    handle = sd3.transformer.pos_embed.register_forward_hook(lambda m, a, out: rows.append(len(out)))
    yield rows
    handle.remove()


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_six_schedules_in_one_batch_equal_single_runs(sd3, rows_computed, guidance, solver):
    call = {"guidance_scale": guidance, "max_sequence_length": 4, "output_type": "latent"}
    together = attach(sd3, FixedSchedule(LISTS), solver=solver)(PROMPTS, seeds=list(range(6)), **call)
    copies = 2 if guidance > 1 else 1
    assert rows_computed == [copies * n for n in (6, 6, 5, 4, 3, 2, 1)]
    assert together.nfe_rows == copies * sum(STEPS)
    assert together.steps == STEPS
    for b, prompt in enumerate(PROMPTS):
        alone = attach(sd3, FixedSchedule(LISTS[b]), solver=solver)(prompt, seeds=[b], **call)
        assert alone.steps == [STEPS[b]]
        assert (alone.images[0] - together.images[b]).abs().max().item() <= 2e-6


def test_six_schedules_of_flux_equal_single_runs(flux):
    # Six images and six image tokens: position ids must not be taken for rows.
    embeds, negative = text(6), {f"negative_{name}": value for name, value in text(6, seed=1).items()}
    call = {"true_cfg_scale": 3.0, "height": 12, "width": 8, "output_type": "latent"}
    together = attach(flux, FixedSchedule(LISTS))(**embeds, **negative, seeds=list(range(6)), **call)
    assert together.images.shape[1] == 6
    assert together.nfe_rows == 2 * sum(STEPS)
    for b in range(6):
        rows = {name: value[b : b + 1] for name, value in {**embeds, **negative}.items()}
        alone = attach(flux, FixedSchedule(LISTS[b]))(**rows, seeds=[b], **call)
        assert (alone.images[0] - together.images[b]).abs().max().item() <= 2e-6


def test_decisions_on_features_do_not_depend_on_the_batch(sd3):
    call = {"max_sequence_length": 4, "output_type": "latent"}
    together = attach(sd3, LookingPolicy())(PROMPTS, seeds=list(range(6)), **call)
    assert len(set(together.steps)) > 1
    # Rounding (1e-7) moves the decisions, which move the next features: looser than with fixed times.
    for b, prompt in enumerate(PROMPTS):
        alone = attach(sd3, LookingPolicy())(prompt, seeds=[b], **call)
        assert alone.steps == [together.steps[b]]
        assert alone.times[0] == pytest.approx(together.times[b], abs=5e-4)
        assert (alone.images[0] - together.images[b]).abs().max().item() <= 5e-3


def test_sampled_decisions_belong_to_their_seed(sd3):
    call = {"max_sequence_length": 4, "output_type": "latent", "sample": True}
    driven = attach(sd3, LookingPolicy())
    batch = driven(["a", "a", "b"], seeds=[7, 8, 7], **call)
    assert batch.times[0] == batch.times[2] != batch.times[1]
    group = driven("a", num_images_per_prompt=3, seeds=[1, 1, 1], decision_seeds=[7, 8, 9], **call)
    assert group.times[0] == batch.times[0]
    assert len({tuple(times) for times in group.times}) == 3


def test_equal_seeds_are_equal_noise(sd3):
    output = attach(sd3, FixedSchedule([1.0, 0.5, 0.0]))(
        "a", num_images_per_prompt=3, seeds=[1, 1, 2], max_sequence_length=4, output_type="latent"
    )
    torch.testing.assert_close(output.images[0], output.images[1], atol=2e-6, rtol=0)
    assert (output.images[0] - output.images[2]).abs().max() > 0.1
