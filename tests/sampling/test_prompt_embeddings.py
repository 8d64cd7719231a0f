"""Every family makes the same images from a saved folder, and from prompt embeddings computed before."""

import pytest
import torch

from tests.support.families import FAMILIES, FLOW_FAMILIES
from tests.support.tiny_texts import make_speaking_pipe, spoken_arguments
from tpdm.core.errors import BackboneError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.guidance import Guidance
from tpdm.pipelines.loading.load import load_pipeline
from tpdm.pipelines.time_mapping import flow_times, vp_times
from tpdm.policies.fixed import FixedSchedule
from tpdm.sampling.prompt_embeddings import ENCODED, EmbeddingStore

NAMES = [name for name in FAMILIES if not name.endswith("v-prediction")]
PROMPTS = ["a red cat", "blue"]
NEGATIVES = ["dull", "bad art"]
LISTS = [[1.0, 0.4, 0.0], [1.0, 0.9, 0.6, 0.0]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder of the saved pipeline, made once for all tests."""
    made = {}

    def folder(name):
        if name not in made:
            place = tmp_path_factory.mktemp("family")
            make_speaking_pipe(name, place / "tokens").save_pretrained(place / "pipe")
            made[name] = place / "pipe"
        return made[name]

    return folder


def load(folder, parts="all"):
    pipe = load_pipeline(folder, device="cpu", parts=parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def store_of(name, pipe, folder):
    arguments = spoken_arguments(name)
    kept = {k: v for k, v in arguments.items() if k != "output_type"}
    return EmbeddingStore(folder, type(pipe).__name__, "tiny", kept), arguments


def with_negatives(name):
    """Negative prompts, where the family's pipeline guides."""
    return {"negative_prompt": NEGATIVES} if FAMILIES[name].guided else {}


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_from_disk_with_plain_prompts_is_the_stock_one(name, folders):
    pipe = load(folders(name))
    call = {**spoken_arguments(name), **with_negatives(name), "prompt": PROMPTS}
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    expected = pipe(**call, num_inference_steps=3, generator=seeds)[0]
    times = flow_times(pipe.scheduler) if name in FLOW_FAMILIES else vp_times(pipe.scheduler, 3)
    output = attach(pipe, FixedSchedule(times))(**call, seeds=[0, 1])
    assert (output.images - expected).abs().max().item() == 0.0
    assert output.steps == [len(times) - 1] * 2


@pytest.mark.parametrize("name", NAMES)
def test_several_images_of_one_prompt(name, folders):
    pipe = load(folders(name))
    count = "num_videos_per_prompt" if name.startswith("Wan") else "num_images_per_prompt"
    call = {**spoken_arguments(name), **with_negatives(name), "prompt": PROMPTS, count: 2}
    seeds = [torch.Generator().manual_seed(seed) for seed in range(4)]
    expected = pipe(**call, num_inference_steps=3, generator=seeds)[0]
    times = flow_times(pipe.scheduler) if name in FLOW_FAMILIES else vp_times(pipe.scheduler, 3)
    output = attach(pipe, FixedSchedule(times))(**call, seeds=range(4))
    assert output.steps == [len(times) - 1] * 4
    assert (output.images - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_precomputed_embeddings_give_the_same_images_without_the_encoders(name, negatives, folders, tmp_path):
    avoided = with_negatives(name) if negatives else {}
    texts = list(zip(PROMPTS, avoided.get("negative_prompt", [None] * 2), strict=True))
    whole = load(folders(name))
    store, arguments = store_of(name, whole, tmp_path)
    if not negatives and Guidance.of(whole).entry.against_negative:
        arguments.pop("true_cfg_scale", None)  # it would have no effect
    spoken = {"prompt": PROMPTS, **avoided}
    expected = attach(whole, FixedSchedule(LISTS))(**spoken, **arguments, seeds=[0, 1])

    store.add(load(folders(name), "text encoders"), texts)
    bare = load(folders(name), "all but text encoders")
    assert all(part is None for key, part in bare.components.items() if key.startswith("text_encoder"))
    call = {**arguments, **store.call(texts, "cpu")}
    output = attach(bare, FixedSchedule(LISTS))(**call, seeds=[0, 1])
    assert output.steps == expected.steps
    scale = max(1.0, expected.images.abs().max().item())
    assert (output.images - expected.images).abs().max().item() <= FAMILIES[name].tolerance * scale


def test_every_prompt_is_encoded_once(folders, tmp_path):
    pipe = load(folders("SD3"))
    store, _ = store_of("SD3", pipe, tmp_path)
    rows = []
    pipe.text_encoder.register_forward_hook(lambda module, args, output: rows.append(len(output[0])))
    store.add(pipe, [("a", "bad"), ("b", "bad"), ("a", "bad")])
    assert rows == [1, 1, 1]
    assert len(list(tmp_path.iterdir())) == 3  # two prompts, one negative prompt
    again, _ = store_of("SD3", pipe, tmp_path)
    assert again.missing([("a", "bad"), ("b", None), ("c", "bad")]) == [("b", None), ("c", "bad")]


def test_embeddings_depend_on_weights_and_arguments(tmp_path, folders):
    pipe = load(folders("SD3"))
    store, _ = store_of("SD3", pipe, tmp_path)
    store.add(pipe, [("a", None)])
    assert store.missing([("a", None)]) == []
    for encoder, arguments in (("another", store.arguments), ("tiny", {**store.arguments, "max_sequence_length": 5})):
        assert EmbeddingStore(tmp_path, store.pipeline, encoder, arguments).missing([("a", None)]) == [("a", None)]


def test_every_pipeline_of_the_families_is_in_the_table():
    from tests.support.families import tiny_pipe

    assert {type(tiny_pipe(name)).__name__ for name in NAMES} == set(ENCODED)


def test_a_pipeline_that_is_not_in_the_table_is_refused(tmp_path):
    with pytest.raises(BackboneError, match=r"is OddPipeline\. .*backbone\.precompute_prompt_embeddings to false"):
        EmbeddingStore(tmp_path, "OddPipeline", "tiny", {})
