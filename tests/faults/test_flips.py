"""A bit that turns by itself: opening finds it in manifest and headers, verify finds it anywhere, repair mends it."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from lerobot_theia.cache import FeatureCache
from tests.cache.helpers import identities
from tests.faults import children
from tests.faults.children import Outcome
from tests.faults.flips import PARTS, Flip, found_by_opening, found_by_verify, random_flips
from tests.faults.fuzz.targets import make_cache
from tests.faults.workshop import TOP, Whole, made, repair, run

pytestmark = pytest.mark.faults

FLIPS = 1000


def check_flips(cache: Path, count: int) -> None:
    """Turn one bit after the other, and back."""
    noticed: Counter[str] = Counter()
    for flip in random_flips(cache, count, seed=0):
        flip(cache)
        assert found_by_verify(cache), flip
        assert found_by_opening(cache) == (flip.part != "tensors"), flip
        flip(cache)
        noticed[flip.part] += 1
    assert noticed.total() == count and set(noticed) == set(PARTS)
    assert not found_by_verify(cache)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_thousand_flips_in_a_tiny_cache(tmp_path: Path, dtype: str) -> None:
    check_flips(make_cache(tmp_path, dtype).path, FLIPS)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_thousand_flips_in_a_cache_of_real_tokens(whole: Whole, tmp_path: Path) -> None:
    check_flips(whole.at(shutil.copytree(whole.root, tmp_path / "copy")), FLIPS)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    cache = make_cache(tmp_path).path
    size = (cache / "manifest.json").stat().st_size
    for bit in range(8 * size):
        flip = Flip("manifest.json", bit, "manifest")
        flip(cache)
        assert found_by_opening(cache), flip
        flip(cache)
    assert not found_by_opening(cache)


def check_repaired(outcome: Outcome) -> None:
    assert outcome.value == "0", outcome.value or outcome.details


def test_repair_makes_just_the_damaged_shards_again(whole: Whole, tmp_path: Path) -> None:
    copy = whole.at(shutil.copytree(whole.root, tmp_path / "copy"))
    before = identities(copy)
    damaged = {
        flip.place for flip in random_flips(copy, 12, seed=3) if flip.part != "manifest" and not flip(copy)
    }
    assert 1 < len(damaged) < len(before)
    check_repaired(children.run(repair, whole.job, copy))
    after = identities(copy)
    assert {place for place in after if after[place] != before[place]} == damaged
    assert whole.complete(tmp_path / "copy").keys() == before.keys()  # byte by byte
    assert FeatureCache.open(copy).verify() == []


@pytest.mark.parametrize("damage", ["missing", "cut", "swapped"])
def test_repair_of_shards_that_are_not_what_they_should_be(whole: Whole, tmp_path: Path, damage: str) -> None:
    copy = whole.at(shutil.copytree(whole.root, tmp_path / "copy"))
    first, second = copy / TOP / "000000.safetensors", copy / TOP / "000001.safetensors"
    if damage == "missing":
        first.unlink()
    elif damage == "cut":
        first.write_bytes(first.read_bytes()[:-1])
    else:
        first.rename(copy / "x")
        second.rename(first)
        (copy / "x").rename(second)
    assert found_by_opening(copy) and found_by_verify(copy)
    check_repaired(children.run(repair, whole.job, copy))
    assert len(whole.complete(tmp_path / "copy")) == 6
    assert FeatureCache.open(copy).verify() == []


def test_a_manifest_with_a_turned_bit_is_made_again_from_the_shards(whole: Whole, tmp_path: Path) -> None:
    copy = whole.at(shutil.copytree(whole.root, tmp_path / "copy"))
    Flip("manifest.json", 4321, "manifest")(copy)
    before = identities(copy)
    again = made(run(whole.job, tmp_path / "copy")).report
    assert again.frames_encoded == 0 and identities(copy) == before
    whole.check_resumed(tmp_path / "copy", again, whole.complete(whole.root))
