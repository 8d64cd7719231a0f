"""Undocumented parts of diffusers, transformers and torch that tpdm uses, one row each.

A new release that changes one of them fails here first. The message names the part, the module that uses it, and why.
Only classes are inspected (signatures, source, tiny instances). Nothing is computed.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

import diffusers
import pytest
from torch import nn

from tests.support.families import FAMILIES, FLOW_FAMILIES, tiny_pipe
from tpdm.pipelines.registry import DENOISERS, find_denoiser, find_entry
from tpdm.pipelines.scheduler import AdaptiveScheduler
from tpdm.sampling.prompt_embeddings import ENCODED

PIPELINES = {type(tiny_pipe(name)): name for name in FAMILIES}  # class -> a family of it
DENOISER_ATTRIBUTES = {type(find_denoiser(tiny_pipe(name))): name for name in FAMILIES}
BY_NAME = {"ids": lambda value: value.__name__}


def relied_on(holds: bool, what: str, by: str, why: str) -> None:
    """Fails with a message if the condition no longer holds."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("diffusers", "transformers", "torch"))
    assert holds, f"{what} no longer holds with {libraries}: tpdm.{by} relies on it, {why}"


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


@cache
def source(function: Any) -> str:
    return textwrap.dedent(inspect.getsource(inspect.unwrap(function)))


def found(path: str) -> Any:
    """The object at ``module:name.name``. None if it does not exist."""
    module, _, names = path.partition(":")
    try:
        value: Any = importlib.import_module(module)
    except ImportError:
        return None
    for name in filter(None, names.split(".")):
        value = getattr(value, name, None)
    return value


# ---- The loop of every pipeline -------------------------------------------------------------------------------------


class Line(NamedTuple):
    pattern: str  # of the source of ``__call__``
    by: str
    why: str
    without: frozenset[str] = frozenset()  # classes that never had it, which those who rely on it know


LOOP = [
    Line(
        r"for i, t in enumerate\(timesteps\):",
        "pipelines.scheduler.LazyTimesteps",
        "because it hands out each time when the loop asks for it",
    ),
    Line(
        r"latents = self\.scheduler\.step\(.*, t, latents, .*return_dict=False\)\[0\]",
        "pipelines.scheduler.AdaptiveScheduler.step",
        "because a step is decided and made there",
    ),
    Line(
        r"retrieve_timesteps\(|self\.scheduler\.set_timesteps\(",
        "pipelines.scheduler.AdaptiveScheduler.set_timesteps",
        "because a chain starts there",
    ),
    Line(
        r"callback_on_step_end\(self, i, t, callback_kwargs\)",
        "pipelines.probe.default_times",
        "because its callback stops the pipeline after the first step",
        frozenset({"PixArtSigmaPipeline"}),
    ),
    Line(
        r"if self\.interrupt:\s+continue",
        "pipelines.probe.default_times",
        "because it sets _interrupt to stop the pipeline",
        frozenset({"Lumina2Pipeline", "PixArtSigmaPipeline"}),  # the first runs to its end, the second is not asked
    ),
    Line(
        r"self\.check_inputs\(",
        "pipelines.refused.is_argument_error",
        "because an error from there is the caller's and not the server's",
        frozenset({"ZImagePipeline"}),  # checks in the call itself
    ),
    Line(
        r"self\.encode_prompt\(",
        "sampling.batching.pipeline.BatchedPipeline.clone_pipe",
        "because it puts the shared text encoder in its place",
    ),
]


@pytest.mark.parametrize("line", LOOP, ids=lambda line: line.by.removeprefix("pipelines."))
@pytest.mark.parametrize("cls", PIPELINES, **BY_NAME)
def test_the_loop_of_a_pipeline(cls, line):
    if cls.__name__ in line.without:
        return
    text = " ".join(source(cls.__call__).split())
    pattern = line.pattern.replace(r"\s+", " ")
    relied_on(bool(re.search(pattern, text)), f"{cls.__name__}.__call__ with /{line.pattern}/", line.by, line.why)


