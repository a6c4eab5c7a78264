"""Reading a checkpoint in its published layout: JSON and safetensors only, checked before it is used.

The published config names no dimensions, so they are read from the tensors' shapes; everything else in it
that would change what the tensors mean is checked. The architecture then says which tensors there must be.
DINOv2's config does name them; its layout is transformers' own.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lerobot_theia.encoder.backbone import DINOV2_POSITIONS_SIZE, Backbone
from lerobot_theia.encoder.locate import CheckpointFiles
from lerobot_theia.encoder.names import (
    DINOV2,
    DINOV2_HUB_IDS,
    DINOV2_IMAGE_SIZE,
    DINOV2_LICENSE,
    DINOV2_PATCH_SIZE,
    HEAD_DIM,
    IMAGE_SIZE,
    PATCH_SIZE,
    PUBLISHED_LICENSE,
    THEIA,
    THEIA_HUB_IDS,
    UNKNOWN_LICENSE,
    UNKNOWN_THEIA_LICENSE,
)
from lerobot_theia.encoder.spec import EncoderSpec
from lerobot_theia.encoder.translator import FeatureSize, Translator, check_teachers

logger = logging.getLogger(__name__)

BACKBONE = "backbone.model."
TRANSLATOR = "translator."

# Settings of the published config that this encoder was built for; absent means the same.
_REQUIRED_SETTINGS: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "num_reg_tokens": 0,
    "feature_neck": False,
    "forward_neck": False,
}
_REQUIRED_TRANSLATOR_SETTINGS: dict[str, Any] = {
    "translator_type": "lconv",
    "translator_hidden_size_factor": 1.0,
}
_REQUIRED_DINOV2_SETTINGS: dict[str, Any] = {
    "image_size": DINOV2_POSITIONS_SIZE,
    "patch_size": DINOV2_PATCH_SIZE,
    "num_channels": 3,
    "hidden_act": "gelu",
    "mlp_ratio": 4,
    "qkv_bias": True,
    "layer_norm_eps": 1e-6,
    "use_swiglu_ffn": False,
}
_DTYPES = ("F32", "F16", "BF16")
_MAX_CONFIG_BYTES = 1 << 20
_MAX_CHANNELS = 1 << 16
_MAX_TEACHERS = 64
_MAX_LAYERS = 128
_SHOWN = 3  # tensors named in an error before "and N more"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was checked: its tensors are float32, finite, and exactly those of the architecture.

    Args:
        spec: Architecture and licence; the weights' hash is still empty.
        feature_sizes: Teacher id to the size of its feature map; empty without translator.
        tensors: Published name to tensor.
    """

    spec: EncoderSpec
    feature_sizes: Mapping[str, FeatureSize]
    tensors: Mapping[str, Tensor]


def read_checkpoint(files: CheckpointFiles, translators: bool = True) -> Checkpoint:
    """Read and check a checkpoint; without `translators`, their tensors are checked but not read."""
    config = read_config(files.config)
    is_dinov2 = _is_dinov2(files.config, config)
    _require(files.config, config, _REQUIRED_DINOV2_SETTINGS if is_dinov2 else _REQUIRED_SETTINGS)
    prefix = BACKBONE if is_dinov2 else ""  # before the names in the file
    try:
        with safe_open(files.weights, framework="pt") as file:
            found: Shapes = {}
            for name in file.keys():  # noqa: SIM118 (not a dict: it has no other way to list its names)
                tensor = file.get_slice(name)
                if tensor.get_dtype() not in _DTYPES:
                    raise ValueError(
                        f"{files.weights}: tensor {name} is {tensor.get_dtype()}; "
                        f"weights must be one of {', '.join(_DTYPES)}"
                    )
                found[prefix + name] = tuple(tensor.get_shape())
            spec = _dinov2_spec(files, config) if is_dinov2 else _infer_spec(files, config, found)
            feature_sizes: dict[str, FeatureSize] = {}
            if any(name.startswith(TRANSLATOR) for name in found):
                _require(files.config, config, _REQUIRED_TRANSLATOR_SETTINGS)
                feature_sizes = _feature_sizes(files.config, config)
            _compare(files.weights, expected_shapes(spec, feature_sizes), found)
            wanted = [name for name in found if translators or name.startswith(BACKBONE)]
            tensors = {name: _read(file, files.weights, name.removeprefix(prefix)) for name in wanted}
    except SafetensorError as error:
        raise ValueError(
            f"{files.weights} is no readable safetensors file ({error}); copy or download it again"
        ) from error
    return Checkpoint(spec=spec, feature_sizes=feature_sizes if translators else {}, tensors=tensors)


