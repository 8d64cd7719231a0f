"""The recipe: what it accepts, what it refuses and in which words, and what it writes back."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from tpdm.config.loader import dump_recipe, load_recipe, make_recipe, recipe_hash
from tpdm.config.recipe import OptimizerConfig, Recipe, RlConfig
from tpdm.core.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(**values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        make_recipe(values)
    return str(caught.value)


def test_a_name_is_enough(tmp_path):
    recipe = load_recipe(write(tmp_path, "name: first\n"))
    assert recipe == Recipe(name="first")
    assert recipe.output == "runs/first"
    assert recipe.rl.prompts_per_update * recipe.rl.samples_per_prompt == 256  # the paper's batch
    assert recipe.optimizer == OptimizerConfig(lr=1e-5, beta1=0.9, beta2=0.99, eps=1e-5, grad_clip=1.0)


def test_a_recipe_cannot_change():
    with pytest.raises(FrozenInstanceError):
        Recipe(name="a").seed = 1  # type: ignore[misc]


def test_numbers_that_yaml_reads_as_text_become_numbers(tmp_path):
    recipe = load_recipe(write(tmp_path, "name: a\noptimizer: {lr: 3e-5}\n"), ["optimizer.eps=1e-7"])
    assert recipe.optimizer.lr == 3e-5
    assert recipe.optimizer.eps == 1e-7


def test_overrides_win_in_order_and_are_yaml(tmp_path):
    path = write(tmp_path, "name: a\nrl: {updates: 7, epochs: 2}\nbackbone:\n")
    recipe = load_recipe(
        path,
        ["rl.updates=8", "rl.updates=9", "backbone.guidance_scale=null", "output=out/{name}=x", "name=b"],
    )
    assert (recipe.rl.updates, recipe.rl.epochs) == (9, 2)
    assert recipe.backbone.guidance_scale is None
    assert recipe.output == "out/b=x"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("rl.updates", "must be key=value"),
        ("=3", "must be key=value"),
        ("rl..updates=3", "must be key=value"),
        ("rl.updates=[", "is not a YAML value"),
        ("name.first=3", "name is a value"),
        ("rl.update=3", "rl.update is not a known key. Did you mean rl.updates?"),
    ],
)
def test_bad_overrides(tmp_path, override, part):
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, "name: a\n"), [override])
    assert part in str(caught.value)


def test_an_unknown_key_suggests_the_nearest_key():
    assert (
        refusal(name="a", tpm={"chanels": 64}) == "recipe: tpm.chanels is not a known key. Did you mean tpm.channels?"
    )


def test_a_key_in_the_wrong_section_finds_the_right_one():
    assert "gamma is not a known key. Did you mean reward.gamma?" in refusal(name="a", gamma=0.9)


def test_a_key_like_no_other_lists_the_sections():
    assert "The sections are backbone, checkpoint," in refusal(name="a", zzzz=1)


def test_all_problems_are_reported_at_once():
    message = refusal(name="a", optimizer={"lr": "fast"}, rl={"noise": "pink", "samples_per_prompt": 1}, tmp={})
    assert message.startswith("recipe: 4 problems:\n")
    assert "optimizer.lr is 'fast'. It must be a valid number" in message
    assert "The default is 1e-05." in message
    assert "rl.noise is 'pink'. It must be 'shared' or 'independent'." in message
    assert "rl.samples_per_prompt is 1. It must be greater than or equal to 2. The default is 4." in message
    assert "tmp is not a known key. Did you mean tpm?" in message


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("sampling", "stop_below", 1.0),
        ("sampling", "stop_below", -0.1),
        ("sampling", "max_steps", 0),
        ("reward", "gamma", 0.0),
        ("reward", "gamma", 1.1),
        ("reward", "step_cost", -1),
        ("reward", "offset", float("nan")),
        ("prompts", "held_out_fraction", 1.0),
        ("prompts", "limit", 0),
        ("optimizer", "lr", 0.0),
        ("optimizer", "lr", float("inf")),
        ("optimizer", "beta1", 1.0),
        ("rl", "clip", 0.0),
        ("rl", "updates", 2.5),
        ("rl", "kl_weight", -1e-3),
        ("backbone", "dtype", "fp8"),
        ("backbone", "name_or_path", ""),
        ("checkpoint", "keep", 0),
        ("validation", "every", 0),
    ],
)
def test_values_outside_their_range_are_refused(section, key, value):
    assert f"{section}.{key} is {value!r}. " in refusal(name="a", **{section: {key: value}})


@pytest.mark.parametrize("value", [True, False])
def test_booleans_are_not_numbers(value):
    # YAML reads yes, no, on and off as booleans, and Python takes a boolean for 1 or 0.
    assert f"rl.updates is {value}, a boolean. It must be a number." in refusal(name="a", rl={"updates": value})
    assert f"reward.offset is {value}, a boolean." in refusal(name="a", reward={"offset": value})


def test_height_and_width_go_together():
    assert "backbone.height is 64 and width is None. Set both or neither." in refusal(name="a", backbone={"height": 64})
    assert make_recipe({"name": "a", "backbone": {"height": 64, "width": 32}}).backbone.width == 32


def test_an_initial_schedule_needs_the_pooled_layout():
    assert "tpm.init_steps is 18 with layout release. Only layout pooled has it." in refusal(
        name="a", tpm={"layout": "release", "init_steps": 18}
    )


def test_the_shift_of_an_initial_schedule_needs_its_steps():
    assert "tpm.init_shift is 1.0 without init_steps." in refusal(name="a", tpm={"init_shift": 1.0})
    assert make_recipe({"name": "a", "tpm": {"init_steps": 9, "init_shift": 2}}).tpm.init_shift == 2.0


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("reward", {"step_cost": 0.5}, "reward.step_cost is 0.5 with form discounted"),
        ("evaluation", {"reference": "pictures"}, "evaluation.reference is 'pictures' without features"),
        ("prompts", {"source": "tinyworld", "subset": "x"}, "prompts.subset is 'x' with source 'tinyworld'"),
    ],
)
def test_values_without_effect_are_refused(section, values, words):
    assert words in refusal(name="a", **{section: values})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nrl: {updates: 7}\nrl: {clip: 0.1}\n", "key 'rl' is given twice"),
        ("name: a\nrl:\n  updates: 7\n  updates: 8\n", "key 'updates' is given twice"),
        ("name: a\nrl: {updates: 0100}\n", "0100 would be octal"),
    ],
)
def test_misleading_yaml_is_refused(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, text))
    assert words in str(caught.value)


def test_overrides_are_read_as_strictly_as_files(tmp_path):
    path = write(tmp_path, "name: a\n")
    for override, words in (("rl.updates=0100", "octal"), ("rl={updates: 1, updates: 2}", "is given twice")):
        with pytest.raises(ConfigError, match=words):
            load_recipe(path, [override])
    assert load_recipe(path, ["rl.updates=0", "rl.updates=100"]).rl.updates == 100
    assert load_recipe(path, ["seed=0"]).seed == 0


@pytest.mark.parametrize("section", ["validation", "evaluation"])
def test_judges_differ_and_are_not_trained_on(section):
    twice, own = {"judges": ["pickscore", "pickscore"]}, {"judges": ["clip:a", "tinyworld"]}
    assert f"{section}.judges is pickscore, pickscore. Judges must differ." in refusal(name="a", **{section: twice})
    assert f"{section}.judges contains tinyworld, which is trained on." in refusal(
        name="a", reward={"name": "tinyworld"}, **{section: own}
    )
    parts = [{"name": "tinyworld"}, {"name": "pickscore"}]
    assert f"{section}.judges" in refusal(
        name="a", reward={"name": "composite", "parts": parts, "offset": 3.0}, **{section: own}
    )
    assert make_recipe({"name": "a", "reward": {"name": "pickscore"}, section: own})


@pytest.mark.parametrize("name", ["a/b", "", ".hidden", "a b", "a\n"])
def test_names_that_cannot_name_a_folder_are_refused(name):
    assert "name is " in refusal(name=name)


def test_a_missing_name_and_a_section_that_is_not_a_mapping():
    assert refusal() == "recipe: name is missing. Add it."
    assert (
        refusal(name="a", rl=3)
        == "recipe: rl is 3. It must be a mapping of keys. Write its keys on lines of their own."
    )


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"name: [", "is not valid YAML"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"", "must be a mapping"),
        (b"name: \xff\n", "cannot be read"),
    ],
)
def test_files_that_are_not_recipes(tmp_path, content, part):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=part):
        load_recipe(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_what_is_written_is_read_back(tmp_path):
    recipe = Recipe(name="a", seed=3, rl=RlConfig(updates=5), optimizer=OptimizerConfig(lr=1e-6))
    path = dump_recipe(recipe, tmp_path / "deep" / "recipe.yaml")
    assert load_recipe(path) == recipe
    assert "lr: 1.0e-06" in path.read_text(encoding="utf-8")


def test_a_recipe_built_wrongly_in_python_is_not_written(tmp_path):
    with pytest.raises(ConfigError, match=r"rl\.updates"):
        dump_recipe(Recipe(name="a", rl=RlConfig(updates=0)), tmp_path / "recipe.yaml")
    assert not (tmp_path / "recipe.yaml").exists()


def test_the_hash_follows_the_content_alone(tmp_path):
    recipe = Recipe(name="a")
    digest = recipe_hash(recipe)
    assert len(digest) == 12
    assert int(digest, 16) >= 0
    assert recipe_hash(load_recipe(dump_recipe(recipe, tmp_path / "r.yaml"))) == digest
    assert recipe_hash(replace(recipe, optimizer=OptimizerConfig(weight_decay=0))) == digest  # 0 is 0.0
    assert recipe_hash(replace(recipe, seed=1)) != digest
