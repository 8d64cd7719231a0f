"""What a server tells of its model: its name, its dial, prompts to try."""

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
    """The card of a pipeline with or without a TPM; the pipeline's weights are not read.

    Args:
        backbone: ``tinyworld``, a diffusers folder or a hub id.
        tpm: folder or hub id; None where the pipeline's own schedule serves.

    Raises:
        CheckpointError: there is no such TPM.
        BackboneError: there is no such pipeline.
    """
    backbone, dial = expand(backbone), False
    if tpm is not None:
        dial = from_pretrained(tpm)[1].gamma_steps is not None
    facts = read_pipeline_metadata(backbone)
    return ModelCard(
        id=Path(backbone).name if Path(backbone).is_dir() else backbone,
        learned=tpm is not None,
        gamma_conditioned=dial,
        default_steps=facts.steps,
        largest_side=facts.largest_side,
        examples=TINYWORLD if backbone == "tinyworld" else NATURAL,
    )


ANY = "any"  # the alias that stands for every name

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Limits:
    """Bounds of one request, and of what is kept for its client.

    Attributes:
        prompt: characters of the prompt, and of the negative prompt.
        images: of one request.
        side: pixels of the longer side.
        steps: of one image.
        body: bytes of a request.
        body_seconds: until the whole body has to be there.
        seconds: from submission to the picture.
        store_bytes: of all pictures that wait to be fetched by url.
        store_seconds: that a picture waits.
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
    """What clients may know of the model.

    Attributes:
        id: its name, as requests give it.
        learned: whether a TPM decides the times; else the pipeline's own schedule runs.
        gamma_conditioned: whether the TPM was trained for ``gamma`` and ``quality``.
        default_steps: of the pipeline's own schedule.
        examples: (name, prompt), of rising difficulty.
        largest_side: pixels that the model can draw; None where it has no such bound.
    """

    id: str
    learned: bool
    gamma_conditioned: bool
    default_steps: int
    examples: tuple[tuple[str, str], ...] = ()
    largest_side: int | None = None


@dataclass(frozen=True)
class Settings:
    """How a server behaves.

    Attributes:
        limits: of requests.
        token: that ``Authorization: Bearer`` must carry; None asks for none.
        hosts: names that requests may address the server by; None takes any. A page of another site can point its own
            name at this machine and ask as if it were local: the name gives it away.
        log_prompts: whether log lines show prompts.
        proxies: addresses, networks or "*", whose word counts on how a client came (``X-Forwarded-Proto``): pictures
            by url carry it. None leaves it to uvicorn: this machine.
        aliases: names that requests may give the model, besides its own; ``ANY`` among them takes every name.
        response_format: what an answer at once carries its pictures in, where the request does not say.
    """

    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    hosts: tuple[str, ...] | None = None
    log_prompts: bool = False
    proxies: str | None = None
    aliases: tuple[str, ...] = ()
    response_format: Literal["b64_json", "url", "both"] = "b64_json"

    def serves(self, name: str, card: ModelCard) -> bool:
        """Whether a request may call the model so."""
        return name == card.id or name in self.aliases or ANY in self.aliases
