"""The log contains errors and their causes, and prompts only if they are logged."""

import logging
import queue

import pytest
import torch

from tpdm.core.errors import BackboneError
from tpdm.serving.engine.engine import make_engine
from tpdm.serving.engine.interface import ImageRequest, StepEvent
from tpdm.serving.process import LIBRARIES, describe

SECRET = "".join(["dar", "ling"])  # not in the frames, which show this source


def last(engine, prompt):
    events = queue.Queue()
    engine.submit(ImageRequest(prompt, 0, num_inference_steps=1), events.put)
    while isinstance(event := events.get(timeout=30), StepEvent):
        pass
    return event


@pytest.fixture
def said():
    """Messages of the libraries, whose loggers are as they were afterwards."""
    messages, loggers = [], [logging.getLogger(name) for name in LIBRARIES]
    levels, handler = [logger.level for logger in loggers], logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
    yield messages
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def as_it_is(monkeypatch):
    """The arenas of this process, which is there for other tests too."""
    monkeypatch.setattr("tpdm.serving.engine.engine.limit_malloc_arenas", lambda: None)


@pytest.mark.parametrize("log_prompts", [True, False])
def test_libraries_quote_prompts_only_if_prompts_are_logged(said, log_prompts):
    engine = make_engine("tinyworld", None, slots=1, device="cpu", log_prompts=log_prompts)
    try:
        last(engine, "red circle " * 40 + SECRET)
    finally:
        engine.close()
    assert any(SECRET in message for message in said) == log_prompts


def test_an_error_of_the_engine_is_logged_without_its_message(said, caplog):
    engine = make_engine("tinyworld", None, slots=1, device="cpu")
    pipe = engine._shared.pipe

    def fail(*args):
        raise RuntimeError(f"cannot read {SECRET}")

    def hungry(*args):
        raise torch.OutOfMemoryError(f"out of memory, {SECRET}")

    try:
        for part, hook, name in (
            (pipe.text_encoder, fail, "RuntimeError"),
            (pipe.transformer, hungry, "BackboneError"),
        ):
            caplog.clear()
            handle = part.register_forward_pre_hook(hook)
            assert type(last(engine, "red circle").error).__name__ == name
            handle.remove()
            (record,) = caplog.records
            assert name in record.getMessage()
            assert SECRET not in caplog.text
        assert "OutOfMemoryError" in caplog.text
        engine.submit(ImageRequest("red circle", 0, num_inference_steps=1), fail)
        assert engine.drain(20)
    finally:
        engine.close()
    assert "the listener of request" in caplog.text
    assert SECRET not in caplog.text


def test_an_error_is_described_with_its_causes():
    try:
        try:
            raise torch.OutOfMemoryError("here")
        except torch.OutOfMemoryError as cause:
            raise BackboneError("there") from cause
    except BackboneError as error:
        error.__cause__.__cause__ = error  # it would go round for ever
        plain, whole = describe(error), describe(error, with_message=True)
    assert plain.index("BackboneError\n") < plain.index("caused by OutOfMemoryError\n")
    assert plain.count("in test_an_error_is_described") == 2
    assert "BackboneError: there" in whole
    assert "OutOfMemoryError: here" in whole
