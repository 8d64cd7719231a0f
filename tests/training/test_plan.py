"""The plan of a run matches the run, measured at small size."""

from dataclasses import replace
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from tests.support.tiny_sd3 import make_tiny_sd3
from tpdm.cli import app
from tpdm.config.recipe import BackboneConfig, PromptsConfig, Recipe, RlConfig, SamplingConfig, TpmConfig
from tpdm.core.errors import BackboneError
from tpdm.pipelines.loading.load import load_pipeline
from tpdm.pipelines.metadata import pipeline_sizes
from tpdm.pipelines.probe import infer_feature_shapes
from tpdm.pipelines.vae import decoding_in_slices
from tpdm.training.planning.memory import MemoryPart, decision_bytes, estimate_memory, memory_peaks
from tpdm.training.planning.meta import CallShape, denoiser_call, peak_of
from tpdm.training.planning.plan import make_plan

RECIPE = Recipe(
    name="plan",
    prompts=PromptsConfig(limit=200),
    rl=RlConfig(updates=3, prompts_per_update=5, samples_per_prompt=4),
    sampling=SamplingConfig(max_steps=7),
    tpm=TpmConfig(channels=16, grid=2),
)


def test_sizes_from_the_configuration_match_the_loaded_pipeline(tmp_path):
    make_tiny_sd3(tmp_path / "tokens").save_pretrained(tmp_path / "pipe")
    for name in ("tinyworld", tmp_path / "pipe"):
        pipe, sizes = load_pipeline(name, device="cpu"), pipeline_sizes(name)
        networks = {k: v for k, v in pipe.components.items() if isinstance(v, torch.nn.Module)}
        assert sizes.parameters == {k: sum(p.numel() for p in v.parameters()) for k, v in networks.items()}
        widths = infer_feature_shapes(pipe, {"max_sequence_length": 4})
        assert (sizes.feature_channels, sizes.temb_channels) == (widths.feature_channels, widths.temb_channels)


def test_the_numbers_of_a_plan():
    plan = make_plan(RECIPE)
    assert (plan.trajectories, plan.images_per_run, plan.evaluations_per_update) == (20, 60, 140)
    assert plan.training_prompts + plan.validation_prompts <= 200
    # 160 channels, first and last, on 2 x 2 cells, and the time embedding, in fp16.
    sizes = {part.name: part.size for part in plan.memory}
    assert sizes["rollout buffer of one update, at most"] == 140 * 2 * (2 * 160 * 4 + 160)


def test_a_decision_of_sd3_medium_takes_at_most_a_sixteenth_of_the_release():
    recipe = Recipe(name="sd3")
    assert decision_bytes(recipe, 1536, 1536) <= 25e6 / 16


