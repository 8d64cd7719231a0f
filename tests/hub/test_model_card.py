"""The card agrees with the run, and the hub's own parser accepts it."""

import dataclasses
import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.hub.conftest import EVALUATION
from tpdm.core.io import read_metrics
from tpdm.policies.hub.model_card import model_card
from tpdm.policies.hub.provenance import read_provenance


@pytest.fixture(scope="module")
def facts(run):
    return read_provenance(run / "best")


def test_the_metadata_are_those_that_the_hub_reads(facts):
    card = ModelCard(model_card(facts, "my-tpm", "me/my-tpm"))
    assert (card.data.library_name, card.data.pipeline_tag) == ("tpdm", "text-to-image")
    assert card.data.base_model is None  # "gaussian" is no hub id
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {"steps": 4.25, "reward": -0.125}
    assert yaml.safe_load(card.data.to_yaml())["model-index"][0]["name"] == "my-tpm"


def test_a_backbone_of_the_hub_is_the_base_model(facts):
    config = dataclasses.replace(facts.config, backbone_name="org/tiny-sd3")
    card = ModelCard(model_card(dataclasses.replace(facts, config=config), "t", "me/t"))
    assert card.data.base_model == "org/tiny-sd3"
    assert 'load_pipeline("org/tiny-sd3")' in card.text
    assert 'attach(pipe, "me/t")' in card.text


def test_training_and_evaluation_are_in_the_card_as_measured(run, facts):
    text = model_card(facts, "t", "t", ["steps.png"])
    validations = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "validation"]
    for row in validations:
        assert f"| {row['update']} | {row['steps_mean']:.1f} | {row['score_mean']:.4f} |" in text
    assert "| tpdm | 4.25 | -0.1250 | – |" in text
    assert "| static-28 | 28.00 | -0.2500 | +0.125 [−0.250, +0.500] |" in text
    assert "Measured with 512 images of each on 2 threads of a test with torch 2" in text
    assert "additive, 0.03 a step" in text
    assert "![steps](steps.png)" in text


@pytest.mark.parametrize(
    "change", [{"best_update": 6}, {"seeds": {"training": 1}}, {"rows": []}, {"seeds": None}, {"best_update": None}]
)
def test_an_evaluation_of_another_tpm_is_left_out(run, change):
    path = run / "eval" / "summary.json"
    path.write_text(json.dumps(EVALUATION | change), encoding="utf-8")
    try:
        facts = read_provenance(run / "best")
        assert facts.evaluation is None
        card = model_card(facts, "t", "t")
        assert "## Evaluation" not in card
        assert ModelCard(card).data.eval_results is None
    finally:
        path.write_text(json.dumps(EVALUATION), encoding="utf-8")


def test_without_a_run_there_is_no_table_of_validations(tmp_path):
    from tpdm.policies.pretrained import resolve_path

    facts = read_provenance(resolve_path("tinyworld"))
    text = model_card(facts, "tinyworld", "tinyworld")
    assert "## Training" in text
    assert "same noise each time" not in text


@pytest.mark.parametrize(("form", "price"), [("paper", "discounted, eq. (9): gamma 0.9"), ("additive", "additive")])
def test_without_a_recipe_the_price_of_steps_comes_from_the_config(facts, form, price):
    config = dataclasses.replace(facts.config, reward_form=form, gamma=0.9)
    text = model_card(dataclasses.replace(facts, config=config, recipe=None), "t", "t")
    assert f"| price of steps | {price} |" in text


def test_the_card_contains_no_local_paths(facts):
    prompts = dataclasses.replace(facts.recipe.prompts, source="/home/someone/secret/prompts.txt")
    recipe = dataclasses.replace(facts.recipe, prompts=prompts, output="/home/someone/runs")
    text = model_card(dataclasses.replace(facts, recipe=recipe), "t", "t")
    assert "`prompts.txt`" in text
    assert not re.search(r"/home|someone", text)
