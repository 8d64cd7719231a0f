import pytest
import torch

from tests.support.tiny_families import make_sd15
from tpdm.core.errors import BackboneError, ConfigError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import load_pipeline, pinned_arguments
from tpdm.policies.fixed import FixedSchedule


def test_a_saved_pipeline_is_loaded(sd3, tmp_path):
    sd3.save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, dtype="bf16", device="cpu")
    assert type(pipe) is type(sd3)
    assert pipe.transformer.dtype == torch.bfloat16
    assert pipe.text_encoder_3 is None
    assert attach(pipe, FixedSchedule([1.0, 0.0]))("a", max_sequence_length=4).steps == [1]


def test_a_missing_folder_is_reported_on_one_line(tmp_path):
    with pytest.raises(BackboneError, match="is not a folder") as error:
        load_pipeline(tmp_path / "nowhere")
    assert "\n" not in str(error.value)


def test_a_folder_without_a_pipeline(tmp_path):
    with pytest.raises(BackboneError, match="diffusers cannot load"):
        load_pipeline(tmp_path)


def test_an_unknown_dtype():
    with pytest.raises(ConfigError, match=r"dtype is 'fp8'\. It must be one of fp32, bf16, fp16"):
        load_pipeline("tinyworld", dtype="fp8")


def test_pinned_arguments_contain_the_default_guidance_scale(sd3):
    assert pinned_arguments(sd3, {"height": 64}) == {"guidance_scale": 7.0, "height": 64}
    assert pinned_arguments(make_sd15(), {}) == {"guidance_scale": 7.5}
    assert pinned_arguments(sd3, {"guidance_scale": 1.0}) == {"guidance_scale": 1.0}

    class Unguided:
        def __call__(self, prompt):
            raise NotImplementedError

    assert pinned_arguments(Unguided(), {"height": 64}) == {"height": 64}
