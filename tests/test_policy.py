"""The TPM: its published size, the release layout, ratio 1, and images that are independent of their batch."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpdm.core.errors import BackboneError, ConfigError
from tpdm.core.types import Decision, Features, Observation, Policy
from tpdm.policies import beta
from tpdm.policies.layers import RATIO_RANGE, fold_tokens, hat_basis, normalize, schedule_logit
from tpdm.policies.tpm import TIME_KNOTS, TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig

D, E = 12, 10
SMALL = TPMConfig(D, E, channels=16, grid=4)


def seen(policy: TimePredictionModule, B: int = 4, H: int = 6, W: int = 8, seed: int = 0) -> Observation:
    g = torch.Generator().manual_seed(seed)
    maps = [torch.randn(B, policy.shape.feature_channels, H, W, generator=g) * 3 for _ in range(2)]
    features = Features(maps[0], maps[1], torch.randn(B, policy.shape.temb_channels, generator=g) * 5)
    t_B = torch.rand(B, generator=g) * 0.9 + 0.05
    change_B = torch.rand(B, generator=g) * 3 if policy.reads_change else None
    return policy.observe(features, t_B, torch.arange(B), torch.arange(B), change_B)


def row(o: Observation, i: int) -> Observation:
    return o.rows(slice(i, i + 1))


def perturbed(policy: TimePredictionModule, scale: float = 5.0) -> TimePredictionModule:
    """Change weights, so that outputs depend on the input as in a trained TPM."""
    with torch.no_grad():
        policy.fc2.weight.mul_(scale)
        policy.fc1.weight.mul_(scale)
    return policy


def variants() -> list[TPMConfig]:
    return [
        SMALL,
        TPMConfig(D, E, channels=16, grid=4, storage="fp32"),
        TPMConfig(D, E, channels=16, grid=4, time_only=True),
        TPMConfig(D, E, channels=16, grid=4, init_times=(1.0, 0.7, 0.2, 0.0)),
        TPMConfig(D, E, channels=16, layout="release", token_grid=(6, 8)),
        TPMConfig(D, E, channels=16, grid=4, feature_maps="last"),
        TPMConfig(D, E, channels=16, grid=4, velocity_change=True),
    ]


def test_published_shape_has_the_published_number_of_parameters() -> None:
    shape = TPMConfig(1536, 1536, layout="release", token_grid=(64, 64))
    assert sum(p.numel() for p in TimePredictionModule(shape).parameters()) == 4_097_154


def test_pooled_shape_differs_by_time_scalars_the_mean_pool_and_the_short_way_of_the_condition() -> None:
    pooled, folded = (TimePredictionModule(TPMConfig(D, E, layout=x)) for x in ("pooled", "release"))
    count = [sum(p.numel() for p in m.parameters()) for m in (pooled, folded)]
    assert count[0] - count[1] == 4 * 2 * 128 + (128 + E + 4) * 128


def test_names_of_weights_are_the_published_ones() -> None:
    names = set(TimePredictionModule(TPMConfig(D, E, layout="release")).state_dict())
    assert names == {name for name, _ in TimePredictionModule(SMALL).named_parameters()}
    stems = ("conv1", "norm1.norm", "norm1.linear", "conv2", "fc1", "fc2")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("weight", "bias")}


def test_fold_of_sixteen_tokens_by_hand() -> None:
    raster = torch.arange(16.0).reshape(1, 1, 4, 4)
    by_hand = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert fold_tokens(raster)[0, 0].tolist() == by_hand


@given(h=st.integers(1, 5), w=st.integers(1, 5), d=st.integers(1, 3))
def test_fold_puts_every_token_where_the_formula_says(h: int, w: int, d: int) -> None:
    H, W = 2 * h, 2 * w
    raster = torch.arange(2.0 * d * H * W).reshape(2, d, H, W)
    folded = fold_tokens(raster)
    tokens = raster.flatten(2)
    for n in range(H * W):
        block, p, q = n // 4, n % 4 // 2, n % 2
        i, j = divmod(block, w)
        assert torch.equal(folded[:, :, 2 * i + p, 2 * j + q], tokens[:, :, n])


@pytest.mark.parametrize("size", [(5, 4), (4, 5)])
def test_fold_refuses_odd_sides(size: tuple[int, int]) -> None:
    with pytest.raises(BackboneError, match="needs even sides"):
        fold_tokens(torch.zeros(1, 1, *size))


def test_the_tpm_is_a_policy() -> None:
    policy: Policy = TimePredictionModule(SMALL)
    assert policy.reads_features
    assert not TimePredictionModule(TPMConfig(D, E, time_only=True)).reads_features


def test_observation_has_a_fixed_size_and_is_stored_in_half_precision() -> None:
    policy = TimePredictionModule(SMALL)
    read = seen(policy, H=20, W=6)
    assert read.map_BCHW is not None
    assert read.temb_BE is not None
    assert read.map_BCHW.dtype == read.temb_BE.dtype == torch.float32
    o = policy.quantize_for_storage(read)
    assert o.map_BCHW is not None
    assert o.temb_BE is not None
    assert (o.map_BCHW.shape, o.map_BCHW.dtype) == ((4, 2 * D, 4, 4), torch.float16)
    assert (o.temb_BE.shape, o.temb_BE.dtype) == ((4, E), torch.float16)
    assert not o.map_BCHW.requires_grad


@settings(max_examples=15, deadline=None)
@given(H=st.integers(1, 40), W=st.integers(1, 40), B=st.integers(1, 3))
def test_any_resolution_gives_an_action(H: int, W: int, B: int) -> None:
    policy = TimePredictionModule(SMALL)
    decision = policy.propose(seen(policy, B, H, W), None)
    assert decision.action_B.shape == (B,)
    assert ((decision.action_B > 0) & (decision.action_B < 1)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_can_be_half_precision(dtype: torch.dtype) -> None:
    policy = TimePredictionModule(SMALL)
    x = torch.randn(2, D, 6, 6).to(dtype)
    o = policy.observe(
        Features(x, x, torch.randn(2, E).to(dtype)), torch.ones(2), torch.zeros(2).long(), torch.arange(2)
    )
    assert policy.propose(o, [1, 2]).action_B.dtype == torch.float32


@settings(deadline=None)
@given(st.sets(st.integers(1, 999), max_size=12))
def test_the_ratio_of_a_schedule_leads_from_each_of_its_times_to_the_next(inner: set[int]) -> None:
    times = [1.0, *(n / 1000 for n in sorted(inner, reverse=True)), 0.0]
    t_B = torch.tensor(times[:-1], dtype=torch.float32)
    expected_B = (torch.tensor(times[1:], dtype=torch.float32) / t_B).clamp(*RATIO_RANGE)
    assert torch.sigmoid(schedule_logit(t_B, times)) == pytest.approx(expected_B, abs=1e-4)


def test_between_the_times_of_a_schedule_the_next_time_is_interpolated_and_below_them_it_is_the_least() -> None:
    t_B = torch.tensor([0.9, 0.5, 0.25, 0.1])
    t_next_B = torch.sigmoid(schedule_logit(t_B, [1.0, 0.8, 0.4, 0.2, 0.0])) * t_B
    assert t_next_B.tolist() == pytest.approx([0.6, 0.25, 0.05, 0.1 * RATIO_RANGE[0]], abs=1e-6)


def test_an_untrained_policy_with_a_schedule_follows_it() -> None:
    times = (1.0, 0.8, 0.55, 0.25, 0.0)
    policy = TimePredictionModule(dataclasses.replace(SMALL, init_times=times, init_alpha=9.0))
    o = seen(policy, B=3)
    o = dataclasses.replace(o, t_B=torch.tensor(times[:3]))
    t_next_B = policy.propose(o, None).t_next_B
    assert t_next_B == pytest.approx(torch.tensor(times[1:4]), abs=0.05)
    with torch.no_grad():
        policy.fc2.weight.zero_()
    assert policy.propose(o, None).t_next_B == pytest.approx(torch.tensor(times[1:4]), abs=1e-3)


def test_initial_policy_is_the_published_beta_for_every_input() -> None:
    policy = TimePredictionModule(TPMConfig(64, 32))
    a_B, b_B = (x.detach() for x in policy(seen(policy)))
    r_B = torch.cat([policy.propose(seen(policy, 8, seed=s), None).action_B for s in range(4)])
    assert r_B == pytest.approx(1 / (1 + math.exp(-1.5)), abs=0.08)
    assert 1 + a_B.exp() == pytest.approx(13.18, rel=0.4)
    assert 1 + b_B.exp() == pytest.approx(3.72, rel=0.4)


def test_initial_weights_depend_only_on_the_seed() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two, other = TimePredictionModule(SMALL, 1), TimePredictionModule(SMALL, 1), TimePredictionModule(SMALL, 2)
    assert torch.equal(one.conv1.weight, two.conv1.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)
    torch.manual_seed(3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("shape", variants(), ids=repr)
@pytest.mark.parametrize("seeds", [None, [5, 6, 7, 8]])
def test_ratio_is_one_before_any_update(shape: TPMConfig, seeds: list[int] | None) -> None:
    policy = perturbed(TimePredictionModule(shape))
    o = seen(policy)
    decision = policy.propose(o, seeds)
    logp_B, entropy_B, params = policy.evaluate(o, decision.action_B)
    assert (logp_B - decision.logp_B).abs().max() < 1e-6
    assert torch.equal(entropy_B, beta.entropy(params))
    assert torch.equal(decision.t_next_B, decision.action_B * o.t_B)
    for i in range(4):  # scored in other batches than in the rollout
        alone_1 = policy.evaluate(row(o, i), decision.action_B[i : i + 1])[0]
        assert (alone_1 - decision.logp_B[i]).abs() < 5e-6


@pytest.mark.parametrize("shape", variants(), ids=repr)
def test_a_row_does_not_depend_on_its_batch(shape: TPMConfig) -> None:
    policy = perturbed(TimePredictionModule(shape))
    o = seen(policy)
    raw_B = torch.stack(policy(o))
    sampled, best = policy.propose(o, [5, 6, 7, 8]), policy.propose(o, None)
    assert best.action_B.std() > 1e-5  # rows do differ
    for i in range(4):
        torch.testing.assert_close(torch.stack(policy(row(o, i)))[:, 0], raw_B[:, i], rtol=1e-6, atol=1e-6)
        one: Decision = policy.propose(row(o, i), [5 + i])
        assert one.action_B.item() == pytest.approx(sampled.action_B[i].item(), abs=1e-6)
        assert policy.propose(row(o, i), None).action_B.item() == pytest.approx(best.action_B[i].item(), abs=1e-6)


def test_a_draw_depends_on_seed_and_decision_index() -> None:
    policy = TimePredictionModule(TPMConfig(D, E, channels=16, time_only=True))

    def draw(seed: int, index: int) -> float:
        now = policy.observe(None, torch.ones(1), torch.tensor([index]), torch.tensor([0]))
        return policy.propose(now, [seed]).action_B.item()

    assert draw(1, 0) == draw(1, 0)
    assert len({draw(1, 0), draw(1, 1), draw(2, 0)}) == 3


def test_time_only_reads_only_the_time() -> None:
    policy = perturbed(TimePredictionModule(TPMConfig(D, E, channels=16, time_only=True)))
    o = seen(policy)
    assert o.map_BCHW is None
    assert o.temb_BE is None
    one, two = (seen(policy, seed=s) for s in (1, 2))
    two = Observation(two.map_BCHW, two.temb_BE, one.t_B, one.index_B, two.row_B)
    assert torch.equal(policy.propose(one, None).action_B, policy.propose(two, None).action_B)
    assert policy.propose(one, None).action_B.std() > 0


def test_time_only_learns_a_schedule() -> None:
    policy = TimePredictionModule(TPMConfig(4, 4, channels=32, grid=4, time_only=True))
    t_B = torch.linspace(0.02, 1, 16)
    o = policy.observe(None, t_B, torch.arange(16), torch.arange(16))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    for _ in range(150):
        params = policy.evaluate(o, t_B.clamp_max(0.9))[2]
        loss = (beta.mode(params) - (0.6 + 0.3 * t_B)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-4


@pytest.mark.parametrize("shape", [s for s in variants() if not s.time_only], ids=repr)
def test_gradient_reaches_every_parameter(shape: TPMConfig) -> None:
    policy = TimePredictionModule(shape)
    o = seen(policy)
    logp_B, entropy_B, _ = policy.evaluate(o, torch.tensor([0.2, 0.5, 0.8, 0.9]))
    (logp_B.sum() + entropy_B.sum()).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_normalization_handles_outlier_channels_and_scale() -> None:
    x = torch.randn(2, 1536, 3, 3)
    assert torch.allclose(normalize(x), normalize(1000 * x), atol=1e-5)
    x[:, 7] = 1000.0
    y = normalize(x)
    assert y.abs().max() <= 8
    assert y[:, 8:].std() > 0.4
    assert torch.equal(normalize(torch.zeros(1, 4, 2, 2)), torch.zeros(1, 4, 2, 2))


def test_autocast_does_not_touch_a_decision() -> None:
    policy = perturbed(TimePredictionModule(SMALL))
    o = seen(policy)
    plain = policy.propose(o, [1, 2, 3, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(policy.propose(o, [1, 2, 3, 4]).action_B, plain.action_B)


def test_creating_a_tpm_keeps_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    TimePredictionModule(SMALL, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


USERS = [
    "pass",
    "torch.set_float32_matmul_precision('high')",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = 'tf32'",
]
SCRIPT = """
import operator, torch
from tpdm.policies.layers import full_precision

