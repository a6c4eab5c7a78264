"""One hash for an encoder's weights, wherever they came from: it is what a feature cache is named by."""

import hashlib

import numpy as np
import torch
from torch import nn

BACKBONE_PREFIX = "backbone.model."


def weights_sha256(encoder: nn.Module) -> str:
    """SHA-256 over an encoder's backbone tensors in order of name: name, shape, float32 little-endian bytes.

    Independent of the translator (it does not take part in a token), of the file, and of the dtype in so far
    as float32 holds its values: weights rounded to float16 are other weights.
    """
    backbone = {name: t for name, t in encoder.state_dict().items() if name.startswith(BACKBONE_PREFIX)}
    if not backbone:
        raise ValueError(
            f"no tensor of this {type(encoder).__name__} is named {BACKBONE_PREFIX}*: not an encoder"
        )
    digest = hashlib.sha256()
    for name in sorted(backbone):
        tensor = backbone[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(tensor.numpy(), dtype="<f4").data)
    return digest.hexdigest()
