"""Shared by the faults' tests: jobs and whole caches, each made once and then only read."""

import pytest

from tests.faults.workshop import WRIST, Job, Whole, make_job


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """16 frames, two cameras: three shards each."""
    return make_job(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def whole(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The cache of `job`, never interrupted."""
    return Whole(job, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def small_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Four frames, one camera, one shard, one batch: the fewest steps there are."""
    return make_job(tmp_path_factory.mktemp("small"), episodes=(4,), cameras=(WRIST,))


@pytest.fixture(scope="session")
def small(small_job: Job, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(small_job, tmp_path_factory.mktemp("small-whole"))
