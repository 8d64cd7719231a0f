"""What a client asks for, checked field by field, and what it gets."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, from_json

from tpdm.serving.engine.interface import ImageDone, ImageRequest
from tpdm.serving.http.errors import ApiError, unknown_model
from tpdm.serving.http.image_encoding import LONGEST, Encoding, Format
from tpdm.serving.http.settings import Limits, ModelCard, Settings

SEEDS = 2**53  # larger whole numbers are rounded by what reads JSON in browsers
QualityWord = Literal["auto", "standard", "low", "medium", "high", "xhigh", "max", "hd"]
# OpenAI's words on the dial. "auto" and "standard" leave the TPM what it was trained for, and a TPM without a dial
# takes every word so: clients send them unasked. A number is a demand, and refused where it cannot be met.
DIAL = {"low": 0.0, "medium": 0.5} | dict.fromkeys(("high", "xhigh", "max", "hd"), 1.0)

Text = Annotated[str, Field(min_length=1)]
Steps = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(ge=0, le=100)]


class GenerationRequest(BaseModel):
    """The body of ``POST /v1/images/generations``: OpenAI's fields, and those of this project below the line."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: Text
    model: str | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    size: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    quality: QualityWord | Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    output_format: Format | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque"] | None = None
    # Clients send these unasked, so they are taken, and the answer warns where they change nothing.
    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["auto", "low"] | None = None
    # Who asks; the answer repeats it.
    safety_identifier: str | None = None
    user: str | None = None
    # Not OpenAI's.
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None
    negative_prompt: str | None = None
    guidance_scale: Scale | None = None
    true_cfg_scale: Scale | None = None
    gamma: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_steps: Steps | None = None
    fixed_steps: Steps | None = None


@dataclass(frozen=True)
class ParsedRequest:
    """A checked request.

    Attributes:
        images: what the engine gets, one each.
        stream: whether events are wanted.
        by_url: whether pictures can be fetched by an address.
        inline: whether pictures come with the answer.
        encoding: of the pictures.
        warnings: on fields that were taken and change nothing, in sentences.
        user: who asks, as the request says; None where it does not.
    """

    images: tuple[ImageRequest, ...]
    stream: bool
    by_url: bool
    inline: bool
    encoding: Encoding
    warnings: tuple[str, ...]
    user: str | None


def parse(body: bytes, settings: Settings, card: ModelCard) -> ParsedRequest:
    """Checks the bytes of a request. A field that is null counts as left out.

    Raises:
        ApiError: 400 for what is no JSON object, 404 for another model, 422 for a field that cannot be.
    """
    try:
        raw = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise ApiError(400, 'the body is no JSON; send one object such as {"prompt": "..."}', "bad_json") from None
    if not isinstance(raw, dict):
        raise ApiError(400, f"got JSON of type {type(raw).__name__}, expected one object", "bad_json")
    try:
        asked = GenerationRequest.model_validate({name: value for name, value in raw.items() if value is not None})
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_input=False, include_context=False)) from None
    _check(asked, settings, card)
    # Streams are newer than urls: their clients read b64_json, and a url only where they ask for it.
    carried = asked.response_format or ("b64_json" if asked.stream else settings.response_format)
    return ParsedRequest(
        images=_images(asked, settings.limits, card),
        stream=bool(asked.stream),
        by_url=carried != "b64_json",
        inline=carried != "url",
        encoding=_encoding(asked),
        warnings=tuple(_without_effect(asked, card)),
        user=asked.safety_identifier or asked.user or None,
    )


def _refusal(found: list[ErrorDetails]) -> ApiError:
    """The first thing that is wrong; unknown fields all together."""
    first = found[0]
    place = str(first["loc"][0]) if first["loc"] else None
    if first["type"] != "extra_forbidden":
        # Of what may be a word or a number, one for each.
        words, *others = dict.fromkeys(one["msg"] for one in found if one["loc"][:1] == first["loc"][:1])
        words += "".join(f", or {one[0].lower()}{one[1:]}" for one in others)
        return ApiError(422, f"{place}: {words}", "invalid_value", place)
    names = [str(one["loc"][0])[:40] for one in found if one["type"] == "extra_forbidden"]
    known = ", ".join(GenerationRequest.model_fields)
    words = f"got the unknown fields {', '.join(map(repr, names[:5]))}, expected only {known}; leave the others out"
    return ApiError(422, words, "unknown_parameter", names[0])