ARGUMENTS = {
    "num_inference_steps": ("pipelines.attach", "because the cap goes there, and sizes the progress bar"),
    "generator": ("pipelines.arguments", "because each image has its own"),
    "latents": ("pipelines.arguments", "because noise comes from them or from seeds"),
    "prompt_embeds": ("pipelines.arguments", "because they count the images where there is no prompt"),
    "negative_prompt": ("pipelines.texts", "because it is encoded beside the prompt"),
    "output_type": ("pipelines.probe", "because it asks for latents"),
    "height": ("pipelines.batch_key", "because calls of one size can meet"),
}


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("cls", PIPELINES, **BY_NAME)
def test_the_arguments_of_a_pipeline(cls, argument):
    if (cls.__name__, argument) == ("Flux2Pipeline", "negative_prompt"):
        return  # it is guided by a number that the network reads
    by, why = ARGUMENTS[argument]
    relied_on(argument in parameters(cls.__call__), f"{argument} of {cls.__name__}.__call__", by, why)


@pytest.mark.parametrize("cls", PIPELINES, **BY_NAME)
def test_the_number_of_images_and_the_guidance_of_a_pipeline(cls):
    takes, entry = parameters(cls.__call__), find_entry(find_denoiser(tiny_pipe(PIPELINES[cls])))
    counts = {"num_images_per_prompt", "num_videos_per_prompt"} & takes
    relied_on(len(counts) == 1, f"one number of images in {cls.__name__}.__call__", "pipelines.arguments", "to count")
    what = f"{entry.guidance_scale} of {cls.__name__}.__call__"
    relied_on(
        entry.guidance_scale in takes, what, "pipelines.backbones.DENOISERS", "for a TPM that reads guided features"
    )


@pytest.mark.parametrize("name", ENCODED)
def test_what_encode_prompt_returns(name):
    cls = getattr(diffusers, name)
    last = [node for node in ast.walk(ast.parse(source(cls.encode_prompt))) if isinstance(node, ast.Return)][-1]
    assert isinstance(last.value, ast.Tuple)
    names = [ast.unparse(item) for item in last.value.elts]
    expected = list(ENCODED[name])
    fits = len(names) == len(expected) and all(e in (None, n) for e, n in zip(expected, names, strict=True))
    why = f"because it takes them by position (they are {names})"
    relied_on(fits, f"{name}.encode_prompt returning {expected}", "pipelines.texts.ENCODED", why)
    lost = {item for item in expected if item} - parameters(cls.__call__)
    relied_on(not lost, f"{name}.__call__ with {sorted(lost)}", "pipelines.texts.ENCODED", "because it gives them back")


# ---- The denoisers of the table -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["first", "last", "temb"])
@pytest.mark.parametrize("cls", DENOISER_ATTRIBUTES, **BY_NAME)
def test_the_module_paths_of_the_table(cls, place):
    denoiser = find_denoiser(tiny_pipe(DENOISER_ATTRIBUTES[cls]))
    path = getattr(find_entry(denoiser), place)
    there = path in dict(denoiser.named_modules())
    relied_on(
        there,
        f"module {path} of {cls.__name__}",
        f"pipelines.backbones.DENOISERS ({place})",
        "because a hook sits on it",
    )


CALL = {  # further arguments of a denoiser call that rules of the table read
    "FluxTransformer2DModel": {"timestep", "guidance", "encoder_hidden_states", "pooled_projections"},
    "SD3Transformer2DModel": {"timestep", "encoder_hidden_states", "pooled_projections"},
    "Lumina2Transformer2DModel": {"timestep", "encoder_attention_mask"},
    "UNet2DConditionModel": {"timestep", "encoder_hidden_states", "added_cond_kwargs"},
    "ZImageTransformer2DModel": {"t", "patch_size"},
}


