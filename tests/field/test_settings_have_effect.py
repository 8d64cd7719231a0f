"""A setting changes the image as in the stock pipeline, or is refused.

This holds for every family of pipelines and every entry point: the Python API, ``tpdm sample``, the server's engine,
and a recipe's rollout. Users gave Qwen-Image a guidance scale, and FLUX.1 a negative prompt. Both were accepted without
effect.

https://github.com/vladmandic/sdnext/issues/4097
https://github.com/huggingface/diffusers/issues/12223
https://github.com/verl-project/verl-omni/issues/55
"""

import logging
import re
from dataclasses import dataclass
from queue import Queue

import pytest
import torch
from PIL import Image

import tpdm.pipelines.guidance
import tpdm.pipelines.loading.load
from tests.support.drawn import drawing, numbers
from tests.support.families import FAMILIES, FLOW_FAMILIES, tiny_pipe
from tests.support.tiny_texts import SPOKEN, make_speaking_pipe, spoken_arguments
from tpdm.config.loader import make_recipe
from tpdm.core.errors import TpdmError
from tpdm.data.prompts import Prompt
from tpdm.pipelines.attach import attach
from tpdm.pipelines.loading.load import pipeline_arguments
from tpdm.pipelines.time_mapping import flow_times, vp_times
from tpdm.policies.fixed import FixedSchedule
from tpdm.sampling.base import SampleRequest
from tpdm.sampling.generate import sample_to_folder
from tpdm.sampling.samplers import choose_sampler
from tpdm.serving.engine.engine import PipelineEngine
from tpdm.serving.engine.interface import Failed, ImageDone, ImageRequest
from tpdm.training.build import build_components, check_negatives

STEPS, SCALE, OFF = 2, 3.0, {"Z-Image": 0.0}  # the scale at which nothing is guided is 1 elsewhere
WITHIN = 1e-5  # of the largest value: texts are encoded, and rows computed, beside those of others


@dataclass(frozen=True)
class Takes:
    """What a family takes.

    Attributes:
        call: what ``guidance_scale`` is to the stock pipeline; None where it has no effect.
        front: what it means to ``sample``, ``serve`` and a recipe; None where they refuse it.
        true: whether ``true_cfg_scale`` acts.
        negative: whether a negative prompt acts without further words.
        length: whether there is a ``max_sequence_length``.
    """

    call: str | None = "guidance_scale"
    front: str | None = "guidance_scale"
    true: bool = False
    negative: bool = True
    length: bool = True


TAKES = {
    **{name: Takes() for name in ("SD3", "SD3.5", "Sana", "Lumina2", "Z-Image", "Wan 2.1", "PixArt-Sigma")},
    "FLUX.1 dev": Takes(true=True, negative=False),
    "FLUX.1 schnell": Takes(call=None, front=None, true=True, negative=False),
    "FLUX.2": Takes(negative=False),
    "Qwen-Image": Takes(call=None, front="true_cfg_scale", true=True),
    "SD1.5": Takes(length=False),
    "SDXL": Takes(length=False),
}
ENTRIES = {
    "call": ("guidance_scale", "true_cfg_scale", "negative_prompt", "height", "seed", "max_sequence_length"),
    "sample": ("guidance_scale", "true_cfg_scale", "negative_prompt", "seed"),
    "serve": ("guidance_scale", "true_cfg_scale", "negative_prompt", "height", "seed"),
    "recipe": ("guidance_scale", "true_cfg_scale", "negative_prompt", "height", "seed"),
}
VIDEOS = "Wan 2.1"
CALL_ALONE = (VIDEOS, "SD3.5")  # the latter is SD3 to all other entries
CASES = [
    (name, entry, setting)
    for name in TAKES
    for entry, settings in ENTRIES.items()
    if entry == "call" or name not in CALL_ALONE
    for setting in settings
]


