"""One checkpoint, one frame: the same tokens and the same actions, wherever the frame comes from.

How far they may differ:

ARITHMETIC. Another batch size, number of threads or order of cameras may add up a product's terms in another order. A
    float32 sum of K terms then moves by about sqrt(K) 2**-24 of its size. A frame passes 12 blocks of 6 products, each
    of at most K = 768 terms (tiny), and a layer norm at the end gives tokens unit variance: 12 * 6 * sqrt(768) * 2**-24
    is 2**-13. The small networks behind the tokens multiply no more often, and actions are of unit size, too.
STORAGE. Rounding to p significant bits moves a value x by at most 2**-p |x|: p is 11 for float16, 8 for bfloat16. Below
    2**-14 the steps of float16 are all 2**-24. int8's are 1/127 of the largest magnitude in a token. Rounding moves a
    value by half a step. float32 keeps all.
ACTIONS. How far an action follows its tokens is the network's affair, and measured: to the tokens noise of the size of
    their tolerance is added, DRAWS times. An action may move three times as far as it moved at most.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import einops
import numpy as np
import pytest
import torch
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import factory
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.video_utils import get_safe_default_video_backend
from lerobot.envs.utils import preprocess_observation
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.utils import build_inference_frame, prepare_observation_for_inference
from lerobot.processor import VanillaObservationProcessorStep
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE
from torch import Tensor

from lerobot_theia.cache.plan import PrecomputeSettings
from lerobot_theia.cache.precompute import precompute
from lerobot_theia.cache.storage import DTYPES
from lerobot_theia.data.keys import tokens_key
from lerobot_theia.policies.common.policy import TheiaPolicy
from tests.datasets import REPO_ID, make_dataset, open_dataset
from tests.policies.conftest import CLASSES, POLICIES, make_policy

ARITHMETIC = 2.0**-13
DRAWS = 8
CPU = torch.device("cpu")
ONE, TWO = "one square camera", "two cameras, one of them not square"
CAMERAS = {
    ONE: {"observation.image": (96, 96)},
    TWO: {"observation.images.top": (48, 64), "observation.images.wrist": (32, 32)},
}
EPISODES = (2, 3)
ROW = 2
"""The first frame of the second episode: there diffusion's window of two holds it twice, as a rollout's queue does."""
OTHER_ROW = 0

Batch = dict[str, Any]


def tolerance(tokens: Tensor, dtype: str) -> Tensor:
    """How far each of the tokens (B, N, D) of a cache of `dtype` may be from the live ones, `tokens`."""
    size = tokens.abs()
    storage = {
        "float32": torch.zeros_like(tokens),
        "float16": (2.0**-11 * size).clamp_min(2.0**-25),
        "bfloat16": 2.0**-8 * size,
        "int8": (size.amax(-1, keepdim=True) / 127 / 2).expand_as(tokens),
    }[dtype]
    return storage + ARITHMETIC


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class Checkpoint:
    """A policy as loaded from its folder, with its processors."""

    policy: TheiaPolicy
    preprocessor: Callable[[Batch], Batch]

    @classmethod
    def make(cls, folder: Path, kind: str, dataset: Path, **changes: Any) -> "Checkpoint":
        meta = open_dataset(dataset).meta
        # DDIM draws no noise but the first, which can be given.
        scheduler = {"noise_scheduler_type": "DDIM"} if kind == "theia_diffusion" else {}
        sizes = {name: tuple(meta.features[name]["shape"][:2]) for name in meta.camera_keys}
        made = make_policy(kind, sizes, **scheduler, **changes)
        processors = make_pre_post_processors(made.config, dataset_stats=meta.stats)
        for each in (made, *processors):
            each.save_pretrained(folder)

        policy = CLASSES[kind][1].from_pretrained(folder)
        policy.config.pretrained_path = folder
        preprocessor, _ = make_pre_post_processors(policy.config, pretrained_path=str(folder))
        return cls(policy.eval(), preprocessor)

    @property
    def cameras(self) -> list[str]:
        return list(self.policy.config.image_features)

    def noise(self, size: int) -> Batch:
        """What diffusion is to begin from; the same for each of `size` environments."""
        if self.policy.name == "theia_act":
            return {}
        noise = torch.randn(1, self.policy.config.horizon, 2, generator=torch.Generator().manual_seed(0))
        return {"noise": noise.expand(size, -1, -1).clone()}

    @torch.inference_mode()
    def act(self, observation: Batch) -> Tensor:
        """Actions (B, n_action_steps, 2) of a rollout that begins with `observation`, until it plans again."""
        batch = self.preprocessor(dict(observation))
        self.policy.reset()
        noise = self.noise(len(batch[OBS_STATE]))
        steps = range(self.policy.config.n_action_steps)
        return torch.stack([self.policy.select_action(dict(batch), **noise) for _ in steps], dim=1).clone()

    @torch.inference_mode()
    def act_on(self, batch: Batch) -> Tensor:
        """The same for a batch of a loader: frames or tokens, with all steps that the policy looks back."""
        batch = self.preprocessor({key: value for key, value in batch.items() if key != "action"})
        self.policy.reset()
        chunk = self.policy.predict_action_chunk(batch, **self.noise(len(batch[OBS_STATE])))
        return chunk[:, : self.policy.config.n_action_steps].clone()

    @torch.inference_mode()
    def tokens(self, batch: Batch) -> dict[str, Tensor]:
        """Per camera (B, N, D), of the last step, as the networks get them but not standardised."""
        features, found = self.policy.features, {}
        maps = features(self.preprocessor({key: value for key, value in batch.items() if key != "action"}))
        for row, camera in enumerate(self.cameras):
            last = maps[camera][:, -1] if maps[camera].ndim == 5 else maps[camera]
            tokens = einops.rearrange(last, "b d h w -> b (h w) d")
            found[camera] = (tokens * features.std[row] + features.mean[row]).clone()
        return found

    def actions_may_differ_by(self, batch: Batch, dtype: str) -> float:
        """See ACTIONS above; `batch` is of one live frame."""
        generator = torch.Generator().manual_seed(0)
        noisy: Batch = {OBS_STATE: batch[OBS_STATE].expand(1 + DRAWS, -1)}
        for camera, tokens in self.tokens(batch).items():
            noise = torch.rand(1 + DRAWS, *tokens.shape[1:], generator=generator) * 2 - 1
            noise[0] = 0  # the frame as it is
            noisy[tokens_key(camera)] = tokens + noise * tolerance(tokens, dtype)
        if (steps := self.policy.config.observation_delta_indices) is not None:
            noisy = {key: torch.stack([value] * len(steps), dim=1) for key, value in noisy.items()}
        actions = self.act_on(noisy)
        return 3 * (actions[1:] - actions[:1]).abs().max().item() + ARITHMETIC


class Sources:
    """Where the frames of one dataset come from: the dataset, its caches, a simulator and a robot that show them."""

    def __init__(self, root: Path, caches: Path, **settings: Any) -> None:
        self.root, self.caches, self.settings = root, caches, settings

    @cached_property
    def dataset(self) -> LeRobotDataset:
        return open_dataset(self.root, **self.settings)

    def precompute(self, dtype: str, pool: int) -> None:
        precompute(
            PrecomputeSettings(
                repo_id=REPO_ID, root=str(self.root), cache_root=str(self.caches), encoder="random-tiny",
                device="cpu", dtype=dtype, pool=pool, **self.settings,
            )
        )  # fmt: skip

    def sample(self, checkpoint: Checkpoint, row: int = ROW, **changes: Any) -> Batch:
        """What a training run's loader gives for frame `row`, with frames as floats, as lerobot-train makes them."""
        config = checkpoint.policy.config
        defaults = {"cache_root": str(self.caches), "cache_dtype": None, "cache_residency": "auto"}
        for name, value in (defaults | changes).items():
            setattr(config, name, value)
        data = DatasetConfig(repo_id=REPO_ID, root=str(self.root), **self.settings)
        dataset, _ = factory.make_train_eval_datasets(TrainPipelineConfig(dataset=data, policy=config))
        checkpoint.policy.features.on_device = config.__dict__.pop("tokens_on_device", None)
        batch = next(iter(torch.utils.data.DataLoader(dataset, sampler=[row])))
        frames = {camera: batch[camera] for camera in checkpoint.cameras if camera in batch}
        assert bool(frames) == (config.features == "online")
        return batch | {
            camera: each.float() / 255 if each.dtype == torch.uint8 else each
            for camera, each in frames.items()
        }

    def sensed(self, row: int = ROW) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Frame `row` of each camera as a simulator or a robot has it, uint8 (H, W, 3), and the state (3,)."""
        item = self.dataset[row]
        cameras = [key for key in item if key.startswith("observation.image")]
        frames = {key: item[key].permute(1, 2, 0).numpy().copy() for key in cameras}
        if frames[cameras[0]].dtype != np.uint8:  # LeRobot reads stored images as floats
            frames = {key: np.round(255 * frame).astype(np.uint8) for key, frame in frames.items()}
        return frames, item[OBS_STATE].numpy()

    def simulated(self, rows: list[int], process: Callable[[Batch], Batch] = preprocess_observation) -> Batch:
        """An observation of as many environments as `rows`, through LeRobot's `process`."""
        sensed = [self.sensed(row) for row in rows]
        pixels = {key: np.stack([frames[key] for frames, _ in sensed]) for key in sensed[0][0]}
        named = {key.removeprefix(f"{OBS_IMAGES}."): images for key, images in pixels.items()}
        state = np.stack([state for _, state in sensed])
        return process(
            {"pixels": named if len(named) > 1 else next(iter(named.values())), "agent_pos": state}
        )


