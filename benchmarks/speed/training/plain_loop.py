"""Training of a TPM as this field usually writes it, to be compared with ours: the same numbers, computed another way.

A static batch waits for its slowest image; the features of every step go to the host at full size; each image and
step makes its own Beta object; each pass of an update goes through the steps again, features back and all. Prompts,
seeds, draws, TPM and objective are ours, so that schedules and gradients agree, which the benchmark checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Beta

from tpdm.core.types import Features
from tpdm.policies.beta import ACTION_MAX, ACTION_MIN, RAW_LIMIT
from tpdm.policies.tpm import TimePredictionModule
from tpdm.training.objective import clipped_objective


@dataclass
class Record:
    """One static batch: what was seen and decided at every step, by all its images, finished or not.

    Attributes:
        features: of each step, on the host, as the denoiser gave them.
        t, action, logp: of each step, one per image.
        alive: of each step, whether the image still had a decision to make that counts.
    """

    features: list[Features] = field(default_factory=list)
    t: list[Tensor] = field(default_factory=list)
    action: list[Tensor] = field(default_factory=list)
    logp: list[Tensor] = field(default_factory=list)
    alive: list[list[bool]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """What the features take."""
        seen = [x for f in self.features for x in (f.first_BDHW, f.last_BDHW, f.temb_BE)]
        return sum(x.numel() * x.element_size() for x in seen)


class Captured:
    """Hooks that keep what the denoiser saw first and last, and its time embedding."""

    def __init__(self, denoiser: Any) -> None:
        self.first = self.last = self.temb = torch.empty(0)
        self._handles = [
            denoiser.pos_embed.register_forward_hook(self._keep_first),
            denoiser.proj_out.register_forward_pre_hook(self._keep_last),
            denoiser.time_text_embed.register_forward_hook(self._keep_temb),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep_first(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.first = output

    def _keep_last(self, module: nn.Module, args: Any) -> None:
        self.last = args[0]

    def _keep_temb(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.temb = output

    def features(self, height: int, width: int) -> Features:
        """Tokens in their 2-D order."""

        def grid(tokens: Tensor) -> Tensor:
            return tokens.transpose(1, 2).unflatten(2, (height, width))

        return Features(grid(self.first), grid(self.last), self.temb)


@dataclass(frozen=True)
class PlainLoop:
    """Rollout and update on a Stable Diffusion 3 pipeline without guidance.

    Attributes:
        pipe: the pipeline.
        policy: the TPM, trained in place.
        captured: hooks on its denoiser.
        arguments: of the pipeline's call.
        batch: images of a static batch.
        max_steps, stop_below: as in a recipe.
    """

    pipe: Any
    policy: TimePredictionModule
    captured: Captured
    arguments: dict[str, Any]
    batch: int
    max_steps: int
    stop_below: float

    @torch.no_grad()
    def roll_out(
        self, prompts: Sequence[str], seeds: Sequence[int], decision_seeds: Sequence[int]
    ) -> tuple[Tensor, list[int], list[Record]]:
        """Images, their steps, and a record of each batch."""
        images, steps, records = [], [], []
        for first in range(0, len(prompts), self.batch):
            part = slice(first, first + self.batch)
            latents, taken, record = self._one_batch(prompts[part], seeds[part], decision_seeds[part])
            images.append(self._decode(latents))
            steps += taken
            records.append(record)
        return torch.cat(images), steps, records

    def _one_batch(
        self, prompts: Sequence[str], seeds: Sequence[int], decision_seeds: Sequence[int]
    ) -> tuple[Tensor, list[int], Record]:
        latents, text, pooled = self._begin(prompts, seeds)
        patch = self.pipe.transformer.config.patch_size
        height, width = latents.shape[2] // patch, latents.shape[3] // patch
        t_B, steps, record = torch.ones(len(prompts)), [0] * len(prompts), Record()
        for n in range(self.max_steps):
            velocity = self.pipe.transformer(
                hidden_states=latents,
                timestep=1000 * t_B.to(latents.device),
                encoder_hidden_states=text,
                pooled_projections=pooled,
                return_dict=False,
            )[0]
            features = self.captured.features(height, width)
            host = Features(features.first_BDHW.cpu(), features.last_BDHW.cpu(), features.temb_BE.cpu())
            record.features.append(host)
            a_B, b_B = self._outputs(features, t_B, n)
            action, logp, t_next, alive = [], [], [], []
            for i, seed in enumerate(decision_seeds):
                beta = _beta(a_B[i], b_B[i])
                draw = np.random.default_rng([seed, n]).beta(float(beta.concentration1), float(beta.concentration0))
                r = torch.tensor(draw, dtype=torch.float32).clamp(ACTION_MIN, ACTION_MAX)
                t = float(r * t_B[i])
                t = 0.0 if t < self.stop_below else t
                capped = t > 0 and n + 1 >= self.max_steps
                alive.append(bool(t_B[i] > 0) and not capped)
                steps[i] += bool(t_B[i] > 0)
                action.append(r)
                logp.append(beta.log_prob(r.cpu().to(a_B.device)).cpu())
                t_next.append(0.0 if capped or t_B[i] == 0 else t)
            record.t.append(t_B)
            record.action.append(torch.stack(action))
            record.logp.append(torch.stack(logp))
            record.alive.append(alive)
            next_B = torch.tensor(t_next)
            step_B = (next_B - t_B).to(latents.device, velocity.dtype)
            latents = latents + step_B[:, None, None, None] * velocity
            t_B = next_B
            if not bool((t_B > 0).any()):
                break
        return latents, steps, record

    def _begin(self, prompts: Sequence[str], seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        pipe, device = self.pipe, self.pipe.transformer.device
        text, _, pooled, _ = pipe.encode_prompt(
            list(prompts),
            None,
            None,
            do_classifier_free_guidance=False,
            device=device,
            max_sequence_length=self.arguments["max_sequence_length"],
        )
        side = pipe.default_sample_size * pipe.vae_scale_factor
        size = (self.arguments.get("height", side), self.arguments.get("width", side))
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        channels = pipe.transformer.config.in_channels
        latents = pipe.prepare_latents(len(prompts), channels, *size, text.dtype, device, generators)
        return latents, text, pooled

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        image = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(image, output_type="pt").float().cpu()

    def _outputs(self, features: Features, t_B: Tensor, n: int) -> tuple[Tensor, Tensor]:
        index_B = torch.full((len(t_B),), n)
        seen = self.policy.observe(features, t_B.clamp_min(1e-6), index_B, torch.arange(len(t_B)))
        return self.policy(self.policy.quantize_for_storage(seen))  # the same numbers as ours

    def update(
        self,
        optimizer: torch.optim.Optimizer,
        records: Sequence[Record],
        advantage_B: Tensor,
        passes: int,
        clip: float,
        grad_clip: float,
    ) -> None:
        """Passes over the records, one optimizer step each: the loss is a mean over trajectories."""
        device = next(self.policy.parameters()).device
        for _ in range(passes):
            optimizer.zero_grad(set_to_none=True)
            first = 0
            for record in records:
                images = len(record.t[0])
                ratio = [torch.zeros(()) for _ in range(images)]
                for n, features in enumerate(record.features):
                    back = Features(
                        *(x.to(device) for x in (features.first_BDHW, features.last_BDHW, features.temb_BE))
                    )
                    a_B, b_B = self._outputs(back, record.t[n], n)
                    for i in range(images):
                        if record.alive[n][i]:
                            logp = _beta(a_B[i], b_B[i]).log_prob(record.action[n][i].to(a_B.device)).cpu()
                            ratio[i] = ratio[i] + logp - record.logp[n][i]
                mine = advantage_B[first : first + images]
                loss, _ = clipped_objective(torch.stack(ratio), mine, clip)
                torch.autograd.backward(loss * images / len(advantage_B))
                first += images
            nn.utils.clip_grad_norm_(self.policy.parameters(), grad_clip)
            optimizer.step()


def _beta(a: Tensor, b: Tensor) -> Beta:
    a, b = a.clamp(-RAW_LIMIT, RAW_LIMIT), b.clamp(-RAW_LIMIT, RAW_LIMIT)
    return Beta(1 + torch.exp(a), 1 + torch.exp(b), validate_args=False)
