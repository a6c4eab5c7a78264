"""Write the seeds: a whole input per target and dtype, and one of each kind of forgery.

python -m tests.faults.fuzz.make_seeds
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.faults.fuzz.targets import CAMERA, checkpoint_seed, make_cache, manifest_seed, shard_path

SEEDS = Path(__file__).with_name("seeds")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        seeds = {
            "manifest": manifest_seeds(Path(folder)),
            "shard": shard_seeds(Path(folder)),
            "checkpoint": checkpoint_seeds(),
        }
    for target, inputs in seeds.items():
        (SEEDS / target).mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (SEEDS / target / name).write_bytes(data)


def manifest_seeds(folder: Path) -> dict[str, bytes]:
    whole = manifest_seed(folder / "a")
    seeds = {
        "whole": whole,
        "int8": manifest_seed_of(folder / "b", "int8"),
        "float32": manifest_seed_of(folder / "c", "float32"),
    }

    def forged(name: str, *place: Any, value: Any) -> None:
        body = json.loads(whole)
        node = body
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        seeds[name] = json.dumps(body).encode()

    forged("gigantic-grid", "identity", "tokens", "grid", value=2**40)
    forged("gigantic-number-of-frames", "identity", "dataset", "num_frames", value=2**52)
    forged("negative-channels", "identity", "encoder", "hidden_size", value=-2)
    forged("unknown-compute-dtype", "identity", "tokens", "compute_dtype", value="float99")
    forged("integer-beyond-float", "shard_frames", value=10**400)
    forged("camera-above", "shards", value={"..": ["0" * 64] * 2})
    forged("deep", "made_with", value=json.loads("[" * 500 + "]" * 500))
    forged("newer", "format_version", value=99)
    seeds["nan"] = whole.replace(b"2.0", b"NaN")
    seeds["beyond-float"] = whole.replace(b"2.0", b"1e999")
    seeds["key-twice"] = whole.replace(b'"shard_frames"', b'"shard_frames": 1, "shard_frames"')
    return seeds


def manifest_seed_of(folder: Path, dtype: str) -> bytes:
    body = json.loads((make_cache(folder, dtype).path / "manifest.json").read_text())
    del body["checksum"]
    return json.dumps(body | {"fingerprint": ""}).encode()


def shard_seeds(folder: Path) -> dict[str, bytes]:
    cache = make_cache(folder / "shards").path
    whole, second = (shard_path(cache, CAMERA, shard).read_bytes() for shard in (0, 1))
    header = whole.index(b"sum_sq")
    return {
        "whole": whole,
        "second": second,
        "cut": whole[:-1],
        "header-only": whole[:64],
        "long": whole + b"\0",
        "gigantic-header": b"\xff" * 8 + whole[8:],
        "overlapping": whole[:header] + whole[header:].replace(b"[16,32]", b"[0,16] ", 1),
        "no-digest": whole.replace(b'sha256\\":\\"', b'sha256\\":\\"x', 1)[: len(whole)],
        "empty": b"",
    }


def checkpoint_seeds() -> dict[str, bytes]:
    backbone, heads = checkpoint_seed(), checkpoint_seed(translator=True)
    return {
        "backbone": backbone,
        "heads": heads,
        "gigantic-shape": backbone.replace(b"[64, 3, 16, 16]", b"[4611686018427387904, 3, 16, 16]"),
        "negative-shape": backbone.replace(b"[64, 3, 16, 16]", b"[-64, 3, 16, 16]"),
        "overlapping": backbone.replace(b'"data_offsets": [256, ', b'"data_offsets": [0, '),
        "teacher-above": heads.replace(b"facebook/sam-vit-huge", b"../../sam.vit.huge"),
        "deep-config": b"[" * 1000,
        "nothing": b"\0",
    }


if __name__ == "__main__":
    main()
