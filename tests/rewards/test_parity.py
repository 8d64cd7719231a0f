"""Every published reward equals an independent forward pass from the same file, at tiny size."""

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import BertTokenizer

from tests.rewards.conftest import PROMPTS, blip_shape, clip_config
from tests.support.published import TINY_BLIP, TINY_CLIP
from tpdm.rewards.aesthetic import load_aesthetic
from tpdm.rewards.clip import ImageProcessor
from tpdm.rewards.hpsv2 import clean_prompt, load_hpsv2
from tpdm.rewards.imagereward import load_imagereward
from tpdm.rewards.loading import load_reward
from tpdm.rewards.preprocessing import CLIP_MEAN, CLIP_STD, Preprocess, resize_and_pad
from tpdm.tinyworld.tokenizer import make_tokenizer

WITHIN = 1e-5


def normalized(images):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std


def clip_ids(prompts):
    length = TINY_CLIP.tokens
    return make_tokenizer()(prompts, padding="max_length", max_length=length, return_tensors="pt").input_ids


def close(got, expected):
    assert got.shape == expected.shape == (4,)
    assert float(expected.std()) > 100 * WITHIN  # constant scores would make the comparison meaningless
    assert float((got - expected).abs().max()) < WITHIN * max(1.0, float(expected.abs().max()))


def test_clip_score(clip_folder, images):
    folder, reference = clip_folder
    close(
        load_reward(f"clip:{folder}").score(images, PROMPTS) / 100,
        reference.cosine(normalized(images), clip_ids(PROMPTS)),
    )


def test_pickscore(clip_folder, images):
    folder, reference = clip_folder
    expected = reference.logit_scale.exp() * reference.cosine(normalized(images), clip_ids(PROMPTS))
    close(load_reward(f"pickscore:{folder}").score(images, PROMPTS), expected)


def test_hpsv2(hps_folder, images):
    folder, reference = hps_folder
    reward = load_hpsv2(str(folder), config=clip_config(TINY_CLIP, "gelu"))
    texts = ["large red circle", "blue ring top left and green square", "object", 'red & "blue" ring']
    close(reward.score(images, PROMPTS), reference.cosine(normalized(images), clip_ids(texts)))


def test_imagereward(imagereward_folder, images):
    folder, reference = imagereward_folder
    reward = load_imagereward(str(folder), shape=blip_shape(TINY_BLIP))
    words = BertTokenizer.from_pretrained(folder)(PROMPTS, padding="max_length", max_length=35, return_tensors="pt")
    assert 0 < int(words.attention_mask.sum()) < words.attention_mask.numel()  # the input contains padding
    close(reward.score(images, PROMPTS), reference.score(normalized(images), words.input_ids, words.attention_mask))


def test_aesthetic(aesthetic_folder, clip_folder, images):
    folder, head = aesthetic_folder
    embeds = F.normalize(clip_folder[1].visual(normalized(images)), dim=-1)
    close(load_aesthetic(str(folder)).score(images, PROMPTS), head(embeds))


@pytest.mark.parametrize("batch", [1, 3])
def test_scores_do_not_depend_on_the_batch_size(batch, hps_folder, imagereward_folder, aesthetic_folder, images):
    def rewards(size):
        yield load_hpsv2(str(hps_folder[0]), batch=size, config=clip_config(TINY_CLIP, "gelu"))
        yield load_imagereward(str(imagereward_folder[0]), batch=size, shape=blip_shape(TINY_BLIP))
        yield load_aesthetic(str(aesthetic_folder[0]), batch=size)

    for small, large in zip(rewards(batch), rewards(64), strict=True):
        difference = small.score(images, PROMPTS) - large.score(images, PROMPTS)
        assert float(difference.abs().max()) < WITHIN


def test_a_long_prompt_is_truncated(imagereward_folder, hps_folder, images):
    long = ["red ring " * 2500] * 4
    for reward in (
        load_imagereward(str(imagereward_folder[0]), shape=blip_shape(TINY_BLIP)),
        load_hpsv2(str(hps_folder[0]), config=clip_config(TINY_CLIP, "gelu")),
    ):
        assert torch.isfinite(reward.score(images, long)).all()


@pytest.mark.parametrize("shape", [(60, 90), (96, 70), (44, 59)])  # the longer side becomes 48, 43.9 and 42.9
def test_cropping_equals_clip(shape):
    generator = torch.Generator().manual_seed(3)
    # Smooth, as real images are: the two implementations round to bytes at different stages.
    coarse = torch.rand(1, 3, 6, 9, generator=generator)
    pixels = (F.interpolate(coarse, shape, mode="bicubic").clamp(0, 1)[0] * 255).round().byte()
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    size = {"height": 32, "width": 32}
    expected = ImageProcessor(size={"shortest_edge": 32}, crop_size=size)(picture, return_tensors="pt").pixel_values
    got = Preprocess(32)(pixels[None].float() / 255, torch.device("cpu"))
    assert float((got - expected).abs().max()) < 2 / 255 / min(CLIP_STD)


def test_padding_is_black_and_keeps_the_whole_image():
    x = resize_and_pad(torch.ones(1, 3, 20, 40), 16)
    assert x.shape == (1, 3, 16, 16)
    assert torch.equal(x[..., :4, :], torch.zeros(1, 3, 4, 16))
    assert torch.equal(x[..., -4:, :], torch.zeros(1, 3, 4, 16))
    assert torch.allclose(x[..., 4:12, :], torch.ones(1, 3, 8, 16), atol=1e-5)
    assert torch.equal(resize_and_pad(torch.ones(1, 3, 400, 1), 16).sum((2, 3)) > 0, torch.ones(1, 3) > 0)


def test_prompts_are_cleaned_as_open_clip_does():
    assert clean_prompt("  A&amp;amp;B  “it’s”\n\tNICE ") == 'a&b "it\'s" nice'
