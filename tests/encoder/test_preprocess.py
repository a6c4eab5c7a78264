"""Frames in every dress become the same pixels; anything else is refused with its shape and range."""

import pytest
import torch
from torch import Tensor

from lerobot_theia.encoder.preprocess import PREPROCESSING, preprocess, to_uint8


def test_every_dress_gives_the_same_pixels_bit_for_bit(frames: Tensor) -> None:
    channel_first = frames.permute(0, 3, 1, 2)
    expected = preprocess(frames)
    assert expected.shape == (8, 3, 224, 224)
    assert expected.dtype == torch.float32
    for dress in (
        channel_first,
        channel_first.contiguous(),
        channel_first.float() / 255,
        (channel_first.float() / 255).contiguous(),
        channel_first.double() / 255,
        (channel_first.float() / 255).half(),
    ):
        pixels = preprocess(dress)
        assert pixels.is_contiguous()
        assert torch.equal(pixels, expected)


def test_all_grey_levels_survive_floats() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert torch.equal(to_uint8((levels.float() / 255).to(dtype)), levels)


def test_range_is_minus_one_to_one_and_matches_the_identity() -> None:
    pixels = preprocess(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 10, 20))
    assert pixels[0].unique().tolist() == [-1.0]
    assert pixels[1].unique().tolist() == [1.0]
    assert (PREPROCESSING["mean"], PREPROCESSING["std"], PREPROCESSING["size"]) == (0.5, 0.5, 224)


def test_rounding_noise_around_the_range_is_no_error() -> None:
    images = torch.tensor([-1e-6, 1 + 1e-6]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert to_uint8(images).flatten(1).unique(dim=1).flatten().tolist() == [0, 255]


def test_ambiguous_layout_is_channel_first() -> None:
    images = torch.arange(3 * 5 * 3, dtype=torch.uint8).view(1, 3, 5, 3)
    assert torch.equal(to_uint8(images), images)


def test_input_is_left_alone_and_empty_batches_pass(frames: Tensor) -> None:
    images = frames.permute(0, 3, 1, 2).float() / 255
    before = images.clone()
    preprocess(images)
    assert torch.equal(images, before)
    square = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
    preprocess(square)
    assert not square.any()
    assert preprocess(images[:0]).shape == (0, 3, 224, 224)
    assert preprocess(images, dtype=torch.float16).dtype == torch.float16


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(2, 3, 8, 8) * 255, ["[0, 1]", "uint8"]),
        (torch.rand(2, 3, 8, 8) - 0.5, ["[0, 1]", "normalisation"]),
        (torch.full((2, 3, 8, 8), torch.nan), ["[0, 1]", "nan"]),
        (torch.full((2, 3, 8, 8), torch.inf), ["[0, 1]", "inf"]),
        (torch.rand(2, 8, 8, 3), ["(2, 8, 8, 3)", "float32", "(B, 3, H, W)"]),
        (torch.rand(2, 3, 8, 8).bfloat16(), ["bfloat16", "accepted"]),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), ["int64", "accepted"]),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), ["(3, 8, 8)", "accepted"]),
        (torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8), ["(2, 4, 3, 8, 8)", "accepted"]),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), ["(2, 1, 8, 8)", "accepted"]),
        (torch.zeros(2, 8, 8, 4, dtype=torch.uint8), ["(2, 8, 8, 4)", "accepted"]),
        (torch.zeros(2, 3, 0, 8, dtype=torch.uint8), ["(2, 3, 0, 8)", "accepted"]),
        ([[1, 2], [3, 4]], ["list", "accepted"]),
    ],
)
def test_what_is_not_accepted_is_refused(images: Tensor, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        preprocess(images)
    for word in words:
        assert word in str(error.value)
