"""What readers are fuzzed with: bytes in, "read" or "refused" out, and any other exception is a bug.

manifest     the text of a manifest; fingerprint and checksum are made right first, as a forger would
shard        the file of a shard of a cache whose manifest is known, and of one whose manifest is lost
checkpoint   config.json of an encoder, a zero byte, and the header of its model.safetensors
"""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lerobot_theia.cache import CacheDamagedError, CacheError, FeatureCache
from lerobot_theia.cache.catalog import imprecision
from lerobot_theia.cache.identity import (
    CacheIdentity,
    CameraIdentity,
    DatasetIdentity,
    EncoderIdentity,
    TokenIdentity,
    differences,
)
from lerobot_theia.cache.manifest import (
    MANIFEST_NAME,
    Manifest,
    TokenStatistics,
    checksum,
    read_manifest,
    shard_key,
    shard_layout,
    spelt,
    write_manifest,
)
from lerobot_theia.cache.plan import format_bytes
from lerobot_theia.cache.shard import Shard, check_header, shard_path, verify_shard, write_shard
from lerobot_theia.cache.source import SourceFile
from lerobot_theia.cache.storage import encode_tokens
from lerobot_theia.encoder import PREPROCESSING
from lerobot_theia.encoder.checkpoint import read_checkpoint
from lerobot_theia.encoder.locate import CheckpointFiles
from tests.encoder.published_layout import backbone_shapes, published_config, translator_shapes

CAMERA = "observation.images.top"
NUM_FRAMES, SHARD_FRAMES, CHANNELS = 3, 2, 2
DIM = 64
TEACHERS = {"facebook/dinov2-large": [8, 16, 16], "facebook/sam-vit-huge": [4, 64, 64]}
PAYLOAD_BYTES = 16 * 2**20
"""Zeros that stand for the tensors of a checkpoint; a header that asks for more is one that lies."""

READ, REFUSED = "read", "refused"
Target = Callable[[bytes], str]


def make_cache(folder: Path, dtype: str = "float16") -> FeatureCache:
    """The smallest cache that has all there is: three frames of one token of two channels, two shards."""
    identity = CacheIdentity(
        dataset=DatasetIdentity(
            repo_id="me/arm", revision="v3.0", num_episodes=1, num_frames=NUM_FRAMES,
            cameras={CAMERA: CameraIdentity(kind="video", height=48, width=64, frames="1" * 64, content="2" * 64)},
        ),
        encoder=EncoderIdentity(
            weights_sha256="3" * 64, hidden_size=CHANNELS, num_layers=1, patch_size=16, image_size=224
        ),
        preprocessing=dict(PREPROCESSING),
        tokens=TokenIdentity(grid=1, pool=14, dtype=dtype),
    )  # fmt: skip
    tokens = torch.arange(NUM_FRAMES * CHANNELS, dtype=torch.float32).view(NUM_FRAMES, 1, CHANNELS)
    layout, digests = shard_layout(identity), []
    for shard, part in enumerate(tokens.split(SHARD_FRAMES)):
        key = shard_key(identity, SHARD_FRAMES, CAMERA, shard)
        digests.append(
            write_shard(shard_path(folder, CAMERA, shard), key, layout, encode_tokens(part, dtype))
        )
    manifest = Manifest(
        identity=identity,
        shard_frames=SHARD_FRAMES,
        shards={CAMERA: tuple(digests)},
        statistics={CAMERA: TokenStatistics((2.0, 3.0), (1.5, 1.5))},
        files={CAMERA: (SourceFile("videos/top.mp4", 1234, "4" * 64),)},
        encoder_name="tiny",
        encoder_note="untrained",
        made_with={"created": "2026-01-01T00:00:00+00:00", "versions": {"torch": "2"}},
    )
    write_manifest(folder, manifest)
    return FeatureCache.open(folder)


def seal(text: bytes) -> bytes:
    """A manifest with fingerprint and checksum that fit what it says, where that can be worked out."""
    try:
        body = json.loads(text)
        body.pop("checksum", None)
        if body.get("fingerprint") == "":
            body["fingerprint"] = CacheIdentity.from_json(body["identity"]).fingerprint
        body["checksum"] = checksum(body)
        return spelt(body)
    except Exception:  # no manifest at all; the reader has to say so
        return text


