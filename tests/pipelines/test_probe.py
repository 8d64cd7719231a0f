"""``default_times``: a pipeline's own schedule, whatever its shift depends on."""

import pytest

from tests.support.tiny_flux import text
from tpdm.pipelines.probe import default_times


@pytest.mark.parametrize("size", [16, 32])
def test_the_default_schedule_equals_that_of_a_full_run(flux, size):
    # FLUX shifts by the number of image tokens: no scheduler could tell on its own.
    call = {**text(1), "prompt": None, "height": size, "width": size, "output_type": "latent"}
    times = default_times(flux, 5, call)
    flux(**call, num_inference_steps=5)
    assert times == flux.scheduler.sigmas.tolist()
    assert times[0] == 1.0
    assert times[-1] == 0.0


def test_default_times_costs_one_evaluation_and_restores_the_pipeline(sd3, monkeypatch):
    call = {"max_sequence_length": 4, "output_type": "latent"}
    calls = []
    handle = sd3.transformer.register_forward_hook(lambda *_: calls.append(1))
    times = default_times(sd3, 7, call)
    assert (len(times), len(calls)) == (8, 1)
    sd3("a", **call, num_inference_steps=3)
    handle.remove()
    assert len(calls) == 1 + 3
