"""Arguments by the names that other libraries give them.

``seed=0`` was refused with a near name of the pipeline's own, and nothing led to ``seeds``; ``cfg`` and ``steps``
likewise.
https://github.com/huggingface/diffusers/issues/10928
"""

import pytest
from typer.testing import CliRunner

from tests.support.families import FAMILIES, tiny_pipe
from tpdm.cli import app
from tpdm.core.errors import TpdmError
from tpdm.pipelines.attach import attach
from tpdm.policies.fixed import FixedSchedule


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("SD3", {"seed": 0}, "did you mean seeds=[...], one integer per image?"),
        ("SD3", {"seeds": 0}, "got seeds=0, expected one integer per image: pass seeds=[0]."),
        ("SD3", {"seeds": [1.5]}, "got the seed 1.5, expected one integer per image"),
        ("SD3", {"generators": []}, "did you mean 'generator'?"),
        ("SD3", {"steps": 8}, "did you mean max_steps, for the policy decides the times?"),
        ("SD3", {"num_inference_steps": 8}, "limit the number of steps with max_steps"),
        ("SD3", {"cfg": 3}, "did you mean 'guidance_scale'?"),
        ("SD3", {"guidance": 3}, "did you mean 'guidance_scale'?"),
        ("Qwen-Image", {"cfg_scale": 3}, "did you mean 'true_cfg_scale'?"),
        ("SD3", {"negative": "blurry"}, "did you mean 'negative_prompt'?"),
        ("SD3", {"heigth": 32}, "did you mean 'height'?"),
        ("SD3", {"zzzz": 1}, "see its __call__ for the names"),
    ],
)
def test_the_sentence_leads_to_the_right_name(name, option, words):
    family = FAMILIES[name]
    with pytest.raises(TpdmError) as caught:
        attach(tiny_pipe(name), FixedSchedule([1.0, 0.0]))(**family.text(1), **{**family.arguments(), **option})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("sample --num-steps 8", ["--num-inference-steps", "--max-steps"]),
        ("sample --seeds 3", ["--seed"]),
        ("sample --cfg 3", ["--guidance-scale"]),
        ("sample --cfg_scale 3", ["--guidance-scale"]),
        ("sample --guidance 3", ["--guidance-scale"]),
        ("sample --model a/b", ["--backbone"]),
        ("sample --output x", ["--out"]),
        ("sample --guidance_scale 3", ["--guidance-scale"]),
        ("serve --model a/b", ["--backbone"]),
    ],
)
def test_an_unknown_option_leads_to_the_right_one(command, names):
    answer = CliRunner().invoke(app, command.split())
    assert answer.exit_code == 2
    assert f"No such option: {command.split()[1]}" in answer.output
    assert all(name in answer.output.partition("No such option")[2] for name in names)


def test_other_commands_are_not_led_to_what_they_do_not_have():
    answer = CliRunner().invoke(app, ["watch", "--model", "a/b"])
    assert answer.exit_code == 2
    assert "--backbone" not in answer.output
