"""Row 3: frames per second of precompute over the bare encoder in a loop, and over decoding alone.

PushT (small frames: the encoder is all) and two 480x640 cameras in AV1 and H.264 (decoding counts). Precompute is timed
from the first frame it asks for to the manifest.

On a CPU decoding and encoding share the cores, so the slower of the two alone is not what a pipeline can reach. What it can
follows from the core time that each takes for a frame: cores / (decoding + encoding).
"""

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from common import Arm, Outcome, Result, alternate, options, save
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from synthetic import PUSHT, TEXTURES, pusht_dataset, texture_dataset

from lerobot_theia.cache.encode import ENCODED_AT_ONCE
from lerobot_theia.cache.frames import CameraFrames
from lerobot_theia.cache.make import BATCHES_AHEAD, decode_threads
from lerobot_theia.cache.pipeline import Ahead
from lerobot_theia.cache.plan import PrecomputeSettings
from lerobot_theia.cache.precompute import precompute
from lerobot_theia.cache.storage import FLOAT_DTYPES
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.encoder.preprocess import preprocess

BATCH_SIZE = 64


@dataclass
class Stopwatch:
    """What some frames took, on the clock and of all cores together."""

    frames: int
    clock: float = field(default_factory=time.perf_counter)
    cores: float = field(default_factory=time.process_time)

    def stop(self) -> Self:
        self.clock = time.perf_counter() - self.clock
        self.cores = time.process_time() - self.cores
        return self

    @property
    def rate(self) -> float:
        return self.frames / self.clock

    @property
    def core_ms(self) -> float:
        """Core time per frame."""
        return 1e3 * self.cores / self.frames


def main() -> None:
    chosen = options(
        __doc__,
        ("--encoder", {"default": "random-tiny"}),
        ("--device", {"default": "cuda" if torch.cuda.is_available() else "cpu"}),
        ("--compute-dtype", {"default": "bfloat16" if torch.cuda.is_available() else "float32"}),
    )
    work, quick = chosen.work, chosen.quick
    textures = {"episodes": 1, "frames": 4} if quick else {"episodes": 2, "frames": 100}
    datasets = {
        "PushT": (PUSHT, pusht_dataset(work, 2 if quick else 4)),
        "2 x 480x640 AV1": (TEXTURES, texture_dataset(work, vcodec="libsvtav1", **textures)),
        "2 x 480x640 H.264": (TEXTURES, texture_dataset(work, vcodec="h264", **textures)),
    }
    if quick:
        datasets.popitem()
    encoder = TheiaEncoder.from_pretrained(
        chosen.encoder, dtype=FLOAT_DTYPES[chosen.compute_dtype], device=chosen.device, translators=False
    )
    encode(encoder, 1)
    arms: dict[str, Arm] = {}
    outcomes: list[Outcome] = []
    for label, (repo_id, root) in datasets.items():
        settings = PrecomputeSettings(
            repo_id=repo_id, root=str(root), encoder=chosen.encoder, device=chosen.device,
            compute_dtype=chosen.compute_dtype, batch_size=BATCH_SIZE, cache_root=str(work / "caches" / "precompute"),
        )  # fmt: skip
        values = alternate(
            {
                "precompute": lambda settings=settings: precompute_rate(settings),
                "encoder alone": lambda: encode(encoder, 1 if quick else 3).rate,
                "decoding alone": lambda where=(repo_id, root): decode(*where, encoder.device).rate,
            },
            repeats=1 if quick else 3,
            warm_up=0,
        )
        arms |= {
            f"{name}, {label}": Arm(what=name, unit="frames/s", values=each) for name, each in values.items()
        }
        whole, encoding, decoding = (arms[f"{name}, {label}"].median for name in values)
        slower = encoding if label == "PushT" else min(encoding, decoding)
        over = "the bare encoder" if label == "PushT" else "the slower of encoder and decoding"
        outcomes.append(
            Outcome(what=f"precompute over {over}, {label}", value=whole / slower, at_least=0.9, row=3)
        )
        if encoder.device.type == "cpu":
            spent = {
                "encoding": encode(encoder, 1 if quick else 3, ENCODED_AT_ONCE).core_ms,
                "decoding": decode(repo_id, root, encoder.device).core_ms,
            }
            arms |= {
                f"core time of {name}, {label}": Arm(what=name, unit="ms/frame", values=[each])
                for name, each in spent.items()
            }
            allowed = 1e3 * len(os.sched_getaffinity(0)) / sum(spent.values())
            outcomes.append(
                Outcome(what=f"precompute over what the cores allow, {label}", value=whole / allowed)
            )
    save(
        Result(
            name="precompute",
            measured="frames/s of precompute over the bare encoder in a loop, and the slower of it and decoding alone",
            settings={
                "encoder": chosen.encoder, "device": chosen.device, "compute_dtype": chosen.compute_dtype,
                "batch_size": BATCH_SIZE, "storage": "float16",
                "frames": {name: frames_of(*where) for name, where in datasets.items()},
            },
            arms=arms,
            outcomes=outcomes,
            quick=quick,
        ),
        chosen.out,
    )  # fmt: skip


def precompute_rate(settings: PrecomputeSettings) -> float:
    """Frames per second from the first frame asked for to the manifest, into an empty folder."""
    shutil.rmtree(Path(settings.cache_root), ignore_errors=True)
    began: list[float] = []
    read = CameraFrames.read

    def timed(self: CameraFrames, start: int, stop: int) -> torch.Tensor:
        began.append(time.perf_counter())
        return read(self, start, stop)

    CameraFrames.read = timed
    try:
        report = precompute(settings, say=lambda _: None)
    finally:
        CameraFrames.read = read
    return report.frames_encoded / (time.perf_counter() - began[0])


def encode(encoder: TheiaEncoder, batches: int, at_once: int = BATCH_SIZE) -> Stopwatch:
    frames = torch.randint(0, 256, (BATCH_SIZE, 3, 224, 224), dtype=torch.uint8)
    pixels = preprocess(frames.to(encoder.device), dtype=encoder.dtype)
    watch = Stopwatch(batches * BATCH_SIZE)
    for _ in range(batches):
        for part in pixels.split(at_once):
            encoder.encode_preprocessed(part)
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    return watch.stop()


def decode(repo_id: str, root: Path, device: torch.device) -> Stopwatch:
    """As precompute decodes: each camera in order, batches ahead, in its threads."""
    dataset = LeRobotDataset(repo_id, root=root, return_uint8=True)
    sources = [CameraFrames(dataset, camera) for camera in dataset.meta.camera_keys]
    total, threads = dataset.meta.total_frames, decode_threads(device)
    parts = [(source, start) for source in sources for start in range(0, total, BATCH_SIZE)]

    def read(part: tuple[CameraFrames, int]) -> None:
        source, start = part
        source.read(start, min(start + BATCH_SIZE, total))

    watch = Stopwatch(total * len(sources))
    with Ahead(read, parts, threads, threads + BATCHES_AHEAD) as batches:
        for _ in batches:
            pass
    return watch.stop()


def frames_of(repo_id: str, root: Path) -> int:
    meta = LeRobotDataset(repo_id, root=root).meta
    return meta.total_frames * len(meta.camera_keys)


if __name__ == "__main__":
    main()
