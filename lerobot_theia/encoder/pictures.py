"""Tokens as pictures: their first three principal components are red, green and blue."""

import torch
from torch import Tensor


def principal_colours(tokens: Tensor) -> Tensor:
    """Tokens (F, N, D) of a few frames, on a square grid -> (F, h, w, 3) uint8.

    Components are those of all tokens together, so that one colour means the same in all frames; the darkest and the
    brightest 2 % of each are cut off.
    """
    side = round(tokens.shape[1] ** 0.5)
    flat = tokens.flatten(0, 1).cpu().double()
    centred = flat - flat.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -3:].flip(1)  # (D, 3), largest first
    # A component's sign means nothing: the entry that weighs most is made positive, so that it is always the same.
    directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    values = centred @ directions
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    colours = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1) * 255
    return colours.round().to(torch.uint8).view(len(tokens), side, side, 3)
