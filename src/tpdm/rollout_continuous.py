"""Rollouts without a tail: finished images leave, new prompts enter, so that the denoiser's calls stay full."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tpdm.rollout import Generated
from tpdm.types import TpdmError

if TYPE_CHECKING:  # training on another sampler loads no diffusers
    from tpdm.pipelines.attach import AdaptiveOutput, AdaptivePipeline

AHEAD = 2  # images whose text is encoded, or that are decoded, while all places are taken


@dataclass(frozen=True)
class ContinuousSampler:
    """A ``Sampler`` on an attached pipeline, one run per image (``pipelines.continuous``).

    The images are those of ``PipelineSampler``: bit by bit where calls have as many rows (``places`` and ``batch``
    of 1), else to the rounding of calls with another number of rows. A static batch makes E[max N over the batch]
    calls for its images, this about E[N]; what that is worth depends on how the time of a call grows with its rows
    (docs/serving.md).

    Attributes:
        pipeline: made by ``attach``.
        places: images in flight at once; memory and speed only, never the result.
        arguments: of the pipeline call (guidance_scale, height ...).
    """

    pipeline: AdaptivePipeline
    places: int
    arguments: dict[str, Any]

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        decision_seeds: Sequence[int] | None = None,
        record: bool = False,
        negatives: Sequence[str] | None = None,
        gammas: Sequence[float] | None = None,
    ) -> Generated:
        """See ``Sampler``."""
        from tpdm.pipelines.continuous import ContinuousPipeline

        def arguments(i: int) -> dict[str, Any]:
            own: dict[str, Any] = {"prompt": prompts[i], "seeds": [seeds[i]], "record": record, "output_type": "pt"}
            if decision_seeds is not None:
                own |= {"decision_seeds": [decision_seeds[i]], "sample": True}
            if negatives is not None:
                own["negative_prompt"] = negatives[i]
            if gammas is not None:
                own["gamma"] = gammas[i]
            return {**self.arguments, **own}

        shared = ContinuousPipeline(self.pipeline.pipe, self.places)
        pool = ThreadPoolExecutor(self.places + AHEAD, thread_name_prefix="tpdm-rollout")
        try:
            futures = [pool.submit(shared.run(), self.pipeline, **arguments(i)) for i in range(len(prompts))]
            outputs: list[AdaptiveOutput] = [future.result() for future in futures]
        finally:
            # After an error, or an interruption, the others end at their next step.
            shared.close(TpdmError("got an end of the rollout before this image was done, expected none."))
            pool.shutdown(cancel_futures=True)
        return Generated(
            torch.cat([output.images.float().cpu() for output in outputs]),
            [steps for output in outputs for steps in output.steps],
            [times for output in outputs for times in output.times],
            [one for output in outputs for one in output.trajectories or []] if record else None,
        )
