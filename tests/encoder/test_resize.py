"""The resize: near PIL's, and the same on every device."""

import numpy as np
import pytest
import torch
from PIL import Image

from lerobot_theia.encoder.resize import resize, resize_by_taps

SIZES = [(96, 96), (480, 640), (384, 384), (224, 300), (7, 500), (1, 1), (225, 223), (1080, 1920), (3000, 2)]


def noise(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 10_000 + width)
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_tap_by_tap_resize_of_other_devices_equals_the_cpu_kernel(height: int, width: int) -> None:
    images = noise(height, width)
    assert torch.equal(resize_by_taps(images, 224), resize(images, 224))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_cuda_equals_cpu(height: int, width: int) -> None:
    images = noise(height, width)
    assert torch.equal(resize(images.cuda(), 224).cpu(), resize(images, 224))


@pytest.mark.parametrize(("height", "width"), [(96, 96), (480, 640), (1080, 1920)])
def test_at_most_one_grey_level_from_pil(height: int, width: int) -> None:
    image = noise(height, width)[:1]
    frame = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    expected = np.asarray(frame.resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
    difference = np.abs(resize(image, 224)[0].permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def test_memory_layout_makes_no_difference() -> None:
    images = noise(120, 160)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(resize(images, 224), resize(channels_last, 224))


def test_right_size_and_empty_batch() -> None:
    images = noise(224, 224)
    assert torch.equal(resize(images, 224), images)
    assert resize(images[:0, :, :100], 224).shape == (0, 3, 224, 224)