@pytest.mark.parametrize("cls", DENOISER_ATTRIBUTES, **BY_NAME)
def test_the_arguments_of_a_denoiser(cls):
    denoiser = find_denoiser(tiny_pipe(DENOISER_ATTRIBUTES[cls]))
    entry = find_entry(denoiser)
    wanted = {entry.sample, *entry.unbatched, *entry.listed, *CALL.get(cls.__name__, set())}
    lost = sorted(wanted - parameters(cls.forward))
    why = "because rows are cut and images are counted by these names"
    relied_on(not lost, f"{', '.join(lost)} of {cls.__name__}.forward", "pipelines.backbones.DENOISERS", why)
    lost = sorted({*entry.distinguishing_config, "in_channels"} - set(denoiser.config))
    relied_on(not lost, f"{lost} of {cls.__name__}.config", "pipelines.backbones", "to tell models of a class apart")


def test_every_row_of_the_table_is_checked():
    assert {cls.__name__ for cls in DENOISER_ATTRIBUTES} == set(DENOISERS)
    assert {cls.__name__ for cls in PIPELINES} == set(ENCODED)


# ---- Names ----------------------------------------------------------------------------------------------------------


class Name(NamedTuple):
    path: str  # module:name
    by: str
    why: str
    takes: frozenset[str] = frozenset()  # arguments, where it is called
    says: str = ""  # in its source


NOISE = {
    "s_churn",
    "s_tmin",
    "s_tmax",
    "s_noise",
    "generator",
    "per_token_timesteps",
}  # of ``step``; no pipeline gives any

PIPE, FLOW = "diffusers:DiffusionPipeline", "diffusers:FlowMatchEulerDiscreteScheduler"
NAMES = [
    Name("diffusers.utils.torch_utils:is_compiled_module", "pipelines.checks", "to refuse what keeps its hooks"),
    Name("torch.nn:Module._compiled_call_impl", "pipelines.checks", "to refuse what keeps its hooks"),
    Name("diffusers.models.cache_utils:CacheMixin.is_cache_enabled", "pipelines.checks", "to refuse caches of steps"),
    Name(f"{PIPE}.hf_device_map", "pipelines.checks", "to refuse parts on several devices"),
    Name(f"{PIPE}.enable_model_cpu_offload", "pipelines.checks", "to refuse offloaded parts", says="self._all_hooks"),
    Name(f"{PIPE}.enable_sequential_cpu_offload", "pipelines.load", "to offload", frozenset({"device"})),
    Name(f"{PIPE}._execution_device", "pipelines.clone_pipeline", "which overrides it, for it is slow"),
    Name(f"{PIPE}.device", "pipelines.clone_pipeline", "which overrides it, for it is slow"),
    Name(f"{PIPE}.components", "pipelines.standin", "to find the denoiser's name"),
    Name(f"{PIPE}.load_config", "pipelines.load", "to read a pipeline's index alone"),
    Name(f"{PIPE}.from_pretrained", "pipelines.load", "to load safetensors only", says='"use_safetensors"'),
    Name(f"{PIPE}.from_pretrained", "pipelines.load", "to load in the dtype that was asked for", says="dtype"),
    Name("diffusers:FluxPipeline._unpack_latents", "pipelines.preview", "to unpack", frozenset({"vae_scale_factor"})),
    Name(f"{FLOW}.set_timesteps", "pipelines.scheduler", "which overrides it", frozenset({"sigmas", "mu", "device"})),
    Name(
        f"{FLOW}.scale_noise", "pipelines.scheduler", "which overrides it", frozenset({"sample", "timestep", "noise"})
    ),
    Name(
        "diffusers.schedulers.scheduling_flow_match_euler_discrete:FlowMatchEulerDiscreteSchedulerOutput",
        "pipelines.scheduler",
        "to answer as the stock scheduler does",
        frozenset({"prev_sample"}),
    ),
    Name("diffusers:DDIMScheduler.from_config", "pipelines.axis", "to read the betas of any diffusion scheduler"),
    Name("diffusers:DDIMScheduler", "pipelines.axis", "to read the path", says="self.final_alpha_cumprod ="),
    Name("diffusers:DDIMScheduler", "pipelines.axis", "to read the path", says="self.alphas_cumprod ="),
    # Of the class, for older versions wrap decode in a function that hides its arguments.
    Name("diffusers:AutoencoderKL", "pipelines.decode_desk", "to take its place", says="return_dict: bool = True, gen"),
    Name("diffusers:AutoencoderKL.__init__", "pipelines.decode_desk", "to size", frozenset({"block_out_channels"})),
    Name("diffusers:AutoencoderKL.__init__", "pipelines.preview", "not to cast", frozenset({"force_upcast"})),
    Name(
        "diffusers.models.autoencoders.vae:DecoderOutput", "pipelines.decode_desk", "to answer", frozenset({"sample"})
    ),
    Name("diffusers.utils:logging.disable_progress_bar", "core.progress", "to load quietly"),
    Name("transformers.utils:logging.disable_progress_bar", "core.progress", "to load quietly"),
    Name("transformers:CLIPModel.get_image_features", "rewards.clip", "to embed", frozenset({"pixel_values"})),
    Name("transformers:CLIPModel", "rewards.clip", "for the scale of PickScore", says="self.logit_scale ="),
    Name("transformers:BlipTextModel", "rewards.imagereward", "to build it bare", frozenset({"add_pooling_layer"})),
    Name("transformers:BlipTextModel.forward", "rewards.imagereward", "to encode", frozenset({"is_decoder"})),
    Name("transformers:CLIPTokenizer.from_pretrained", "tinyworld.tokenizer", "to read vocab.json and merges.txt"),
    Name("transformers:CLIPTextConfig.from_pretrained", "pipelines.sizes", "to know sizes without weights"),
    Name(
        "transformers:PreTrainedModel.from_pretrained",
        "rewards.checkpoints",
        "to refuse models with made-up weights",
        says="output_loading_info",
    ),
]