class Ways:
    """The ways to a picture of one pipeline. Each takes what a user says, and gives flat latents or raises."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.pipe = drawing(make_speaking_pipe(name, folder / "tokens"))
        own = {k: v for k, v in FAMILIES[name].call.items() if k != "negative_prompt"}
        spoken = spoken_arguments(name)
        self.base = own | {k: spoken[k] for k in spoken if k in SPOKEN.get(name, {}) or k == "max_sequence_length"}
        self.found, self.plain, self.engine = {}, {}, None
        self.stock()
        self.pipe.save_config(folder / "pipe")
        part = "transformer" if "transformer" in self.pipe.components else "unet"
        self.pipe.components[part].save_config(folder / "pipe" / part)

    def close(self):
        if self.engine is not None:
            self.engine.close()

    def stock(self, seed=0, **arguments):
        """The untouched pipeline, whose times are those of the other ways from now on."""
        key = repr((seed, sorted(arguments.items())))
        if key not in self.found:
            call = {**self.base, "prompt": ["cat"], **arguments, "generator": [torch.Generator().manual_seed(seed)]}
            latents = self.pipe(**call, num_inference_steps=STEPS, output_type="latent")[0].flatten()
            scheduler = self.pipe.scheduler
            times = flow_times(scheduler) if self.name in FLOW_FAMILIES else vp_times(scheduler, STEPS)
            self.found[key] = latents, times
        latents, self.times = self.found[key]
        return latents

    def call(self, seed=0, negative_prompt=None, **said):
        texts = {"prompt": ["cat"], "negative_prompt": None if negative_prompt is None else [negative_prompt]}
        texts = {k: v for k, v in texts.items() if v is not None}
        driven = attach(self.pipe, FixedSchedule(self.times), defaults=self.base)
        return driven(**texts, **said, seeds=[seed], output_type="latent").images.flatten()

    def sample(self, seed=0, negative_prompt=None, **said):
        """With a policy and without: the same picture, or a sentence from both."""
        stock, errors = self._sampled(None, seed, negative_prompt, num_inference_steps=STEPS, **said)
        policy, others = self._sampled(FixedSchedule(self.times), seed, negative_prompt, **said)
        assert len(errors) == len(others)
        for error in (*errors, *others):
            raise error
        assert torch.equal(stock, policy)
        return policy

    def _sampled(self, policy, seed, negative, **said):
        try:
            sample_to_folder("a/b", policy, [Prompt("cat", negative)], seed, self.folder, defaults=self.base, **said)
        except TpdmError as error:
            return None, [error]
        with Image.open(self.folder / "0000.png") as image:
            return numbers(image), []

    def serve(self, seed=0, negative_prompt=None, height=None, **said):
        size = {} if height is None else {"height": height, "width": self.base["width"]}
        return numbers(self.served(ImageRequest("cat", seed, negative_prompt, **size, **said)).image)

    def served(self, request):
        if self.engine is None:
            self.engine = PipelineEngine(self.pipe, None, slots=2, queue_limit=4, defaults=self.base)
        events = Queue()
        self.engine.submit(ImageRequest(**{**vars(request), "num_inference_steps": STEPS}), events.put)
        while not isinstance(event := events.get(timeout=30), ImageDone):
            if isinstance(event, Failed):
                raise event.error
        return event

    def recipe(self, seed=0, negative_prompt=None, height=None, **said):
        size = {} if height is None else {"height": height, "width": self.base["width"]}
        backbone = {"name_or_path": str(self.folder / "pipe"), "device": "cpu", **size, **said}
        recipe = make_recipe({"name": "a", "output": "a", "backbone": backbone})
        check_negatives(recipe, [Prompt("cat", negative_prompt)])
        driven = attach(self.pipe, FixedSchedule(self.times))
        sampler = choose_sampler(recipe, driven, pipeline_arguments(recipe.backbone), None)
        avoided = None if negative_prompt is None else [negative_prompt]
        return sampler(SampleRequest(["cat"], [seed], negatives=avoided)).images_B3HW.flatten()

    def without(self, entry):
        """The picture where nothing is said."""
        if entry not in self.plain:
            self.stock()
            self.plain[entry] = getattr(self, entry)()
        return self.plain[entry]


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    """name -> its ways; one pipeline at a time is where they are loaded from."""
    made = {}

    def find(name):
        if name not in made:
            made[name] = Ways(name, tmp_path_factory.mktemp("ways"))
        patch.setattr(tpdm.pipelines.loading.load, "load_pipeline", lambda *names: made[name].pipe)
        patch.setattr(tpdm.pipelines.loading.load, "call_defaults", lambda name_or_path: dict(made[name].base))
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        yield find
    for way in made.values():
        way.close()


def expected(ways, entry, setting):
    """What the user says, and the stock pipeline's arguments that it is to be; None where it is to be refused."""
    takes, here = TAKES[ways.name], entry == "call"
    if setting == "guidance_scale":
        name = takes.call if here else takes.front
        texts = {"negative_prompt": [""]} if name == "true_cfg_scale" else {}
        return {setting: SCALE}, {name: SCALE, **texts} if name else None
    if setting == "true_cfg_scale":
        # The API has the stock pipeline's own arguments; elsewhere no negative prompt is the empty one.
        texts = {"negative_prompt": "dull"} if here else {}
        stock = {setting: SCALE, "negative_prompt": [texts.get("negative_prompt", "")]}
        return {setting: SCALE, **texts}, stock if takes.true else None
    if setting == "negative_prompt":
        return {setting: "dull"}, {setting: ["dull"]} if takes.negative else None
    if setting == "max_sequence_length":
        return {setting: 3}, {setting: 3} if takes.length else None
    value = {"height": 2 * ways.base["height"], "seed": 5}[setting]
    return {setting: value}, {setting: value}


