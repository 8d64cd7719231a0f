"""Errors for argument names of other libraries suggest the right name.

For ``seed=0`` the error suggested a similar name of the pipeline instead of ``seeds``. The same was true of ``cfg`` and
``steps``.
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
        ("SD3", {"seed": 0}, "Did you mean seeds=[...], one integer per image?"),
        ("SD3", {"seeds": 0}, "seeds is 0. It must be a list with one integer per image. Pass seeds=[0]."),
        ("SD3", {"seeds": [1.5]}, "seeds contains 1.5. It must contain one integer per image"),
        ("SD3", {"generators": []}, "Did you mean 'generator'?"),
        ("SD3", {"steps": 8}, "Did you mean max_steps, because the policy decides the times?"),
        ("SD3", {"num_inference_steps": 8}, "Limit the number of steps with max_steps"),
        ("SD3", {"cfg": 3}, "Did you mean 'guidance_scale'?"),
        ("SD3", {"guidance": 3}, "Did you mean 'guidance_scale'?"),
        ("Qwen-Image", {"cfg_scale": 3}, "Did you mean 'true_cfg_scale'?"),
        ("SD3", {"negative": "blurry"}, "Did you mean 'negative_prompt'?"),
        ("SD3", {"heigth": 32}, "Did you mean 'height'?"),
        ("SD3", {"zzzz": 1}, "See its __call__ for the names"),
    ],
)
def test_the_error_suggests_the_right_argument(name, option, words):
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
def test_the_error_suggests_the_right_option(command, names):
    answer = CliRunner().invoke(app, command.split())
    assert answer.exit_code == 2
    assert f"No such option: {command.split()[1]}" in answer.output
    assert all(name in answer.output.partition("No such option")[2] for name in names)


def test_options_of_other_commands_are_not_suggested():
    answer = CliRunner().invoke(app, ["watch", "--model", "a/b"])
    assert answer.exit_code == 2
    assert "--backbone" not in answer.output