@pytest.mark.parametrize("row", NAMES, ids=lambda row: f"{row.path} {row.says}".strip())
def test_a_name(row):
    module, _, names = row.path.partition(":")
    owner, _, leaf = names.rpartition(".")
    value = found(row.path)
    there = value is not None or leaf in getattr(found(f"{module}:{owner}"), "__dict__", {})
    relied_on(there, row.path, row.by, row.why)
    if row.takes:
        lost = sorted(row.takes - parameters(value))
        relied_on(not lost, f"{', '.join(lost)} of {row.path}", row.by, row.why)
    relied_on(row.says in (source(value) if row.says else ""), f"{row.says} in {row.path}", row.by, row.why)


@pytest.mark.parametrize("name", ["set_timesteps", "step", "scale_noise"])
def test_the_scheduler_takes_what_the_stock_one_takes(name):
    stock, ours = (getattr(cls, name) for cls in (diffusers.FlowMatchEulerDiscreteScheduler, AdaptiveScheduler))
    new = sorted(parameters(stock) - parameters(ours) - NOISE)
    why = "because pipelines call ours in its place"
    relied_on(not new, f"{name} without {new}", "pipelines.scheduler.AdaptiveScheduler", why)


@pytest.mark.parametrize("name", FLOW_FAMILIES)
def test_the_config_of_a_flow_scheduler(name):
    scheduler = tiny_pipe(name).scheduler
    relied_on("num_train_timesteps" in scheduler.config, "num_train_timesteps", "pipelines.axis", "to scale times")


def test_a_module_has_no_attribute_that_a_clone_would_miss():
    """``shallow_clone`` copies these dictionaries of a module and shares everything else."""
    kept = {name for name, value in vars(nn.Module()).items() if isinstance(value, dict)}
    known = {"_parameters", "_buffers", "_modules"}
    new = {name for name in kept - known if "hook" not in name}
    relied_on(
        known <= kept and not new, f"nn.Module with {sorted(kept)}", "pipelines.standin.shallow_clone", "to copy one"
    )
