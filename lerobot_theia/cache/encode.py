"""The middle of the pipeline: frames on the CPU -> tokens as they are stored, through an encoder on its device."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lerobot_theia.cache.plan import PrecomputeSettings
from lerobot_theia.cache.pooling import pool_tokens
from lerobot_theia.cache.storage import StoredTokens, encode_tokens
from lerobot_theia.cache.views import all_views
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.encoder.resize import resize

logger = logging.getLogger(__name__)

RESIZED_AT_ONCE = 8
"""A few frames at 480x640 stay in a core's cache between decoding and resizing."""
ENCODED_AT_ONCE = 16
"""Likewise the activations of so many frames on a CPU; all 64 at once take a quarter longer."""


@dataclass(frozen=True)
class Encoded:
    """Tokens on their way from the device."""

    stored: StoredTokens
    arrived: torch.cuda.Event | None = None

    def wait(self) -> StoredTokens:
        """The tokens, (b, N, D), on the CPU."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.stored


class FrameEncoder:
    """Encodes batches on the encoder's device. On a GPU nothing here waits for it but `Encoded.wait`."""

    def __init__(self, encoder: TheiaEncoder, settings: PrecomputeSettings) -> None:
        self.encoder, self.settings = encoder, settings
        self.device, self.size = encoder.device, encoder.spec.image_size
        on_gpu = self.device.type == "cuda"
        self.at_once = settings.batch_size if on_gpu else min(settings.batch_size, ENCODED_AT_ONCE)
        if settings.compile:
            compile_backbone(encoder, self.at_once)

    def load(self, read: Callable[[int, int], Tensor], start: int, stop: int) -> Tensor:
        """Frames start..stop, (b, 3, H, W) uint8, as the device wants them: for threads that run ahead.

        A GPU resizes them itself, faster than they are decoded. On a CPU they are resized here, where they are in the
        cache, and where it is a decoding thread's work and not the encoder's.
        """
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # of this thread, or pinning would wake the first GPU
            return read(start, stop).pin_memory()
        parts = range(start, stop, RESIZED_AT_ONCE)
        return torch.cat([resize(read(at, min(at + RESIZED_AT_ONCE, stop)), self.size) for at in parts])

    def encode(
        self, frames: Tensor, camera: str = "", episodes: list[tuple[int, int]] | None = None
    ) -> Encoded:
        """(b, 3, H, W) uint8 -> (b * views, N, D) in the storage type, the views of a frame one after the other.

        With views, `camera` and `episodes` (each with its number of frames) say which frames these are.
        """
        if (views := self.settings.views) > 1:
            assert episodes is not None, "views are those of an episode"
            frames = resize(frames.to(self.device, non_blocking=True), self.size)
            frames = all_views(frames, episodes, self.settings.augment, views, camera)
        stored = concatenated([self._stored(part) for part in frames.split(self.at_once)])
        if self.device.type != "cuda":
            return Encoded(stored)
        with torch.cuda.device(self.device):
            # To pinned memory, which torch takes for copies that do not block.
            scale = None if stored.scale is None else stored.scale.to("cpu", non_blocking=True)
            stored = StoredTokens(stored.tokens.to("cpu", non_blocking=True), scale)
            arrived = torch.cuda.Event()
            arrived.record()
        return Encoded(stored, arrived)

    def _stored(self, frames: Tensor) -> StoredTokens:
        pixels = self.encoder.preprocess(frames.to(self.device, non_blocking=True))
        tokens = pool_tokens(self.encoder.encode_preprocessed(pixels).float(), self.settings.pool)
        return encode_tokens(tokens, self.settings.dtype)


def concatenated(parts: list[StoredTokens]) -> StoredTokens:
    if len(parts) == 1:
        return parts[0]
    scales = [part.scale for part in parts if part.scale is not None]
    return StoredTokens(torch.cat([part.tokens for part in parts]), torch.cat(scales) if scales else None)


def compile_backbone(encoder: TheiaEncoder, batch_size: int) -> None:
    """Compile for batches of `batch_size`; smaller ones are filled up, or each shard's last would compile anew."""
    eager = encoder.backbone.forward
    compiled: Callable[[Tensor], Tensor] | None = torch.compile(eager, dynamic=False)

    def forward(pixels: Tensor) -> Tensor:
        nonlocal compiled
        if compiled is not None:
            try:
                missing = pixels.new_zeros((batch_size - len(pixels), *pixels.shape[1:]))
                return compiled(torch.cat([pixels, missing]) if len(missing) else pixels)[: len(pixels)]
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                reason = " ".join(str(error).split())[:300]
                logger.warning("compile: not compiled, running eagerly: %s: %s", type(error).__name__, reason)
                compiled = None
        return eager(pixels)

    encoder.backbone.forward = forward  # type: ignore[method-assign]
