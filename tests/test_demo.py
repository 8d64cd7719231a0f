"""The demo end to end, very small: every file it promises is there and says what it should."""

import json
from dataclasses import replace

import pytest

from tpdm.cli import demo


@pytest.mark.slow
def test_the_demo_writes_what_it_promises(tmp_path, monkeypatch, capsys, small_tinyworld):
    full = demo.demo_recipe

    def small_recipe(out, seed):
        recipe = full(out, seed)
        return replace(
            recipe,
            rl=replace(recipe.rl, updates=2, prompts_per_update=2),
            validation=replace(recipe.validation, every=1, prompts=4),
            checkpoint=replace(recipe.checkpoint, every=1),
            prompts=replace(recipe.prompts, limit=400),
            evaluation=replace(recipe.evaluation, prompts=6, tuning_prompts=4, step_grid=(3, 5)),
        )

    monkeypatch.setattr(demo, "demo_recipe", small_recipe)
    report = demo.run_demo(tmp_path / "demo", seed=3)
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    names = [row["name"] for row in summary["rows"]]
    assert names[0] == "tpdm"
    assert {"static-28", "static-14", "static-10", "mean schedule of tpdm"} <= set(names)
    for row in summary["rows"]:
        assert {"steps_mean", "steps_sd", "reward_mean", "accuracy", "residual"} <= set(row)
    assert summary["paired"]["static-28"].keys() == {"reward", "accuracy", "residual", "win_rate", "worst"}
    assert summary["seeds"]["training"] == 3
    for key in (
        "steps_by_objects",
        "steps_vs_difficulty",
        "train_seconds",
        "total_seconds",
        "versions",
        "git_revision",
    ):
        assert key in summary
    page = report.read_text()
    assert page.count("<img") > 5
    assert "total time</dt>" in page
    assert summary["command"] in page
    assert "static-28" in capsys.readouterr().out
    metrics = (tmp_path / "demo" / "train" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(m)["kind"] for m in metrics] == ["validation", "train", "validation", "train", "validation"]
