"""Options that act for a fraction of the steps are refused, because the number of steps is not known in advance.

The factor of a T2I adapter, GLIGEN's beta and diffusers' own cutoff callbacks count against the number of timesteps,
which is a maximum here (https://github.com/huggingface/diffusers/issues/5108, .../7761).
"""

import pytest
import torch
from diffusers import (
    LatentConsistencyModelPipeline,
    StableDiffusionGLIGENPipeline,
    StableDiffusionXLAdapterPipeline,
    T2IAdapter,
)
from diffusers.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    PipelineCallback,
    SD3CFGCutoffCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
)

from tests.support.families import tiny_pipe
from tests.support.relatives import call_of, relative, stock
from tests.support.tiny_families import make_unet
from tpdm.core.errors import BackboneError
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule

FIXED = FixedSchedule([1.0, 0.5, 0.0])
CUTOFFS = {"SD1.5": SDCFGCutoffCallback, "SDXL": SDXLCFGCutoffCallback, "SD3": SD3CFGCutoffCallback}


def refused(pipe, call, match):
    with pytest.raises(BackboneError, match=match) as caught:
        attach(pipe, FIXED)(**call, seeds=[0])
    assert "\n" not in str(caught.value)


def with_adapter():
    torch.manual_seed(1)
    adapter = T2IAdapter(in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2)
    extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    # The adapter's maps are added where the blocks have attention.
    unet = make_unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        projection_class_embeddings_input_dim=64,
        **extra,
    )
    return relative(StableDiffusionXLAdapterPipeline, "SDXL", adapter=adapter.eval(), unet=unet.eval())


def test_a_t2i_adapter_acts_in_all_steps_or_in_none():
    pipe, call = with_adapter(), call_of("SDXL", 1, image=torch.rand(1, 3, 24, 16))
    refused(pipe, {**call, "adapter_conditioning_factor": 0.5}, r"adapter_conditioning_factor is 0\.5\. It must be 1")
    (always, times), (never, _) = (
        stock(pipe, {**call, "adapter_conditioning_factor": factor}, [0], steps=2) for factor in (1.0, 0.0)
    )
    assert not torch.allclose(always, never)
    for factor, expected in ((1.0, always), (0.0, never)):
        driven = attach(pipe, FixedSchedule(times))(**call, adapter_conditioning_factor=factor, seeds=[0])
        assert (driven.images - expected).abs().max().item() == 0.0


def test_the_default_of_gligen_is_refused():
    """The default is 0.3: grounding acts for three tenths of the steps."""
    pipe = relative(StableDiffusionGLIGENPipeline, "SD1.5")
    call = call_of("SD1.5", 1, gligen_phrases=[], gligen_boxes=[])
    refused(pipe, {**call, "gligen_scheduled_sampling_beta": 0.5}, r"gligen_scheduled_sampling_beta is 0\.5\. .* be 1")
    refused(pipe, call, r"gligen_scheduled_sampling_beta is 0\.3 \(the pipeline's default\)\. .* 1 .* Pass \w+=1\.")


@pytest.mark.parametrize("name", CUTOFFS)
def test_a_cutoff_step_ratio_is_refused(name):
    callback = CUTOFFS[name](cutoff_step_ratio=0.5)
    call = call_of(name, 1)
    refused(
        tiny_pipe(name),
        {**call, "callback_on_step_end": callback},
        r"cutoff_step_ratio of \w+ is 0\.5\. ",
    )
    nested = MultiPipelineCallbacks([SDCFGCutoffCallback(1.0), IPAdapterScaleCutoffCallback(cutoff_step_ratio=0.2)])
    refused(tiny_pipe(name), {**call, "callback_on_step_end": nested}, "of IPAdapterScaleCutoffCallback")


@pytest.mark.parametrize("name", CUTOFFS)
@pytest.mark.parametrize("cut", [{"cutoff_step_ratio": None, "cutoff_step_index": 1}, {"cutoff_step_ratio": 0.0}])
def test_a_cutoff_step_index_acts_as_in_the_stock_pipeline(name, cut):
    def call():
        return call_of(name, 1, callback_on_step_end=CUTOFFS[name](**cut))

    expected, times = stock(tiny_pipe(name), call(), [0])
    driven = attach(tiny_pipe(name), FixedSchedule(times))(**call(), seeds=[0])
    assert (driven.images - expected).abs().max().item() == 0.0
    assert driven.nfe_rows == 4 + (2 if cut["cutoff_step_ratio"] is None else 1)


def test_a_custom_callback_runs():
    class Count(PipelineCallback):
        tensor_inputs = ("latents",)

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            seen.append(step_index)
            return callback_kwargs

    seen = []
    attach(tiny_pipe("SD3"), FIXED)(**call_of("SD3", 1), callback_on_step_end=Count(), seeds=[0])
    assert seen == [0, 1]


def test_a_latent_consistency_pipeline_is_refused_at_attach():
    pipe = relative(LatentConsistencyModelPipeline, "SD1.5")
    with pytest.raises(BackboneError, match=r"^LatentConsistencyModelPipeline .*It takes the last image"):
        attach(pipe, FIXED)
