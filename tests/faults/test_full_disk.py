"""No space, no quota, a size limit, a disk that fails: one clear error, nothing half-written, and the run resumes."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from lerobot_theia.cache.claim import CLAIM_PREFIX
from lerobot_theia.cache.precompute import precompute
from tests.faults import children, places
from tests.faults.children import Outcome, Tell
from tests.faults.injection import Fault
from tests.faults.trials import every_fault, in_turns, new_root
from tests.faults.workshop import Job, Whole, made, run, temporaries

pytestmark = pytest.mark.faults

ERRORS = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EIO")


def check_refused(outcome: Outcome, root: Path, code: str) -> None:
    """One error that names the file and the way out, and no leftovers."""
    assert outcome.error.startswith("CannotWriteError: cannot write /"), outcome
    assert os.strerror(getattr(errno, code)) in outcome.error
    assert "cache_root=" in outcome.error and "the same command resumes" in outcome.error
    assert not temporaries(root)
    assert not list(root.rglob(f"{CLAIM_PREFIX}*"))


def fail_at(whole: Whole, fault: Fault) -> None:
    """The disk fails from a step on; then there is a disk again."""
    with new_root() as root:
        check_refused(run(whole.job, root, fault), root, fault.effect)
        complete = whole.check_interrupted(root)
        whole.check_resumed(root, made(run(whole.job, root)).report, complete)


def step(whole: Whole, words: str) -> int:
    """Number of the step that is `<kind> ...<end of the file's name>`."""
    kind, name = words.split()
    [found] = [n for n, each in enumerate(whole.steps) if each.startswith(f"{kind} ") and each.endswith(name)]
    return found


@pytest.mark.parametrize("code", ERRORS)
def test_the_error_is_clear_and_the_run_resumes(small: Whole, code: str) -> None:
    fail_at(small, Fault(step(small, "sync 000000.safetensors"), "before", code))


@pytest.mark.parametrize("kind", ["claim", "write", "rename"])
def test_so_it_is_with_the_last_file(small: Whole, kind: str) -> None:
    fail_at(
        small, Fault(step(small, f"{kind} manifest{'' if kind == 'claim' else '.json'}"), "before", "ENOSPC")
    )


@pytest.mark.parametrize("where", ["halfway", "after"])
def test_a_write_that_fails_amid_its_bytes_leaves_none(small: Whole, where: str) -> None:
    first = next(
        n for n, each in enumerate(small.steps) if each.endswith("000000.safetensors") and "write" in each
    )
    fail_at(small, Fault(first, where, "ENOSPC"))


def test_a_rename_that_is_reported_as_failed_but_was_made_is_no_harm(small: Whole) -> None:
    """As network file systems do when an answer is lost."""
    fail_at(small, Fault(step(small, "rename 000000.safetensors"), "after", "EIO"))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
def test_at_every_step(small: Whole, code: str) -> None:
    faults = [each for each in every_fault(small, code) if not small.steps[each.step].startswith("release")]
    in_turns(lambda fault: fail_at(small, fault), faults)


def with_file_size_limit(tell: Tell, job: Job, root: Path) -> list[str]:
    """For children: what is said with a limit that no shard fits under, and without."""
    places.file_size_limit(300_000)
    said = []
    try:
        precompute(job.settings(root))
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
    left = [str(path) for path in temporaries(root)]
    places.no_file_size_limit()
    precompute(job.settings(root), say=said.append)
    return [*said, *left]


def test_a_file_size_limit(small: Whole, tmp_path: Path) -> None:
    outcome = children.run(with_file_size_limit, small.job, tmp_path)
    assert outcome.value, outcome.details
    check_refused(Outcome(1, error=outcome.value[0]), tmp_path, "EFBIG")
    assert outcome.value[-1].startswith("4 frames encoded")
    assert len(small.complete(tmp_path)) == 1


def on_small_disk(tell: Tell, job: Job, root: Path) -> dict[str, object] | None:
    """For children: precompute on a disk that a neighbour fills, then on one with room. None if it cannot be set up."""
    if not places.may_mount():
        return None
    places.small_disk(root, 2**21)  # room for two of the six shards
    free = shutil.disk_usage
    shutil.disk_usage = lambda path: SimpleNamespace(free=2**40)  # type: ignore[assignment, misc]
    said: list[str] = []
    try:
        precompute(job.settings(root))
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
    shutil.disk_usage = free
    left = {"shards": len(list(root.rglob("0*.safetensors"))), "temporaries": len(temporaries(root))}
    places.mount("none", root, "tmpfs", places.MS_REMOUNT, "size=64m")
    report = precompute(job.settings(root))
    return left | {"error": said[0], "kept": report.frames_kept, "encoded": report.frames_encoded}


def test_a_disk_that_is_full(whole: Whole, tmp_path: Path) -> None:
    outcome = children.run(on_small_disk, whole.job, tmp_path)
    if outcome.status == 0 and outcome.value is None:
        pytest.skip("this user may not mount a file system")
    found = outcome.value
    assert found, outcome.details
    check_refused(Outcome(1, error=found["error"]), tmp_path, "ENOSPC")
    assert found["temporaries"] == 0
    assert found["shards"] == 2 and found["kept"] == 12
    assert found["kept"] + found["encoded"] == whole.frames


def test_too_little_space_is_said_before_any_work(small: Whole, tmp_path: Path) -> None:
    outcome = children.run(without_space, small.job, tmp_path)
    assert outcome.value.startswith("CacheError: the cache needs"), outcome
    assert not list(tmp_path.rglob("*.safetensors"))


def without_space(tell: Tell, job: Job, root: Path) -> str:
    shutil.disk_usage = lambda path: SimpleNamespace(free=1000)  # type: ignore[assignment, misc]
    try:
        precompute(job.settings(root))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"
