"""A student on disk, in the layout of the published Theia checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lerobot_theia.cache.files import publish
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.loss import Standard
from lerobot_theia.distill.student import Student
from lerobot_theia.encoder.locate import CONFIG_FILE, WEIGHTS_FILE
from lerobot_theia.encoder.names import SIZES
from lerobot_theia.encoder.spec import EncoderSpec

STATISTICS_FILE = "teacher_statistics.safetensors"
BACKBONE = "backbone."


def published_config(
    spec: EncoderSpec, feature_sizes: Mapping[str, tuple[int, int, int]], dtype: str
) -> dict[str, Any]:
    """The published config.json, without the remote code it points to, and with a licence."""
    sizes = {size.hidden_size: name for name, size in SIZES.items()}
    backbone = sizes.get(spec.hidden_size) if spec.num_layers == SIZES["tiny"].num_layers else None
    return {
        "architectures": ["TheiaModel"],
        "backbone": f"facebook/deit-{backbone}-patch16-224" if backbone else "vit",
        "feature_neck": False,
        "feature_reduce_method": None,
        "forward_neck": False,
        "image_size": spec.image_size,
        "num_reg_tokens": 0,
        "pretrained": False,
        "target_feature_sizes": {name: list(size) for name, size in feature_sizes.items()},
        "target_loss_weights": None,
        "torch_dtype": dtype,
        "translator_hidden_size_factor": 1.0,
        "translator_type": "lconv",
        "license": spec.license,
    }


def write_student(
    folder: Path, student: Student, *, dtype: torch.dtype = torch.float32, translators: bool = True
) -> None:
    """Write `config.json` and `model.safetensors`, each whole or not at all, the weights last."""
    config = published_config(
        student.spec,
        student.feature_sizes if translators else {},
        str(dtype).removeprefix("torch."),
    )
    tensors: dict[str, Tensor] = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in student.state_dict().items()
        if translators or name.startswith(BACKBONE)
    }
    publish(folder / CONFIG_FILE, [json.dumps(config, indent=2).encode() + b"\n"])
    publish(folder / WEIGHTS_FILE, [safetensors.torch.save(tensors, {"format": "pt"})])


def write_statistics(folder: Path, standards: Mapping[str, Standard]) -> None:
    """Per teacher `<teacher>.mean` and `<teacher>.std` (C,): what takes standardised features back."""
    tensors = {}
    for teacher, standard in standards.items():
        tensors[f"{teacher}.mean"] = standard.mean.cpu().contiguous()
        tensors[f"{teacher}.std"] = standard.std.cpu().contiguous()
    publish(folder / STATISTICS_FILE, [safetensors.torch.save(tensors)])


def read_statistics(folder: Path) -> dict[str, Standard]:
    """Raises DistillError if the file is damaged."""
    try:
        tensors = safetensors.torch.load_file(folder / STATISTICS_FILE)
        teachers = sorted({name.rpartition(".")[0] for name in tensors})
        return {t: Standard(tensors[f"{t}.mean"], tensors[f"{t}.std"]) for t in teachers}
    except (SafetensorError, KeyError) as error:
        raise DistillError(
            f"{folder / STATISTICS_FILE} is damaged ({error}): delete it, and it is made again from the same images"
        ) from error
