"""Making shards: the pipeline from frames to files.

decode (threads, a few batches ahead) -> preprocess, encode, pool, quantise -> hash and write (a thread behind)
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lerobot_theia.cache.dataset import open_dataset
from lerobot_theia.cache.encode import Encoded, FrameEncoder
from lerobot_theia.cache.errors import FrameError
from lerobot_theia.cache.frames import CameraFrames
from lerobot_theia.cache.loaded import check_loaded
from lerobot_theia.cache.originals import Originals
from lerobot_theia.cache.pipeline import Ahead, Behind
from lerobot_theia.cache.plan import Plan
from lerobot_theia.cache.storage import StoredTokens
from lerobot_theia.cache.work import ClaimedShard, Work
from lerobot_theia.encoder import TheiaEncoder

BATCHES_AHEAD = 2
"""Beyond those that the threads are at."""
BYTES_AHEAD = 2**31
"""Decoded frames that may wait for a GPU: of large ones fewer batches, and fewer threads at work."""
WRITES_WAITING = 2
CORES_PER_DECODER = 8
"""On a CPU, the cores that one thread of decoding keeps busy with encoding: a frame of 480x640 in AV1 takes 4 ms of one
core to decode, and 40 ms to encode with the smallest Theia."""
DECODERS_AT_MOST = 16


@dataclass(frozen=True)
class Batch:
    """Frames of one shard, start..stop, that are encoded at once."""

    shard: ClaimedShard
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        return self.stop == self.shard.key.start + self.shard.key.frames


class ShardMaker:
    """Makes the shards that it is given, one batch after the other."""

    def __init__(self, encoder: TheiaEncoder, plan: Plan, work: Work) -> None:
        """Raises CacheError when the dataset is no longer what was planned for."""
        settings = plan.settings
        dataset = open_dataset(settings)
        self.originals = Originals(plan.source, dataset.meta)
        check_loaded(dataset, plan.cameras)
        self.batch_size, self.dtype = settings.batch_size, settings.dtype
        self.sources = {camera: CameraFrames(dataset, camera) for camera in dict(work.missing)}
        self.encoder = FrameEncoder(encoder, settings)
        self.threads = settings.decode_threads or decode_threads(encoder.device)

    def make(self, shards: Iterator[ClaimedShard], done: Callable[[int], None]) -> None:
        """`done` gets the number of frames of each batch that is encoded. Whatever happens, whole shards remain."""
        begun: list[ClaimedShard] = []
        try:
            with (
                Behind(WRITES_WAITING) as writer,
                Ahead(self.load, self.batches(shards, begun), self.threads, self.items_ahead()) as loaded,
            ):
                for batch, frames in loaded:
                    writer.call(self.write, batch, self.encoder.encode(frames, *self.seen(batch)))
                    # One that is made holds a writer, which in the midst of the free memory would keep it in pieces.
                    begun[:] = [shard for shard in begun if not shard.claim.released]
                    for shard in begun:
                        shard.claim.touch()
                    done(len(frames))
        finally:
            for shard in begun:
                shard.close()

    def items_ahead(self) -> int:
        largest = max(source.height * source.width * 3 for source in self.sources.values()) * self.batch_size
        return max(1, min(self.threads + BATCHES_AHEAD, BYTES_AHEAD // largest))

    def batches(self, shards: Iterator[ClaimedShard], begun: list[ClaimedShard]) -> Iterator[Batch]:
        for shard in shards:
            begun.append(shard)
            end = shard.key.start + shard.key.frames
            for start in range(shard.key.start, end, self.batch_size):
                yield Batch(shard, start, min(start + self.batch_size, end))

    def load(self, batch: Batch) -> Tensor:
        """In a thread: (b, 3, H, W) uint8."""
        try:
            return self.encoder.load(self.sources[batch.shard.key.camera].read, batch.start, batch.stop)
        except FrameError as error:
            raise FrameError(f"{error} Finished shards are kept, and the same command resumes.") from error

    def seen(self, batch: Batch) -> tuple[str, list[tuple[int, int]]]:
        """Camera of a batch's frames, and their episodes, each with the number of its frames."""
        source = self.sources[batch.shard.key.camera]
        spans = source.spans(batch.start, batch.stop)
        return source.camera, [(span.episode, span.stop - span.start) for span in spans]

    def write(self, batch: Batch, encoded: Encoded) -> None:
        """In another thread. Raises CacheError when the last batch of a shard ends and its files have changed."""
        stored = encoded.wait()
        self.check_finite(batch, stored)
        if batch.is_last:
            key = batch.shard.key
            spans = self.sources[key.camera].spans(key.start, batch.stop)
            self.originals.check({span.file for span in spans})
        batch.shard.write(stored, batch.is_last)

    def check_finite(self, batch: Batch, stored: StoredTokens) -> None:
        """Raises FrameError for a frame whose tokens are not."""
        values = stored.tokens if stored.scale is None else stored.scale
        finite = values.isfinite()
        if not finite.all():
            bad = int((~finite.flatten(1).all(1)).nonzero()[0])
            beyond = self.dtype == "float16" and not values[bad].isnan().any()
            frame = batch.start + bad // self.encoder.settings.views
            raise FrameError(
                f"{self.sources[batch.shard.key.camera].where(frame)}: its tokens hold "
                f"{'values beyond float16' if beyond else 'NaN or infinity'}. Check the encoder's weights"
                + (", or choose dtype=bfloat16 or float32" if self.dtype == "float16" else "")
            )


def decode_threads(device: torch.device) -> int:
    """As many as decoding needs to keep up with the encoder, of this process's share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(1, min(share if device.type == "cuda" else share // CORES_PER_DECODER, DECODERS_AT_MOST))
