"""Checkpoints in the layout of the published Theia repositories, with made-up weights, for tests.

`write_published_checkpoint(folder, "tiny", "cdiv")` makes a folder that `TheiaEncoder.from_pretrained` loads,
and that the original implementation would load just as well. Weights follow the recipe of the goldens, so
for tiny-cdiv the outputs of the original code are known; see `tests/data/goldens`.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

TEACHER_FEATURES: dict[str, list[int]] = {
    "facebook/dinov2-large": [1024, 16, 16],
    "google/vit-huge-patch14-224-in21k": [1280, 16, 16],
    "openai/clip-vit-large-patch14": [1024, 16, 16],
    "facebook/sam-vit-huge": [256, 64, 64],
    "LiheYoung/depth-anything-large-hf": [32, 64, 64],
}
TEACHERS: dict[str, list[str]] = {"cdiv": list(TEACHER_FEATURES)[:3], "cddsv": list(TEACHER_FEATURES)}
HIDDEN_SIZES = {"tiny": 192, "small": 384, "base": 768}

Shapes = dict[str, tuple[int, ...]]


def recipe_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A parameter's float32 values as a function of its name: the recipe the goldens were made with."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    norm_scale = len(shape) == 1 or (len(shape) == 3 and "adapter" in name)
    if name.endswith(".bias"):
        values = 0.02 * draw
    elif norm_scale:
        values = 1 + 0.1 * draw
    else:
        values = 0.05 * draw
    return torch.from_numpy(values.astype(np.float32))


def backbone_shapes(dim: int, num_layers: int = 12) -> Shapes:
    """Names and shapes of the backbone's tensors, written out independently of the package under test."""
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, dim),
        "embeddings.position_embeddings": (1, 197, dim),
        "embeddings.patch_embeddings.projection.weight": (dim, 3, 16, 16),
        "embeddings.patch_embeddings.projection.bias": (dim,),
        "layernorm.weight": (dim,),
        "layernorm.bias": (dim,),
    }
    linears = {
        "attention.attention.query": (dim, dim),
        "attention.attention.key": (dim, dim),
        "attention.attention.value": (dim, dim),
        "attention.output.dense": (dim, dim),
        "intermediate.dense": (4 * dim, dim),
        "output.dense": (dim, 4 * dim),
    }
    for layer in range(num_layers):
        for linear, shape in linears.items():
            shapes[f"encoder.layer.{layer}.{linear}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{linear}.bias"] = shape[:1]
        for norm in ("layernorm_before", "layernorm_after"):
            shapes[f"encoder.layer.{layer}.{norm}.weight"] = (dim,)
            shapes[f"encoder.layer.{layer}.{norm}.bias"] = (dim,)
    return {f"backbone.model.{name}": shape for name, shape in shapes.items()}


def translator_shapes(dim: int, teacher_features: Mapping[str, list[int]]) -> Shapes:
    """Names and shapes of the translator's tensors, one head per teacher."""
    shapes: Shapes = {}
    for teacher, (channels, side, _) in teacher_features.items():
        middle = side if side == 16 else 31
        weights = {
            "pad.1": (dim, dim, 3, 3),
            "adapter.0": (dim, 16, 16),
            "adapter.1": (dim, dim, 3, 3),
            "adapter.3": (dim, middle, middle),
            "adapter.4": (dim, dim, 3, 3),
            "adapter.6": (dim, side, side),
            "adapter.8": (channels, dim),
        }
        for layer, shape in weights.items():
            prefix = f"translator.translator_heads.{teacher}.{layer}"
            shapes[f"{prefix}.weight"] = shape
            shapes[f"{prefix}.bias"] = shape if len(shape) == 3 else shape[:1]
    return shapes


def published_shapes(size: str, teachers: str) -> Shapes:
    """Names and shapes of all tensors of a published checkpoint, such as ("tiny", "cdiv")."""
    features = {teacher: TEACHER_FEATURES[teacher] for teacher in TEACHERS[teachers]}
    return backbone_shapes(HIDDEN_SIZES[size]) | translator_shapes(HIDDEN_SIZES[size], features)


def published_config(size: str, teachers: str, **changes: Any) -> dict[str, Any]:
    """A published config.json; `changes` replace or add settings."""
    config = {
        "architectures": ["TheiaModel"],
        "auto_map": {"AutoConfig": "theia_model.TheiaConfig", "AutoModel": "theia_model.TheiaModel"},
        "backbone": f"facebook/deit-{size}-patch16-224",
        "feature_neck": False,
        "feature_neck_hidden_dim": 256,
        "feature_neck_nonlinearity": "relu",
        "feature_reduce_method": None,
        "forward_neck": False,
        "image_size": 224,
        "num_reg_tokens": 0,
        "pretrained": False,
        "target_feature_sizes": {teacher: TEACHER_FEATURES[teacher] for teacher in TEACHERS[teachers]},
        "target_loss_weights": None,
        "torch_dtype": "float32",
        "transformers_version": "4.41.2",
        "translator_hidden_size_factor": 1.0,
        "translator_type": "lconv",
    }
    return config | changes


def recipe_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: recipe_weight(name, shape) for name, shape in shapes.items()}


def write_checkpoint(folder: Path, config: Any, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write the two files of a checkpoint, whatever they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(dict(tensors), folder / "model.safetensors")
    return folder


def write_published_checkpoint(folder: Path, size: str = "tiny", teachers: str = "cdiv") -> Path:
    """A whole checkpoint in the published layout with the recipe's weights."""
    tensors = recipe_tensors(published_shapes(size, teachers))
    return write_checkpoint(folder, published_config(size, teachers), tensors)
