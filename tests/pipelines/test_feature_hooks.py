from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.support.policies import LookingPolicy
from tests.support.tiny_flux import text
from tpdm.core.errors import BackboneError
from tpdm.pipelines.attach import attach
from tpdm.pipelines.feature_hooks import FeatureHooks
from tpdm.pipelines.registry import DENOISERS, find_entry
from tpdm.sampling.batching.proxy import SharedFeatureHooks

CALL = {"max_sequence_length": 4, "output_type": "latent"}


def positions(height, width):
    """The number 100 * row + column at every place of a map."""
    return 100 * torch.arange(height)[:, None] + torch.arange(width)[None, :]


def write_positions(tokens, height, width):
    """The tokens with each channel replaced by 100 * row + column, in raster order."""
    places = [100.0 * y + x for y in range(height) for x in range(width)]
    return torch.tensor(places).view(1, -1, 1).expand_as(tokens)


def seen_by_policy(pipe, **call):
    policy = LookingPolicy()
    attach(pipe, policy, max_steps=2)(**call)
    return policy.seen


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_maps_have_the_layout_of_the_image(sd3, flux, family):
    pipe, call = (sd3, {"prompt": ["a", "b"], **CALL}) if family == "sd3" else (flux, text(2))
    entry = find_entry(pipe.transformer)
    first, last = (pipe.transformer.get_submodule(path) for path in (entry.first, entry.last))
    handles = [
        first.register_forward_hook(lambda m, a, out: write_positions(out, 6, 4)),
        last.register_forward_pre_hook(lambda m, args: (write_positions(args[0], 6, 4),)),
    ]
    try:
        seen = seen_by_policy(pipe, **{**call, "height": 24, "width": 16, "output_type": "latent"})
    finally:
        for handle in handles:
            handle.remove()
    for features in seen:
        for map_BDHW in (features.first_BDHW, features.last_BDHW):
            assert map_BDHW.shape == (2, 32, 6, 4)
            assert torch.equal(map_BDHW, positions(6, 4).float().expand(2, 32, 6, 4))


def test_the_patch_grid_matches_the_latents(sd3):
    """A latent that is marked in one corner changes the first map in that corner only."""
    latents = torch.zeros(1, 4, 12, 8)
    marked = latents.clone()
    marked[..., 10:, 2:4] = 1.0
    maps = [
        seen_by_policy(sd3, prompt="a", latents=x, height=24, width=16, **CALL)[0].first_BDHW for x in (latents, marked)
    ]
    changed = (maps[0] != maps[1]).any(1)[0]
    assert changed.nonzero().tolist() == [[5, 1]]


def test_only_conditional_rows_are_returned(sd3):
    call = {"prompt": ["a", "b"], "latents": torch.randn(2, 4, 8, 8), **CALL}
    guided = seen_by_policy(sd3, guidance_scale=4.0, negative_prompt=["no", "never"], **call)[0]
    plain = seen_by_policy(sd3, guidance_scale=1.0, **call)[0]
    for name in ("first_BDHW", "last_BDHW", "temb_BE"):
        torch.testing.assert_close(getattr(guided, name), getattr(plain, name), atol=2e-6, rtol=0)


def test_only_the_conditional_call_is_returned(flux):
    call = {**text(2), "latents": torch.randn(2, 16, 16), "height": 16, "width": 16, "output_type": "latent"}
    negative = {f"negative_{name}": value for name, value in text(2, seed=1).items()}
    guided = seen_by_policy(flux, **call, **negative, true_cfg_scale=3.0)[0]
    plain = seen_by_policy(flux, **call)[0]
    for name in ("first_BDHW", "last_BDHW", "temb_BE"):
        assert torch.equal(getattr(guided, name), getattr(plain, name))


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_the_denoiser_receives_the_time_in_the_units_of_its_entry(sd3, flux, family):
    pipe, call = (sd3, {"prompt": "a", **CALL}) if family == "sd3" else (flux, text(1))
    fed = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda m, a, kwargs: fed.append(kwargs["timestep"][0].item()), with_kwargs=True
    )
    output = attach(pipe, LookingPolicy())(**{**call, "height": 16, "width": 16, "output_type": "latent"})
    handle.remove()
    scale = find_entry(pipe.transformer).time_scale
    assert fed == pytest.approx([scale * t for t in output.times[0][:-1]])


def test_the_error_for_an_unknown_denoiser_shows_how_to_add_it():
    with pytest.raises(
        BackboneError, match=r"^Linear is not a known denoiser class.*Add DENOISERS\['Linear'\] = DenoiserSpec"
    ):
        FeatureHooks(nn.Linear(2, 2))


def test_a_subclass_uses_the_entry_of_its_parent(sd3):
    class Mine(type(sd3.transformer)):
        pass

    assert find_entry(Mine.__new__(Mine)) is DENOISERS["SD3Transformer2DModel"]


def test_hooks_without_a_call_raise_an_error(sd3):
    with FeatureHooks(sd3.transformer) as taps, pytest.raises(BackboneError, match="compile only its blocks"):
        taps.features(1)


@pytest.mark.parametrize("place", ["first", "last", "temb"])
def test_a_wrong_module_path_leaves_no_hooks(sd3, monkeypatch, place):
    entry = replace(DENOISERS["SD3Transformer2DModel"], **{place: "nowhere"})
    monkeypatch.setitem(DENOISERS, "SD3Transformer2DModel", entry)
    with pytest.raises(AttributeError, match="nowhere"):
        attach(sd3, LookingPolicy())("a", **CALL)
    with pytest.raises(AttributeError, match="nowhere"), SharedFeatureHooks(sd3.transformer):
        pass
    for module in sd3.transformer.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