def expected_shapes(spec: EncoderSpec, feature_sizes: Mapping[str, FeatureSize]) -> Shapes:
    """Names and shapes of all tensors of a checkpoint, from the architecture but without its memory."""
    with torch.device("meta"):
        modules = {"backbone.": Backbone(spec)} | (
            {TRANSLATOR: Translator(spec.hidden_size, feature_sizes)} if feature_sizes else {}
        )
    return {
        prefix + name: tuple(tensor.shape)
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


def read_config(path: Path) -> dict[str, Any]:
    """A checkpoint's config.json as a dict, whatever it holds."""
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes: no encoder config is over {_MAX_CONFIG_BYTES}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, found a {type(config).__name__}")
    return config


def _require(path: Path, config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for key, wanted in settings.items():
        value = config.get(key, wanted)
        # `True == 1` and `0 == False` in Python, so bools are compared as bools.
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            raise ValueError(f"{path}: {key} is {value!r}, but only {wanted!r} is supported")


def _infer_spec(files: CheckpointFiles, config: Mapping[str, Any], found: Shapes) -> EncoderSpec:
    """The architecture behind the tensors' shapes, as far as needed to know all other shapes."""
    patches = BACKBONE + "embeddings.patch_embeddings.projection.weight"
    positions = BACKBONE + "embeddings.position_embeddings"
    mlp = BACKBONE + "encoder.layer.0.intermediate.dense.weight"
    for name, ndim in ((patches, 4), (positions, 3), (mlp, 2)):
        if name not in found:
            raise ValueError(
                f"{files.weights}: no tensor {name} among its {len(found)}, so this is no Theia checkpoint; "
                f"found for example {_some(sorted(found))}"
            )
        if len(found[name]) != ndim or 0 in found[name]:
            raise ValueError(
                f"{files.weights}: tensor {name} has shape {found[name]}, expected {ndim} dimensions"
            )
    hidden_size, _, patch_size, _ = found[patches]
    if patch_size != PATCH_SIZE:
        raise ValueError(
            f"{files.weights}: patches of {patch_size} pixels, but only {PATCH_SIZE} is supported"
        )
    num_positions = found[positions][1]
    if num_positions != (IMAGE_SIZE // PATCH_SIZE) ** 2 + 1:
        raise ValueError(
            f"{files.weights}: {positions} is for {num_positions} tokens, but {IMAGE_SIZE}-pixel images have "
            f"{(IMAGE_SIZE // PATCH_SIZE) ** 2} patches and one CLS token"
        )
    if hidden_size % HEAD_DIM:
        raise ValueError(
            f"{files.weights}: tokens of {hidden_size} numbers cannot be split into heads of {HEAD_DIM}"
        )
    layers = {name.split(".")[4] for name in found if name.startswith(BACKBONE + "encoder.layer.")}
    if len(layers) > _MAX_LAYERS:
        raise ValueError(
            f"{files.weights}: {len(layers)} layers, more than any ViT has (at most {_MAX_LAYERS})"
        )
    return EncoderSpec(
        name=files.name,
        weights_sha256="",
        hidden_size=hidden_size,
        num_layers=len(layers),
        num_heads=hidden_size // HEAD_DIM,
        intermediate_size=found[mlp][0],
        image_size=IMAGE_SIZE,
        patch_size=patch_size,
        license=_license(files.name, config),
        trained=True,
    )


def _is_dinov2(path: Path, config: Mapping[str, Any]) -> bool:
    """Published Theia configs have no model_type."""
    kind = config.get("model_type")
    if kind not in (None, "", THEIA, DINOV2):
        raise ValueError(
            f"{path}: model_type is {_short(kind)}; encoders can be Theia, whose configs have none, or {DINOV2}"
        )
    return bool(kind == DINOV2)


def _dinov2_spec(files: CheckpointFiles, config: Mapping[str, Any]) -> EncoderSpec:
    def size(name: str, limit: int) -> int:
        value = config.get(name)
        if type(value) is not int or not 0 < value <= limit:
            raise ValueError(f"{files.config}: {name} is {_short(value)}, expected 1 to {limit}")
        return value

    hidden_size = size("hidden_size", _MAX_CHANNELS)
    return EncoderSpec(
        name=files.name,
        weights_sha256="",
        hidden_size=hidden_size,
        num_layers=size("num_hidden_layers", _MAX_LAYERS),
        num_heads=size("num_attention_heads", _MAX_CHANNELS),
        intermediate_size=4 * hidden_size,
        image_size=DINOV2_IMAGE_SIZE,
        patch_size=DINOV2_PATCH_SIZE,
        license=_license(files.name, config),
        trained=True,
        architecture=DINOV2,
    )


def _license(name: str, config: Mapping[str, Any]) -> str:
    if name in THEIA_HUB_IDS:
        return PUBLISHED_LICENSE
    if name in DINOV2_HUB_IDS:
        return DINOV2_LICENSE
    stated = config.get("license")
    if isinstance(stated, str) and stated.strip():
        return " ".join(stated.split())[:200]
    origin = json.dumps([config.get(key) for key in ("_name_or_path", "auto_map", "architectures")]).lower()
    return UNKNOWN_THEIA_LICENSE if "theia" in origin else UNKNOWN_LICENSE


def _feature_sizes(path: Path, config: Mapping[str, Any]) -> dict[str, FeatureSize]:
    sizes = config.get("target_feature_sizes")
    if not isinstance(sizes, dict) or not sizes or len(sizes) > _MAX_TEACHERS:
        raise ValueError(
            f"{path}: the checkpoint has a translator, so target_feature_sizes must map up to "
            f"{_MAX_TEACHERS} teachers to [channels, height, width]; found {_short(sizes)}"
        )
    try:
        check_teachers(sizes)
    except ValueError as error:
        raise ValueError(f"{path}: target_feature_sizes: {error}") from error
    for teacher, size in sizes.items():
        is_size = isinstance(size, list) and len(size) == 3 and all(type(n) is int for n in size)
        if not teacher or not is_size or not 0 < size[0] <= _MAX_CHANNELS:
            raise ValueError(
                f"{path}: target_feature_sizes of {_short(teacher)} is {_short(size)}, expected "
                f"[channels, height, width] with at most {_MAX_CHANNELS} channels"
            )
        if tuple(size[1:]) not in ((16, 16), (64, 64)):
            raise ValueError(
                f"{path}: target_feature_sizes of {_short(teacher)} is {_short(size)}; "
                "only 16x16 and 64x64 feature maps are supported"
            )
    return {teacher: (size[0], size[1], size[2]) for teacher, size in sizes.items()}


def _compare(path: Path, expected: Shapes, found: Shapes) -> None:
    """Say everything that is wrong with a checkpoint's tensors at once."""
    misshaped = [
        f"{name} (expected {list(expected[name])}, found {list(found[name])})"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    complaints = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (
            ("missing", sorted(expected.keys() - found.keys())),
            ("not part of the architecture", sorted(found.keys() - expected.keys())),
            ("of another shape", misshaped),
        )
        if names
    ]
    if complaints:
        raise ValueError(
            f"{path}: expected {len(expected)} tensors, found {len(found)}. Of these " + "; ".join(complaints)
        )


def _read(file: Any, path: Path, name: str) -> Tensor:
    # A copy, since what safetensors returns may be a view of the mapped file, which can change under it.
    tensor: Tensor = file.get_tensor(name).to(torch.float32, copy=True)
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{path}: tensor {name} holds NaN or infinity; copy or download the file again")
    return tensor


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:160] for name in names[:_SHOWN]) + more


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:120] + "…"
