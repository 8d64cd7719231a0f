"""Negative prompts reach the sampler and the pipeline."""

from dataclasses import replace

import torch

from tests.support.gaussian_problem import make_small_problem
from tpdm.data.prompts import Prompt
from tpdm.pipelines.attach import AdaptiveOutput
from tpdm.sampling.base import SampleRequest
from tpdm.sampling.samplers import PipelineSampler
from tpdm.training.loop import train_loop


def test_negative_prompts_follow_their_prompts(tmp_path):
    recipe, parts = make_small_problem(tmp_path, rl={"updates": 1})
    avoided = {p.text: p.negative for p in parts.train_prompts} | {parts.train_prompts[0].text: "blurry"}
    seen = {}

    def spy(request):
        seen.update(zip(request.prompts, request.negatives, strict=True))
        return parts.sampler(request)

    first, *rest = parts.train_prompts
    prompts = [Prompt(first.text, "blurry"), *rest]
    train_loop(recipe, replace(parts, sampler=spy, train_prompts=prompts), tmp_path)
    assert seen == {p.text: avoided.get(p.text) or "" for p in (*prompts, *parts.validation_prompts)}


def test_without_negative_prompts_the_pipeline_keeps_its_default():
    calls = []

    def pipeline(**options):
        calls.append(options)
        n = len(options["prompt"])
        return AdaptiveOutput(torch.zeros(n, 3, 2, 2), [1] * n, [[1.0, 0.0]] * n, None, nfe_rows=n)

    sampler = PipelineSampler(pipeline, 2, {"guidance_scale": 3.0})  # type: ignore[arg-type]
    sampler(SampleRequest(["a", "b", "c"], [0, 1, 2], negatives=["", "x", "y"]))
    assert [call["negative_prompt"] for call in calls] == [["", "x"], ["y"]]
    calls.clear()
    sampler(SampleRequest(["a"], [0]))
    assert "negative_prompt" not in calls[0]
