"""Damage is found, named, and mended shard by shard; nothing is served from a hole."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lerobot_theia.cache import CacheDamagedError, FeatureCache
from tests.cache.helpers import TOP, WRIST, copy_of, digests, identities, run, strays

FIRST, LAST = "000000.safetensors", "000001.safetensors"


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def flip_header_byte(path: Path) -> None:
    data = path.read_bytes()
    at = data.index(b"fingerprint") + 20
    path.write_bytes(data[:at] + (b"0" if data[at : at + 1] != b"0" else b"1") + data[at + 1 :])


def missing(folder: Path) -> None:
    (folder / FIRST).unlink()


def truncated(folder: Path) -> None:
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:-7])


def extended(folder: Path) -> None:
    with (folder / FIRST).open("ab") as file:
        file.write(b"more")


def emptied(folder: Path) -> None:
    (folder / FIRST).write_bytes(b"")


def flipped(folder: Path) -> None:
    flip_last_byte(folder / FIRST)


def header_flipped(folder: Path) -> None:
    flip_header_byte(folder / FIRST)


def of_other_camera(folder: Path) -> None:
    (folder / FIRST).write_bytes((folder.parent / WRIST / FIRST).read_bytes())


def swapped(folder: Path) -> None:
    first, last = (folder / FIRST).read_bytes(), (folder / LAST).read_bytes()
    (folder / FIRST).write_bytes(last)
    (folder / LAST).write_bytes(first)


DAMAGE = [missing, truncated, extended, emptied, flipped, header_flipped, of_other_camera, swapped]


def open_read_verify(path: Path) -> None:
    """What a careful user does; raises at the first sign of damage."""
    cache = FeatureCache.open(path)
    cache.gather(TOP, range(16))
    if problems := cache.verify():
        raise CacheDamagedError("\n".join(problems))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_named_and_only_it_is_mended(
    video_dataset: Path, video_cache: FeatureCache, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    cache = copy_of(video_cache, tmp_path)
    before = identities(cache.path)
    damage(cache.path / TOP)
    with pytest.raises(CacheDamagedError, match=f"{TOP}/{FIRST}"):
        open_read_verify(cache.path)

    report, said = run(video_dataset, tmp_path / "caches")
    touched = 2 if damage is swapped else 1
    assert len(report.problems) == touched and not report.up_to_date
    assert report.frames_encoded == (16 if damage is swapped else 13)
    assert f"mending: shard {cache.path / TOP / FIRST}" in said
    assert digests(cache.path) == digests(video_cache.path)
    after = identities(cache.path)
    assert sum(after[place] != before[place] for place in after) == touched
    assert not strays(cache.path)
    open_read_verify(cache.path)


@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if damage is not flipped])
def test_opening_sees_whatever_does_not_need_a_full_read(
    video_cache: FeatureCache, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    cache = copy_of(video_cache, tmp_path)
    damage(cache.path / TOP)
    with pytest.raises(CacheDamagedError, match=rf"{TOP}/{FIRST}.*verify --repair.*lerobot-theia-precompute"):
        FeatureCache.open(cache.path)


@pytest.mark.parametrize("damage", [header_flipped, of_other_camera, swapped, truncated])
def test_reading_never_serves_a_shard_that_changed_since_the_cache_was_opened(
    video_cache: FeatureCache, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    cache = copy_of(video_cache, tmp_path)
    damage(cache.path / TOP)
    with pytest.raises(CacheDamagedError, match=FIRST):
        cache.gather(TOP, [0])


def test_verify_names_each_damaged_shard_and_only_those(video_cache: FeatureCache, tmp_path: Path) -> None:
    cache = copy_of(video_cache, tmp_path)
    flip_last_byte(cache.path / TOP / LAST)
    (cache.path / WRIST / FIRST).unlink()
    problems = cache.verify()
    assert len(problems) == 2
    assert f"{TOP}/{LAST} was altered: the SHA-256 of its tensors is" in problems[0]
    assert f"{WRIST}/{FIRST} is missing" in problems[1]


def test_a_whole_shard_made_of_other_tokens_is_found_by_the_manifest(
    video_dataset: Path, video_cache: FeatureCache, tmp_path: Path
) -> None:
    """A shard that proves itself, but is not the one this manifest was written for."""
    cache = copy_of(video_cache, tmp_path)
    path = cache.path / TOP / FIRST
    from lerobot_theia.cache.shard import write_shard
    from lerobot_theia.cache.storage import StoredTokens

    key = cache.manifest.shard_key(TOP, 0)
    write_shard(path, key, cache.manifest.layout, StoredTokens(cache.shard(TOP, 0).tensors["tokens"] + 1))
    with pytest.raises(CacheDamagedError, match=f"{FIRST} is not frames 0"):
        FeatureCache.open(cache.path)
    assert len(cache.verify()) == 1
    report, _ = run(video_dataset, tmp_path / "caches")
    assert report.frames_encoded == 13
    assert digests(cache.path) == digests(video_cache.path)


@pytest.mark.parametrize("field", ["repo_id", "revision", "num_frames"])
def test_an_edited_manifest_is_refused_and_made_again_from_the_shards(
    video_dataset: Path, video_cache: FeatureCache, tmp_path: Path, field: str
) -> None:
    cache = copy_of(video_cache, tmp_path)
    manifest = cache.path / "manifest.json"
    body = json.loads(manifest.read_text())
    value = body["identity"]["dataset"][field]
    body["identity"]["dataset"][field] = value + 1 if isinstance(value, int) else value + "x"
    manifest.write_text(json.dumps(body))
    with pytest.raises(CacheDamagedError, match=r"manifest\.json was altered.*checksum"):
        FeatureCache.open(cache.path)

    before = identities(cache.path)
    report, said = run(video_dataset, tmp_path / "caches")
    assert report.frames_encoded == 0 and "mending" in said and "nothing to do" not in said
    assert identities(cache.path) == before
    assert FeatureCache.open(cache.path).manifest.shards == video_cache.manifest.shards


def test_the_manifest_of_another_cache_is_not_taken_for_this_ones(
    video_dataset: Path, video_cache: FeatureCache, tmp_path: Path
) -> None:
    cache = copy_of(video_cache, tmp_path)
    other, _ = run(video_dataset, tmp_path / "other", cameras=(WRIST,), pool=7)
    (cache.path / "manifest.json").write_bytes((other.path / "manifest.json").read_bytes())
    with pytest.raises(CacheDamagedError):
        FeatureCache.open(cache.path)
    report, said = run(video_dataset, tmp_path / "caches")
    assert report.frames_encoded == 0 and "that of another cache" in said
    open_read_verify(cache.path)


def test_headers_alone_are_looked_at_when_verify_is_off(
    video_dataset: Path, video_cache: FeatureCache, tmp_path: Path
) -> None:
    cache = copy_of(video_cache, tmp_path)
    flip_last_byte(cache.path / TOP / FIRST)
    report, said = run(video_dataset, tmp_path / "caches", verify=False)
    assert report.up_to_date and "headers checked" in said
    truncated(cache.path / TOP)
    report, _ = run(video_dataset, tmp_path / "caches", verify=False)
    assert report.frames_encoded == 13
