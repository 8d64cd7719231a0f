"""The body of a generation request: its fields, its limits, and the requests to the engine that follow from it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, from_json

from tpdm.serving.engine.interface import ImageDone, ImageRequest, RequestRefused
from tpdm.serving.http.errors import ApiError, unknown_model
from tpdm.serving.http.image_encoding import LONGEST, Encoding, Format
from tpdm.serving.http.settings import Limits, ModelCard, Settings

SEEDS = 2**53  # JavaScript rounds larger integers
QualityWord = Literal["auto", "standard", "low", "medium", "high", "xhigh", "max", "hd"]
# OpenAI's words as quality settings. "auto" and "standard" keep the default of the TPM. Clients send words unasked, so
# a model without a quality setting ignores them with a warning. It refuses numbers.
QUALITY = {"low": 0.0, "medium": 0.5} | dict.fromkeys(("high", "xhigh", "max", "hd"), 1.0)

RENAMED = {"fixed_steps": "num_inference_steps"}  # old names of fields, which work for one more version

Text = Annotated[str, Field(min_length=1)]
Steps = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(ge=0, le=100)]


class GenerationRequest(BaseModel):
    """Body of ``POST /v1/images/generations``: first the fields of OpenAI's API, then those of this project."""

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
    # Clients send these unasked. They are accepted, and the answer warns if they have no effect.
    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["auto", "low"] | None = None
    # Name of the end user. The answer repeats it.
    safety_identifier: str | None = None
    user: str | None = None
    # Fields of this project.
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None
    negative_prompt: str | None = None
    guidance_scale: Scale | None = None
    true_cfg_scale: Scale | None = None
    gamma: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_steps: Steps | None = None
    num_inference_steps: Steps | None = None


@dataclass(frozen=True)
class ParsedRequest:
    """A checked generation request.

    Attributes:
        images: Requests to the engine, one per image.
        stream: Whether the answer is a stream of events.
        by_url: Whether the answer contains urls of the images.
        inline: Whether the answer contains the images.
        encoding: File format of the images.
        warnings: Sentences about fields that were accepted and have no effect.
        user: Name of the end user. None if the request has none.
    """

    images: tuple[ImageRequest, ...]
    stream: bool
    by_url: bool
    inline: bool
    encoding: Encoding
    warnings: tuple[str, ...]
    user: str | None


def parse(body: bytes, settings: Settings, card: ModelCard) -> ParsedRequest:
    """Parses the bytes of a request and checks types and limits. A field that is null counts as left out.

    Raises:
        ApiError: 400 if the body is no JSON object, 404 for an unknown model, 422 for a field with a wrong value.
    """
    try:
        raw = from_json(body, allow_inf_nan=False)
    except ValueError:
        message = 'The body is not valid JSON. Send one object such as {"prompt": "..."}.'
        raise ApiError(400, message, "bad_json") from None
    if not isinstance(raw, dict):
        raise ApiError(400, f"The body is JSON of type {type(raw).__name__}. Send one object.", "bad_json")
    fields, warnings = _rename({name: value for name, value in raw.items() if value is not None})
    try:
        parsed = GenerationRequest.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False, include_input=False, include_context=False)) from None
    _check_limits(parsed, settings, card)
    # Clients of streams expect b64_json, unless they ask for a url.
    response_format = parsed.response_format or ("b64_json" if parsed.stream else settings.response_format)
    try:
        images = _image_requests(parsed, settings.limits, card)
    except RequestRefused as error:
        raise ApiError(422, str(error), "invalid_value", error.field) from error
    return ParsedRequest(
        images=images,
        stream=bool(parsed.stream),
        by_url=response_format != "b64_json",
        inline=response_format != "url",
        encoding=_encoding(parsed),
        warnings=(*warnings, *_without_effect(parsed, card)),
        user=parsed.safety_identifier or parsed.user or None,
    )


