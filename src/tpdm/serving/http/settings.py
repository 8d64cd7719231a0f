"""Settings of the server, and the public description of its model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tpdm.core.io import expand
from tpdm.pipelines.metadata import read_pipeline_metadata
from tpdm.policies.pretrained import from_pretrained

TINYWORLD = (
    ("one object", "large striped red circle top left"),
    ("two objects", "small plain blue ring upper right and large checked green square bottom left"),
    ("three, partly left open", "large red circle top left and blue triangle and object on navy"),
    ("nearly all left open", "object and ring and dotted object and small object and cross and object"),
)

NATURAL = (
    ("one thing", "a red apple on a white table"),
    ("a place", "a lighthouse on a cliff at dusk, waves below"),
    ("several things", "a cat in a spacesuit feeding three pigeons in front of a bakery"),
    ("a crowd with a sign", "a night market in the rain, a crowd with umbrellas, a neon sign that says OPEN"),
)


def describe_model(backbone: str, tpm: str | Path | None) -> ModelCard:
    """Returns the public description of a pipeline with or without a TPM. Does not read the weights of the pipeline.

    Args:
        backbone: "tinyworld", a folder of a diffusers pipeline, or a Hub id.
        tpm: Folder or Hub id of the TPM. None if the pipeline's own schedule is used.

    Raises:
        CheckpointError: The TPM cannot be read.
        BackboneError: The pipeline cannot be read.
    """
    backbone, gamma_conditioned = expand(backbone), False
    if tpm is not None:
        gamma_conditioned = from_pretrained(tpm)[1].gamma_steps is not None
    facts = read_pipeline_metadata(backbone)
    return ModelCard(
        id=Path(backbone).name if Path(backbone).is_dir() else backbone,
        learned=tpm is not None,
        gamma_conditioned=gamma_conditioned,
        default_steps=facts.steps,
        largest_side=facts.largest_side,
        examples=TINYWORLD if backbone == "tinyworld" else NATURAL,
    )


ANY = "any"  # alias that accepts every name

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of the store of images.

    Attributes:
        prompt: Maximum number of characters of the prompt and of the negative prompt.
        images: Maximum number of images per request.
        side: Maximum length of a side in pixels.
        steps: Maximum number of steps of an image.
        body: Maximum size of a request body in bytes.
        body_seconds: Maximum seconds until the whole body has arrived.
        seconds: Maximum seconds from submission to the image.
        store_bytes: Maximum size in bytes of all stored images.
        store_seconds: Seconds for which an image is stored.
    """

    prompt: int = 4000
    images: int = 8
    side: int = 1024
    steps: int = 200
    body: int = 64 * 1024
    body_seconds: float = 10.0
    seconds: float = 300.0
    store_bytes: int = 256 * 2**20
    store_seconds: float = 600.0


@dataclass(frozen=True)
class ModelCard:
    """Public description of the model.

    Attributes:
        id: Name of the model in requests.
        learned: Whether a TPM chooses the times. Else the pipeline's own schedule is used.
        gamma_conditioned: Whether the TPM is gamma-conditioned and calibrated, so that requests can set ``gamma`` and
            ``quality``.
        default_steps: Number of steps of the pipeline's own schedule.
        examples: Pairs (name, prompt), in order of difficulty.
        largest_side: Maximum length of a side in pixels. None if the model has no limit.
    """

    id: str
    learned: bool
    gamma_conditioned: bool
    default_steps: int
    examples: tuple[tuple[str, str], ...] = ()
    largest_side: int | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of the server.

    Attributes:
        limits: Limits of requests.
        token: Token that the header ``Authorization: Bearer`` must contain. None accepts every request.
        hosts: Allowed values of the header ``Host``. None allows any. This protects a local server against DNS
            rebinding, where a page of another site resolves its own name to this machine.
        log_prompts: Whether log lines contain prompts.
        proxies: Addresses, networks or "*" whose ``X-Forwarded-Proto`` is used in the urls of images. None trusts only
            this machine, the default of uvicorn.
        aliases: Further names of the model in requests. ``ANY`` accepts every name.
        response_format: Default of the field ``response_format`` without streaming.
    """

    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    hosts: tuple[str, ...] | None = None
    log_prompts: bool = False
    proxies: str | None = None
    aliases: tuple[str, ...] = ()
    response_format: Literal["b64_json", "url", "both"] = "b64_json"

    def serves(self, name: str, card: ModelCard) -> bool:
        """Returns whether a request may use this name for the model."""
        return name == card.id or name in self.aliases or ANY in self.aliases
