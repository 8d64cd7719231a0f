"""How a pipeline guides: which of its arguments are scales, which prompts they need, and which have no effect."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from tpdm.core.errors import BackboneError, ConfigError
from tpdm.pipelines.registry import DenoiserSpec, find_denoiser, find_entry

OWN, TRUE = "guidance_scale", "true_cfg_scale"
NEGATIVE = "negative_prompt"
SHAPERS = ("guidance_rescale", "cfg_normalization")  # they change the guided prediction
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guidance:
    """Guidance of a pipeline class with one denoiser.

    Attributes:
        pipeline: Name of the pipeline's class.
        denoiser: Name of the denoiser's class.
        entry: Row of that denoiser in ``registry.DENOISERS``.
        defaults: Arguments of the pipeline's call, with their defaults.
        embeds: Whether the denoiser receives ``guidance_scale`` as a number (FLUX.1-dev, FLUX.2-dev, LCM).
        guides: Whether the pipeline can compute u + w (c - u).
    """

    pipeline: str
    denoiser: str
    entry: DenoiserSpec
    defaults: Mapping[str, Any]
    embeds: bool
    guides: bool

    @classmethod
    def of(cls, pipe: Any) -> Guidance:
        """Returns the guidance of a pipeline.

        Raises:
            BackboneError: Its denoiser has no entry.
        """
        denoiser = find_denoiser(pipe)
        config: Any = denoiser.config
        return cls.made(type(pipe), type(denoiser).__name__, find_entry(denoiser), config, pipe.config)

    @classmethod
    def find(cls, pipe: Any) -> Guidance | None:
        """Returns the guidance of a pipeline. It is None if its denoiser has no entry, as in some stock pipelines."""
        try:
            return cls.of(pipe)
        except BackboneError:
            return None

    @classmethod
    def made(
        cls, pipeline: Any, denoiser: str, entry: DenoiserSpec, config: Mapping[str, Any], index: Mapping[str, Any]
    ) -> Guidance:
        """Returns the guidance of a pipeline class.

        Args:
            pipeline: Class of the pipeline.
            denoiser: Name of the denoiser's class.
            entry: Row of that class.
            config: Configuration of the denoiser.
            index: Configuration of the pipeline.
        """
        defaults, consistency = _defaults(pipeline), config.get("time_cond_proj_dim") is not None
        # A pipeline without any negative prompt (FLUX.2-dev) makes no unconditional call.
        unconditional = entry.guidance != "two_calls" or any(name.startswith(NEGATIVE) for name in defaults)
        return cls(
            pipeline=pipeline.__name__,
            denoiser=denoiser,
            entry=entry,
            defaults=defaults,
            embeds=OWN in defaults and (consistency or bool(config.get("guidance_embeds"))),
            guides=entry.guidance_scale in defaults
            and unconditional
            and not (consistency or index.get("is_distilled")),
        )

    @property
    def user_scale(self) -> str:
        """The argument that the guidance scale of ``tpdm sample``, of a server and of recipes sets."""
        return OWN if self.embeds else self.entry.user_scale

    def named(self, guidance_scale: float | None, true_cfg_scale: float | None) -> dict[str, Any]:
        """Returns scales that are not None under the names of the pipeline's arguments.

        Raises:
            ConfigError: Both scales are given, and set the same argument.
        """
        if None not in (guidance_scale, true_cfg_scale) and self.user_scale == TRUE:
            raise ConfigError(
                f"guidance_scale is {guidance_scale:g} and true_cfg_scale is {true_cfg_scale:g}. For {self.pipeline} "
                "they are the same scale. Leave one out."
            )
        scales = {} if guidance_scale is None else {self.user_scale: guidance_scale}
        return scales if true_cfg_scale is None else {**scales, TRUE: true_cfg_scale}

    def against(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Returns an empty negative prompt if these scales ask for guidance that needs one."""
        w = named.get(self.entry.guidance_scale)
        if w is None or w <= self.entry.guided_above or not (self.guides and self.entry.against_negative):
            return {}
        return {NEGATIVE: ""}

    def scale(self, arguments: Mapping[str, Any]) -> float | None:
        """Returns w of a call. It is None if the pipeline cannot guide."""
        name = self.entry.guidance_scale
        value = arguments.get(name)
        value = self.defaults.get(name) if value is None else value
        return float(value) if self.guides and value is not None else None

    def is_on(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a call computes u + w (c - u).

        Args:
            arguments: Arguments of the call, with all defaults except the pipeline's own.
        """
        w = self.scale(arguments)
        negative = any(arguments.get(name) is not None for name in (NEGATIVE, f"{NEGATIVE}_embeds"))
        return w is not None and w > self.entry.guided_above and (negative or not self.entry.against_negative)

    def is_doubled(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a denoiser call contains two rows for an image: one-call guidance that is on."""
        return self.entry.guidance != "two_calls" and self.is_on(arguments)

    def may_double(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a denoiser call may contain two rows for an image. It is True if the arguments do not decide it."""
        known = self.entry.guidance != "two_calls" and self.guides
        return not known or self.is_doubled(arguments)

    def acts(self, name: str) -> bool:
        """Whether a scale of that name can change an image."""
        return (self.embeds and name == OWN) or (self.guides and name == self.entry.guidance_scale)

    def usable(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns those arguments of a TPM's training that this pipeline knows and uses."""
        known = {name: value for name, value in arguments.items() if name in self.defaults}
        if OWN in known and not self.acts(OWN):
            scale = known.pop(OWN)
            _warn_once(
                f"guidance_scale of the TPM's training is {scale:g}. {self.pipeline} does not use it and did not use "
                "it in training. It is left out."
            )
        return known

    def pinned(self, arguments: Mapping[str, Any], negatives: bool) -> dict[str, Any]:
        """Returns the arguments of a training's calls with the scales that acted, so that later defaults cannot differ.

        Args:
            arguments: Arguments of every call.
            negatives: Whether every image also had a negative prompt, possibly an empty one.
        """
        pinned, default = dict(arguments), self.defaults.get(OWN)
        if self.acts(OWN) and isinstance(default, int | float):
            pinned.setdefault(OWN, float(default))
        if self.guides and self.entry.against_negative:
            negative = {NEGATIVE: ""} if negatives else {}
            on = self.is_on({**negative, **pinned})
            w = self.scale(pinned) if on else self.entry.guided_above
            pinned = {self.entry.guidance_scale: w, **(negative if on else {}), **pinned}
        return pinned

    def check(self, arguments: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
        """Refuses scales and negative prompts that have no effect.

        Args:
            arguments: Arguments of the call, with all defaults except the pipeline's own.
            given: Those of them that come from the user.

        Returns:
            A warning if the user gives a negative prompt together with a scale at which it has no effect. Users who
            compare scales keep their prompts.

        Raises:
            BackboneError: The pipeline does not use a scale, a scale needs a negative prompt, or a negative prompt is
                given without guidance.
        """
        on, name = self.is_on(arguments), self.entry.guidance_scale
        own, w = arguments.get(OWN), arguments.get(name)
        # Without guidance, 0 and 1 ask for what is done.
        if own is not None and not self.acts(OWN) and (on or own > self.entry.guided_above):
            raise BackboneError(
                f"guidance_scale is {own:g}. {self.pipeline} does not use it with this {self.denoiser}. "
                f"{self._alternative()}"
            )
        needs = self.guides and self.entry.against_negative
        if needs and w is not None and w > self.entry.guided_above and not on:
            raise BackboneError(
                f"{name} is {w:g} without a negative prompt. {self.pipeline} guides only against one. Pass "
                "negative_prompt (an empty one is allowed), or leave the scale out."
            )
        idle = None if on else next((n for n, value in given.items() if self._needs_guidance(n, value)), None)
        if idle is None:
            return None
        if not self.guides:
            raise BackboneError(
                f"{idle} has no effect. {self.pipeline} does not guide with this {self.denoiser}. Leave {idle} out."
            )
        sentence = (
            f"{idle} has no effect at {name}={self.scale(arguments):g}. {self.pipeline} guides only if {name} is above "
            f"{self.entry.guided_above:g}. Raise {name}, or leave {idle} out."
        )
        if given.get(name) is None:
            raise BackboneError(sentence)
        return sentence

    def _alternative(self) -> str:
        if self.guides and self.entry.guidance_scale != OWN:
            return f"Pass {self.entry.guidance_scale} with a negative prompt, or leave the scale out."
        return "Leave it out."

    def _needs_guidance(self, name: str, value: Any) -> bool:
        """Whether an argument has an effect only with guidance.

        Embeddings may be given without guidance if ``encode_prompt`` returns those of both prompts together.
        """
        if name.endswith(("embeds", "mask")) and not self.entry.against_negative:
            return False
        return (name.startswith("negative_") or name in SHAPERS) and _is_set(value)


def settle(guidance: Guidance | None, arguments: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call in the form that its pipeline expects, after ``Guidance.check``.

    Each distinct warning is logged once.

    Args:
        guidance: Guidance of the pipeline. None if its denoiser has no entry.
        arguments: Arguments of its call, with all defaults except its own.
        given: Those of them that come from the user.

    Raises:
        BackboneError: See ``Guidance.check``.
    """
    settled = dict(arguments)
    prompt = settled.get("prompt")
    if given.get(NEGATIVE) is None and (prompt is None or settled.get(f"{NEGATIVE}_embeds") is not None):
        # A default prompt cannot go with embeddings. None, which cancels the pipeline's default, can.
        settled = {k: v for k, v in settled.items() if k != NEGATIVE or v is None}
    if not isinstance(prompt, str | None):
        # One negative prompt for all prompts. Some pipelines require a list, others use it for the first prompt only.
        shared = {k: v for k, v in settled.items() if k.startswith(NEGATIVE) and isinstance(v, str)}
        settled |= {name: [text] * len(prompt) for name, text in shared.items()}
    if guidance is None:
        return settled
    if warning := guidance.check(settled, given):
        _warn_once(warning)
    # A scale of None uses the pipeline's default.
    scales = {OWN, guidance.entry.guidance_scale}
    return {k: v for k, v in settled.items() if not (k in scales and v is None)}


def named_scales(
    guidance: Guidance | None, guidance_scale: float | None, true_cfg_scale: float | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the scales of ``tpdm sample``, of a server or of a recipe as arguments of the pipeline's call.

    Args:
        guidance: Guidance of the pipeline. None if its denoiser has no entry.
        guidance_scale, true_cfg_scale: The scales. None uses the pipeline's default.

    Returns:
        The scales by argument, and the default that they need: an empty negative prompt, or nothing.

    Raises:
        ConfigError: Both scales are given, and set the same argument.
    """
    if guidance is None:
        scales = {OWN: guidance_scale, TRUE: true_cfg_scale}
        return {name: value for name, value in scales.items() if value is not None}, {}
    named = guidance.named(guidance_scale, true_cfg_scale)
    return named, guidance.against(named)


@cache
def _defaults(pipeline: Any) -> Mapping[str, Any]:
    """Arguments of the call of a pipeline class, with their defaults."""
    return {name: p.default for name, p in inspect.signature(pipeline.__call__).parameters.items()}


@lru_cache(maxsize=256)
def _warn_once(sentence: str) -> None:
    logger.warning("%s", sentence)


def _is_set(value: Any) -> bool:
    """Whether a value differs from a default: a prompt that is not blank, numbers that are not 0, a tensor."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, list | tuple):
        return any(map(_is_set, value))
    return value is not None and (not isinstance(value, int | float) or value != 0)
