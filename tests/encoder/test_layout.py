"""Architecture against the published checkpoints: names, counts and sizes, without their memory."""

from math import prod

import pytest
import torch

from lerobot_theia.encoder.names import SIZES
from lerobot_theia.encoder.spec import EncoderSpec
from lerobot_theia.encoder.theia import TheiaEncoder
from lerobot_theia.encoder.translator import TranslatorHead
from tests.encoder.published_layout import TEACHER_FEATURES, TEACHERS, published_shapes

# From the file sizes on the Hub: parameters of the backbone, of the cdiv and of the cddsv translator.
PARAMETERS = {
    "tiny": (5_524_416, 4_514_752, 10_642_528),
    "small": (21_665_664, 14_998_144, 31_234_720),
    "base": (85_798_656, 53_880_832, 102_278_944),
}
TENSORS = {"cdiv": 240, "cddsv": 268}
BACKBONE_TENSORS = 198


def make_spec(size: str) -> EncoderSpec:
    return EncoderSpec(
        name=f"test-{size}",
        weights_sha256="",
        hidden_size=SIZES[size].hidden_size,
        num_layers=SIZES[size].num_layers,
        num_heads=SIZES[size].num_heads,
        intermediate_size=SIZES[size].intermediate_size,
        image_size=224,
        patch_size=16,
        license="none",
        trained=True,
    )


@pytest.mark.parametrize("teachers", ["cdiv", "cddsv"])
@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_state_dict_is_the_published_layout(size: str, teachers: str) -> None:
    features = {teacher: tuple(TEACHER_FEATURES[teacher]) for teacher in TEACHERS[teachers]}
    with torch.device("meta"):
        encoder = TheiaEncoder(make_spec(size), features)
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}

    assert shapes == published_shapes(size, teachers)
    assert len(shapes) == TENSORS[teachers]
    backbone = {name: shape for name, shape in shapes.items() if name.startswith("backbone.model.")}
    assert len(backbone) == BACKBONE_TENSORS
    in_backbone, in_cdiv, in_cddsv = PARAMETERS[size]
    in_translator = in_cdiv if teachers == "cdiv" else in_cddsv
    assert sum(map(prod, backbone.values())) == in_backbone
    assert sum(map(prod, shapes.values())) == in_backbone + in_translator


@pytest.mark.parametrize("teacher", TEACHER_FEATURES)
def test_translator_head_shapes(teacher: str) -> None:
    channels, height, width = TEACHER_FEATURES[teacher]
    head = TranslatorHead(64, (channels, height, width))
    assert head(torch.zeros(2, 196, 64)).shape == (2, height * width, channels)


def test_no_head_for_other_feature_maps() -> None:
    with pytest.raises(ValueError, match="32x32"):
        TranslatorHead(64, (8, 32, 32))
