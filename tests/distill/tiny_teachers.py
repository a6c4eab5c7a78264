"""Tiny vision models with random weights, saved in the layout of their Hub repositories."""

import json
from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    Dinov2Model,
    DPTImageProcessor,
    SamConfig,
    SamImageProcessor,
    SamModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

SIZES = {
    "clip": (32, 16, 16),
    "dinov2": (48, 16, 16),
    "vit": (16, 16, 16),
    "sam": (8, 64, 64),
    "depth_anything": (4, 64, 64),
}
"""What each gives: (C, H, W)."""


def write_teacher(folder: Path, kind: str, license: str = "apache-2.0") -> Path:
    """A checkpoint of `kind` with its processor and model card."""
    torch.manual_seed(0)
    model, processor = _MAKERS[kind]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n# A tiny {kind}\n")
    return folder


def _clip() -> tuple:
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = vision | {"vocab_size": 99, "projection_dim": 16}
    config = CLIPConfig(
        vision_config=vision | {"image_size": 64, "patch_size": 8, "projection_dim": 16}, text_config=text
    )
    return CLIPModel(config), CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64)


def _dinov2() -> tuple:
    config = Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14
    )
    processor = CLIPImageProcessor(
        size={"shortest_edge": 64},
        crop_size=56,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return Dinov2Model(config), processor


def _vit() -> tuple:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        patch_size=4,
    )
    return ViTModel(config), ViTImageProcessor(size={"height": 64, "width": 64})


def _sam() -> tuple:
    vision = {
        "hidden_size": 16,
        "output_channels": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [1],
        "mlp_dim": 32,
        "num_pos_feats": 4,
        "initializer_range": 0.5,  # its default leaves everything at zero
    }
    prompt = {"hidden_size": 8, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 8,
        "mlp_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 8,
    }
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    processor = SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    return SamModel(config), processor


def _depth_anything() -> tuple:
    backbone = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 70,
        "patch_size": 14,
        "out_indices": [1, 2, 3, 4],
        "reshape_hidden_states": False,
        "apply_layernorm": True,
    }
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
        patch_size=14,
        initializer_range=0.2,
    )
    processor = DPTImageProcessor(
        size={"height": 70, "width": 70},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return DepthAnythingForDepthEstimation(config), processor


_MAKERS = {
    "clip": _clip,
    "dinov2": _dinov2,
    "vit": _vit,
    "sam": _sam,
    "depth_anything": _depth_anything,
}


def drop_license(folder: Path) -> None:
    (folder / "README.md").unlink()


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
