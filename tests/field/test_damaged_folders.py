"""A damaged, incomplete or too new pipeline folder is refused with the name of the file, before weights are read.

Users saw errors of three libraries, or a text encoder whose missing weights were random.
https://github.com/huggingface/diffusers/issues/5520, https://github.com/lyogavin/airllm/issues/137
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from packaging.version import Version
from transformers import CLIPConfig, CLIPImageProcessor

from tests.support.tiny_texts import make_speaking_pipe
from tpdm.core.errors import BackboneError
from tpdm.core.io import load_tensors, save_tensors
from tpdm.pipelines.loading import components
from tpdm.pipelines.loading.load import TEXT_ENCODERS, load_pipeline, pipeline_class
from tpdm.pipelines.metadata import pipeline_sizes, read_pipeline_metadata

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
TEXT, UNET, VAE = (
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    """A folder with a safety checker, whose class is not at the top level of either library."""
    folder = tmp_path_factory.mktemp("sd15")
    pipe = make_speaking_pipe("SD1.5", folder / "letters")
    vision = {**SMALL, "image_size": 16, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, text_config=SMALL, projection_dim=16))
    looks = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    pipe.register_modules(safety_checker=checker, feature_extractor=looks)
    pipe.save_pretrained(folder / "whole")
    return folder / "whole"


@pytest.fixture
def copy(sd15, tmp_path):
    return Path(shutil.copytree(sd15, tmp_path / "copy"))


def refusal(load: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(BackboneError, match=r"^[^\n]+\. [A-Z][^\n]*\.$") as caught:
        load(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(content: bytes) -> Change:
    return lambda file: file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def lose(name: str) -> Change:
    def change(file: Path) -> None:
        tensors, facts = load_tensors(file)
        save_tensors(file, {key: value for key, value in tensors.items() if name not in key}, facts)

    return change


def reshape(file: Path) -> None:
    tensors, facts = load_tensors(file)
    save_tensors(file, {**tensors, min(tensors): torch.zeros(3, 5)}, facts)


def shard(file: Path) -> None:
    """Two shards. The second one is missing."""
    first, second = (f"{file.stem}-0000{i}-of-00002.safetensors" for i in (1, 2))
    names = list(load_tensors(file)[0])
    places = {name: first if i else second for i, name in enumerate(names)}
    file.rename(file.with_name(first))
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def rename(end: str) -> Change:
    return lambda file: file.rename(file.with_suffix(end))


def edit(old: str, new: str) -> Change:
    return lambda file: file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize("file", [TEXT, UNET, VAE, "safety_checker/model.safetensors"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, "is cut short or damaged"),
        (write(POINTER), "is a git-lfs pointer and not the file itself"),
        (write(b""), "is empty"),
        (write(b"PK\x03\x04 a pickle"), "is a pickle, which is never loaded"),
        (shard, "-00002-of-00002.safetensors, which is missing"),
    ],
)
def test_damaged_weights_of_any_part_are_refused(
    file: str, change: Change, words: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(copy / file)
    monkeypatch.setattr(components, "_load", lambda *_: pytest.fail("a part was loaded"))
    said = refusal(load_pipeline, copy, device="cpu")
    assert str(copy / file.split("/")[0]) in said
    assert words in said


@pytest.mark.parametrize(
    ("file", "lost"),
    [(TEXT, "layers.1"), (UNET, "conv_out"), (VAE, "decoder.conv_in"), ("safety_checker/model.safetensors", "embeds")],
)
def test_missing_weights_are_not_made_up(file: str, lost: str, copy: Path) -> None:
    lose(lost)(copy / file)
    said = refusal(load_pipeline, copy, device="cpu")
    assert f"{copy / file} does not contain " in said
    assert lost in said


@pytest.mark.parametrize("file", [TEXT, UNET, VAE])
def test_weights_of_another_shape_are_refused(file: str, copy: Path) -> None:
    reshape(copy / file)
    said = refusal(load_pipeline, copy, device="cpu")
    assert f"{min(load_tensors(copy / file)[0])} in {copy / file} has shape [3, 5]. It must be [" in said


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (TEXT, Path.unlink, "has no weights"),
        (
            UNET,
            rename(".bin"),
            "has only diffusion_pytorch_model.bin. Weights must be safetensors",
        ),
        ("text_encoder/config.json", Path.unlink, "config.json is missing in"),  # else that of another model is made up
        ("unet/config.json", write(b"{"), "unet/config.json, which is not valid JSON ("),
        ("unet/config.json", write(b"[]"), "unet/config.json, which is not a JSON object"),
        ("scheduler/scheduler_config.json", Path.unlink, "scheduler_config.json is missing in"),
        ("scheduler/scheduler_config.json", write(POINTER), "scheduler_config.json, which is a git-lfs pointer"),
        ("feature_extractor/preprocessor_config.json", Path.unlink, "preprocessor_config.json is missing in"),
        ("tokenizer/tokenizer_config.json", write(b"{"), "tokenizer_config.json, which is not valid JSON"),
        ("model_index.json", Path.unlink, "whose index diffusers cannot load"),
        ("model_index.json", write(b"not found"), "model_index.json, which is not valid JSON ("),
        ("model_index.json", write(b"[]"), "model_index.json, which is not a JSON object"),
        (
            "model_index.json",
            edit('"StableDiffusionPipeline"', '["mine", "Mine"]'),
            "the pipeline class ['mine', 'Mine']",
        ),
        ("model_index.json", edit('"stable_diffusion"', '"my_code"'), "code that comes with a model is never run"),
    ],
)
def test_damaged_files_of_any_kind_are_refused(file: str, change: Change, words: str, copy: Path) -> None:
    change(copy / file)
    said = refusal(load_pipeline, copy, device="cpu")
    assert words in said
    assert str(copy) in said


@pytest.mark.parametrize("part", ["text_encoder", "unet", "scheduler", "feature_extractor"])
def test_a_missing_part_folder_is_refused(part: str, copy: Path) -> None:
    shutil.rmtree(copy / part)
    assert f"{part}/" in refusal(load_pipeline, copy, device="cpu")


@pytest.mark.parametrize(
    ("old", "library"),
    [("StableDiffusionPipeline", diffusers), ("UNet2DConditionModel", diffusers), ("CLIPTextModel", transformers)],
)
def test_a_class_that_the_installed_libraries_lack_is_refused(old: str, library: Any, copy: Path) -> None:
    edit(old, "NextYearModel")(copy / "model_index.json")
    loads = [lambda place: load_pipeline(place, device="cpu"), pipeline_sizes]
    for load in loads[: 1 if old.endswith("Pipeline") else 2]:
        said = refusal(load, copy)
        assert f"NextYearModel is the class of {'the' if old.endswith('Pipeline') else ''}" in said
        assert f"{copy}/model_index.json, written by diffusers {diffusers.__version__}" in said
        assert (
            f"{library.__name__} {library.__version__} does not have it. Run pip install -U {library.__name__}" in said
        )


def test_a_part_that_needs_a_package_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any, **__: Any) -> None:
        raise ImportError("\nCLIPTokenizer requires the X library but it was not found. Look at\nits page.")

    monkeypatch.setattr(transformers.CLIPTokenizer, "from_pretrained", lacking)
    said = refusal(load_pipeline, copy, device="cpu")
    assert "needs a package that is not installed (CLIPTokenizer requires the X library but it was not found)" in said


def test_a_memory_error_is_not_reported_as_damage(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "from_pretrained", full)
    with pytest.raises(MemoryError):
        load_pipeline(copy, device="cpu")


def test_the_parts_that_are_left_out_may_be_damaged(copy: Path) -> None:
    (copy / UNET).write_bytes(b"")
    assert load_pipeline(copy, device="cpu", parts=TEXT_ENCODERS).vae is None


@pytest.mark.parametrize("reads", [read_pipeline_metadata, pipeline_sizes, pipeline_class])
def test_readers_of_configurations_report_damage(reads: Callable[[Path], Any], copy: Path) -> None:
    (copy / "vae/config.json").write_bytes(POINTER)
    if reads is not pipeline_class:
        assert f"{copy}/vae/config.json, which is a git-lfs pointer" in refusal(reads, copy)
    (copy / "model_index.json").write_text("{")
    assert "model_index.json, which is not valid JSON" in refusal(reads, copy)
    assert "is not a folder" in refusal(reads, copy / "elsewhere")


def test_files_of_a_part_may_be_next_to_the_index(copy: Path) -> None:
    for file in (copy / "text_encoder").iterdir():
        file.rename(copy / file.name)
    (copy / "text_encoder").rmdir()
    assert load_pipeline(copy, device="cpu").text_encoder is not None


def test_a_whole_folder_is_loaded_as_diffusers_loads_it(sd15: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = load_pipeline(sd15, dtype="bf16", device="cpu")
    assert "non-standard module" not in caplog.text
    keyword = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
    theirs = diffusers.DiffusionPipeline.from_pretrained(sd15, **{keyword: torch.bfloat16})
    assert dict(ours.config) == dict(theirs.config) | {"_name_or_path": str(sd15)}
    for name, part in theirs.components.items():
        mine = ours.components[name]
        assert type(mine) is type(part)
        if isinstance(part, torch.nn.Module):
            assert (part.training, part.dtype) == (mine.training, mine.dtype)
            wanted = part.state_dict()
            assert all(torch.equal(value, wanted[key]) for key, value in mine.state_dict().items())
