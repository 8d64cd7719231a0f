"""Which validation is kept as best/: the newest that the record is not significantly above."""

from __future__ import annotations

from collections.abc import Sequence

import torch

SIGNIFICANT = 1.96  # standard errors: 95 %, two-sided


def keeps_up(objectives: Sequence[float], record: Sequence[float]) -> bool:
    """Whether a validation is at least as good as the record, as far as the same images can tell.

    The highest of many noisy validations is a lucky one. With equal images the difference has an error of its own;
    where it is within that error, the newer policy has learnt longer, and is taken.

    Args:
        objectives: of the validation images now.
        record: of the same images, when their mean was highest.

    Returns:
        True unless the mean difference is more than 1.96 of its standard errors below 0.
    """
    difference_B = torch.tensor(objectives, dtype=torch.float64) - torch.tensor(record, dtype=torch.float64)
    mean = float(difference_B.mean())
    if mean >= 0 or len(difference_B) < 2:
        return mean >= 0
    return mean > -SIGNIFICANT * float(difference_B.std()) / len(difference_B) ** 0.5