def manifest_target(folder: Path) -> Target:
    """Reads, and does what the commands do with a manifest before they look at shards."""
    cache = make_cache(folder)
    identity = cache.manifest.identity.to_json()
    path = folder / MANIFEST_NAME

    def target(data: bytes) -> str:
        path.write_bytes(seal(data))
        try:
            manifest = read_manifest(folder)
            found = FeatureCache(folder, manifest)
            f"{len(found):,} {found.cameras} {found.token_shape} {format_bytes(manifest.num_bytes)}"
            imprecision(manifest)
            differences(identity, manifest.identity.to_json())
            json.dumps(manifest.made_with)
            problems = found.verify()
            found.check_headers()
        except CacheError:
            return REFUSED
        assert not problems
        for camera in found.cameras:
            assert found.gather(camera, list(range(len(found)))).shape == (len(found), *found.token_shape)
        return READ

    return target


def shard_target(folder: Path) -> Target:
    """A file in the place of shard 0, with the manifest's word for it and without."""
    cache = make_cache(folder)
    path = shard_path(folder, CAMERA, 0)
    whole = path.read_bytes()
    key, layout = cache.manifest.shard_key(CAMERA, 0), cache.manifest.layout

    def target(data: bytes) -> str:
        path.write_bytes(data)
        try:  # as precompute does that finds shards and no manifest
            digest = check_header(path, key, layout, folder)
            Shard(path, key, layout, folder, digest)
            verify_shard(path, key, layout, folder)
        except CacheDamagedError:
            pass
        problems = cache.verify()
        assert bool(problems) == (data != whole), "verify did not see it, or saw what is not there"
        try:
            found = FeatureCache.open(folder).gather(CAMERA, list(range(NUM_FRAMES)))
        except CacheError:
            return REFUSED
        assert found.shape == (NUM_FRAMES, 1, CHANNELS)
        return READ

    return target


def checkpoint_target(folder: Path) -> Target:
    """The two files of an encoder; the errors of its reader are ValueErrors."""
    files = CheckpointFiles(
        name="stranger", config=folder / "config.json", weights=folder / "model.safetensors"
    )
    folder.mkdir(parents=True, exist_ok=True)

    def target(data: bytes) -> str:
        config, _, header = data.partition(b"\0")
        files.config.write_bytes(config)
        with files.weights.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + payload_bytes(header))
        try:
            checkpoint = read_checkpoint(files)
        except ValueError:
            return REFUSED
        assert all(tensor.isfinite().all() for tensor in checkpoint.tensors.values())
        return READ

    return target


def payload_bytes(header: bytes) -> int:
    """As many as the header's tensors reach, within reason."""
    try:
        ends = [entry["data_offsets"][1] for entry in json.loads(header).values() if "data_offsets" in entry]
        return max(0, min(int(max(ends, default=0)), PAYLOAD_BYTES))
    except Exception:
        return 64


def checkpoint_seed(translator: bool = False) -> bytes:
    """A checkpoint that loads."""
    shapes = backbone_shapes(DIM, num_layers=1) | (translator_shapes(DIM, TEACHERS) if translator else {})
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    config = published_config("tiny", "cdiv", target_feature_sizes=TEACHERS)
    return json.dumps(config).encode() + b"\0" + json.dumps(header).encode()


def manifest_seed(folder: Path) -> bytes:
    """A manifest as `manifest_target` wants it: its fingerprint to be worked out."""
    body = json.loads((make_cache(folder).path / MANIFEST_NAME).read_text())
    del body["checksum"]
    return json.dumps(body | {"fingerprint": ""}).encode()


TARGETS: dict[str, Callable[[Path], Target]] = {
    "manifest": manifest_target,
    "shard": shard_target,
    "checkpoint": checkpoint_target,
}


def make_target(name: str) -> Target:
    """In memory where there is some: a fuzzer writes thousands of files a second."""
    memory = Path("/dev/shm")
    where = str(memory) if memory.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="theia-fuzz-", dir=where))
    target = TARGETS[name](folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return target
