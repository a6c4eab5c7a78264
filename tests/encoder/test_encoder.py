"""The encoder's promises: frozen, same tokens in every dress and batch, weights known by their hash."""

import copy
import dataclasses
import json
import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lerobot_theia.encoder import names
from lerobot_theia.encoder.preprocess import preprocess
from lerobot_theia.encoder.spec import EncoderSpec
from lerobot_theia.encoder.theia import TheiaEncoder
from lerobot_theia.encoder.weights_hash import weights_sha256

# The weights behind these names never change: caches and checkpoints are named by these hashes.
RANDOM_TINY_SHA256 = "efc4a572e7f36f1382f56e8e97ceac8c820e7faa9927eb6a6b6f60d69c01a139"


# --- tokens


def test_shapes_of_reductions(random_tiny: TheiaEncoder, frames: Tensor) -> None:
    everything = random_tiny(frames[:2], reduce="identity")
    patches = random_tiny(frames[:2])
    assert everything.shape == (2, 197, 192)
    assert patches.shape == (2, 196, 192)
    assert torch.equal(patches, everything[:, 1:])
    assert torch.equal(random_tiny(frames[:2], reduce="cls"), everything[:, 0])
    assert torch.equal(random_tiny(frames[:2], reduce="mean"), patches.mean(dim=1))
    assert torch.equal(random_tiny(frames[:2], reduce="max"), patches.amax(dim=1))


def test_unknown_reduction(random_tiny: TheiaEncoder, frames: Tensor) -> None:
    for encode in (
        random_tiny,
        lambda images, reduce: random_tiny.encode_preprocessed(preprocess(images), reduce),
    ):
        with pytest.raises(
            ValueError, match="'mean_pooling', must be None or one of mean, max, cls, identity"
        ):
            encode(frames[:1], reduce="mean_pooling")


def test_every_dress_gives_the_same_tokens_bit_for_bit(random_tiny: TheiaEncoder, frames: Tensor) -> None:
    frames = frames[:2]
    channel_first = frames.permute(0, 3, 1, 2).contiguous()
    tokens = random_tiny(frames)
    assert torch.equal(random_tiny(channel_first), tokens)
    assert torch.equal(random_tiny(channel_first.float() / 255), tokens)
    assert torch.equal(random_tiny.encode_preprocessed(preprocess(frames)), tokens)


def test_batch_size_makes_no_difference(random_tiny: TheiaEncoder, frames: Tensor) -> None:
    together = random_tiny(frames)
    one_by_one = torch.cat([random_tiny(frame[None]) for frame in frames])
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-4)
    assert random_tiny(frames[:0]).shape == (0, 196, 192)


