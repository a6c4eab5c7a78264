"""The backbone: a ViT of transformers without pooler, built from a spec and never downloaded."""

from typing import Any

from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from lerobot_theia.encoder.names import DINOV2
from lerobot_theia.encoder.spec import EncoderSpec

DINOV2_POSITIONS_SIZE = 518
"""Pixels along a side of the images that all published DINOv2 have position embeddings for; transformers resamples them
to the images that come."""


def vit_config(spec: EncoderSpec) -> ViTConfig:
    """DeiT's settings, which Theia inherits; note the layer norm's epsilon."""
    settings: dict[str, Any] = {
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": spec.intermediate_size,
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-12,
        "qkv_bias": True,
        "attn_implementation": "sdpa",
    }
    return ViTConfig(**settings)


def dinov2_config(spec: EncoderSpec) -> Dinov2Config:
    """Settings common to the published small, base and large."""
    settings: dict[str, Any] = {
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "mlp_ratio": spec.intermediate_size // spec.hidden_size,
        "image_size": DINOV2_POSITIONS_SIZE,
        "patch_size": spec.patch_size,
        "attn_implementation": "sdpa",
    }
    return Dinov2Config(**settings)


class Backbone(nn.Module):
    """The ViT under the attribute that gives its parameters their published names, `backbone.model.*`."""

    def __init__(self, spec: EncoderSpec):
        super().__init__()
        self.num_tokens, self.dim = 1 + spec.num_patches, spec.hidden_size
        self.model: ViTModel | Dinov2Model
        if spec.architecture == DINOV2:
            self.model = Dinov2Model(dinov2_config(spec))
        else:
            self.model = ViTModel(vit_config(spec), add_pooling_layer=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Preprocessed images (B, 3, H, W) to tokens (B, 1 + N, D) after the final layer norm, CLS first."""
        if pixels.shape[0] == 0:  # transformers' attention cannot reshape an empty batch
            return pixels.new_empty((0, self.num_tokens, self.dim))
        tokens: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return tokens