def test_the_dry_run_prints_the_plan_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: dry\nprompts: {source: tinyworld, limit: 200}\n")
    result = CliRunner().invoke(app, ["train", "recipe.yaml", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "64 prompts x 4 samples = 256 trajectories" in result.output
    assert "transformer (frozen)" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_offloaded_networks_stay_on_the_host_except_the_called_one():
    plans = {way: make_plan(Recipe(name="x", backbone=BackboneConfig(offload=way))) for way in ("none", "model")}
    frozen = {part.name: part.size for part in plans["none"].memory if part.name.endswith("(frozen)")}
    kept = {part.name: part.size for part in plans["model"].memory if part.name.endswith("(frozen, offloaded)")}
    assert list(kept.values()) == list(frozen.values())
    (largest,) = [part for part in plans["model"].memory if part.name.startswith("largest network")]
    assert largest.size == max(size for name, size in frozen.items() if not name.startswith("vae"))
    assert {part.place for part in plans["model"].memory if part.name in kept} == {"host"}


def test_a_missing_pipeline_is_refused():
    with pytest.raises(BackboneError, match="is not a folder"):
        make_plan(Recipe(name="x", backbone=BackboneConfig(name_or_path="no/such/folder/here")))


def allocated(run):
    """Bytes that PyTorch's own allocator has handed out at most, by its profiler."""
    with torch.no_grad():
        run()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
            run()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def small_sd3():
    text = {"joint_attention_dim": 64, "caption_projection_dim": 64, "pooled_projection_dim": 32}
    return SD3Transformer2DModel(
        **{"in_channels": 16, "out_channels": 16, "attention_head_dim": 16, "num_attention_heads": 4},
        **{"sample_size": 32, "num_layers": 2, "pos_embed_max_size": 32, **text},
    )


def small_flux():
    return FluxTransformer2DModel(
        **{"in_channels": 64, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16},
        **{"num_attention_heads": 4, "joint_attention_dim": 32, "pooled_projection_dim": 16, "guidance_embeds": True},
        axes_dims_rope=(4, 6, 6),
    )


def small_unet():
    return UNet2DConditionModel(
        **{"sample_size": 16, "layers_per_block": 1, "block_out_channels": (32, 64), "norm_num_groups": 4},
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **{"cross_attention_dim": 32, "attention_head_dim": 2},
    )


# The UNet's convolutions have workspaces, which are not counted.
@pytest.mark.parametrize(("make", "short_of"), [(small_sd3, 0.01), (small_flux, 0.01), (small_unet, 0.15)])
def test_counted_activations_match_the_allocator(make, short_of):
    shape = CallShape(rows=3, height=32, width=16, text=20, dtype=torch.float32)
    real = make().eval()
    measured = allocated(lambda: real(**denoiser_call(real, shape)))
    with torch.device("meta"):
        shapes = make().eval()
    with torch.no_grad():
        counted = peak_of(lambda: shapes(**denoiser_call(shapes, shape)))
    assert (1 - short_of) * measured <= counted <= 1.01 * measured


def small_vae():
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
    )


def test_counted_slices_of_the_decoder_match_the_allocator():
    real = small_vae().eval()
    with torch.device("meta"):
        shapes = small_vae().eval()

    def decode(vae):
        with decoding_in_slices(SimpleNamespace(vae=vae), 2):
            return vae.decode(torch.zeros(6, 4, 32, 32)).sample

    with torch.no_grad():
        counted = peak_of(lambda: decode(shapes))
        whole = peak_of(lambda: shapes.decode(torch.zeros(6, 4, 32, 32)).sample)
    assert counted == pytest.approx(allocated(lambda: decode(real)), rel=0.02)
    assert counted < 0.6 * whole


def test_phases_are_not_added():
    parts = [
        MemoryPart("encoder", 10, "device", "encoding"),
        MemoryPart("denoiser", 4, "device", "training"),
        MemoryPart("context", 1, "device", "always"),
        MemoryPart("activations", 3, "device", "rollout"),
        MemoryPart("unknown", None, "device", "scoring"),
        MemoryPart("pictures", 2, "host", "training"),
    ]
    running = {"rollout": 8, "decoding": 5, "scoring": 5, "learning": 5}
    assert memory_peaks(parts, "device") == {"encoding": 11, **running}
    assert set(memory_peaks(parts, "host").values()) == {2}


def test_freed_text_encoders_do_not_count_with_the_denoiser():
    stay = make_plan(RECIPE)
    leave = make_plan(replace(RECIPE, backbone=replace(RECIPE.backbone, precompute_prompt_embeddings=True)))
    for plan, phase in ((stay, "training"), (leave, "encoding")):
        assert {p.phase for p in plan.memory if p.place == "device" and p.name.startswith("text_encoder")} == {phase}
    assert [path.name for path in leave.files if path not in stay.files] == ["texts"]
    assert [p.name for p in leave.memory if p.place == "disk"] == ["embeddings of all prompts"]


def test_parts_that_are_not_counted_are_marked(tmp_path):
    make_tiny_sd3(tmp_path / "tokens").save_pretrained(tmp_path / "pipe")
    sizes = pipeline_sizes(tmp_path / "pipe")
    sizes.networks["transformer"].__class__ = type("OtherModel", (SD3Transformer2DModel,), {})
    unknown = [part.name for part in estimate_memory(RECIPE, sizes, 10) if part.size is None]
    assert "denoiser activations" in unknown
