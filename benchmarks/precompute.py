"""Row 3: frames per second of precompute over the bare encoder in a loop, and over decoding alone.

PushT (small frames: the encoder is all) and two 480x640 cameras in AV1 and H.264 (decoding counts). Precompute is timed
from the first frame it asks for to the manifest.
"""

import shutil
import time
from pathlib import Path

import torch
from common import Arm, Outcome, Result, alternate, options, save
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from synthetic import PUSHT, TEXTURES, pusht_dataset, texture_dataset

from lerobot_theia.cache.frames import CameraFrames
from lerobot_theia.cache.plan import PrecomputeSettings
from lerobot_theia.cache.precompute import precompute
from lerobot_theia.cache.storage import FLOAT_DTYPES
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.encoder.preprocess import preprocess

BATCH_SIZE = 64


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
    encoder_rate(encoder, 1)
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
                "encoder alone": lambda: encoder_rate(encoder, 1 if quick else 3),
                "decoding alone": lambda repo_id=repo_id, root=root: decoding_rate(repo_id, root),
            },
            repeats=1 if quick else 3,
            warm_up=0,
        )
        arms |= {
            f"{name}, {label}": Arm(what=name, unit="frames/s", values=each) for name, each in values.items()
        }
        whole, encode, decode = (arms[f"{name}, {label}"].median for name in values)
        slower = encode if label == "PushT" else min(encode, decode)
        over = "the bare encoder" if label == "PushT" else "the slower of encoder and decoding"
        # On a CPU both want the same cores, and all that a pipeline can gain are the gaps that one leaves.
        shared = 1 / (1 / encode + 1 / decode) / slower
        outcomes += [
            Outcome(what=f"precompute over {over}, {label}", value=whole / slower, at_least=0.9, row=3),
            Outcome(what=f"if their times added up, {label}", value=shared),
        ]
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


def encoder_rate(encoder: TheiaEncoder, batches: int) -> float:
    frames = torch.randint(0, 256, (BATCH_SIZE, 3, 224, 224), dtype=torch.uint8)
    pixels = preprocess(frames.to(encoder.device), dtype=encoder.dtype)
    began = time.perf_counter()
    for _ in range(batches):
        encoder.encode_preprocessed(pixels)
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    return batches * BATCH_SIZE / (time.perf_counter() - began)


def decoding_rate(repo_id: str, root: Path) -> float:
    """As precompute decodes: each camera in order, a batch at a time."""
    dataset = LeRobotDataset(repo_id, root=root, return_uint8=True)
    sources = [CameraFrames(dataset, camera) for camera in dataset.meta.camera_keys]
    total = dataset.meta.total_frames
    began = time.perf_counter()
    for source in sources:
        for start in range(0, total, BATCH_SIZE):
            source.read(start, min(start + BATCH_SIZE, total))
    return total * len(sources) / (time.perf_counter() - began)


def frames_of(repo_id: str, root: Path) -> int:
    meta = LeRobotDataset(repo_id, root=root).meta
    return meta.total_frames * len(meta.camera_keys)


if __name__ == "__main__":
    main()
