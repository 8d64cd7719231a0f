"""Scenes, their captions, their images, and reading them back."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpdm.tinyworld.captions import generator, make_captions, scene_batch
from tpdm.tinyworld.grammar import (
    ATTRIBUTES,
    MAX_OBJECTS,
    MAX_WORDS,
    Scene,
    SceneObject,
    describe,
    parse,
    perturb,
    sample_scene,
)
from tpdm.tinyworld.render import render
from tpdm.tinyworld.scene_reader import accuracy, matched_objects, read_scenes
from tpdm.tinyworld.tokenizer import MAX_TOKENS, encode_words, make_tokenizer

seeds = st.integers(0, 2**32 - 1)


def some_scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(count)]


@settings(deadline=None)
@given(seeds)
def test_parsing_inverts_captions(seed):
    rng = np.random.default_rng(seed)
    asked = describe(sample_scene(rng), rng)
    assert parse(asked.caption()) == asked
    assert len(asked.caption().split()) <= MAX_WORDS


@settings(deadline=None)
@given(seeds)
def test_a_scene_fits_every_caption_made_from_it(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    assert accuracy(describe(scene, rng), scene) == 1.0


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_perturbed_scenes_can_be_drawn(seed):
    rng = np.random.default_rng(seed)
    scene = perturb(sample_scene(rng), rng)
    places = [(o.row, o.column) for o in scene.objects]
    assert len(set(places)) == len(places) >= 1
    assert render(scene).shape == (64, 64, 3)


def test_captions_leave_everything_from_nothing_to_almost_all_open():
    rng = np.random.default_rng(0)
    told = [
        sum(getattr(o, a) is not None for a in ATTRIBUTES) for s in some_scenes(300) for o in describe(s, rng).objects
    ]
    assert min(told) == 0
    assert max(told) == len(ATTRIBUTES)


@pytest.mark.parametrize("caption", ["red", "circle on pink", "circle and", "circle big", "red blue circle", ""])
def test_unknown_captions_are_refused(caption):
    with pytest.raises(ValueError, match=r"is unexpected|is unknown|names no shape"):
        parse(caption)


def test_the_reader_reads_clean_renders_without_error():
    scenes = some_scenes(400, seed=1)
    readings = read_scenes(np.stack([render(s) for s in scenes]))
    right = [
        set(r.scene.objects) == set(s.objects) and r.scene.background == s.background
        for r, s in zip(readings, scenes, strict=True)
    ]
    assert np.mean(right) >= 0.99
    assert max(r.residual for r in readings) < 0.5  # rounding to bytes


def test_the_reader_tolerates_noise_and_its_residual_grows_with_it():
    scenes = some_scenes(60, seed=2)
    clean, rng = np.stack([render(s) for s in scenes]), np.random.default_rng(0)
    residuals = []
    for level in (0, 8, 24):
        noisy = np.clip(clean + rng.normal(0, level, clean.shape), 0, 255).astype(np.uint8)
        readings = read_scenes(noisy)
        assert np.mean([accuracy(s, r.scene) for s, r in zip(scenes, readings, strict=True)]) > 0.99
        residuals.append(np.mean([r.residual for r in readings]))
    assert residuals[0] < residuals[1] < residuals[2]


def test_the_reader_sees_each_kind_of_mistake():
    o = SceneObject("large", "striped", "red", "circle", "top", "left")
    asked = Scene((o,), "navy")
    wrong = [
        replace(o, size="small"),
        replace(o, texture="plain"),
        replace(o, color="blue"),
        replace(o, shape="ring"),
        replace(o, row="bottom"),
        replace(o, column="right"),
    ]
    for other in wrong:
        seen = read_scenes(render(Scene((other,), "navy"))[None])[0].scene
        assert accuracy(asked, seen) == 0.5  # the background is right
    extra = Scene((o, replace(o, row="bottom")), "navy")
    assert accuracy(asked, read_scenes(render(extra)[None])[0].scene) == pytest.approx(2 / 3)


def test_the_reader_raises_for_other_images():
    with pytest.raises(ValueError, match="must be uint8"):
        read_scenes(np.zeros((1, 32, 32, 3), np.uint8))


def test_matching_is_the_largest_possible():
    anything = SceneObject(None, None, None, None, None, None)
    red = replace(anything, color="red")
    seen = [SceneObject("small", "plain", c, "ring", "top", p) for c, p in (("red", "left"), ("blue", "right"))]
    assert matched_objects([anything, red], seen) == 2  # a greedy match from the left would find one
    assert matched_objects([red, red], seen) == 1
    assert matched_objects([], seen) == 0


def test_every_caption_is_tokenized_word_by_word():
    tokenizer = make_tokenizer()
    captions = [*make_captions(300), ""]
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert ids.shape[1] == MAX_TOKENS
    assert (ids == encode_words(captions)).all()
    assert all(len(tokenizer.tokenize(c)) == len(c.split()) for c in captions)


def test_three_prompts_in_four_describe_all_that_fits():
    told = [parse(c) for c in make_captions(2000)]
    full = [all(getattr(o, a) for o in s.objects for a in ATTRIBUTES) for s in told if len(s.objects) <= 3]
    assert 0.71 < sum(full) / len(full) < 0.79


def test_captions_are_distinct_and_a_longer_list_starts_with_a_shorter():
    assert len(set(make_captions(500))) == 500
    assert make_captions(500)[:100] == make_captions(100)
    assert make_captions(20, seed=1) != make_captions(20, seed=0)


def test_batches_depend_only_on_seed_name_and_step():
    first, images = scene_batch(generator(0, "a", 3), 8)
    again, same = scene_batch(generator(0, "a", 3), 8)
    assert first == again
    assert (images == same).all()
    assert first != scene_batch(generator(0, "a", 4), 8)[0]
    assert first != scene_batch(generator(0, "b", 3), 8)[0]


def test_scenes_have_one_to_six_objects_on_different_places():
    scenes = some_scenes(500)
    assert {len(s.objects) for s in scenes} == set(range(1, MAX_OBJECTS + 1))
    assert all(len({(o.row, o.column) for o in s.objects}) == len(s.objects) for s in scenes)
