"""What a server tells of its model: its name, its dial, prompts to try."""

from __future__ import annotations

from pathlib import Path

from tpdm.artefact import from_pretrained
from tpdm.files import expand
from tpdm.pipelines.facts import call_facts
from tpdm.serve.settings import ModelCard

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
        ArtefactError: there is no such TPM.
        BackboneError: there is no such pipeline.
    """
    backbone, dial = expand(backbone), False
    if tpm is not None:
        dial = from_pretrained(tpm)[1].dial is not None
    facts = call_facts(backbone)
    return ModelCard(
        id=Path(backbone).name if Path(backbone).is_dir() else backbone,
        learned=tpm is not None,
        dial=dial,
        default_steps=facts.steps,
        largest_side=facts.largest_side,
        examples=TINYWORLD if backbone == "tinyworld" else NATURAL,
    )
