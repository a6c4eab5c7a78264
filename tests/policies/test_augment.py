"""`--policy.token_dropout`, `token_noise`, `grid_shift`: what the networks are given in training, and only there."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lerobot_theia.cache.storage import encode_tokens
from lerobot_theia.data.keys import scale_key, tokens_key
from lerobot_theia.data.resume import StepSeeds
from lerobot_theia.policies.common.configuration import InvalidSettingError
from lerobot_theia.policies.common.policy import TheiaPolicy
from tests.policies.conftest import (
    AUGMENTED,
    POLICIES,
    TWO_CAMERAS,
    make_config,
    make_policy,
    observation,
    token_statistics,
    training_batch,
    with_tokens,
)

SAMPLES, GRID = 64, 7


def augmenting(kind: str, **changes: float) -> TheiaPolicy:
    """Two cameras, a 7x7 grid."""
    return make_policy(kind, TWO_CAMERAS, token_pool=2, **changes).train()


def batch_of(policy: TheiaPolicy) -> dict[str, Tensor]:
    """Many samples of tokens, no two of which are alike."""
    batch = training_batch(policy, SAMPLES)
    generator = torch.Generator().manual_seed(5)
    for camera in TWO_CAMERAS:
        steps = batch.pop(camera).shape[1:-3]
        batch[tokens_key(camera)] = torch.randn(SAMPLES, *steps, GRID**2, 192, generator=generator)
    return batch


def given(policy: TheiaPolicy, batch: dict[str, Tensor]) -> list[Tensor]:
    """What the network gets of each camera in a forward pass: (B, S, D, h, w)."""
    act = policy.name == "theia_act"
    entrances = [policy.model.encoder_img_feat_input_proj] if act else list(policy.diffusion.rgb_encoder)
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
        for module in entrances
    ]
    policy.forward(dict(batch))
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(TWO_CAMERAS)
    size = len(batch["action"])
    return [maps.view(size, -1, *maps.shape[1:]) for maps in seen]


def clean(policy: TheiaPolicy, batch: dict[str, Tensor]) -> list[Tensor]:
    """The standardised tokens themselves."""
    statistics = token_statistics(TWO_CAMERAS)
    maps = []
    for camera in TWO_CAMERAS:
        mean, std = (
            torch.from_numpy(statistics[tokens_key(camera)][name])[:, None, None] for name in ("mean", "std")
        )
        tokens = batch[tokens_key(camera)].reshape(SAMPLES, -1, GRID, GRID, 192).movedim(-1, -3)
        maps.append((tokens - mean) / std)
    return maps


@pytest.mark.parametrize("kind", POLICIES)
def test_off_by_default_and_then_nothing_is_drawn(kind):
    policy = augmenting(kind)
    batch = batch_of(policy)
    for maps, wanted in zip(given(policy, batch), clean(policy, batch), strict=True):
        torch.testing.assert_close(maps, wanted)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    policy.begin_step(dict(batch))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", POLICIES)
def test_dropped_tokens_are_the_mean_in_all_steps_and_the_others_untouched(kind):
    policy = augmenting(kind, token_dropout=0.3)
    batch = batch_of(policy)
    masks = []
    for maps, wanted in zip(given(policy, batch), clean(policy, batch), strict=True):
        dropped = (maps == 0).all(2)  # (B, S, h, w); 0 is the mean, once standardised
        assert torch.equal(dropped, dropped[:, :1].expand_as(dropped)), "one mask for all steps of a sample"
        torch.testing.assert_close(maps, wanted.masked_fill(dropped[:, :, None], 0))
        masks.append(dropped[:, 0])
    drawn = torch.stack(masks).double()
    deviation = math.sqrt(0.3 * 0.7 / drawn.numel())
    assert drawn.mean().item() == pytest.approx(0.3, abs=5 * deviation)
    assert len({mask.numpy().tobytes() for mask in drawn.flatten(0, 1)}) == 2 * SAMPLES, (
        "other masks for other samples and cameras"
    )


@pytest.mark.parametrize("kind", POLICIES)
def test_noise_is_in_units_of_each_channels_deviation(kind):
    policy = augmenting(kind, token_noise=0.25)
    batch = batch_of(policy)
    for maps, wanted in zip(given(policy, batch), clean(policy, batch), strict=True):
        noise = (maps - wanted).double()
        per_channel = noise.movedim(2, 0).flatten(1)  # standardised: all channels alike
        count = per_channel.shape[1]
        assert per_channel.mean(1).abs().max() < 6 * 0.25 / math.sqrt(count)
        assert (per_channel.std(1) - 0.25).abs().max() < 6 * 0.25 / math.sqrt(2 * count)
        if noise.shape[1] > 1:
            first, second = noise[:, 0].flatten(), noise[:, 1].flatten()
            together = np.corrcoef(first.numpy(), second.numpy())[0, 1]
            assert abs(together) < 6 / math.sqrt(len(first)), "each step has noise of its own"


def moved(maps: Tensor, down: int, right: int) -> Tensor:
    """Position (y, x) holds what was at (y + down, x + right), or nearest to there."""
    rows = (torch.arange(GRID) + down).clamp(0, GRID - 1)
    columns = (torch.arange(GRID) + right).clamp(0, GRID - 1)
    return maps[..., rows, :][..., columns]


@pytest.mark.parametrize("kind", POLICIES)
def test_the_grid_moves_as_one_in_all_steps_of_a_sample_and_repeats_its_edges(kind):
    reach = 2
    policy = augmenting(kind, grid_shift=reach)
    batch = batch_of(policy)
    places = [(down, right) for down in range(-reach, reach + 1) for right in range(-reach, reach + 1)]
    found = []
    for maps, wanted in zip(given(policy, batch), clean(policy, batch), strict=True):
        for sample, original in zip(maps, wanted, strict=True):
            fitting = [place for place in places if torch.allclose(sample, moved(original, *place))]
            assert len(fitting) == 1
            found += fitting
    first, second = found[:SAMPLES], found[SAMPLES:]
    assert sum(a != b for a, b in zip(first, second, strict=True)) > SAMPLES / 2, "cameras move by themselves"
    # 25 places, 128 draws: that a row or a column of places never comes has a chance of 1e-12.
    assert {down for down, _ in found} == {right for _, right in found} == set(range(-reach, reach + 1))


@pytest.mark.parametrize("kind", POLICIES)
def test_held_out_loss_and_actions_are_not_augmented(kind):
    policy, plain = augmenting(kind, **AUGMENTED), augmenting(kind)
    batch = batch_of(policy)
    assert all(
        not torch.allclose(maps, wanted)
        for maps, wanted in zip(given(policy, batch), clean(policy, batch), strict=True)
    )
    for maps, wanted in zip(given(policy.eval(), batch), clean(policy, batch), strict=True):
        torch.testing.assert_close(maps, wanted)
    losses, actions, chunks = [], [], []
    for each in (policy, plain):
        torch.manual_seed(1)
        losses.append(each.eval().forward(dict(batch))[0])
        each.train().reset()  # a loop that forgot eval(): acting is acting all the same
        torch.manual_seed(1)
        with torch.inference_mode():
            actions.append(each.select_action(observation(each)))
            each.train().reset()
            torch.manual_seed(1)
            chunks.append(each.predict_action_chunk(training_batch(each)))
    assert losses[0] == losses[1]
    assert torch.equal(*actions)
    assert torch.equal(*chunks)


@pytest.mark.parametrize("kind", POLICIES)
def test_tokens_of_every_type_and_frames_are_augmented_alike(kind):
    policy = augmenting(kind, **AUGMENTED)
    online = training_batch(policy)
    batches = [with_tokens(online, policy, torch.float32), with_tokens(online, policy, torch.float16)]
    batches.append(dict(batches[0]))
    for camera in TWO_CAMERAS:
        tokens = batches[-1][tokens_key(camera)]
        stored = encode_tokens(tokens.flatten(0, -3), "int8")
        batches[-1][tokens_key(camera)] = stored.tokens.view(tokens.shape)
        batches[-1][scale_key(camera)] = stored.scale.view(tokens.shape[:-1])
    maps = []
    for batch in (online, *batches):
        torch.manual_seed(1)
        maps.append(given(policy, batch))
    for others in maps[1:]:
        for other, wanted in zip(others, maps[0], strict=True):
            torch.testing.assert_close(other, wanted, rtol=0, atol=0.1)  # int8, in the smallest deviations


@pytest.mark.parametrize("kind", POLICIES)
def test_a_resumed_run_augments_as_it_would_have(kind):
    policy = augmenting(kind, **AUGMENTED)
    batch = batch_of(policy)
    policy.step_seeds = StepSeeds(3)
    first, second = given(policy, batch), given(policy, batch)
    assert not torch.equal(first[0], second[0])
    torch.rand(100)  # an evaluation, or a loader's iterator
    policy.step_seeds = StepSeeds(3, steps_done=1)
    assert all(torch.equal(*maps) for maps in zip(given(policy, batch), second, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_dropout": -0.1}, r"token_dropout=-0\.1"),
        ({"token_dropout": 1.0}, r"token_dropout=1\.0.*below 1"),
        ({"token_dropout": math.nan}, "token_dropout=nan"),
        ({"token_noise": -1.0}, r"token_noise=-1\.0"),
        ({"token_noise": math.inf}, "token_noise=inf"),
        ({"grid_shift": -1}, "grid_shift=-1"),
        ({"grid_shift": 14}, "grid_shift=14.*from 0.*to 13.*14x14"),
        ({"grid_shift": 2, "token_pool": 7}, "grid_shift=2.*to 1.*token_pool=7.*2x2"),
        ({"grid_shift": 1, "token_pool": 14}, "grid_shift=1.*to 0.*1x1"),
        ({"grid_shift": 1.5}, r"grid_shift=1\.5.*whole"),
    ],
)
@pytest.mark.parametrize("kind", POLICIES)
def test_values_that_cannot_be_are_refused_before_anything_is_loaded(kind, changes, message):
    with pytest.raises(InvalidSettingError, match=message):
        make_config(kind, **changes)
