"""Every argument of every diffusers pipeline that can be attached is classified here.

A diffusers release with a new argument fails this test. If the argument depends on the number or the index of steps,
add it to ``arguments.STEP_KEYED`` or ``arguments.REFUSED``. Otherwise add it below.
"""

import ast
import re
from functools import cache
from pathlib import Path

import diffusers

from tpdm.pipelines.arguments import REFUSED, STEP_KEYED
from tpdm.pipelines.compatibility import REFUSED_PIPELINES
from tpdm.pipelines.registry import DENOISERS

# What decides the same at every step, whatever their number.
TEXT = """prompt prompt_2 prompt_3 prompt_embeds pooled_prompt_embeds prompt_attention_mask prompt_embeds_mask
negative_prompt negative_prompt_2 negative_prompt_3 negative_prompt_embeds negative_pooled_prompt_embeds
negative_prompt_attention_mask negative_prompt_embeds_mask max_sequence_length clip_skip clean_caption system_prompt
complex_human_instruction text_encoder_out_layers caption_upsample_temperature use_en_prompt"""
SIZE = """height width num_frames num_images_per_prompt num_videos_per_prompt num_waveforms_per_prompt output_type
use_resolution_binning original_size target_size crops_coords_top_left negative_original_size negative_target_size
negative_crops_coords_top_left aesthetic_score negative_aesthetic_score max_area _auto_resize resolution layers
padding_mask_crop audio_length_in_s"""
NOISE = "generator latents noise_level add_predicted_noise"
GUIDANCE = """guidance_scale true_cfg_scale guidance_scale_2 guidance_rescale cfg_normalization cfg_normalize
image_guidance_scale attention_kwargs joint_attention_kwargs cross_attention_kwargs"""
# The chain starts at the strength, which ``start_time`` reads.
PICTURES = """image strength mask_image masked_image_latents image_embeds image_latents image_reference depth_map video
last_image ip_adapter_image ip_adapter_image_embeds negative_ip_adapter_image negative_ip_adapter_image_embeds"""
CONTROL = """control_image control_mask control_mode controlnet_conditioning_scale controlnet_pooled_projections
guess_mode adapter_conditioning_scale"""
GLIGEN = """gligen_phrases gligen_images gligen_boxes gligen_inpaint_image gligen_normalize_constant input_phrases_mask
input_images_mask"""
BLIP = """reference_image source_subject_category target_subject_category condtioning_image neg_prompt prompt_strength
prompt_reps"""
# They run at the steps that are made: all of them, or every n-th.
CALLBACKS = "callback callback_steps callback_on_step_end callback_on_step_end_tensor_inputs"
# Of another chain, which the pipeline runs with a scheduler of its own.
PRIOR = "prior_num_inference_steps prior_guidance_scale prior_latents"
# Of no effect without skip_guidance_layers, which is refused.
SKIPPED = "skip_layer_guidance_scale skip_layer_guidance_start skip_layer_guidance_stop"
FINE = set(" ".join([TEXT, SIZE, NOISE, GUIDANCE, PICTURES, CONTROL, GLIGEN, BLIP, CALLBACKS, PRIOR, SKIPPED]).split())

# Denoisers that these pipelines make of the one they are given; no entry knows them.
CONVERTED = {"UNetMotionModel", "UNetControlNetXSModel"}
STUB = r"    def {}\(\n(?:.*\n)*?    \)(?: ->.*)?:\n"


def stub_of(name, source):
    """The arguments of a method of a class, as it is written; None where it has none."""
    found = re.search(STUB.format(name), source)
    if found is None:
        return None
    arguments = ast.parse(f"class _:\n{found.group()}        pass\n").body[0].body[0].args
    return arguments.args + arguments.kwonlyargs


@cache
def calls():
    """Class name -> arguments of its call, of pipelines that ``attach`` takes; read, for imports take seconds."""
    found = {}
    for path in sorted((Path(diffusers.__file__).parent / "pipelines").rglob("pipeline_*.py")):
        source = path.read_text(encoding="utf-8")
        if not any(name in source for name in DENOISERS):
            continue
        for text in re.split(r"\n(?=class )", source)[1:]:
            name, *bases = re.findall(r"\w+", text[: text.index(":")])[1:]
            if any(cls.startswith(tuple(REFUSED_PIPELINES)) for cls in (name, *bases)):
                continue
            made, call = stub_of("__init__", text), stub_of("__call__", text)
            parts = {a.arg: set(re.findall(r"\w+", ast.unparse(a.annotation))) for a in made or () if a.annotation}
            denoiser = parts.get("transformer", set()) | parts.get("unet", set())
            if call and denoiser & set(DENOISERS) and not denoiser & CONVERTED:
                found[name] = {argument.arg for argument in call} - {"self"}
    return found


def test_every_argument_of_every_pipeline_is_known():
    unknown = {
        name: sorted(arguments - FINE - set(REFUSED) - set(STEP_KEYED))
        for name, arguments in calls().items()
        if "prompt" in arguments  # without one, a call ends at once
    }
    assert {name: arguments for name, arguments in unknown.items() if arguments} == {}


def test_the_pipelines_are_found():
    """Else nothing above could fail."""
    found = calls()
    assert len(found) > 60
    assert {"StableDiffusion3Pipeline", "FluxInpaintPipeline", "StableDiffusionXLAdapterPipeline"} <= set(found)
    options = set().union(*found.values())
    assert options >= {
        "cfg_trunc_ratio",
        "cfg_truncation",
        "control_guidance_end",
        "adapter_conditioning_factor",
        "eta",
    }