def _rename(fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Replaces old names of fields. Returns the fields and a warning for each old name."""
    renamed, warnings = dict(fields), []
    for old, new in RENAMED.items():
        if old not in fields:
            continue
        if new in fields:
            raise ApiError(422, f"{old} is the old name of {new}. Leave {old} out.", "invalid_value", old)
        renamed[new] = renamed.pop(old)
        warnings.append(f"{old}: this field is now named {new}; the next version will refuse the old name")
    return renamed, warnings


def _invalid(errors: list[ErrorDetails]) -> ApiError:
    """The first error. If it concerns an unknown field, all unknown fields."""
    first = errors[0]
    field = str(first["loc"][0]) if first["loc"] else None
    if first["type"] != "extra_forbidden":
        # A field that can be a word or a number has one error for each type.
        message, *others = dict.fromkeys(error["msg"] for error in errors if error["loc"][:1] == first["loc"][:1])
        message += "".join(f", or {other[0].lower()}{other[1:]}" for other in others)
        return ApiError(422, f"{field}: {message}", "invalid_value", field)
    names = [str(error["loc"][0])[:40] for error in errors if error["type"] == "extra_forbidden"]
    known = ", ".join(GenerationRequest.model_fields)
    message = f"Unknown fields: {', '.join(map(repr, names[:5]))}. Leave them out. The known fields are {known}."
    return ApiError(422, message, "unknown_parameter", names[0])


def _check_limits(parsed: GenerationRequest, settings: Settings, card: ModelCard) -> None:
    def refuse(field: str, message: str) -> None:
        raise ApiError(422, f"{field} {message}", "invalid_value", field)

    limits, encoding = settings.limits, _encoding(parsed)
    if parsed.model and not settings.serves(parsed.model, card):
        raise unknown_model(parsed.model, card.id)
    for field, text in (("prompt", parsed.prompt), ("negative_prompt", parsed.negative_prompt or "")):
        if len(text) > limits.prompt:
            refuse(field, f"has {len(text)} characters. It can have at most {limits.prompt}. Shorten it.")
    if (parsed.n or 1) > limits.images:
        refuse("n", f"is {parsed.n}. It must be at most {limits.images}. Send several requests.")
    side = min(limits.side, card.largest_side or limits.side, LONGEST.get(encoding.format, limits.side))
    if max(_size(parsed.size) or (0, 0)) > side:
        refuse("size", f"is {parsed.size}. Both sides must be at most {side} pixels.")
    for field, steps in (("max_steps", parsed.max_steps), ("num_inference_steps", parsed.num_inference_steps)):
        if steps is not None and steps > limits.steps:
            refuse(field, f"is {steps}. It must be at most {limits.steps}.")
    for field, value in (("gamma", parsed.gamma), ("quality", parsed.quality)):
        if value is not None and not isinstance(value, str) and not card.gamma_conditioned:
            refuse(field, "is a number, but this model has no quality setting. Leave it out.")
    if parsed.gamma is not None and isinstance(parsed.quality, str):
        refuse("gamma", "and quality exclude each other. Leave one of them out.")
    if parsed.partial_images and not parsed.stream:
        refuse("partial_images", f"is {parsed.partial_images}, but stream is not true. Set stream or leave it out.")
    if encoding.format == "png" and parsed.output_compression not in (None, 100):
        refuse(
            "output_compression",
            f"is {parsed.output_compression}, but png is lossless. Use output_format jpeg or webp, or leave it out.",
        )


def _encoding(parsed: GenerationRequest) -> Encoding:
    compression = parsed.output_compression
    return Encoding(parsed.output_format or "png", 100 if compression is None else compression)


def _without_effect(parsed: GenerationRequest, card: ModelCard) -> Iterator[str]:
    if parsed.quality in QUALITY and not _has_quality(parsed, card):
        subject = "num_inference_steps has" if card.gamma_conditioned else "this model has"
        yield f"quality: {subject} no quality setting, and {parsed.quality} has no effect"
    if parsed.style is not None:
        yield f"style: this model has no styles, and {parsed.style} has no effect; describe the style in the prompt"
    if parsed.moderation == "low":
        yield "moderation: this server has no moderation levels, and low has no effect"


def _has_quality(parsed: GenerationRequest, card: ModelCard) -> bool:
    return card.gamma_conditioned and parsed.num_inference_steps is None


def _image_requests(parsed: GenerationRequest, limits: Limits, card: ModelCard) -> tuple[ImageRequest, ...]:
    size, quality = _size(parsed.size), parsed.quality
    if isinstance(quality, str):
        quality = QUALITY.get(quality) if _has_quality(parsed, card) else None
    first = ImageRequest(
        prompt=parsed.prompt,
        # Drawn here, so that the answer contains it and the image can be made again.
        seed=secrets.randbelow(2**31) if parsed.seed is None else parsed.seed,
        negative_prompt=parsed.negative_prompt,
        width=size[0] if size else None,
        height=size[1] if size else None,
        guidance_scale=parsed.guidance_scale,
        true_cfg_scale=parsed.true_cfg_scale,
        gamma=parsed.gamma,
        quality=quality,
        max_steps=parsed.max_steps,
        num_inference_steps=parsed.num_inference_steps,
        previews=("every" if parsed.partial_images is None else parsed.partial_images) if parsed.stream else 0,
        timeout=limits.seconds,
    )
    return tuple(replace(first, seed=first.seed + i) for i in range(parsed.n or 1))


def _size(size: str | None) -> tuple[int, int] | None:
    if size in (None, "auto"):
        return None
    width, _, height = str(size).partition("x")
    return int(width), int(height)


def facts(parsed: ParsedRequest, index: int, done: ImageDone) -> dict[str, object]:
    """Returns what the answer contains about an image, except for the image itself.

    Args:
        parsed: The request.
        index: Index of the image in the request.
        done: Its last event.
    """
    data: dict[str, object] = {
        "seed": parsed.images[index].seed,
        "steps": done.steps,
        "times": [round(time, 6) for time in done.times],
        "seconds": round(done.seconds, 4),
        "queued_seconds": round(done.queued_seconds, 4),
    }
    if done.nsfw_content_detected is not None:
        data["nsfw_content_detected"] = done.nsfw_content_detected
    warnings = [*parsed.warnings, *done.warnings]
    return {**data, "warnings": warnings} if warnings else data