@pytest.mark.parametrize(("name", "entry", "setting"), CASES)
def test_a_setting_acts_as_in_the_stock_pipeline_or_is_refused(ways, name, entry, setting):
    way = ways(name)
    said, stock = expected(way, entry, setting)
    if stock is None:
        with pytest.raises(TpdmError) as caught:
            getattr(way, entry)(**said)
        assert "\n" not in str(caught.value)
        assert any(re.search(rf"(^|: |has no argument )(got )?{word}\b", str(caught.value)) for word in said), str(
            caught.value
        )
        return
    plain, wanted, found = way.without(entry), way.stock(**stock), getattr(way, entry)(**said)
    assert (found - wanted).abs().max().item() <= WITHIN * max(1.0, wanted.abs().max().item())
    assert found.shape != plain.shape or (found - plain).abs().max().item() > 100 * WITHIN


@pytest.mark.parametrize(("name", "entry"), sorted({(n, e) for n, e, _ in CASES if TAKES[n].negative or TAKES[n].true}))
def test_a_negative_prompt_without_guidance_is_logged(ways, name, entry, caplog):
    """It is a warning, because users who compare scales keep their prompts."""
    way, scale = ways(name), "true_cfg_scale" if TAKES[name].true else "guidance_scale"
    tpdm.pipelines.guidance._warn_once.cache_clear()  # once is enough, in a process
    off = {scale: OFF.get(name, 1.0), "negative_prompt": "dull"}
    with caplog.at_level(logging.WARNING, "tpdm"):
        found = getattr(way, entry)(**off)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("tpdm")]
    sentence = f"negative_prompt has no effect at {scale}={OFF.get(name, 1):g}. "
    assert all(sentence in line for line in said)
    assert said
    wanted = way.stock(**{scale: off[scale]})
    assert (found - wanted).abs().max().item() <= WITHIN * max(1.0, wanted.abs().max().item())
    if entry == "serve":
        [warning] = way.served(ImageRequest("cat", 0, **off)).warnings
        assert warning.startswith(sentence)


@pytest.mark.parametrize("name", [name for name, takes in TAKES.items() if takes.true])
def test_a_negative_prompt_and_its_scale_act_together(ways, name):
    way, said = ways(name), {"true_cfg_scale": SCALE, "negative_prompt": "dull"}
    wanted = way.stock(true_cfg_scale=SCALE, negative_prompt=["dull"])
    for entry in ENTRIES:
        found = getattr(way, entry)(**said)
        assert (found - wanted).abs().max().item() <= WITHIN * max(1.0, wanted.abs().max().item())


@pytest.mark.parametrize("name", [name for name, takes in TAKES.items() if takes.true])
def test_a_scale_that_needs_a_negative_prompt_is_refused_without_one(ways, name):
    way = ways(name)
    with pytest.raises(TpdmError, match=r"true_cfg_scale is 3 without a negative prompt"):
        way.call(true_cfg_scale=SCALE)
    # As in the stock pipeline, an empty one is one.
    wanted = way.stock(true_cfg_scale=SCALE, negative_prompt=[""])
    assert torch.equal(way.call(true_cfg_scale=SCALE, negative_prompt=""), wanted)


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry != "call"])
def test_two_names_of_one_scale_are_refused_together(ways, entry):
    with pytest.raises(TpdmError, match=r"guidance_scale is 2 and true_cfg_scale is 3"):
        getattr(ways("Qwen-Image"), entry)(guidance_scale=2.0, true_cfg_scale=3.0)


@pytest.mark.parametrize("entry", ENTRIES)
def test_both_scales_of_flux_act_at_once(ways, entry):
    way, said = ways("FLUX.1 dev"), {"guidance_scale": 2.0, "true_cfg_scale": 3.0, "negative_prompt": "dull"}
    wanted = way.stock(**{**said, "negative_prompt": ["dull"]})
    assert (getattr(way, entry)(**said) - wanted).abs().max().item() <= WITHIN * max(1.0, wanted.abs().max().item())


def test_pipelines_of_videos_are_refused(monkeypatch, tmp_path):
    pipe = tiny_pipe(VIDEOS)
    monkeypatch.setattr(tpdm.pipelines.loading.load, "load_pipeline", lambda *names: pipe)
    monkeypatch.setattr("tpdm.training.build.load_backbone", lambda *names: pipe)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join("abcdefgh"))
    values = {"prompts": {"source": str(prompts), "held_out_fraction": 0.5}, "backbone": {"device": "cpu"}}
    recipe = make_recipe({"name": "a", "output": str(tmp_path), **values})
    for make in (
        lambda: sample_to_folder("a/b", FixedSchedule([1.0, 0.0]), ["cat"], 0, tmp_path),
        lambda: sample_to_folder("a/b", None, ["cat"], 0, tmp_path),
        lambda: PipelineEngine(pipe, None, slots=1, queue_limit=1),
        lambda: build_components(recipe, tmp_path),
    ):
        with pytest.raises(TpdmError, match=r"WanPipeline generates videos\. A pipeline of images is needed"):
            make()
