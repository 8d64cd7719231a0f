"""A full disk: one error, an intact checkpoint, and a run that resumes."""

import errno
import os
import resource
from contextlib import contextmanager

import pytest

from tests.support.interrupted import InterruptingReward, files, run
from tpdm.core.errors import TrainingError
from tpdm.training.train import translate_disk_full


@contextmanager
def no_file_larger_than(size: int):
    """What a full disk is to the writer of one file: part of it is written, then an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, InterruptingReward(7))  # after the checkpoint of update 4
    good = files(tmp_path / "checkpoints" / "update-000004")
    room = (
        whole / "checkpoints" / "update-000010" / "policy.safetensors"
    ).stat().st_size + 100  # not for the optimizer
    refused = pytest.raises(TrainingError, match=r"The disk of .* is full .*resumes from")
    with refused as caught, no_file_larger_than(room), translate_disk_full(tmp_path):
        run(tmp_path)
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["update-000004"]
    assert files(tmp_path / "checkpoints" / "update-000004") == good
    run(tmp_path)
    assert files(tmp_path) == files(whole)


@pytest.mark.parametrize(
    "target", ["tpdm.training.monitoring.logger.MetricsLog.write", "tpdm.training.checkpoint.write_json"]
)
def test_a_full_disk_at_another_file_raises_the_same_error(tmp_path, whole, monkeypatch, target):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(target, full)
        with pytest.raises(TrainingError, match="No space left on device"), translate_disk_full(tmp_path):
            run(tmp_path)
    run(tmp_path)
    assert files(tmp_path) == files(whole)


def test_other_errors_are_unchanged(tmp_path):
    with pytest.raises(PermissionError), translate_disk_full(tmp_path):
        raise PermissionError(errno.EACCES, "no")
