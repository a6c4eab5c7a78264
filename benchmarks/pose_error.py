"""How exactly must a Push-T policy know where the block is? Success of a policy on the true state, whose sight is then spoilt.

LeRobot's ACT, with the sizes of `benchmarks/quality`, is trained on the true corners of the block. In evaluation it gets them
with an error that is a smooth function of where they are, as an encoder's is: the same block in the same place is always misread
in the same way. So it says which readout error, as benchmarks/probe.py could find, an encoder must not exceed.

The error of a state s, (16,) in pixels of 512, is r √(2/K) Σₖ qₖ sin(wₖ·s + φₖ) with K = 24 and qₖ, wₖ drawn from Gaussians: r is
its root mean square per coordinate. Wavelengths are such that a block moved by 90 pixels is misread in another way.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import HERE, Arm, Outcome, Result, options, save
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import trange

from lerobot_theia.demos.pusht import record_pusht

FIRST_SEED = 900_000
"""Of the starts: neither those of demonstrations nor those of `benchmarks/quality`."""
ERRORS_PX = (0.0, 2.0, 3.0, 4.0, 6.0, 8.0)
CORNERS, WAVES = 16, 24
WAVELENGTH_PX = 90.0
SIZES = OmegaConf.load(HERE / "quality" / "configs" / "sizes" / "two_cores.yaml").act
OPTIMIZATION = OmegaConf.load(HERE / "quality" / "configs" / "optimization" / "cosine.yaml").act
BATCH_SIZE = OmegaConf.load(HERE / "quality" / "configs" / "suite" / "pusht.yaml").batch_size
"""As `benchmarks/quality` has them."""
type Processor = Callable[[Any], Any]
COLUMNS = (OBS_STATE, OBS_ENV_STATE, ACTION)


def main() -> None:
    chosen = options(
        __doc__,
        ("--steps", {"type": int, "default": 12_000, "help": "of training (12000)"}),
        ("--episodes", {"type": int, "default": 200, "help": "of each evaluation (200)"}),
    )
    if chosen.quick:
        chosen.steps, chosen.episodes = 3, 2
    demonstrations = 2 if chosen.quick else 260
    root = chosen.work / f"pusht-state-{demonstrations}"
    record_pusht(root, "local/pusht_state", demonstrations, environment_state=True, if_missing=True,
                 num_workers=1, progress=False)  # fmt: skip
    policy, before, after = train(LeRobotDataset("local/pusht_state", root=root), chosen.steps)
    errors = ERRORS_PX[:2] if chosen.quick else ERRORS_PX
    best = {px: rollouts(policy, before, after, px, chosen.episodes) for px in errors}
    successes = {px: sum(reward >= 1 for reward in rewards) for px, rewards in best.items()}
    outcomes = []
    for px, rewards in best.items():
        outcomes += [
            Outcome(what=f"success rate, error of {px:g} px", value=successes[px] / len(rewards)),
            Outcome(what=f"mean max reward, error of {px:g} px", value=sum(rewards) / len(rewards)),
        ]
    arm = Arm(what=f"successes of {chosen.episodes} episodes, errors of {errors} px", unit="",
              values=[float(each) for each in successes.values()])  # fmt: skip
    settings = {
        "demonstrations": demonstrations, "steps": chosen.steps, "episodes": chosen.episodes, "training_seed": 0,
        "policy": "act on the true state, dim_model 128, 2 layers, chunk 16, 8 actions executed, no VAE",
        "batch_size": BATCH_SIZE, "learning_rate": OPTIMIZATION["optimizer.lr"], "first_seed": FIRST_SEED,
        "wavelength_px": WAVELENGTH_PX,
    }  # fmt: skip
    measured = "Push-T by a policy on the true state, evaluated with an error in the block's corners"
    save(Result(name="pose_error", measured=measured, settings=settings, arms={"successes": arm}, outcomes=outcomes,
                quick=chosen.quick), chosen.out)  # fmt: skip


def train(dataset: LeRobotDataset, steps: int) -> tuple[ACTPolicy, Processor, Processor]:
    """The policy and its processors. Everything fits into memory, so batches are drawn from there."""
    torch.manual_seed(0)
    mean_std, min_max = NormalizationMode.MEAN_STD, NormalizationMode.MIN_MAX
    config = ACTConfig(
        input_features={
            OBS_STATE: PolicyFeature(FeatureType.STATE, (2,)),
            OBS_ENV_STATE: PolicyFeature(FeatureType.ENV, (CORNERS,)),
        },
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (2,))},
        normalization_mapping={"STATE": mean_std, "ACTION": mean_std, "ENV": min_max},
        device="cpu",
        push_to_hub=False,
        **SIZES,
    )
    policy = ACTPolicy(config)
    before, after = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    table = dataset.hf_dataset.with_format(None).select_columns([*COLUMNS, "episode_index"]).to_dict()
    values = {name: torch.tensor(table[name], dtype=torch.float32) for name in COLUMNS}
    episodes = torch.tensor(table["episode_index"])
    ends = torch.searchsorted(episodes, episodes, right=True) - 1  # of each frame's episode, its last frame
    optimizer = torch.optim.AdamW(
        policy.parameters(), OPTIMIZATION["optimizer.lr"], weight_decay=OPTIMIZATION["optimizer.weight_decay"]
    )
    warm_up = OPTIMIZATION["scheduler.num_warmup_steps"]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, step / warm_up) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    policy.train()
    for _ in trange(steps, desc="training"):
        frames = torch.randint(len(episodes), (BATCH_SIZE,))
        chunk = frames[:, None] + torch.arange(config.chunk_size)
        batch = before({
            OBS_STATE: values[OBS_STATE][frames],
            OBS_ENV_STATE: values[OBS_ENV_STATE][frames],
            ACTION: values[ACTION][chunk.minimum(ends[frames, None])],
            "action_is_pad": chunk > ends[frames, None],
        })  # fmt: skip
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), OPTIMIZATION["optimizer.grad_clip_norm"])
        optimizer.step()
        schedule.step()
    return policy.eval(), before, after


def misread(states: Tensor, rms: float) -> Tensor:
    """(n, 16) -> (n, 16): with an error that is the same for the same state."""
    generator = torch.Generator().manual_seed(0)
    # Moving the block changes all x alike: the phase by √8 times what one coordinate alone would.
    scale = 2 * math.pi / WAVELENGTH_PX / math.sqrt(CORNERS / 2)
    directions = scale * torch.randn(CORNERS, WAVES, generator=generator)
    phases = 2 * math.pi * torch.rand(WAVES, generator=generator)
    weights = torch.randn(WAVES, CORNERS, generator=generator)
    return states + rms * math.sqrt(2 / WAVES) * torch.sin(states @ directions + phases) @ weights


def rollouts(
    policy: ACTPolicy, before: Processor, after: Processor, rms: float, episodes: int
) -> list[float]:
    """Best reward of each episode, in order of seeds."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import gym_pusht  # noqa: F401  (registers the environment)
    import gymnasium

    environments = [
        gymnasium.make("gym_pusht/PushT-v0", obs_type="environment_state_agent_pos", max_episode_steps=300)
        for _ in range(episodes)
    ]
    seen = [each.reset(seed=FIRST_SEED + number)[0] for number, each in enumerate(environments)]
    best, done = [0.0] * len(seen), [False] * len(seen)
    policy.reset()
    while not all(done):
        batch = {
            OBS_STATE: stacked([each["agent_pos"] for each in seen]),
            OBS_ENV_STATE: misread(stacked([each["environment_state"] for each in seen]), rms),
        }
        with torch.inference_mode():
            actions = after(policy.select_action(before(batch))).numpy()
        for number, environment in enumerate(environments):
            if not done[number]:
                seen[number], reward, terminated, truncated, _ = environment.step(actions[number])
                best[number] = max(best[number], float(reward))
                done[number] = terminated or truncated
    return best


def stacked(values: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(values)).float()


if __name__ == "__main__":
    main()
