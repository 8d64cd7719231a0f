"""What a client asks for, checked field by field, and what it gets."""

from __future__ import annotations

import base64
import io
import secrets
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from tpdm.serve.errors import ApiError
from tpdm.serve.requests import ImageDone, ImageRequest
from tpdm.serve.settings import Limits, ModelCard

SEEDS = 2**53  # larger whole numbers are rounded by what reads JSON in browsers
QualityWord = Literal["auto", "standard", "low", "medium", "high", "xhigh", "max", "hd"]
# OpenAI's words on the dial. "auto" and "standard" leave the TPM what it was trained for, and a TPM without a dial
# takes every word so: clients send them unasked. A number is a demand, and refused where it cannot be met.
DIAL = {"low": 0.0, "medium": 0.5} | dict.fromkeys(("high", "xhigh", "max", "hd"), 1.0)

Text = Annotated[str, Field(min_length=1)]
Steps = Annotated[int, Field(ge=1)]


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
    partial_images: Annotated[int, Field(ge=0)] | None = None
    output_format: Literal["png"] | None = None
    background: Literal["auto", "opaque"] | None = None
    # Without a meaning here, and sent by clients all the same.
    user: str | None = None
    style: str | None = None
    moderation: str | None = None
    # Not OpenAI's.
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None
    negative_prompt: str | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    gamma: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_steps: Steps | None = None
    fixed_steps: Steps | None = None


@dataclass(frozen=True)
class Asked:
    """A checked request.

    Attributes:
        images: what the engine gets, one each.
        stream: whether events are wanted.
        by_url: whether pictures are fetched by an address instead of coming with the answer.
    """

    images: tuple[ImageRequest, ...]
    stream: bool
    by_url: bool


def parse(body: bytes, limits: Limits, card: ModelCard) -> Asked:
    """Checks the bytes of a request.

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
        asked = GenerationRequest.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = str(first["loc"][0]) if first["loc"] else None
        raise ApiError(422, f"{place}: {first['msg']}", "invalid_value", place) from None
    _check(asked, limits, card)
    return Asked(_images(asked, limits, card), bool(asked.stream), asked.response_format == "url")


def _check(asked: GenerationRequest, limits: Limits, card: ModelCard) -> None:
    def refuse(param: str, message: str) -> None:
        raise ApiError(422, f"{param}: {message}", "invalid_value", param)

    if asked.model not in (None, "", card.id):
        raise ApiError(404, f"model: there is no such model here, expected {card.id!r}", "model_not_found", "model")
    if not asked.prompt.strip():
        refuse("prompt", "got an empty text, expected some words")
    for name, text in (("prompt", asked.prompt), ("negative_prompt", asked.negative_prompt or "")):
        if len(text) > limits.prompt:
            refuse(name, f"got {len(text)} characters, expected at most {limits.prompt}")
    if (asked.n or 1) > limits.images:
        refuse("n", f"got {asked.n} images, expected at most {limits.images}; send several requests")
    side = min(limits.side, card.largest_side or limits.side)
    if max(_size(asked.size) or (0, 0)) > side:
        refuse("size", f"got {asked.size}, expected sides of at most {side} pixels")
    for name, steps in (("max_steps", asked.max_steps), ("fixed_steps", asked.fixed_steps)):
        if steps is not None and steps > limits.steps:
            refuse(name, f"got {steps}, expected at most {limits.steps}")
    for one, other in (("gamma", "quality"), ("max_steps", "fixed_steps"), ("gamma", "fixed_steps")):
        if getattr(asked, one) is not None and getattr(asked, other) is not None:
            refuse(one, f"got {one} and {other}, expected one of them")
    numbers = {"gamma": asked.gamma, "quality": None if isinstance(asked.quality, str) else asked.quality}
    for name, value in numbers.items():
        if value is not None and not card.dial:
            refuse(name, "got a number, but this model has no dial; leave it out")


def _images(asked: GenerationRequest, limits: Limits, card: ModelCard) -> tuple[ImageRequest, ...]:
    size, dialled = _size(asked.size), card.dial and asked.fixed_steps is None
    quality = DIAL.get(asked.quality) if isinstance(asked.quality, str) else asked.quality
    first = ImageRequest(
        prompt=asked.prompt,
        # Drawn here, so that the answer can say it and the picture can be made again.
        seed=secrets.randbelow(2**31) if asked.seed is None else asked.seed,
        negative_prompt=asked.negative_prompt,
        width=size[0] if size else None,
        height=size[1] if size else None,
        guidance_scale=asked.guidance_scale,
        gamma=asked.gamma,
        quality=quality if dialled else None,
        max_steps=asked.max_steps,
        fixed_steps=asked.fixed_steps,
        previews=bool(asked.stream) and asked.partial_images != 0,
        timeout=limits.seconds,
    )
    return tuple(replace(first, seed=first.seed + i) for i in range(asked.n or 1))


def _size(size: str | None) -> tuple[int, int] | None:
    if size in (None, "auto"):
        return None
    width, _, height = str(size).partition("x")
    return int(width), int(height)


def png(image: Image) -> bytes:
    """The picture as a file, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def b64(content: bytes) -> str:
    """Bytes as JSON carries them."""
    return base64.b64encode(content).decode("ascii")


def facts(request: ImageRequest, done: ImageDone) -> dict[str, object]:
    """What the answer says of a picture besides the picture."""
    said: dict[str, object] = {
        "seed": request.seed,
        "steps": done.steps,
        "times": [round(time, 6) for time in done.times],
        "seconds": round(done.seconds, 4),
        "queued_seconds": round(done.queued_seconds, 4),
    }
    return {**said, "warnings": list(done.warnings)} if done.warnings else said
