"""Which validation is kept as best/: the newest that the record is not significantly above."""

from __future__ import annotations

from collections.abc import Sequence

import torch

SIGNIFICANT = 1.96  # standard errors: 95 %, two-sided


def keeps_up(objectives: Sequence[float], record: Sequence[float], samples: int = 1, points: int = 1) -> bool:
    """Whether a validation is at least as good as the record, as far as the same images can tell.

    The highest of many noisy validations is a lucky one. With equal images the difference has an error of its own;
    where it is within that error, the newer policy has learnt longer, and is taken. The error is over prompts: images
    of one prompt, and one image at several gammas, are better and worse together.

    Args:
        objectives: of the validation images now.
        record: of the same images, when their mean was highest.
        samples: images of one prompt, which lie side by side.
        points: gammas of a dial, at each of which all images are made, one gamma after the other.

    Returns:
        True unless the mean difference is more than 1.96 of its standard errors below 0.
    """
    now_B, best_B = (torch.tensor(x, dtype=torch.float64, device="cpu") for x in (objectives, record))
    difference_B = now_B - best_B
    mean, difference_P = float(difference_B.mean()), difference_B.view(points, -1, samples).mean((0, 2))
    if mean >= 0 or len(difference_P) < 2:
        return mean >= 0
    return mean > -SIGNIFICANT * float(difference_P.std()) / len(difference_P) ** 0.5
