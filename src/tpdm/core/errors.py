"""Errors of tpdm, and which of them a user can correct."""

from __future__ import annotations

from typing import Any


class TpdmError(Exception):
    """Base of every error that a user can mend. The message is one sentence: got, expected, what to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _same_error, (type(self), self.args, vars(self))


def _same_error(cls: type[TpdmError], args: tuple[Any, ...], state: dict[str, Any]) -> TpdmError:
    """From what pickle and copy keep; some of these classes take more than the message."""
    error = cls.__new__(cls, *args)
    vars(error).update(state)
    return error


class ConfigError(TpdmError):
    """A recipe, an override or an argument is wrong."""


class CheckpointError(TpdmError):
    """A TPM folder cannot be read, or does not fit the backbone."""


class BackboneError(TpdmError):
    """A pipeline cannot be driven (unknown denoiser class, unsupported option)."""


class PromptError(TpdmError):
    """A prompt or a prompt file is unusable."""


class RewardError(TpdmError):
    """A reward failed, or returned NaN or the wrong number of values."""


class TrainingError(TpdmError):
    """Training cannot go on (collapse, NaN, unusable checkpoint)."""


class NonFiniteError(BackboneError, TrainingError):
    """NaN, infinity or an impossible time that one image is to blame for.

    Args:
        message: what was found.
        image: its row in the call.
    """

    def __init__(self, message: str, image: int) -> None:
        super().__init__(message)
        self.image = image

    def with_prompt(self, prompt: str, seed: int) -> NonFiniteError:
        """The same, with what to make that image again from."""
        said, line = str(self).rstrip("."), " ".join(prompt.split())
        return NonFiniteError(f"{said}; it is made of prompt '{line[:80]}' with seed {seed}.", self.image)