def _check(asked: GenerationRequest, settings: Settings, card: ModelCard) -> None:
    def refuse(param: str, message: str) -> None:
        raise ApiError(422, f"{param}: {message}", "invalid_value", param)

    limits = settings.limits
    if asked.model and not settings.serves(asked.model, card):
        raise unknown_model(asked.model, card.id)
    if not asked.prompt.strip():
        refuse("prompt", "got an empty text, expected some words")
    for name, text in (("prompt", asked.prompt), ("negative_prompt", asked.negative_prompt or "")):
        if len(text) > limits.prompt:
            refuse(name, f"got {len(text)} characters, expected at most {limits.prompt}")
    if (asked.n or 1) > limits.images:
        refuse("n", f"got {asked.n} images, expected at most {limits.images}; send several requests")
    encoding = _encoding(asked)
    side = min(limits.side, card.largest_side or limits.side, LONGEST.get(encoding.format, limits.side))
    if max(_size(asked.size) or (0, 0)) > side:
        refuse("size", f"got {asked.size}, expected sides of at most {side} pixels")
    for name, steps in (("max_steps", asked.max_steps), ("fixed_steps", asked.fixed_steps)):
        if steps is not None and steps > limits.steps:
            refuse(name, f"got {steps}, expected at most {limits.steps}")
    number = None if isinstance(asked.quality, str) else asked.quality  # a demand, while words are sent unasked
    pairs = [("gamma", "quality"), ("max_steps", "fixed_steps"), ("gamma", "fixed_steps")]
    for one, other in pairs if number is None else [*pairs, ("quality", "fixed_steps")]:
        if getattr(asked, one) is not None and getattr(asked, other) is not None:
            refuse(one, f"got {one} and {other}, expected one of them")
    for name, value in {"gamma": asked.gamma, "quality": number}.items():
        if value is not None and not card.gamma_conditioned:
            refuse(name, "got a number, but this model has no dial; leave it out")
    if asked.partial_images and not asked.stream:
        refuse("partial_images", f"got {asked.partial_images} without a stream, expected stream true; or leave it out")
    if encoding.format == "png" and asked.output_compression not in (None, 100):
        refuse(
            "output_compression",
            f"got {asked.output_compression} for a png, which loses nothing, expected output_format jpeg or webp; "
            "or leave it out",
        )


def _encoding(asked: GenerationRequest) -> Encoding:
    compression = asked.output_compression
    return Encoding(asked.output_format or "png", 100 if compression is None else compression)


def _without_effect(asked: GenerationRequest, card: ModelCard) -> Iterator[str]:
    if asked.quality in DIAL and not _dialled(asked, card):
        of = "fixed_steps has" if card.gamma_conditioned else "this model has"
        yield f"quality: {of} no dial, and {asked.quality} changes nothing"
    if asked.style is not None:
        yield f"style: this model has no styles, and {asked.style} changes nothing; describe it in the prompt"
    if asked.moderation == "low":
        yield "moderation: this server has no levels of it, and low changes nothing"


def _dialled(asked: GenerationRequest, card: ModelCard) -> bool:
    return card.gamma_conditioned and asked.fixed_steps is None


def _images(asked: GenerationRequest, limits: Limits, card: ModelCard) -> tuple[ImageRequest, ...]:
    size = _size(asked.size)
    quality = DIAL.get(asked.quality) if isinstance(asked.quality, str) else asked.quality
    first = ImageRequest(
        prompt=asked.prompt,
        # Drawn here, so that the answer can say it and the picture can be made again.
        seed=secrets.randbelow(2**31) if asked.seed is None else asked.seed,
        negative_prompt=asked.negative_prompt,
        width=size[0] if size else None,
        height=size[1] if size else None,
        guidance_scale=asked.guidance_scale,
        true_cfg_scale=asked.true_cfg_scale,
        gamma=asked.gamma,
        quality=quality if _dialled(asked, card) else None,
        max_steps=asked.max_steps,
        fixed_steps=asked.fixed_steps,
        previews=("every" if asked.partial_images is None else asked.partial_images) if asked.stream else 0,
        timeout=limits.seconds,
    )
    return tuple(replace(first, seed=first.seed + i) for i in range(asked.n or 1))


def _size(size: str | None) -> tuple[int, int] | None:
    if size in (None, "auto"):
        return None
    width, _, height = str(size).partition("x")
    return int(width), int(height)


def facts(asked: ParsedRequest, index: int, done: ImageDone) -> dict[str, object]:
    """What the answer says of a picture besides the picture."""
    said: dict[str, object] = {
        "seed": asked.images[index].seed,
        "steps": done.steps,
        "times": [round(time, 6) for time in done.times],
        "seconds": round(done.seconds, 4),
        "queued_seconds": round(done.queued_seconds, 4),
    }
    if done.nsfw_content_detected is not None:
        said["nsfw_content_detected"] = done.nsfw_content_detected
    warnings = [*asked.warnings, *done.warnings]
    return {**said, "warnings": warnings} if warnings else said
