"""What differs between kinds of vision models: which class loads them, and where their features are tapped.

Taps and grids are those Theia was distilled from; a smaller sibling of a model has the same.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionModel,
    DepthAnythingForDepthEstimation,
    Dinov2Model,
    SamModel,
    ViTModel,
)
from transformers.utils import logging

from lerobot_theia.distill.errors import DistillError


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Args:
        tap: where features are taken, in words.
        grid: positions along a side of its features.
        channels: from its config.
        features: network and pixels (B, 3, H, W) to (B, C, h, w).
    """

    model_type: str
    tap: str
    grid: int
    network: type[nn.Module]
    channels: Callable[[Any], int]
    features: Callable[[nn.Module, Tensor], Tensor]
    options: tuple[tuple[str, Any], ...] = ()

    def load(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        """Raises ValueError if the folder lacks weights of the network, which would else be random."""
        load: Any = self.network.from_pretrained  # type: ignore[attr-defined]
        with _quiet_transformers():
            network, report = load(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **dict(self.options),
            )
        if wrong := [*report["missing_keys"], *report["mismatched_keys"]]:
            raise ValueError(f"{len(wrong)} tensors are missing or of another shape, such as {wrong[0]}")
        loaded: nn.Module = network
        return loaded


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No report of the tensors that are left out on purpose, a text tower for one."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _on_grid(tokens: Tensor) -> Tensor:
    """Patch tokens (B, h*h, C) -> (B, C, h, h)."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def _patches(network: nn.Module, pixels: Tensor) -> Tensor:
    return _on_grid(network(pixel_values=pixels).last_hidden_state[:, 1:])


def _image_embeddings(network: nn.Module, pixels: Tensor) -> Tensor:
    embeddings: Tensor = network.get_image_embeddings(pixels)  # type: ignore[operator]
    return embeddings


def _before_depth(network: nn.Module, pixels: Tensor) -> Tensor:
    """What the depth head's second convolution gives, before the last."""
    tapped: list[Tensor] = []
    convolution: Any = network.head.conv2  # type: ignore[union-attr]
    hook = convolution.register_forward_hook(lambda _, __, output: tapped.append(output))
    try:
        network(pixel_values=pixels)
    finally:
        hook.remove()
    return tapped[0]


FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            "clip",
            "vision tower, last_hidden_state without CLS",
            16,
            CLIPVisionModel,
            lambda config: int(getattr(config, "vision_config", config).hidden_size),
            _patches,
        ),
        Family(
            "dinov2",
            "last_hidden_state without CLS",
            16,
            Dinov2Model,
            lambda config: int(config.hidden_size),
            _patches,
        ),
        Family(
            "vit",
            "last_hidden_state without CLS",
            16,
            ViTModel,
            lambda config: int(config.hidden_size),
            _patches,
            (("add_pooling_layer", False),),
        ),
        Family(
            "sam",
            "image embeddings",
            64,
            SamModel,
            lambda config: int(config.vision_config.output_channels),
            _image_embeddings,
        ),
        Family(
            "depth_anything",
            "output of head.conv2",
            64,
            DepthAnythingForDepthEstimation,
            lambda config: int(config.head_hidden_size),
            _before_depth,
        ),
    )
}
_ALIASES = {"clip_vision_model": "clip"}


def family_of(model: str, config: Any) -> Family:
    kind = _ALIASES.get(config.model_type, config.model_type)
    if kind not in FAMILIES:
        raise DistillError(
            f"teacher {model!r} is a {config.model_type!r}; teachers can be {', '.join(FAMILIES)}. For another kind add a "
            "Family to distill/teachers/families.py"
        )
    return FAMILIES[kind]
