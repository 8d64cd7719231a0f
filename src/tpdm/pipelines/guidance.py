"""How a pipeline guides: which of its arguments are scales, which texts they need, and what would have no effect."""

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
SHAPERS = ("guidance_rescale", "cfg_normalization")  # they change the guided prediction, and do nothing without one
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guidance:
    """How the pipelines of one class guide with one denoiser.

    Attributes:
        pipeline: name of the class.
        denoiser: name of its denoiser's class.
        entry: of that denoiser.
        defaults: arguments of the pipeline's call, with their defaults.
        embeds: the denoiser is told ``guidance_scale`` as a number (FLUX.1-dev, FLUX.2-dev, LCM).
        guides: the pipeline can compute u + w (c - u).
    """

    pipeline: str
    denoiser: str
    entry: DenoiserSpec
    defaults: Mapping[str, Any]
    embeds: bool
    guides: bool

    @classmethod
    def of(cls, pipe: Any) -> Guidance:
        """Of a pipeline.

        Raises:
            BackboneError: its denoiser has no entry.
        """
        denoiser = find_denoiser(pipe)
        config: Any = denoiser.config
        return cls.made(type(pipe), type(denoiser).__name__, find_entry(denoiser), config, pipe.config)

    @classmethod
    def find(cls, pipe: Any) -> Guidance | None:
        """Of a pipeline; None where its denoiser has no entry, as of stock pipelines that no policy drives."""
        try:
            return cls.of(pipe)
        except BackboneError:
            return None

    @classmethod
    def made(
        cls, pipeline: Any, denoiser: str, entry: DenoiserSpec, config: Mapping[str, Any], index: Mapping[str, Any]
    ) -> Guidance:
        """Of a pipeline's class, its denoiser's class, entry and configuration, and its own configuration."""
        defaults, consistency = _defaults(pipeline), config.get("time_cond_proj_dim") is not None
        # Without any negative text (FLUX.2-dev) there is no unconditional call either.
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
    def asked(self) -> str:
        """The argument that users of ``sample``, ``serve`` and recipes mean by guidance scale."""
        return OWN if self.embeds else self.entry.asked

    def named(self, guidance_scale: float | None, true_cfg_scale: float | None) -> dict[str, Any]:
        """What such a user says, under the names of the pipeline's call.

        Raises:
            ConfigError: both scales are given, and mean the same here.
        """
        if None not in (guidance_scale, true_cfg_scale) and self.asked == TRUE:
            raise ConfigError(
                f"got guidance_scale={guidance_scale:g} and true_cfg_scale={true_cfg_scale:g}, expected one of them, "
                f"for they are the same to {self.pipeline}: leave one out."
            )
        said = {} if guidance_scale is None else {self.asked: guidance_scale}
        return said if true_cfg_scale is None else {**said, TRUE: true_cfg_scale}

    def against(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """The empty negative prompt where these scales ask for guidance that needs one: what other families take."""
        w = named.get(self.entry.guidance_scale)
        if w is None or w <= self.entry.guided_above or not (self.guides and self.entry.against_negative):
            return {}
        return {NEGATIVE: ""}

    def scale(self, arguments: Mapping[str, Any]) -> float | None:
        """w of a call; None where the pipeline cannot guide."""
        name = self.entry.guidance_scale
        value = arguments.get(name)
        value = self.defaults.get(name) if value is None else value
        return float(value) if self.guides and value is not None else None

    def is_on(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a call computes u + w (c - u).

        Args:
            arguments: of the call, with all defaults but the pipeline's.
        """
        w = self.scale(arguments)
        there = any(arguments.get(name) is not None for name in (NEGATIVE, f"{NEGATIVE}_embeds"))
        return w is not None and w > self.entry.guided_above and (there or not self.entry.against_negative)

    def is_doubled(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a denoiser call holds two rows for an image.

        It does not where guidance makes two calls, or is a number that the denoiser gets.
        """
        return self.entry.guidance != "two_calls" and self.is_on(arguments)

    def may_double(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a denoiser call may hold two rows for an image; True where the arguments do not tell."""
        known = self.entry.guidance != "two_calls" and self.guides
        return not known or self.is_doubled(arguments)

    def acts(self, name: str) -> bool:
        """Whether a scale of that name can change an image."""
        return (self.embeds and name == OWN) or (self.guides and name == self.entry.guidance_scale)

    def brought(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Those arguments of a TPM's training that this pipeline knows and uses."""
        kept = {name: value for name, value in arguments.items() if name in self.defaults}
        if OWN in kept and not self.acts(OWN):
            said = kept.pop(OWN)
            _say(
                f"the TPM was saved with guidance_scale={said:g}, which {self.pipeline} does not use and did not use "
                "in the TPM's training: it is left out"
            )
        return kept

    def pinned(self, arguments: Mapping[str, Any], negatives: bool) -> dict[str, Any]:
        """Arguments of a training's calls with the scales that acted, so that no later default moves them.

        Args:
            arguments: of every call.
            negatives: whether every image had a negative prompt besides, which may have been empty.
        """
        found, default = dict(arguments), self.defaults.get(OWN)
        if self.acts(OWN) and isinstance(default, int | float):
            found.setdefault(OWN, float(default))
        if self.guides and self.entry.against_negative:
            avoided = {NEGATIVE: ""} if negatives else {}
            on = self.is_on({**avoided, **found})
            w = self.scale(found) if on else self.entry.guided_above
            found = {self.entry.guidance_scale: w, **(avoided if on else {}), **found}
        return found

    def check(self, arguments: Mapping[str, Any], said: Mapping[str, Any]) -> str | None:
        """Refuses scales and negative prompts that would have no effect.

        Args:
            arguments: of the call, with all defaults but the pipeline's.
            said: those of them that come from the user.

        Returns:
            A warning: a negative prompt that has no effect at the scale that the user gives with it, for who compares
            scales keeps his prompts.

        Raises:
            BackboneError: a scale that the pipeline does not use, one that needs a negative prompt, or a negative
                prompt where the pipeline does not guide by itself.
        """
        on, name = self.is_on(arguments), self.entry.guidance_scale
        own, w = arguments.get(OWN), arguments.get(name)
        # Where nothing guides, 0 and 1 ask for what is done.
        if own is not None and not self.acts(OWN) and (on or own > self.entry.guided_above):
            raise BackboneError(
                f"got guidance_scale={own:g}, expected none for {self.pipeline}, which does not use it with this "
                f"{self.denoiser}: {self._instead()}."
            )
        needs = self.guides and self.entry.against_negative
        if needs and w is not None and w > self.entry.guided_above and not on:
            raise BackboneError(
                f"got {name}={w:g} without a negative prompt, expected both, for {self.pipeline} guides against one "
                "alone: give negative_prompt (an empty one will do), or leave the scale out."
            )
        idle = None if on else next((n for n, value in said.items() if self._needs_guidance(n, value)), None)
        if idle is None:
            return None
        if not self.guides:
            raise BackboneError(
                f"got {idle}, expected none for {self.pipeline}, which does not guide with this {self.denoiser}: "
                "leave it out."
            )
        sentence = (
            f"got {idle} at {name}={self.scale(arguments):g}, expected {name} above {self.entry.guided_above:g}, for "
            f"{self.pipeline} does not guide at this scale and {idle} has no effect: raise {name}, or leave {idle} out."
        )
        if said.get(name) is None:
            raise BackboneError(sentence)
        return sentence

    def _instead(self) -> str:
        if self.guides and self.entry.guidance_scale != OWN:
            return f"give {self.entry.guidance_scale} with a negative prompt, or leave the scale out"
        return "leave it out"

    def _needs_guidance(self, name: str, value: Any) -> bool:
        """Whether an argument asks for what guidance alone can do.

        Embeddings do not where ``encode_prompt`` makes those of both texts in one go, whoever uses them.
        """
        if name.endswith(("embeds", "mask")) and not self.entry.against_negative:
            return False
        return (name.startswith("negative_") or name in SHAPERS) and _is_something(value)


def settle(guidance: Guidance | None, arguments: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call as its pipeline reads them, once nothing in them is without effect.

    A warning goes to the log, once for every sentence.

    Args:
        guidance: of the pipeline; None where its denoiser has no entry.
        arguments: of its call, with all defaults but its own.
        said: those of them that come from the user.

    Raises:
        BackboneError: see ``Guidance.check``.
    """
    found = dict(arguments)
    prompt = found.get("prompt")
    if said.get(NEGATIVE) is None and (prompt is None or found.get(f"{NEGATIVE}_embeds") is not None):
        # A default text does not go with embeddings; None, which takes back the pipeline's own, does.
        found = {k: v for k, v in found.items() if k != NEGATIVE or v is None}
    if not isinstance(prompt, str | None):
        # One for all prompts: some pipelines say so, others take it for that of the first.
        one = {k: v for k, v in found.items() if k.startswith(NEGATIVE) and isinstance(v, str)}
        found |= {name: [text] * len(prompt) for name, text in one.items()}
    if guidance is None:
        return found
    if warning := guidance.check(found, said):
        _say(warning)
    # None leaves the pipeline's own.
    own = {OWN, guidance.entry.guidance_scale}
    return {k: v for k, v in found.items() if not (k in own and v is None)}


def named_scales(
    guidance: Guidance | None, guidance_scale: float | None, true_cfg_scale: float | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What users of ``sample``, ``serve`` and recipes say of guidance, as the pipeline's call takes it.

    Args:
        guidance: of the pipeline; None where its denoiser has no entry.
        guidance_scale, true_cfg_scale: what they say; None leaves the pipeline's own.

    Returns:
        The scales under its names, and the default that they need: the empty negative prompt, or nothing.

    Raises:
        ConfigError: both scales are given, and mean the same to it.
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
def _say(sentence: str) -> None:
    logger.warning("%s", sentence)


def _is_something(value: Any) -> bool:
    """Whether a value says more than a default: a text that is not blank, numbers that are not 0, a tensor."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, list | tuple):
        return any(map(_is_something, value))
    return value is not None and (not isinstance(value, int | float) or value != 0)
