"""Errors of tpdm. A user can correct every error that derives from :class:`TpdmError`."""

from __future__ import annotations

from typing import Any


class TpdmError(Exception):
    """Base of all errors that a user can correct. The message says what is wrong, what is allowed and what to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, vars(self))


def _restore(cls: type[TpdmError], args: tuple[Any, ...], state: dict[str, Any]) -> TpdmError:
    """Rebuild an error for pickle and copy, without ``__init__``, because some classes take more than the message."""
    error = cls.__new__(cls, *args)
    vars(error).update(state)
    return error


class ConfigError(TpdmError):
    """A recipe, an override or an argument is wrong."""


class CheckpointError(TpdmError):
    """A TPM folder cannot be read, or does not fit the backbone."""


class BackboneError(TpdmError):
    """A pipeline cannot be used: an unknown denoiser class, or an unsupported option."""


class PromptError(TpdmError):
    """A prompt or a prompt file cannot be used."""


class RewardError(TpdmError):
    """A reward failed, or returned NaN or the wrong number of values."""


class TrainingError(TpdmError):
    """Training cannot continue, because of a collapse, NaN or an unusable checkpoint."""


class NonFiniteError(BackboneError, TrainingError):
    """NaN, infinity or an impossible time in the computation of one image.

    Args:
        message: What was wrong.
        image: Row of the image in the pipeline call.

    Example:
        >>> str(NonFiniteError("The latents are NaN.", image=0).with_prompt("a cat", seed=7))
        "The latents are NaN. The image has prompt 'a cat' and seed 7."
    """

    def __init__(self, message: str, image: int) -> None:
        super().__init__(message)
        self.image = image

    def with_prompt(self, prompt: str, seed: int) -> NonFiniteError:
        """Return a copy that names prompt and seed, so that the image can be generated again."""
        message, line = str(self).rstrip("."), " ".join(prompt.split())
        return NonFiniteError(f"{message}. The image has prompt '{line[:80]}' and seed {seed}.", self.image)