def test_preprocessed_input_is_checked(random_tiny: TheiaEncoder) -> None:
    for pixels in (torch.zeros(1, 3, 96, 96), torch.zeros(1, 3, 224, 224, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"\(B, 3, 224, 224\)"):
            random_tiny.encode_preprocessed(pixels)


def test_random_tokens_tell_places_and_images_apart(random_tiny: TheiaEncoder, frames: Tensor) -> None:
    flat = random_tiny(torch.full((1, 224, 224, 3), 255, dtype=torch.uint8))
    assert flat.std(dim=1).mean() > 0.2, "positions are lost"
    tokens = random_tiny(frames)
    assert (tokens[0] - tokens[1]).std() > 0.2, "content is lost"


# --- frozen


def test_stays_in_eval_mode_inside_a_training_policy(random_tiny: TheiaEncoder) -> None:
    policy = nn.Sequential(random_tiny, nn.Dropout())
    policy.train()
    assert policy.training
    assert not any(module.training for module in random_tiny.modules())


def test_takes_no_gradient(random_tiny: TheiaEncoder, tiny_cdiv: TheiaEncoder, frames: Tensor) -> None:
    for encoder in (random_tiny, tiny_cdiv, TheiaEncoder.from_spec(random_tiny.spec)):
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
    images = (frames[:1].permute(0, 3, 1, 2).float() / 255).requires_grad_()
    assert not random_tiny(images).requires_grad
    assert not random_tiny.encode_preprocessed(preprocess(images)).requires_grad
    assert not any(features.requires_grad for features in tiny_cdiv.translate(images).values())
    with torch.inference_mode():
        random_tiny(frames[:1])


def test_autocast_of_the_caller_makes_no_difference(tiny_cdiv: TheiaEncoder, frames: Tensor) -> None:
    tokens, translated = tiny_cdiv(frames[:1]), tiny_cdiv.translate(frames[:1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tiny_cdiv(frames[:1]), tokens)
        for teacher, features in tiny_cdiv.translate(frames[:1]).items():
            assert torch.equal(features, translated[teacher])


def test_runs_in_its_own_dtype(random_tiny: TheiaEncoder, frames: Tensor) -> None:
    half = TheiaEncoder.from_pretrained("random-tiny", dtype=torch.bfloat16)
    tokens = half(frames[:1])
    assert tokens.dtype == half.dtype == torch.bfloat16
    assert half.spec == random_tiny.spec
    error = (tokens.float() - random_tiny(frames[:1])).norm() / random_tiny(frames[:1]).norm()
    assert error < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("allowed", [False, True])
def test_cuda_tokens_equal_cpu_tokens_to_the_rounding_of_tf32(
    random_tiny: TheiaEncoder, frames: Tensor, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the process allows. Emulated on a CPU, they differ by 1.7e-3 at most, with tokens of unit variance."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", allowed)
    on_gpu = TheiaEncoder.from_pretrained("random-tiny", device="cuda")
    torch.testing.assert_close(on_gpu(frames).cpu(), random_tiny(frames), rtol=0, atol=2**-8)


# --- weights


def test_random_weights_are_the_same_everywhere(random_tiny: TheiaEncoder) -> None:
    assert random_tiny.spec.weights_sha256 == RANDOM_TINY_SHA256
    assert random_tiny.spec.name == "random-tiny"
    assert not random_tiny.spec.trained


def test_random_state_is_neither_read_nor_moved(tiny_cdiv_folder: object) -> None:
    for name in ("random_tiny", str(tiny_cdiv_folder)):
        hashes = set()
        for seed in (0, 1):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            encoder = TheiaEncoder.from_pretrained(name)
            TheiaEncoder.from_spec(encoder.spec)
            assert torch.equal(torch.get_rng_state(), before)
            hashes.add(encoder.spec.weights_sha256)
        assert len(hashes) == 1


def test_hash_is_of_the_backbone_alone(tiny_cdiv: TheiaEncoder, tiny_cdiv_folder: object) -> None:
    without = TheiaEncoder.from_pretrained(str(tiny_cdiv_folder), translators=False)
    assert without.spec.weights_sha256 == tiny_cdiv.spec.weights_sha256 == weights_sha256(tiny_cdiv)
    with pytest.raises(ValueError, match="not an encoder"):
        weights_sha256(nn.Linear(2, 2))


def test_hash_sees_one_changed_weight(random_tiny: TheiaEncoder) -> None:
    changed = copy.deepcopy(random_tiny)
    changed.verify_weights()
    changed.backbone.model.layernorm.bias[7] += 1e-6
    assert weights_sha256(changed) != random_tiny.spec.weights_sha256
    with pytest.raises(ValueError, match=r"random-tiny have sha256 .* other weights were loaded"):
        changed.verify_weights()


def test_from_spec_waits_for_weights(random_tiny: TheiaEncoder, frames: Tensor) -> None:
    encoder = TheiaEncoder.from_spec(random_tiny.spec)
    assert encoder.spec == random_tiny.spec
    with pytest.raises(ValueError, match="no checkpoint was loaded"):
        encoder.verify_weights()
    assert encoder(frames[:1]).isnan().all()
    encoder.load_state_dict(random_tiny.state_dict())
    encoder.verify_weights()
    assert torch.equal(encoder(frames[:1]), random_tiny(frames[:1]))


def test_verify_names_the_rounding_of_half_precision(random_tiny: TheiaEncoder) -> None:
    with pytest.raises(ValueError, match="verify before casting"):
        copy.deepcopy(random_tiny).half().verify_weights()


def test_random_encoders_cannot_translate(random_tiny: TheiaEncoder, frames: Tensor) -> None:
    with pytest.raises(ValueError, match="random-tiny was loaded without translator heads"):
        random_tiny.translate(frames)


# --- spec, names, notices


def test_spec_survives_json(random_tiny: TheiaEncoder) -> None:
    spec = random_tiny.spec
    assert EncoderSpec(**json.loads(json.dumps(dataclasses.asdict(spec)))) == spec
    assert (spec.grid, spec.num_patches) == (14, 196)
    assert spec.describe() == (
        "random-tiny (UNTRAINED: weights from a fixed seed) 192-d, 14x14 patches, weights efc4a572…"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": 5}, "num_heads 5"),
        ({"patch_size": 15}, "patch_size 15"),
        ({"num_layers": 0}, "num_layers is 0"),
    ],
)
def test_impossible_specs(random_tiny: TheiaEncoder, changes: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(random_tiny.spec, **changes)


def test_names() -> None:
    assert len(names.known_encoders()) == 13
    assert names.canonical_name("theia_base_cddsv") == "theia-base-cddsv"
    assert names.canonical_name("theaiinstitute/theia-small-patch16-224-cdiv") == "theia-small-cdiv"
    assert names.canonical_name("my_own/encoder_x") == "my_own/encoder_x"


@pytest.fixture
def no_notice_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(names, "_noticed", set())
    yield


def test_notices_come_once(
    no_notice_yet: None, tiny_cdiv_folder: object, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="lerobot_theia"):
        for _ in range(2):
            TheiaEncoder.from_pretrained("random-tiny")
            TheiaEncoder.from_pretrained(str(tiny_cdiv_folder))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "UNTRAINED" in warnings[0]
    assert "non-commercial" in warnings[1]
    loaded = [record.getMessage() for record in caplog.records if "Loaded encoder" in record.getMessage()]
    assert len(loaded) == 4
    assert "192-d" in loaded[0] and "efc4a572" in loaded[0]
    assert "non-commercial" in names.license_notice("theia-tiny-cdiv", names.PUBLISHED_LICENSE)