@pytest.fixture(scope="module", params=[pytest.param(ONE, marks=pytest.mark.slow), TWO])
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Lossless frames, and a cache of each storage type and pooling."""
    folder = tmp_path_factory.mktemp("same")
    root = make_dataset(folder / "data", episodes=EPISODES, cameras=CAMERAS[request.param], use_videos=False)
    found = Sources(root, folder / "caches")
    for pool in (1, 2):
        for dtype in DTYPES:
            found.precompute(dtype, pool)
    return found


@pytest.fixture(
    scope="module",
    params=[pytest.param(1, id="14x14"), pytest.param(2, id="7x7", marks=pytest.mark.slow)],
)
def pool(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module", params=POLICIES)
def checkpoint(
    request: pytest.FixtureRequest, sources: Sources, pool: int, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    return Checkpoint.make(
        tmp_path_factory.mktemp("checkpoint"), request.param, sources.root, token_pool=pool
    )


def test_a_frame_is_the_same_to_the_bit_in_every_live_dress(sources: Sources, checkpoint: Checkpoint) -> None:
    frames, state = sources.sensed()
    described = {OBS_STATE: {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]}}
    described |= {key: {"dtype": "image", "shape": frame.shape} for key, frame in frames.items()}
    read = {key.removeprefix(f"{OBS_IMAGES}."): frame for key, frame in frames.items()}
    read |= dict(zip(("x", "y", "z"), state, strict=True))
    channel_first = {key: torch.from_numpy(frame).permute(2, 0, 1)[None] for key, frame in frames.items()}
    channel_last = {key: torch.from_numpy(frame)[None] for key, frame in frames.items()}
    batched = {OBS_STATE: torch.from_numpy(state)[None]}
    dresses = {
        "simulator": sources.simulated([ROW]),
        "observation processor": sources.simulated([ROW], VanillaObservationProcessorStep().observation),
        "robot": build_inference_frame(read, CPU, described),
        "robot, named": prepare_observation_for_inference(dict(frames) | {OBS_STATE: state}, CPU),
        "uint8, channel first": channel_first | batched,
        "uint8, channel last": channel_last | batched,
    }
    tokens = {name: checkpoint.tokens(observation) for name, observation in dresses.items()}
    actions = {name: checkpoint.act(observation) for name, observation in dresses.items()}
    for name in dresses:
        for camera in checkpoint.cameras:
            assert torch.equal(tokens[name][camera], tokens["simulator"][camera]), (name, camera)
        assert torch.equal(actions[name], actions["simulator"]), name


def test_a_dataset_online_is_a_simulator(sources: Sources, checkpoint: Checkpoint) -> None:
    batch, live = sources.sample(checkpoint, features="online"), sources.simulated([ROW])
    for camera, tokens in checkpoint.tokens(live).items():
        torch.testing.assert_close(checkpoint.tokens(batch)[camera], tokens, rtol=0, atol=ARITHMETIC)
    torch.testing.assert_close(checkpoint.act_on(batch), checkpoint.act(live), rtol=0, atol=ARITHMETIC)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cache_is_a_simulator_to_the_rounding_of_its_type(
    sources: Sources, checkpoint: Checkpoint, dtype: str
) -> None:
    batch, live = sources.sample(checkpoint, features="cached", cache_dtype=dtype), sources.simulated([ROW])
    cached = checkpoint.tokens(batch)
    for camera, tokens in checkpoint.tokens(live).items():
        assert ((cached[camera] - tokens).abs() <= tolerance(tokens, dtype)).all()
    allowed = checkpoint.actions_may_differ_by(live, dtype)
    actions = checkpoint.act(live)
    assert (checkpoint.act_on(batch) - actions).abs().max() <= allowed

    # ... which another frame is not, so the tolerances tell something.
    other = sources.simulated([OTHER_ROW])
    for camera, tokens in checkpoint.tokens(live).items():
        beyond = (checkpoint.tokens(other)[camera] - tokens).abs() > tolerance(tokens, dtype)
        assert beyond.float().mean() > 0.5
    assert (checkpoint.act(other) - actions).abs().max() > 5 * allowed


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_where_a_cache_is_kept_makes_no_difference(
    sources: Sources, checkpoint: Checkpoint, dtype: str
) -> None:
    kept = [
        checkpoint.act_on(
            sources.sample(checkpoint, features="cached", cache_dtype=dtype, cache_residency=each)
        )
        for each in ("disk", "memory", "device")
    ]
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_one_thread_or_many(sources: Sources, checkpoint: Checkpoint, number: int) -> None:
    live = sources.simulated([ROW])
    tokens, actions = checkpoint.tokens(live), checkpoint.act(live)
    with threads(number):
        for camera, each in checkpoint.tokens(live).items():
            torch.testing.assert_close(each, tokens[camera], rtol=0, atol=ARITHMETIC)
        torch.testing.assert_close(checkpoint.act(live), actions, rtol=0, atol=ARITHMETIC)


@pytest.mark.parametrize("size", [4, pytest.param(64, marks=[pytest.mark.slow, pytest.mark.exhaustive])])
def test_one_environment_or_many(sources: Sources, checkpoint: Checkpoint, size: int) -> None:
    others = sum(EPISODES)
    rows = [(ROW + each) % others for each in range(size)]
    together, alone = sources.simulated(rows), sources.simulated([ROW])
    for camera, tokens in checkpoint.tokens(alone).items():
        torch.testing.assert_close(checkpoint.tokens(together)[camera][:1], tokens, rtol=0, atol=ARITHMETIC)
    torch.testing.assert_close(checkpoint.act(together)[:1], checkpoint.act(alone), rtol=0, atol=ARITHMETIC)


def backends() -> list[str]:
    """Those that work here: torchcodec needs FFmpeg's libraries."""
    return sorted({"pyav", get_safe_default_video_backend()})


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("kind", POLICIES)
def test_a_video_is_the_same_cached_and_online(
    kind: str, backend: str, video_dataset: Path, tmp_path: Path
) -> None:
    """Precompute decodes a video from front to back, online training jumps about in it."""
    sources = Sources(video_dataset, tmp_path / "caches", video_backend=backend)
    sources.precompute("float32", 1)
    checkpoint = Checkpoint.make(tmp_path / "checkpoint", kind, video_dataset)
    for row in (11, 0, 15, 5):
        cached, online = (sources.sample(checkpoint, row, features=each) for each in ("cached", "online"))
        found, wanted = checkpoint.tokens(cached), checkpoint.tokens(online)
        for camera in checkpoint.cameras:
            torch.testing.assert_close(found[camera], wanted[camera], rtol=0, atol=ARITHMETIC)
        torch.testing.assert_close(
            checkpoint.act_on(cached), checkpoint.act_on(online), rtol=0, atol=ARITHMETIC
        )
