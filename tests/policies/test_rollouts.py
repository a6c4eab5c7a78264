"""Both policies in a rollout: a frame is encoded at most once, and only if an action is planned from it."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from lerobot.common.control_utils import predict_action
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import DataProcessorPipeline
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.constants import ACTION, OBS_IMAGES

from lerobot_theia.encoder import TheiaEncoder
from tests.policies.conftest import (
    POLICIES,
    TWO_CAMERAS,
    make_policy,
    observation,
    training_batch,
    with_tokens,
)


def test_act_encodes_one_frame_per_plan(count_encoded):
    policy = make_policy("theia_act")  # plans every 4 steps
    policy.reset()
    for step in range(8):
        assert policy.select_action(observation(policy, size=3, seed=step)).shape == (3, 2)
    assert count_encoded() == [3, 3]


def test_diffusion_encodes_only_the_frames_it_plans_from(count_encoded):
    policy = make_policy("theia_diffusion", n_obs_steps=2, n_action_steps=4)
    policy.reset()
    for step in range(12):
        policy.select_action(observation(policy, size=3, seed=step))
    # The first plan sees one observation twice; the next see two each, and skip two each.
    assert count_encoded() == [3, 6, 6]


def test_diffusion_keeps_tokens_of_frames_it_has_seen(count_encoded):
    policy = make_policy("theia_diffusion", n_obs_steps=2, n_action_steps=1)
    policy.reset()
    for step in range(4):
        policy.select_action(observation(policy, seed=step))
    assert count_encoded() == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", POLICIES)
def test_all_cameras_go_through_the_encoder_in_one_call(kind, count_encoded):
    policy = make_policy(kind, TWO_CAMERAS)
    policy.reset()
    policy.select_action(observation(policy, size=2))
    assert count_encoded() == [4]


@pytest.mark.parametrize(
    ("n_action_steps", "calls"),
    [
        # Two cameras, three environments. The first plan sees one observation twice, and encodes it once.
        (1, [6] * 8),  # each later plan sees one that it has seen before
        (2, [6, 12, 12, 12]),  # and one that was never planned from, but is in the window now
        (4, [6, 12]),  # while those out of the window are not encoded at all
    ],
)
def test_diffusion_encodes_in_one_call_what_a_plan_has_not_seen(n_action_steps, calls, count_encoded):
    policy = make_policy("theia_diffusion", TWO_CAMERAS, n_obs_steps=2, n_action_steps=n_action_steps)
    policy.reset()
    for step in range(8):
        policy.select_action(observation(policy, size=3, seed=step))
    assert count_encoded() == calls


@pytest.mark.parametrize("kind", POLICIES)
def test_frames_that_no_action_is_planned_from_are_not_even_resized(kind, monkeypatch):
    resized = []
    preprocess = TheiaEncoder.preprocess
    monkeypatch.setattr(
        TheiaEncoder,
        "preprocess",
        lambda self, images: resized.append(images.shape) or preprocess(self, images),
    )
    policy = make_policy(kind, n_action_steps=4)
    policy.reset()
    for step in range(4):
        policy.select_action(observation(policy, size=3, seed=step))
    assert resized == [(3, 3, 96, 96)]


class Room(gymnasium.Env):
    """Two cameras in a simulator, as LeRobot's environments show them: uint8 (H, W, 3). Lasts eight steps."""

    metadata = {"render_fps": 10}  # noqa: RUF012
    _max_episode_steps = 8
    task = task_description = "look around"
    observation_space = Dict(
        {
            "pixels": Dict(
                {
                    name.removeprefix("observation.images."): Box(0, 255, (*size, 3), np.uint8)
                    for name, size in TWO_CAMERAS.items()
                }
            ),
            "agent_pos": Box(-1, 1, (3,), np.float32),
        }
    )
    action_space = Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 0.0, False, self.steps == self._max_episode_steps, {}


@pytest.mark.parametrize(
    ("kind", "calls"), [("theia_act", [6, 6]), ("theia_diffusion", [6, 12])], ids=POLICIES
)
def test_lerobot_evals_loop_makes_one_encoder_call_per_plan(kind, calls, count_encoded):
    """For all cameras of all parallel environments: two of three each, eight steps, a plan every four."""
    policy = make_policy(kind, TWO_CAMERAS, n_action_steps=4)
    processors = make_pre_post_processors(policy.config, dataset_stats={})
    pass_on = DataProcessorPipeline(steps=[])
    environments = gymnasium.vector.SyncVectorEnv([Room] * 3)
    done = rollout(environments, policy, pass_on, pass_on, *processors, seeds=[1, 2, 3])
    assert done["action"].shape == (3, 8, 2)
    assert count_encoded() == calls


