"""The public description of the model."""

import pytest

from tests.support.families import FAMILIES
from tests.support.tiny_sd3 import make_tiny_sd3
from tpdm.core.errors import BackboneError, CheckpointError
from tpdm.pipelines.metadata import PipelineMetadata, read_pipeline_metadata
from tpdm.serving.http.settings import describe_model
from tpdm.tinyworld.grammar import WORDS


def test_the_embedded_model():
    card = describe_model("tinyworld", "tinyworld")
    assert (card.id, card.learned, card.gamma_conditioned, card.default_steps) == ("tinyworld", True, False, 28)
    assert card.largest_side == 256  # of 16 positions, 2 latents each, 8 pixels each
    assert all(word in WORDS for _, prompt in card.examples for word in prompt.split())
    assert not describe_model("tinyworld", None).learned


def test_the_id_of_a_folder_is_its_name_without_the_path(tmp_path):
    make_tiny_sd3(tmp_path / "parts").save_pretrained(tmp_path / "mine")
    card = describe_model(str(tmp_path / "mine"), None)
    assert (card.id, card.default_steps) == ("mine", 28)


@pytest.mark.parametrize(
    ("family", "facts"),
    [("SD3", PipelineMetadata(28, 64)), ("FLUX.2", PipelineMetadata(50, None)), ("SD1.5", PipelineMetadata(50, None))],
)
def test_the_largest_side_of_an_image(tmp_path, family, facts):
    FAMILIES[family].build().save_pretrained(tmp_path)
    assert read_pipeline_metadata(tmp_path) == facts


def test_missing_files(tmp_path):
    with pytest.raises(BackboneError, match=r"whose index diffusers cannot load"):
        read_pipeline_metadata(tmp_path)
    with pytest.raises(CheckpointError):
        describe_model("tinyworld", str(tmp_path / "no"))
