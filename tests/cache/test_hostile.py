"""Manifests and shards made by somebody else: whatever they say, the answer is a CacheError or the truth."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lerobot_theia.cache import CacheDamagedError, CacheError, FeatureCache
from lerobot_theia.cache.augment import Augment
from lerobot_theia.cache.manifest import checksum, read_manifest, spelt
from tests.cache.helpers import TOP, copy_of, run

Json = dict[str, Any]


@pytest.fixture(scope="module")
def small(video_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """One camera, one token per frame, one shard: small enough to read whole in every example."""
    root = tmp_path_factory.mktemp("small")
    return FeatureCache.open(run(video_dataset, root, cameras=(TOP,), pool=14)[0].path)


@pytest.fixture
def cache(small: FeatureCache, tmp_path: Path) -> FeatureCache:
    return copy_of(small, tmp_path)


def forge(cache: FeatureCache, edit: Callable[[Json], object]) -> None:
    """Edit the manifest and make its fingerprint and checksum right again, as an attacker would."""
    path = cache.path / "manifest.json"
    body = json.loads(path.read_text())
    edit(body)
    body.pop("checksum", None)
    from lerobot_theia.cache.identity import CacheIdentity

    try:
        body["fingerprint"] = CacheIdentity.from_json(body["identity"]).fingerprint
    except Exception:
        body["fingerprint"] = "none can be made"
    try:
        body["checksum"] = checksum(body)
        path.write_bytes(spelt(body))
    except ValueError:  # NaN and infinity, which neither spells
        path.write_text(json.dumps(body | {"checksum": "none can be made"}))


def read_all(path: Path) -> torch.Tensor:
    cache = FeatureCache.open(path)
    return torch.cat([cache.gather(camera, range(len(cache))) for camera in cache.cameras])


def rename_camera(name: str) -> Callable[[Json], None]:
    def edit(body: Json) -> None:
        for part in (
            body["identity"]["dataset"]["cameras"],
            *(body[key] for key in ("shards", "statistics", "files")),
        ):
            part[name] = part.pop(TOP)

    return edit


def put(*place: Any, value: Any) -> Callable[[Json], None]:
    def edit(body: Json) -> None:
        for key in place[:-1]:
            body = body[key]
        body[place[-1]] = value

    return edit


def both(*edits: Callable[[Json], None]) -> Callable[[Json], None]:
    return lambda body: [edit(body) for edit in edits]  # type: ignore[return-value]


AUGMENT = vars(Augment())
FORGERIES = {
    "camera above": rename_camera(".."),
    "camera elsewhere": rename_camera("../../../etc"),
    "camera absolute": rename_camera("/etc"),
    "camera hidden": rename_camera(".hidden"),
    "camera empty": rename_camera(""),
    "camera with a newline": rename_camera("top\n"),
    "gigantic grid": put("identity", "tokens", "grid", value=10**9),
    "merely big grid": put("identity", "tokens", "grid", value=3000),
    "negative grid": put("identity", "tokens", "grid", value=-1),
    "no channels": both(
        put("identity", "encoder", "hidden_size", value=0),
        put("statistics", TOP, value={"mean": [], "std": []}),
    ),
    "gigantic number of frames": put("identity", "dataset", "num_frames", value=10**18),
    "negative number of frames": both(
        put("identity", "dataset", "num_frames", value=-1), put("shards", TOP, value=[])
    ),
    "no frames": both(put("identity", "dataset", "num_frames", value=0), put("shards", TOP, value=[])),
    "frames as text": put("identity", "dataset", "num_frames", value="16"),
    "frames as truth": put("identity", "dataset", "num_frames", value=True),
    "unknown dtype": put("identity", "tokens", "dtype", value="float128"),
    "unknown field": put("identity", "tokens", "surprise", value=1),
    "no shards": put("shards", TOP, value=[]),
    "no SHA-256 of a shard": put("shards", TOP, value=["../../x"]),
    "a SHA-256 in capitals": put("shards", TOP, value=["A" * 64]),
    "a SHA-256 too many": put("shards", TOP, value=["0" * 64] * 2),
    "zero shard frames": put("shard_frames", value=0),
    "fewer shard frames": put("shard_frames", value=4),
    "NaN statistics": put("statistics", TOP, "mean", value=[float("nan")] * 192),
    "NaN statistics as text": put("statistics", TOP, "mean", value=["nan"] * 192),
    "infinite statistics": put("statistics", TOP, "std", value=[float("inf")] * 192),
    "statistics beyond float": put("statistics", TOP, "std", value=[10**400] * 192),
    "statistics of fewer channels": put("statistics", TOP, "mean", value=[0.0]),
    "statistics as text": put("statistics", TOP, value="none"),
    "identity as list": put("identity", value=[]),
    "cameras as list": put("identity", "dataset", "cameras", value=[TOP]),
    "files of the wrong form": put("files", TOP, value=[["a"]]),
    "encoder missing": put("encoder", value=None),
    "deep nesting": put("made_with", value=json.loads("[" * 900 + "]" * 900)),
    "unknown compute_dtype": put("identity", "tokens", "compute_dtype", value="float99"),
    "integers that no float holds": both(
        put("identity", "dataset", "num_frames", value=10**400), put("shard_frames", value=10**400)
    ),
    "no attention heads": put("identity", "encoder", "num_heads", value=0),
    "attention heads as text": put("identity", "encoder", "num_heads", value="6"),
    "null attention heads": put("identity", "encoder", "num_heads", value=None),
    "attention heads that go without saying": put("identity", "encoder", "num_heads", value=3),
    "null augmentation": put("identity", "augment", value=None),
    "no views": put("identity", "views", value=0),
    "a million views": both(put("identity", "views", value=10**6), put("identity", "augment", value=AUGMENT)),
    "views of which nothing is said": both(put("identity", "views", value=2), put("format_version", value=3)),
    "augmentation without views": put("identity", "augment", value=AUGMENT),
    "augmentation without a seed": both(
        put("identity", "views", value=2),
        put("identity", "augment", value={**AUGMENT, "seed": "x"}),
        put("format_version", value=3),
    ),
    "augmentation beyond its range": both(
        put("identity", "views", value=2),
        put("identity", "augment", value={**AUGMENT, "blur": 1e300}),
        put("format_version", value=3),
    ),
    "views in a version that knew none": both(
        put("identity", "views", value=2), put("identity", "augment", value=AUGMENT)
    ),
    "a frame of gigabytes": both(
        put("identity", "dataset", "num_frames", value=1), put("identity", "tokens", "grid", value=2**14)
    ),
}


@pytest.mark.parametrize("edit", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forged_manifest_is_refused_for_what_it_says(
    cache: FeatureCache, edit: Callable[[Json], None]
) -> None:
    forge(cache, edit)
    with pytest.raises(CacheDamagedError, match=str(cache.path)) as error:
        read_all(cache.path)
    assert "its checksum is" not in str(error.value) and "its text is not" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"manifest"',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"\xff\xfe",
        b'{"format": "lerobot-theia-cache", "format": "lerobot-theia-cache"}',
        b'{"format": "lerobot-theia-cache", "format_version": 2}',
        b'{"format": "lerobot-theia-cache", "format_version": 2, "checksum": NaN}',
        b'{"format": "lerobot-theia-cache", "format_version": 2, "checksum": 1e999}',
        b'{"format": "lerobot-theia-cache", "format_version": 2, "x": ' + b"9" * 5000 + b"}",
        b'{"format": "something else", "format_version": 2}',
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(CacheDamagedError, match=r"manifest\.json"):
        FeatureCache.open(tmp_path)


def test_a_manifest_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(CacheDamagedError):
        FeatureCache.open(tmp_path)


def test_a_gigantic_manifest_is_not_even_read(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(2**40)  # sparse: reading it would end the process
    with pytest.raises(CacheDamagedError, match="larger than the limit"):
        FeatureCache.open(tmp_path)


@pytest.mark.parametrize(
    ("version", "remedy"), [(4, "Upgrade"), (1, "delete this cache"), ("2", "delete this cache")]
)
def test_another_format_version_is_refused_with_the_way_out(
    cache: FeatureCache, version: object, remedy: str
) -> None:
    forge(cache, put("format_version", value=version))
    with pytest.raises(
        CacheError, match=rf"has format_version {version!r}; this plugin reads 2 to 3\..*{remedy}"
    ) as error:
        FeatureCache.open(cache.path)
    assert not isinstance(error.value, CacheDamagedError)


def header_of(path: Path) -> tuple[Json, bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(path: Path, header: bytes, payload: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + payload)


def entry(name: str, **changes: Any) -> Callable[[Json], None]:
    return lambda header: header[name].update(changes)


HEADERS: dict[str, Callable[[Json], object]] = {
    "overlapping tensors": lambda header: header["sum"].update(data_offsets=header["sum_sq"]["data_offsets"]),
    "offsets beyond the file": entry("sum", data_offsets=[2**40, 2**40 + 1536]),
    "negative offsets": entry("sum", data_offsets=[-1536, 0]),
    "offsets as floats": lambda header: header["sum"].update(
        data_offsets=[header["sum"]["data_offsets"][0], float(header["sum"]["data_offsets"][1])]
    ),
    "offsets as text": entry("sum", data_offsets=["0", "1536"]),
    "one offset": entry("sum", data_offsets=[0]),
    "another shape": entry("tokens", shape=[16, 1, 191]),
    "gigantic shape": entry("tokens", shape=[2**62, 2**62, 192]),
    "another type": entry("tokens", dtype="BF16"),
    "tensor missing": lambda header: header.pop("sum"),
    "tensor too many": lambda header: header.update(more=header["sum"]),
    "entry is no object": lambda header: header.update(sum=3),
    "no metadata": lambda header: header.pop("__metadata__"),
    "metadata of another kind": lambda header: header.update(__metadata__={"shard": "[]"}),
    "metadata that is deep": lambda header: header.update(__metadata__={"shard": "[" * 9000}),
}


@pytest.mark.parametrize("edit", HEADERS.values(), ids=HEADERS.keys())
def test_a_forged_shard_is_refused(cache: FeatureCache, edit: Callable[[Json], object]) -> None:
    path = cache.path / TOP / "000000.safetensors"
    size = path.stat().st_size
    header, payload = header_of(path)
    edit(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    room = size - 8 - len(payload)
    rewrite(path, text.ljust(room), payload)  # where it fits, the size stays that of the manifest
    with pytest.raises(CacheDamagedError, match=r"000000\.safetensors"):
        read_all(cache.path)


@pytest.mark.parametrize(
    "header", [b"", b"{", b"[]", b"null", b"[" * 16_000, b"\xff" * 64, b'{"a":1,"a":1}', b" " * 16_384]
)
def test_what_is_no_shard_is_refused(cache: FeatureCache, header: bytes) -> None:
    path = cache.path / TOP / "000000.safetensors"
    rewrite(path, header, header_of(path)[1])
    with pytest.raises(CacheDamagedError):
        read_all(cache.path)


def test_a_header_length_beyond_the_file_is_refused(cache: FeatureCache) -> None:
    path = cache.path / TOP / "000000.safetensors"
    path.write_bytes(path.read_bytes()[:7] + b"\x80" + path.read_bytes()[8:])
    with pytest.raises(CacheDamagedError, match="its header differs from the one expected at byte 7"):
        read_all(cache.path)


EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3)
FEW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def edited(data: bytes, edits: list[tuple[int, int]], within: int) -> bytes:
    changed = bytearray(data)
    for at, value in edits:
        changed[at % within] = value
    return bytes(changed)


@FEW
@given(edits=EDITS)
def test_any_edit_of_the_manifest_is_refused(
    small: FeatureCache, tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]]
) -> None:
    data = (small.path / "manifest.json").read_bytes()
    folder = tmp_path_factory.getbasetemp() / "edited"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(changed := edited(data, edits, len(data)))
    if changed == data:
        assert read_manifest(folder) == small.manifest
    else:
        with pytest.raises(CacheError):
            read_manifest(folder)


@FEW
@given(edits=EDITS)
def test_any_edit_of_a_shards_header_is_refused(
    small: FeatureCache, tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "edited-shard"
    if not folder.exists():
        shutil.copytree(small.path, folder)
    shard = folder / TOP / "000000.safetensors"
    data = (small.path / TOP / "000000.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    shard.write_bytes(changed := edited(data, edits, 8 + length))
    if changed == data:
        assert torch.equal(read_all(folder), read_all(small.path))
    else:
        with pytest.raises(CacheDamagedError):
            read_all(folder)


@pytest.mark.parametrize(
    "respelt",
    [
        lambda text: text.replace(b"e-0", b"E-0", 1),
        lambda text: text + b"\n",
        lambda text: json.dumps(json.loads(text)).encode(),
        lambda text: text.decode().encode("utf-16"),
    ],
)
def test_a_manifest_in_another_spelling_is_refused(
    cache: FeatureCache, respelt: Callable[[bytes], bytes]
) -> None:
    """The same values, but not the text that was written: no changed bit goes unnoticed."""
    forge(cache, put("statistics", TOP, "mean", 0, value=1e-05))
    path = cache.path / "manifest.json"
    FeatureCache.open(cache.path)
    path.write_bytes(respelt(path.read_bytes()))
    with pytest.raises(CacheDamagedError, match=r"manifest\.json was altered: .*its text is not"):
        FeatureCache.open(cache.path)
