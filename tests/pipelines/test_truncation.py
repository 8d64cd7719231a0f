"""Truncated prompts are counted and logged once."""

import logging
from types import SimpleNamespace

import pytest

from tests.support.tiny_sd3 import make_tiny_sd3
from tpdm.data.truncation import Truncation
from tpdm.pipelines.loading.load import call_defaults, load_pipeline
from tpdm.pipelines.truncation import count_truncated
from tpdm.rewards.loading import load_reward
from tpdm.training.build import warn_truncated_prompts


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return make_tiny_sd3(tmp_path_factory.mktemp("sd3"))


def test_every_text_encoder_is_checked(sd3):
    """The letters' tokenizer reads twelve tokens, two of them the special ones."""
    prompts = ["abcdefghij", "abcdefghijk", "a" * 5000]
    expected = [Truncation(f"{name} of the pipeline", 12, 2) for name in ("tokenizer", "tokenizer_2")]
    assert count_truncated(sd3, {}, prompts) == expected
    assert count_truncated(sd3, {"max_sequence_length": 3}, prompts) == expected  # of T5 alone
    assert [entry.prompts for entry in count_truncated(sd3, {}, [])] == [0, 0]


class Other:
    """A tokenizer of words that is no CLIP's, as T5's is to a pipeline."""

    model_max_length = 10**30

    def __call__(self, texts, truncation, verbose):
        assert (truncation, verbose) == (False, False)

        return SimpleNamespace(input_ids=[text.split() for text in texts])


def test_max_sequence_length_limits_other_encoders(sd3, monkeypatch):
    monkeypatch.setattr(type(sd3), "components", {"tokenizer_3": Other()})
    prompts = ["a b c", "a b c d", "a " * 300]
    assert count_truncated(sd3, {"max_sequence_length": 3}, prompts) == [
        Truncation("tokenizer_3 of the pipeline", 3, 2)
    ]
    assert count_truncated(sd3, {}, prompts) == [Truncation("tokenizer_3 of the pipeline", 256, 1)]  # SD3's own default


def test_each_text_encoder_is_logged_once(caplog):
    pipe, reward = load_pipeline("tinyworld", device="cpu"), load_reward("tinyworld")
    with caplog.at_level(logging.WARNING):
        warn_truncated_prompts(pipe, call_defaults("tinyworld"), reward, ["red circle", "red circle " * 500])
    readers = ("tokenizer of the pipeline", "tokenizer_2 of the pipeline", "reward 'tinyworld'")
    assert [record.getMessage() for record in caplog.records] == [
        f"1 of 2 prompts have more than the 32 tokens that {reader} reads. Tokens beyond the limit are ignored."
        for reader in readers
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_truncated_prompts(pipe, call_defaults("tinyworld"), reward, ["red circle"])
    assert caplog.records == []
