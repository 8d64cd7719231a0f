"""A model folder lacks its tokenizer's vocabulary, or the tokenizer's folder.

transformers creates an empty tokenizer without a message. Every prompt then gives the same image.
https://github.com/vllm-project/vllm/issues/4493
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from tests.support.tiny_sd3 import make_tokenizer
from tests.support.tiny_texts import make_speaking_pipe
from tpdm.core.errors import BackboneError
from tpdm.core.vocabulary import vocabulary_fault
from tpdm.pipelines.loading import components
from tpdm.pipelines.loading.components import _check_tokenizer
from tpdm.pipelines.loading.load import load_pipeline
from tpdm.pipelines.loading.model_index import read_index

FAMILIES = (
    ("SD1.5", None),
    ("SDXL", None),
    ("SD3", None),
    ("FLUX.1 dev", "T5Tokenizer"),
    ("FLUX.2", "LlamaTokenizer"),
    ("Qwen-Image", "Qwen2Tokenizer"),
    ("Sana", "GemmaTokenizer"),
    ("Lumina2", "GemmaTokenizer"),
    ("Z-Image", "Qwen2Tokenizer"),
    ("Wan 2.1", "T5Tokenizer"),
    ("PixArt-Sigma", "T5Tokenizer"),
)


def refusal(folder: Path) -> str:
    with pytest.raises(BackboneError) as caught:
        load_pipeline(folder, device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3")
    make_speaking_pipe("SD3", folder / "letters").save_pretrained(folder / "whole")
    return folder / "whole"


@pytest.fixture
def copy(sd3, tmp_path):
    return Path(shutil.copytree(sd3, tmp_path / "copy"))


@pytest.mark.parametrize(("family", "cls"), FAMILIES)
def test_a_tokenizer_of_any_family_without_its_files_is_refused(family: str, cls: str | None, tmp_path: Path) -> None:
    make_speaking_pipe(family, tmp_path / "letters").save_pretrained(tmp_path / "pipe")
    load_pipeline(tmp_path / "pipe", device="cpu")  # a vocabulary of letters is one
    place = sorted((tmp_path / "pipe").glob("tokenizer*"))[-1]
    index = json.loads((tmp_path / "pipe/model_index.json").read_text())
    cls = cls or index[place.name][1]
    for file in place.iterdir():
        file.unlink()
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": cls, "model_max_length": 64}))
    (tmp_path / "pipe/model_index.json").write_text(json.dumps({**index, place.name: ["transformers", cls]}))
    said = refusal(tmp_path / "pipe")
    assert str(place) in said
    # Older transformers ask for a package first where the class needs one.
    assert "vocabulary" in said or "SentencePiece" in said
    assert any(word in said for word in ("tokenizer.json", "merges.txt", "SentencePiece"))


def test_the_missing_files_are_named(copy: Path) -> None:
    for file in ("tokenizer.json", "vocab.json", "merges.txt"):  # versions of transformers save one kind or the other
        (copy / "tokenizer_2" / file).unlink(missing_ok=True)
    assert refusal(copy).endswith("merges.txt and vocab.json.")


def test_a_missing_tokenizer_folder_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer_2")
    assert f"tokenizer_2 is missing in {copy}" in refusal(copy).replace("/tokenizer_config.json", "")


def test_a_tokenizer_without_its_config_is_refused(copy: Path) -> None:
    (copy / "tokenizer/tokenizer_config.json").unlink()
    assert f"tokenizer_config.json is missing in {copy}/tokenizer" in refusal(copy)


def test_the_tokenizer_of_another_model_is_refused(copy: Path) -> None:
    path = copy / "text_encoder/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "vocab_size": 49408}))
    assert "has 54 tokens where its model knows 49408" in refusal(copy)


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_a_partial_vocabulary_is_refused(file: str, copy: Path) -> None:
    for path in (copy / "tokenizer").glob("tokenizer.json"):
        path.unlink()
    make_tokenizer(copy / "tokenizer")
    load_pipeline(copy, device="cpu")
    (copy / "tokenizer" / file).write_bytes(b"")
    assert file in refusal(copy)
    (copy / "tokenizer" / file).unlink()
    assert str(copy / "tokenizer") in refusal(copy)


def test_the_package_that_reads_the_vocabulary_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5 asks for another one, which does not help."""
    monkeypatch.setattr(components, "distributions", lambda name: ["there"] if name == "protobuf" else [])
    for file in (copy / "tokenizer").iterdir():
        file.unlink()
    (copy / "tokenizer/tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    (copy / "tokenizer/spiece.model").write_bytes(b"pieces")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "tokenizer": ["transformers", "T5Tokenizer"]}))
    said = refusal(copy)
    assert said.endswith("pip install sentencepiece.") or "requires the SentencePiece library" in said


def test_the_tokenizer_of_a_processor_is_checked(copy: Path) -> None:
    empty = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(copy / "tokenizer"))
    index = read_index(copy)
    _check_tokenizer(index, "tokenizer", empty, ["text_encoder"])
    empty.tokenizer = AutoTokenizer.from_pretrained(make_wide(copy))
    with pytest.raises(BackboneError, match="has 55 tokens where its model knows 54"):
        _check_tokenizer(index, "tokenizer", empty, ["text_encoder"])
    _check_tokenizer(index, "tokenizer", empty, [])  # what encodes nothing is not looked at


def make_wide(copy: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(copy / "tokenizer")
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(copy / "wide")
    return copy / "wide"


def test_without_a_known_vocabulary_size_texts_must_differ(copy: Path) -> None:
    class Empty:
        def __call__(self, text, add_special_tokens):
            return SimpleNamespace(input_ids=[2] * len(text.split()))

    assert vocabulary_fault(Empty(), None) == "gives different texts the same tokens"
    assert vocabulary_fault(AutoTokenizer.from_pretrained(copy / "tokenizer"), None) is None
