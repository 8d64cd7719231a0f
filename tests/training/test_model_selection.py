"""The selection of best/: the newest validation that is not significantly worse than the record."""

import pytest
import torch

from tpdm.training.validation import is_not_worse


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ([0.9, 0.6, 0.8, 0.5], True),  # higher
        ([0.8, 0.6, 0.7, 0.5], True),  # equal
        ([0.9, 0.6, 0.6, 0.4], True),  # lower by .025, with an error of .048
        ([0.7, 0.5, 0.61, 0.4], False),  # lower by .0975 everywhere
    ],
)
def test_only_significantly_worse_validations_are_rejected(now, expected):
    assert is_not_worse(now, [0.8, 0.6, 0.7, 0.5]) is expected


def test_a_single_image_is_compared_without_an_error():
    assert is_not_worse([0.5], [0.5])
    assert not is_not_worse([0.4], [0.5])


def test_the_error_counts_prompts_instead_of_images():
    # -.2 with an error of .147 over prompts. Over 16 numbers it would be .066.
    now, record = [-0.5, -0.5, -0.4, -0.4, 0.1, 0.1, 0.0, 0.0] * 2, [0.0] * 16
    assert is_not_worse(now, record, samples=2, points=2)
    assert not is_not_worse(now, record)
    assert not is_not_worse([-0.12 if i % 2 else -0.08 for i in range(16)], record, samples=2, points=2)


@pytest.mark.parametrize(("samples", "points"), [(4, 1), (1, 5), (2, 3)])
def test_an_equal_policy_is_rejected_at_the_nominal_rate(samples, points):
    generator = torch.Generator().manual_seed(0)
    refused, tries, prompts = 0, 600, 48
    for _ in range(tries):
        own = torch.randn(points, prompts, samples, generator=generator)
        difference = own + torch.randn(1, prompts, 1, generator=generator)  # correlation 1/2 within a prompt
        refused += not is_not_worse(difference.flatten().tolist(), [0.0] * difference.numel(), samples, points)
    assert refused / tries < 0.05  # nominally .025; image by image it would be above .1