@pytest.mark.parametrize("kind", POLICIES)
def test_a_camera_may_write_each_frame_where_the_last_one_was(kind):
    policy = make_policy(kind).eval()
    frames = [observation(policy, seed=step) for step in range(9)]
    place = {key: value.clone() for key, value in frames[0].items()}

    def actions(overwrite: bool) -> torch.Tensor:
        policy.reset()
        torch.manual_seed(1)
        taken = []
        for frame in frames:
            if overwrite:
                for key, value in frame.items():
                    place[key].copy_(value) if key.startswith("observation.image") else None
                frame = frame | {key: place[key] for key in policy.config.image_features}
            taken.append(policy.select_action(frame))
        return torch.stack(taken)

    assert torch.equal(actions(overwrite=True), actions(overwrite=False))


def test_diffusion_plans_the_same_from_its_queue_as_from_a_batch():
    policy = make_policy("theia_diffusion", TWO_CAMERAS).eval()
    batch = training_batch(policy, size=2)
    noise = torch.randn(2, policy.config.horizon, 2)
    window = {key: value for key, value in batch.items() if key.startswith("observation")}
    policy.reset()
    torch.manual_seed(1)  # denoising draws noise, too
    offline = policy.predict_action_chunk(dict(window), noise=noise)
    cached = {
        k: v for k, v in with_tokens(batch, policy, torch.float32).items() if k.startswith("observation")
    }
    torch.manual_seed(1)
    tokens = policy.predict_action_chunk(cached, noise=noise)
    policy.reset()
    policy._queues[ACTION].extend([torch.zeros(2, 2)])  # do not plan from the first observation
    torch.manual_seed(1)
    for step in range(2):
        action = policy.select_action({key: value[:, step] for key, value in window.items()}, noise=noise)
    assert len(policy._queues[OBS_IMAGES]) == 2
    torch.testing.assert_close(action, offline[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens, offline, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", POLICIES)
def test_reset_forgets_observations_and_actions(kind):
    policy = make_policy(kind).eval()
    first = policy.predict_action_chunk(observation(policy)) if kind == "theia_act" else None
    policy.reset()
    for step in range(3):
        policy.select_action(observation(policy, seed=step))
    policy.reset()
    if first is not None:
        torch.testing.assert_close(policy.select_action(observation(policy)), first[:, 0])
    else:
        assert not policy._queues[OBS_IMAGES]
        assert not policy._queues[ACTION]


def test_act_with_temporal_ensembling_plans_each_step(count_encoded):
    policy = make_policy("theia_act", temporal_ensemble_coeff=0.01, n_action_steps=1)
    policy.reset()
    for step in range(3):
        policy.select_action(observation(policy, seed=step))
    assert count_encoded() == [1, 1, 1]


@pytest.mark.parametrize("kind", POLICIES)
def test_the_robot_loop_gets_an_action(kind):
    """`predict_action` is what LeRobot's robot loop calls: numpy, uint8 HWC, one robot."""
    policy = make_policy(kind, TWO_CAMERAS)
    policy.reset()
    preprocessor, postprocessor = make_pre_post_processors(policy.config, dataset_stats={})
    rng = np.random.default_rng(0)
    sensed = {name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in TWO_CAMERAS.items()}
    sensed["observation.state"] = rng.normal(size=3).astype(np.float32)
    action = predict_action(sensed, policy, torch.device("cpu"), preprocessor, postprocessor, use_amp=False)
    assert action.shape == (1, 2)
    assert action.isfinite().all()


@pytest.mark.parametrize("kind", POLICIES)
def test_the_simulators_dress_and_the_datasets_give_the_same_map(kind):
    """Float32 in [0, 1] channel first, or uint8: the same frame is the same tokens, bit for bit."""
    policy = make_policy(kind)
    frame = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    maps = policy.features.encode({"observation.image": frame})["observation.image"]
    as_float = policy.features.encode({"observation.image": frame / 255})["observation.image"]
    assert torch.equal(maps, as_float)