modern = ("cuda.matmul.fp32_precision", "cudnn.conv.fp32_precision")
legacy = ("cuda.matmul.allow_tf32", "cudnn.allow_tf32")
names = modern if hasattr(torch.backends.cudnn, "conv") else legacy
state = lambda: [operator.attrgetter(name)(torch.backends) for name in names]
for user in USERS if names is modern else USERS[:2]:
    exec(user)
    before = state()
    with full_precision("cuda"):
        assert not {"tf32", True} & set(state()), (user, state())
    assert state() == before, (user, before, state())
"""


def test_full_precision_restores_the_users_settings() -> None:
    """In a separate process, because torch cannot undo a mix of both kinds of TF32 settings."""
    script = f"USERS = {USERS!r}\n{SCRIPT}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def observe_with(policy: TimePredictionModule, d: int, e: int, H: int, W: int) -> Observation:
    x = torch.zeros(1, d, H, W)
    return policy.observe(Features(x, x, torch.zeros(1, e)), torch.ones(1), torch.zeros(1).long(), torch.zeros(1))


def test_observe_raises_for_features_that_do_not_fit() -> None:
    folded = TimePredictionModule(TPMConfig(D, E, channels=16, layout="release", token_grid=(64, 64)))
    with pytest.raises(
        BackboneError, match=r"token grid is \(32, 64\)\. This TPM of the release layout was trained for \(64, 64\)"
    ):
        observe_with(folded, D, E, 32, 64)
    pooled = TimePredictionModule(SMALL)
    with pytest.raises(BackboneError, match="features have widths"):
        observe_with(pooled, D + 1, E, 8, 8)
    with pytest.raises(BackboneError, match="features have widths"):
        observe_with(pooled, D, E - 1, 8, 8)
    with pytest.raises(BackboneError, match="features is None"):
        pooled.observe(None, torch.ones(1), torch.zeros(1).long(), torch.zeros(1).long())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_propose_raises_for_features_that_are_not_finite(bad: float) -> None:
    policy = TimePredictionModule(SMALL)
    o = seen(policy)
    assert o.temb_BE is not None
    o.temb_BE[1, 0] = bad
    with pytest.raises(BackboneError, match="returned NaN or infinity"):
        policy.propose(o, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 0}, "channels is 0"),
        ({"layout": "flat"}, "layout is 'flat'"),
        ({"storage": "int8"}, "storage is 'int8'"),
        ({"layout": "release", "time_only": True}, "layout is 'release', but time_only is set"),
        ({"layout": "release", "init_times": (1.0, 0.0)}, "layout is 'release', but init_times is set"),
        ({"init_times": (1.0, 0.5)}, "Times must fall strictly"),
        ({"init_times": (1.0, 0.5, 0.5, 0.0)}, "Times must fall strictly"),
        ({"init_times": (0.0,)}, "Times must fall strictly"),
        ({"init_times": (1.5, 0.0)}, "Times must fall strictly"),
        ({"token_grid": (4, 4)}, "token_grid is set with layout"),
        ({"feature_maps": "first"}, "feature_maps is 'first'"),
        ({"layout": "release", "feature_maps": "last"}, "layout is 'release', but feature_maps"),
        ({"layout": "release", "velocity_change": True}, "layout is 'release', but velocity_change"),
        ({"time_only": True, "velocity_change": True}, "velocity_change and time_only are both set"),
    ],
)
def test_invalid_shapes_raise(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TPMConfig(D, E, **change)


def test_calibration_removes_what_all_images_share() -> None:
    """After calibration an offset of all images has no effect, and differences between images remain."""
    policy = perturbed(TimePredictionModule(SMALL))
    o = seen(policy, B=32)
    shared = Observation(o.map_BCHW * 0.01 + 1, o.temb_BE * 0.01 + 1, o.t_B * 0 + 0.5, o.index_B * 0, o.row_B)
    before = policy(shared)[0].std()
    policy.calibrate(shared)
    after = policy(shared)[0].std()
    assert after > 10 * before
    moved = Observation(shared.map_BCHW + 0.25, shared.temb_BE + 0.25, shared.t_B, shared.index_B, shared.row_B)
    again = TimePredictionModule(SMALL)
    again.load_state_dict(perturbed(TimePredictionModule(SMALL)).state_dict())
    again.calibrate(moved)
    assert torch.allclose(again(moved)[0], policy(shared)[0], atol=5e-2)


def test_scoring_does_not_change_the_observation() -> None:
    policy = perturbed(TimePredictionModule(SMALL))
    observation = seen(policy)
    policy.calibrate(observation)
    assert observation.map_BCHW is not None
    before = observation.map_BCHW.clone()
    first = policy(observation)
    assert torch.equal(observation.map_BCHW, before)
    for again, once in zip(policy(observation), first, strict=True):
        assert torch.equal(again, once)


def test_calibration_removes_the_time_from_the_embedding_and_keeps_the_prompt() -> None:
    g = torch.Generator().manual_seed(1)
    prompt_BE, t_B = 0.05 * torch.randn(64, E, generator=g).repeat(8, 1), torch.rand(512, generator=g) * 0.9 + 0.05
    waves_BE = torch.sin(torch.arange(1, E + 1) * t_B[:, None])
    policy = TimePredictionModule(SMALL)
    o = seen(policy, B=512)
    policy.calibrate(Observation(o.map_BCHW, 1 + waves_BE + prompt_BE, t_B, o.index_B, o.row_B))
    left_BE = (1 + waves_BE + prompt_BE - hat_basis(t_B, TIME_KNOTS) @ policy.temb_time) / policy.temb_std
    wanted_BE = prompt_BE / prompt_BE.std(0)
    assert torch.corrcoef(torch.stack([left_BE.flatten(), wanted_BE.flatten()]))[0, 1] > 0.95
    assert left_BE.std() == pytest.approx(1, abs=0.1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.integers(2, 30))
def test_the_basis_over_times_sums_to_one_and_follows_a_line(times: list[float], knots: int) -> None:
    basis_BR = hat_basis(torch.tensor(times), knots)
    assert torch.allclose(basis_BR.sum(1), torch.ones(len(times)), atol=1e-5)
    assert torch.allclose(basis_BR @ torch.linspace(0, 1, knots), torch.tensor(times), atol=1e-5)


def test_calibration_skips_other_layouts_and_is_not_trained() -> None:
    for shape in (TPMConfig(D, E, layout="release"), TPMConfig(D, E, time_only=True)):
        policy = TimePredictionModule(shape)
        before = {k: v.clone() for k, v in policy.state_dict().items()}
        policy.calibrate(seen(policy))
        assert all(torch.equal(before[k], v) for k, v in policy.state_dict().items())
    names = {n for n, _ in TimePredictionModule(SMALL).named_parameters()}
    assert not names & {"map_mean", "map_std", "temb_time", "temb_std"}


def test_a_constant_feature_is_not_magnified() -> None:
    policy = TimePredictionModule(SMALL)
    o = seen(policy)
    flat = Observation(torch.ones_like(o.map_BCHW), torch.ones_like(o.temb_BE), o.t_B, o.index_B, o.row_B)
    policy.calibrate(flat)
    near = Observation(flat.map_BCHW * 1.001, flat.temb_BE * 1.001, o.t_B, o.index_B, o.row_B)
    assert torch.isfinite(policy(near)[0]).all()
    assert (policy(near)[0] - policy(flat)[0]).abs().max() < 0.1


def test_with_maps_last_the_first_map_has_no_effect() -> None:
    policy = TimePredictionModule(dataclasses.replace(SMALL, feature_maps="last"))
    x, y, temb = torch.randn(2, D, 6, 6), torch.randn(2, D, 6, 6), torch.randn(2, E)
    clock = (torch.full((2,), 0.5), torch.zeros(2).long(), torch.arange(2))
    one, two, other = (policy.observe(Features(a, b, temb), *clock) for a, b in ((x, y), (y, y), (x, x)))
    assert one.map_BCHW is not None
    assert one.map_BCHW.shape[1] == D
    assert torch.equal(policy(one)[0], policy(two)[0])
    assert not torch.equal(policy(one)[0], policy(other)[0])


def with_change(policy: TimePredictionModule, change_B: torch.Tensor | None) -> Observation:
    o = seen(TimePredictionModule(SMALL), B=256)
    return dataclasses.replace(o, change_B=change_B)


def test_the_change_is_compared_with_the_usual_one_at_the_same_time() -> None:
    """After calibration a factor of all images has no effect, and twice the usual change has one."""
    policy = perturbed(TimePredictionModule(dataclasses.replace(SMALL, velocity_change=True)))
    o = with_change(policy, None)
    usual_B = (1 + 3 * o.t_B) * torch.exp(0.3 * torch.randn(256, generator=torch.Generator().manual_seed(3)))
    policy.calibrate(dataclasses.replace(o, change_B=usual_B))
    level, again = policy(dataclasses.replace(o, change_B=usual_B))[0], TimePredictionModule(policy.shape)
    again.load_state_dict(perturbed(TimePredictionModule(policy.shape)).state_dict())
    again.calibrate(dataclasses.replace(o, change_B=10 * usual_B))
    assert torch.allclose(again(dataclasses.replace(o, change_B=10 * usual_B))[0], level, atol=1e-3)
    twice = policy(dataclasses.replace(o, change_B=2 * usual_B))[0]
    assert (twice - level).abs().mean() > 0.01


def test_calibration_on_images_of_one_step_stays_finite() -> None:
    policy = TimePredictionModule(dataclasses.replace(SMALL, velocity_change=True))
    policy.calibrate(with_change(policy, torch.zeros(256)))
    assert torch.isfinite(policy(with_change(policy, torch.ones(256)))[0]).all()


def test_the_first_evaluation_has_no_change() -> None:
    policy = TimePredictionModule(dataclasses.replace(SMALL, velocity_change=True))
    x, clock = torch.randn(2, D, 6, 6), (torch.ones(2), torch.zeros(2).long(), torch.arange(2))
    o = policy.observe(Features(x, x, torch.randn(2, E)), *clock)
    assert o.change_B is not None
    assert o.change_B.tolist() == [0.0, 0.0]
    assert torch.isfinite(policy(o)[0]).all()
    with pytest.raises(BackboneError, match="change_B is missing"):
        policy(dataclasses.replace(o, change_B=None))
