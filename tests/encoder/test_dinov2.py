"""DINOv2 under the same roof: another architecture with other preprocessing, the same 14x14 tokens for caches and policies."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from lerobot_theia.cache import FeatureCache
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.student import StudentSettings, make_student
from lerobot_theia.encoder import PREPROCESSING, PUBLISHED_LICENSE, TheiaEncoder, names
from lerobot_theia.encoder.preprocess import preprocessing_of
from lerobot_theia.encoder.spec import EncoderSpec
from tests.cache.helpers import WRIST, run
from tests.datasets import open_dataset
from tests.encoder.published_layout import write_published_checkpoint
from tests.policies.conftest import CLASSES, ONE_CAMERA, POLICIES, make_config, observation, token_statistics


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Dinov2Model:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=518, layerscale_value=0.5
    )
    return Dinov2Model(config).eval()


@pytest.fixture(scope="module")
def folder(dinov2: Dinov2Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As on the Hub: what transformers writes."""
    folder = tmp_path_factory.mktemp("hub") / "dinov2-of-a-test"
    dinov2.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TheiaEncoder:
    return TheiaEncoder.from_pretrained(folder)


def test_its_tokens_are_those_of_transformers(encoder: TheiaEncoder, dinov2: Dinov2Model) -> None:
    frames = torch.randint(0, 256, (3, 3, 196, 196), dtype=torch.uint8)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = dinov2((frames / 255 - mean) / std).last_hidden_state
    torch.testing.assert_close(encoder(frames), expected[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder(frames, reduce="identity"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(96, 96), (48, 64)])
def test_its_grid_is_that_of_theia_whatever_the_frame(encoder: TheiaEncoder, size: tuple[int, int]) -> None:
    assert encoder(torch.zeros(2, 3, *size)).shape == (2, 14 * 14, 64)
    assert encoder(torch.zeros(0, 3, *size)).shape == (0, 14 * 14, 64)


def test_its_preprocessing_is_another_identity_and_theias_stays(encoder: TheiaEncoder) -> None:
    theia = TheiaEncoder.from_pretrained("random-tiny")
    assert preprocessing_of(theia.spec) == PREPROCESSING
    own = preprocessing_of(encoder.spec)
    assert own["size"] == 196 and own["mean"] == [0.485, 0.456, 0.406]
    assert json.loads(json.dumps(own)) == own


def test_a_description_from_before_there_was_a_choice_is_of_a_theia() -> None:
    fields = dataclasses.asdict(TheiaEncoder.from_pretrained("random-tiny").spec)
    del fields["architecture"]
    assert EncoderSpec(**fields).architecture == "theia"
    with pytest.raises(ValueError, match="architecture is 'resnet', must be one of theia, dinov2"):
        EncoderSpec(**fields, architecture="resnet")


def test_it_is_rebuilt_from_its_description_as_a_policy_does(encoder: TheiaEncoder) -> None:
    again = TheiaEncoder.from_spec(EncoderSpec(**json.loads(json.dumps(dataclasses.asdict(encoder.spec)))))
    again.load_state_dict(encoder.state_dict())
    again.verify_weights()
    frames = torch.rand(2, 3, 60, 80)
    assert torch.equal(again(frames), encoder(frames))


def test_a_cache_holds_the_tokens_that_a_policy_makes_of_live_frames(
    encoder: TheiaEncoder, folder: Path, image_dataset: Path, tmp_path: Path
) -> None:
    report, _ = run(image_dataset, tmp_path, cameras=(WRIST,), encoder=str(folder), dtype="float32")
    cache = FeatureCache.open(report.path)
    assert cache.manifest.identity.preprocessing == preprocessing_of(encoder.spec)
    frames = open_dataset(image_dataset)
    live = encoder(torch.stack([frames[i][WRIST] for i in range(3)]))
    torch.testing.assert_close(cache.gather(WRIST, [0, 1, 2]), live, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_carries_it_in_its_checkpoint(kind: str, folder: Path, tmp_path: Path) -> None:
    config = make_config(kind, encoder=str(folder))
    policy = CLASSES[kind][1](config, dataset_stats=token_statistics(ONE_CAMERA, dim=64))
    policy.save_pretrained(tmp_path)
    again = type(policy).from_pretrained(tmp_path)
    assert again.config.encoder_spec.architecture == "dinov2"
    camera = "observation.image"
    frames = {camera: observation(policy, 2)[camera]}
    assert torch.equal(again.features.encode(frames)[camera], policy.features.encode(frames)[camera])


def test_published_ones_have_short_names_and_are_free_to_use() -> None:
    assert (
        names.canonical_name("facebook/dinov2-small")
        == names.canonical_name("dinov2_small")
        == "dinov2-small"
    )
    assert {"dinov2-small", "dinov2-base", "dinov2-large"} < set(names.known_encoders())


def test_licences_are_not_mixed_up(folder: Path, tmp_path: Path) -> None:
    free = tmp_path / "free"
    free.mkdir()
    for file in ("config.json", "model.safetensors"):
        (free / file).write_bytes((folder / file).read_bytes())
    config = json.loads((free / "config.json").read_text()) | {"license": "Apache-2.0"}
    (free / "config.json").write_text(json.dumps(config))
    assert TheiaEncoder.from_pretrained(free).spec.license == "Apache-2.0"
    assert (
        PUBLISHED_LICENSE
        in TheiaEncoder.from_pretrained(write_published_checkpoint(tmp_path / "t")).spec.license
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn is True, but only False is supported"),
        ({"patch_size": 16}, "patch_size is 16, but only 14"),
        ({"image_size": 224}, "image_size is 224, but only 518"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers is 'many', expected 1 to"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected 1 to"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_attention_heads": 7}, "num_heads 7"),
        (
            {"model_type": "dinov2_with_registers"},
            "model_type is 'dinov2_with_registers'; encoders can be Theia",
        ),
    ],
)
def test_another_network_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=words):
        TheiaEncoder.from_pretrained(tmp_path)


def test_no_student_begins_with_it(folder: Path) -> None:
    with pytest.raises(DistillError, match="is a dinov2; a student is a Theia"):
        make_student(StudentSettings(init=str(folder)), {}, license="", seed=0)
