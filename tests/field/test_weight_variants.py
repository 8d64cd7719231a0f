"""Weights of a variant can be loaded, also if a repository has no others.

https://github.com/huggingface/diffusers/issues/2719
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from typer.testing import CliRunner

from tests.support.tiny_sd3 import make_tiny_sd3
from tpdm.cli import app
from tpdm.config.loader import make_recipe
from tpdm.config.model import BackboneConfig
from tpdm.core.errors import BackboneError
from tpdm.evaluation.tasks import fingerprint
from tpdm.pipelines.loading.load import NO_TEXT_ENCODERS, load_backbone, load_pipeline
from tpdm.pipelines.loading.weight_files import variant_of, variants
from tpdm.sampling.prompt_embeddings import EmbeddingStore
from tpdm.training.run_identity import run_identity

NAMED = r"only weights of the variant fp16\. .* Pass variant='fp16' \(--variant fp16, backbone\.variant=fp16\)"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    make_tiny_sd3(folder / "letters").save_pretrained(folder / "pipe")
    return folder / "pipe"


@pytest.fixture
def half(plain, tmp_path):
    copy = Path(shutil.copytree(plain, tmp_path / "half"))
    for file in copy.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    return copy


def test_the_named_variant_is_read(plain: Path, half: Path) -> None:
    there, asked = load_pipeline(plain, device="cpu"), load_pipeline(half, device="cpu", variant="fp16")
    for name in ("transformer", "vae", "text_encoder"):
        wanted = there.components[name].state_dict()
        assert all(torch.equal(value, wanted[key]) for key, value in asked.components[name].state_dict().items())


def test_the_error_names_the_available_variant(half: Path) -> None:
    with pytest.raises(BackboneError, match=NAMED):
        load_pipeline(half, device="cpu")


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_parts_without_the_variant_use_plain_files_as_in_diffusers(part: str, plain: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    for file in (copy / part).glob("*.safetensors"):
        shutil.copy(file, file.with_suffix(".fp16.safetensors"))
        file.write_bytes(b"")  # not read
    load_pipeline(copy, device="cpu", variant="fp16")
    with pytest.raises(BackboneError, match="which is empty"):
        load_pipeline(copy, device="cpu")


def test_a_missing_variant_is_refused(half: Path, plain: Path) -> None:
    with pytest.raises(BackboneError, match=r"variant is 'bf16' for '.*half'\. It must be one of fp16\. Correct it"):
        load_pipeline(half, device="cpu", variant="bf16")
    with pytest.raises(BackboneError, match=r"variant is 'fp16' for '.*'\. This pipeline has no variants"):
        load_pipeline(plain, device="cpu", variant="fp16")
    with pytest.raises(BackboneError, match=r"variant is 'fp16' for 'tinyworld'\. This pipeline has no variants"):
        load_pipeline("tinyworld", device="cpu", variant="fp16")


def test_a_recipe_names_a_variant(half: Path, tmp_path: Path) -> None:
    config = BackboneConfig(str(half), variant="fp16", device="cpu")
    assert load_backbone(config, "cpu", NO_TEXT_ENCODERS).text_encoder is None
    store = EmbeddingStore.of(tmp_path, config, {})
    assert store.encoder == f"{half} of the variant fp16 in fp32"
    assert EmbeddingStore.of(tmp_path, BackboneConfig(str(half)), {}).encoder == f"{half} in fp32"  # as it ever was


def test_older_runs_and_evaluations_without_the_key_resume() -> None:
    class NoTask:
        prompts = negatives = seeds = ()
        reward = None

    before, now = make_recipe({"name": "x"}), make_recipe({"name": "x", "backbone": {"variant": "fp16"}})
    assert "backbone.variant" not in run_identity(before, [], [])
    assert run_identity(now, [], [])["backbone.variant"] == "fp16"
    task: Any = NoTask()
    assert "variant" not in fingerprint(before, task, task)["backbone"]
    assert fingerprint(now, task, task)["backbone"]["variant"] == "fp16"
    assert asdict(before)["backbone"]["variant"] is None


def test_the_command_line_names_a_variant(half: Path, tmp_path: Path) -> None:
    words = ["sample", "--backbone", str(half), "--prompt", "abc", "--num-inference-steps", "1", "--device", "cpu"]
    refused = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert refused.exit_code == 2
    assert "Pass variant='fp16' (--variant fp16" in refused.output
    taken = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out"), "--variant", "fp16"])
    assert taken.exit_code == 0, taken.output


def test_the_variants_of_a_repository_are_read_from_its_file_names(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers refuses to download it, with a list of all its files."""
    files = [path.relative_to(half).as_posix() for path in half.glob("**/*") if path.is_file()]

    def fetch(name: str, **options: Any) -> str:
        assert options["use_safetensors"]
        if options["variant"] == "fp16":
            return str(half)
        raise OSError(f"Could not find the necessary weights in {files}")

    load_config = diffusers.DiffusionPipeline.load_config

    def load(name: Any, **options: Any) -> Any:
        return load_config(half if name == "me/half" else name, **options)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", fetch)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", load)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name: files)
    with pytest.raises(BackboneError, match=rf"^\w+ of 'me/half' has {NAMED}"):
        load_pipeline("me/half", device="cpu")
    with pytest.raises(BackboneError, match=r"variant is 'bf16' for 'me/half'\. It must be one of fp16"):
        load_pipeline("me/half", device="cpu", variant="bf16")
    assert load_pipeline("me/half", device="cpu", variant="fp16").name_or_path == "me/half"
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name: 1 / 0)
    with pytest.raises(BackboneError, match=r"'me/half' cannot be downloaded from the Hub \(Could not find"):
        load_pipeline("me/half", device="cpu")


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("model.safetensors", ""),
        ("diffusion_pytorch_model.safetensors", ""),
        ("model.fp16.safetensors", "fp16"),
        ("model.fp16-00001-of-00002.safetensors", "fp16"),
        ("model-00001-of-00002.fp16.safetensors", "fp16"),
        ("model-00001-of-00002.safetensors", ""),
        ("model.safetensors.index.json", ""),
        ("diffusion_pytorch_model.safetensors.index.fp16.json", "fp16"),
        ("pytorch_model.bin", None),
        ("config.json", None),
        ("model.onnx", None),
    ],
)
def test_names_of_weight_files(name: str, variant: str | None) -> None:
    assert variant_of(name) == variant
    assert variants([name]) == ([variant] if variant else [])
