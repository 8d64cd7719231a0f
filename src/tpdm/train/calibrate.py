"""What is measured once, on images of the untrained policy, before the first update: features and reward parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tpdm.policy import TimePredictor
from tpdm.prompts import Prompt
from tpdm.rewards.base import Reward
from tpdm.rewards.composite import CompositeReward, Standard, run_reward, save_standards
from tpdm.rollout import Generated, make_replay
from tpdm.streams import Stream, derive_seed
from tpdm.train.deal import deal_prompts
from tpdm.train.scored import MakeImages
from tpdm.train.team import ALONE, Team

CALIBRATION_PROMPTS = 64


def calibrate_policy(policy: TimePredictor, make: MakeImages, prompts: Sequence[Prompt], seed: int) -> None:
    """Shows the untrained policy what features look like: the same ones whenever the run is started or resumed."""
    if not policy.reads_features:
        return
    policy.eval()
    _, generated = _first_images(make, prompts, seed, record=True)
    assert generated.trajectories is not None
    policy.calibrate(make_replay(generated.trajectories).observation)


def calibrated_reward(
    reward: Reward,
    make: MakeImages,
    prompts: Sequence[Prompt],
    seed: int,
    folder: Path,
    fresh: bool,
    team: Team = ALONE,
    everyone: bool = False,
) -> Reward:
    """The reward that a run uses from its first image to its last.

    Args:
        reward: a composite gets its statistics; any other comes back as it is.
        make: images of the untrained policy, where the run is fresh.
        prompts: training prompts.
        seed: of the run.
        folder: of the run; the statistics stand in ``reward-statistics.json`` there.
        fresh: measures and writes them; a run that goes on reads them, so that its objective stays the same.
        team: its leading process alone measures or reads, and tells the others.
        everyone: all processes make the images, though one is enough: a sharded denoiser needs all of them.

    Raises:
        RewardError: a part fails or tells no image from another; the statistics of a run that goes on are missing.
    """
    if not isinstance(reward, CompositeReward):
        return reward
    if fresh and (team.leads or everyone):
        texts, generated = _first_images(make, prompts, seed, record=False)
        if team.leads:
            reward = reward.calibrated(generated.images_B3HW, texts)
            save_standards(reward, folder)
    elif team.leads:
        reward = run_reward(reward, folder)
    assert isinstance(reward, CompositeReward)
    known = None if reward.standards is None else {key: asdict(one) for key, one in reward.standards.items()}
    return replace(reward, standards={key: Standard(**one) for key, one in team.from_lead(known).items()})


def _first_images(
    make: MakeImages, train_prompts: Sequence[Prompt], seed: int, record: bool
) -> tuple[list[str], Generated]:
    prompts = deal_prompts(train_prompts, CALIBRATION_PROMPTS, seed, 0)
    noise, decisions = ([derive_seed(seed, Stream.CALIBRATION, i, n) for i in range(len(prompts))] for n in (0, 1))
    return [p.text for p in prompts], make(prompts, noise, decisions, record)
